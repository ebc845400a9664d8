from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from saif_fast.identify import ContrastPair, ContrastPairs, build_pairs, load_pairs
from saif_fast.tasks import render

CONTENTS = tuple(f"Tell me about thing {i}." for i in range(12))
WORDINGS = ("Answer in French.", "Réponds en français.")
NEUTRAL = ("Thank you.", "Take your time.")
OTHERS = ("Answer in German.", "Use JSON.")


def test_every_content_with_every_wording_once() -> None:
    pairs = build_pairs(CONTENTS, WORDINGS, max_pairs=None)
    assert Counter(pair.positive for pair in pairs.pairs) == Counter(
        render(content, wording) for content in CONTENTS for wording in WORDINGS
    )
    assert {pair.group for pair in pairs.pairs} == set(WORDINGS)
    assert (pairs.wordings, pairs.position, pairs.seed) == (WORDINGS, "post", 0)


@pytest.mark.parametrize("position, found", [("post", 24), ("pre", 24), ("both", 48)])
def test_positions(position: str, found: int) -> None:
    pairs = build_pairs(CONTENTS, WORDINGS, position=position, max_pairs=None)  # type: ignore[arg-type]
    assert len({pair.positive for pair in pairs.pairs}) == found
    for pair in pairs.pairs:
        before, after = pair.positive.startswith(pair.group), pair.positive.endswith(pair.group)
        assert before != after
        assert position == "both" or before == (position == "pre")


def test_negatives_are_of_every_kind_and_share_the_content_and_position() -> None:
    pairs = build_pairs(
        CONTENTS, WORDINGS, position="both", neutral=NEUTRAL, others=OTHERS, max_pairs=None
    )
    kinds: Counter[str] = Counter()
    for pair in pairs.pairs:
        position = "pre" if pair.positive.startswith(pair.group) else "post"
        (content,) = (c for c in CONTENTS if c in pair.positive)
        for name, sentences in (("plain", (None,)), ("neutral", NEUTRAL), ("other", OTHERS)):
            if pair.negative in {render(content, s, position) for s in sentences}:  # type: ignore[arg-type]
                kinds[name] += 1
    assert kinds == {"plain": 16, "neutral": 16, "other": 16}


def test_the_draw_is_the_seeds() -> None:
    drawn = [build_pairs(CONTENTS, WORDINGS, max_pairs=8, seed=seed) for seed in (3, 3, 4)]
    assert drawn[0] == drawn[1] and drawn[0].data_hash == drawn[1].data_hash
    assert drawn[0].data_hash != drawn[2].data_hash
    assert len(drawn[0].pairs) == 8


@pytest.mark.filterwarnings("ignore:pairs. only one wording")
def test_the_hash_is_of_every_field() -> None:
    pairs = [ContrastPair(*fields) for fields in ("png", "xng", "pxg", "pnx")]
    assert len({ContrastPairs((pair,)).data_hash for pair in pairs}) == 4


def test_one_wording_warns_where_it_was_asked_for() -> None:
    with pytest.warns(UserWarning, match="only one wording") as caught:
        build_pairs(CONTENTS, WORDINGS[:1])
    assert Path(caught[0].filename).name == Path(__file__).name


@pytest.mark.parametrize("contents, wordings", [((), WORDINGS), (CONTENTS, ())])
def test_no_pairs_is_an_error(contents: tuple[str, ...], wordings: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at least one, got none"):
        build_pairs(contents, wordings)


def test_an_unknown_position_is_an_error() -> None:
    with pytest.raises(ValueError, match="'post', 'pre' or 'both', got 'middle'"):
        build_pairs(CONTENTS, WORDINGS, position="middle")  # type: ignore[arg-type]


def test_a_file_of_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        '{"positive": "a fr", "negative": "a", "group": "en"}\n\n'
        '{"positive": "b 用", "negative": "b", "group": "zh"}\n{"positive":"c","negative":"d"}\n',
        encoding="utf-8",
    )
    pairs = load_pairs(path)
    assert pairs.pairs == (
        ContrastPair("a fr", "a", "en"),
        ContrastPair("b 用", "b", "zh"),
        ContrastPair("c", "d"),
    )
    assert pairs.wordings == ("en", "zh")


BAD_LINES = {
    "not json": (b"nonsense", ":3: .*malformed"),
    "missing field": (b'{"positive": "a"}', ":3: .*negative"),
    "wrong type": (b'{"positive": "a", "negative": 3}', r":3: .*\$\.negative"),
    "unknown field": (b'{"positive": "a", "negative": "b", "gruop": "c"}', ":3: .*gruop"),
    "equal sides": (b'{"positive": "a", "negative": "a"}', ":3: .*two different prompts"),
    "not utf-8": (b'{"positive": "\xff", "negative": "a"}', ":3: "),
}


@pytest.mark.parametrize("line, message", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"positive": "a", "negative": "b"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"pairs\.jsonl{message}"):
        load_pairs(path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"pairs\.jsonl: expected at least one pair"):
        load_pairs(path)
