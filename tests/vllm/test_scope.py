from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from offered import catalog

from saif_vllm.catalog import SetCatalog
from saif_vllm.request import parse
from saif_vllm.scope import check_scope


@pytest.fixture(scope="module")
def offered(set_dir: Path) -> SetCatalog:
    return catalog(set_dir)


def check(offered: SetCatalog, prompt_logprobs: bool, **asked: Any) -> None:
    parsed = parse(asked, offered)
    assert parsed is not None
    check_scope(parsed, prompt_logprobs)


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
