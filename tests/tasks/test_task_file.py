"""A user's own task as a file: what it means, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from saif_fast.tasks import Score, get_task
from saif_fast.tasks.task_file import general_wordings

OWN = """
wordings:
  en: [Sign as a pirate., "End with: arr"]
  nl: [Praat als een piraat.]
verifier: {kind: contains, texts: [arr]}
max_tokens: 12
related: [polite]
contents: {identify: a.txt, select: sub/b.txt, report: c.txt}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("Who was Drake?\n\n What is rum? \n")
    (tmp_path / "sub" / "b.txt").write_text("What is a ship?\n")
    (tmp_path / "c.txt").write_text("What is a parrot?\n")
    path = tmp_path / "pirate.yaml"
    path.write_text(OWN)
    return path


def test_every_field_reaches_the_task(own: Path) -> None:
    task = get_task(str(own))
    assert (task.name, task.max_tokens) == ("pirate", 12)
    assert [(w.language, w.text) for w in task.wordings] == [
        ("en", "Sign as a pirate."),
        ("en", "End with: arr"),
        ("nl", "Praat als een piraat."),
    ]
    assert task.identify == ("Who was Drake?", "What is rum?")
    assert (task.select, task.report) == (("What is a ship?",), ("What is a parrot?",))
    assert task.scorer("What is rum?", "Arr, a drink.") == Score(True, True)
    assert not set(general_wordings()["polite"]) & set(task.others)
    assert set(general_wordings()["short"]) <= set(task.others)


def test_an_example_comes_before_the_verifiers_own_rule(own: Path) -> None:
    rewrite = get_task(str(own)).rewrite
    assert rewrite is not None and rewrite("Rum.") is None  # no rule for words that must occur
    own.write_text(OWN + 'example: "Arr! {reply} Ahoy!"\n')
    rewrite = get_task(str(own)).rewrite
    assert rewrite is not None and rewrite("Use {this}.") == "Arr! Use {this}. Ahoy!"


def test_contents_and_tokens_have_defaults(own: Path) -> None:
    own.write_text("wordings: {en: [Sign.]}\nverifier: {kind: matches, pattern: arr}\n")
    task, general = get_task(str(own)), get_task("french")
    assert (task.identify, task.max_tokens) == (general.identify, 64)


def test_a_general_task_of_the_same_meaning_is_no_negative(own: Path) -> None:
    own.write_text(
        "wordings: {en: [Answer in French.]}\nverifier: {kind: language, language: fr}\n"
    )
    assert not set(general_wordings()["french"]) & set(get_task(str(own)).others)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("max_tokens", "max_token", "unknown field `max_token`"),
        ("kind: contains", "kind: container", "Invalid value 'container' - at `$.verifier.kind`"),
        ("kind: contains, ", "", "missing required field `kind` - at `$.verifier`"),
        ("verifier: {kind: contains, texts: [arr]}\n", "", "missing required field `verifier`"),
        ("texts: [arr]", "texts: [arr], text: b", "unknown field `text` - at `$.verifier`"),
        ("texts: [arr]", "texts: []", "length >= 1 - at `$.verifier.texts`"),
        ("kind: contains, texts: [arr]", "kind: language, language: tlh", "got 'tlh'"),
        ("kind: contains, texts: [arr]", "kind: matches, pattern: (", "a regular expression"),
        ("max_tokens: 12", "max_tokens: 0", "`int` >= 1 - at `$.max_tokens`"),
        ("related: [polite]", "related: [rude]", "related: expected general tasks"),
        ("select: sub/b.txt", "select: a.txt", "'Who was Drake?' in identify and in select"),
        ("select: sub/b.txt", "select: empty.txt", "expected contents to select, got none"),
        ("wordings:", "wordings: {}\nwording:", "unknown field `wording`"),
        ("en: [", "en: [[", "pirate.yaml"),
    ],
)  # fmt: skip
def test_what_is_ill_formed_is_one_sentence_with_the_path(
    own: Path, old: str, new: str, says: str
) -> None:
    (own.parent / "empty.txt").touch()
    assert old in OWN
    own.write_text(OWN.replace(old, new))
    with pytest.raises(ValueError) as error:
        get_task(str(own))
    message = str(error.value)
    assert message.startswith(f"{own}: ") and says in message and "\n" not in message


def test_missing_files_are_named(own: Path) -> None:
    (own.parent / "c.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"c\.txt"):
        get_task(str(own))
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        get_task(str(own.with_name("none.yaml")))
