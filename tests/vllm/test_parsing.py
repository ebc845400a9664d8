"""Requests that parse, and those that are refused because they would not do what they ask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from offered import catalog, vector

from saif_kernels import Window
from saif_vllm.catalog import SetCatalog
from saif_vllm.parsing import check_scope, parse_extra_args


@pytest.fixture(scope="module")
def offered(set_dir: Path) -> SetCatalog:
    return catalog(set_dir)


def check(
    offered: SetCatalog, prompt_logprobs: bool, max_tokens: int | None = None, **asked: Any
) -> None:
    parsed = parse_extra_args(asked, offered)
    assert parsed is not None
    check_scope(parsed, prompt_logprobs, max_tokens)


@pytest.mark.parametrize("saif", ["add_last", "add_middle"])
def test_a_prompt_that_is_not_steered_has_no_logprobs(saif: str, offered: SetCatalog) -> None:
    for options in ({}, {"saif_scope": "generated"}, {"saif_start": 2}):
        with pytest.raises(ValueError, match="they would be the unsteered model's"):
            check(offered, True, saif=saif, **options)
        check(offered, False, saif=saif, **options)
    for scope in ("prompt", "all"):
        check(offered, True, saif=saif, saif_scope=scope)


@pytest.mark.parametrize(
    ("saif", "shows"),
    [
        ("add_last", False),
        ("add_last + vector_last", False),
        ("add_last + add_middle", True),
        ("both", True),
    ],
)
def test_a_prompt_steered_at_the_last_layer_only_must_show(
    saif: str, shows: bool, offered: SetCatalog
) -> None:
    if shows:
        check(offered, False, saif=saif, saif_scope="prompt")
    else:
        with pytest.raises(ValueError, match="nothing but the first token"):
            check(offered, False, saif=saif, saif_scope="prompt")
    check(offered, True, saif=saif, saif_scope="prompt")
    check(offered, False, saif=saif, saif_scope="all")


@pytest.mark.parametrize("options", [{}, {"saif_decay": 0.5}, {"saif_start": 0}], ids=str)
def test_all_up_to_the_last_prompt_token_is_what_prompt_is(
    options: dict[str, Any], offered: SetCatalog
) -> None:
    asked = {"saif_scope": "all", "saif_stop": 1, **options}
    check(offered, False, saif="add_middle", **asked)
    check(offered, True, saif="add_last", **asked)
    with pytest.raises(ValueError, match=r"saif_scope: .* got 'all' up to saif_stop 1, which"):
        check(offered, False, saif="add_last", **asked)


def test_a_message_says_which_scope_was_given(offered: SetCatalog) -> None:
    with pytest.raises(ValueError, match=r"saif_scope: .* got 'prompt', which"):
        check(offered, False, saif="add_last", saif_scope="prompt")


@pytest.mark.parametrize("saif", ["add_last", "add_middle"])
def test_a_generation_that_ends_before_its_window_is_refused(
    saif: str, offered: SetCatalog
) -> None:
    check(offered, False, 5, saif=saif, saif_start=4)
    check(offered, False, None, saif=saif, saif_start=5)
    with pytest.raises(ValueError, match=r"saif_start: .* \(max_tokens\), 5, got 5"):
        check(offered, False, 5, saif=saif, saif_start=5)


def test_a_prompt_that_is_steered_may_be_all_that_is(offered: SetCatalog) -> None:
    asked = {"saif_scope": "all", "saif_start": 5}
    check(offered, False, 5, saif="add_middle", **asked)
    check(offered, True, 5, saif="add_last", **asked)
    with pytest.raises(ValueError, match="saif_start"):
        check(offered, False, 5, saif="add_last", **asked)


def test_sets_that_never_fit_together_are_refused(set_dir: Path) -> None:
    asked = {"saif": "clamp_last + vector_last"}
    with pytest.raises(ValueError, match="max_sets: expected at most 1 sets, got 2"):
        parse_extra_args(asked, catalog(set_dir, max_sets=1))
    with pytest.raises(ValueError, match="max_latents: expected at most 8 live latents at layer 2"):
        parse_extra_args({"saif": "add_gated_last + project_last"}, catalog(set_dir, max_latents=8))


@pytest.mark.parametrize("value", [4, -1, "1", 1.0, True])
def test_a_row_that_is_not_there_is_refused(value: object, tmp_path: Path) -> None:
    offered = catalog(tmp_path, max_captures=4)
    asked = parse_extra_args({"saif_capture": 3}, offered)
    assert asked is not None and asked.capture == 3 and not asked.sets
    with pytest.raises(ValueError, match="saif_capture: expected an integer from 0 to 3"):
        parse_extra_args({"saif_capture": value}, offered)


def test_a_set_brings_its_window_to_a_request_that_says_none(tmp_path: Path) -> None:
    replace(vector(1.0), defaults={"saif_scope": "all", "saif_stop": 4}).save(
        tmp_path / "a.safetensors"
    )
    vector(2.0).save(tmp_path / "b.safetensors")
    offered = catalog(tmp_path)

    def window(**asked: Any) -> Window:
        parsed = parse_extra_args(asked, offered)
        assert parsed is not None
        return parsed.window

    assert window(saif="a*2") == Window(prompt=True, stop=4)
    assert window(saif="a", saif_scope="generated") == Window() == window(saif="b")
    with pytest.raises(ValueError, match="'a' saif_scope=all saif_stop=4 and 'b' saif_scope=gen"):
        window(saif="a + b")
