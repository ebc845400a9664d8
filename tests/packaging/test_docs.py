"""docs/vllm.md names a test that exists for each thing that it calls supported or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/vllm.md").read_text()
LINK = re.compile(r"\[`([\w.]+)`\]\(\.\./(tests/[\w./]+)\)")
LINKS = LINK.findall(TEXT)
CLAIMS = re.findall(r"^\|.*\| (?:supported|refused).*\|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("name", "path"), sorted(set(LINKS)))
def test_a_named_test_exists(name: str, path: str) -> None:
    if name.endswith(".py"):
        assert name == Path(path).name
        assert (ROOT / path).exists()
    else:
        assert f"def {name}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("row", CLAIMS, ids=lambda row: row.split("|")[1].strip())
def test_a_claim_has_a_test(row: str) -> None:
    assert LINK.search(row)


def test_links_and_claims_were_found() -> None:
    assert len(LINKS) > 20
    assert len(CLAIMS) > 20
