"""docs/vllm.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKS = re.findall(r"\[`([\w.]+)`\]\(\.\./(tests/[\w./]+)\)", (ROOT / "docs/vllm.md").read_text())


@pytest.mark.parametrize(("name", "path"), sorted(set(LINKS)))
def test_a_named_test_exists(name: str, path: str) -> None:
    if name.endswith(".py"):
        assert name == Path(path).name
        assert (ROOT / path).exists()
    else:
        assert f"def {name}(" in (ROOT / path).read_text()


def test_links_were_found() -> None:
    assert len(LINKS) > 20
