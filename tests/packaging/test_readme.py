from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import saif_vllm

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
(QUICKSTART,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_quickstart_is_at_most_eight_lines() -> None:
    assert len([line for line in QUICKSTART.splitlines() if line.strip()]) <= 8


def test_the_quickstart_calls_engine_args_as_it_is() -> None:
    calls = [node for node in ast.walk(ast.parse(QUICKSTART)) if isinstance(node, ast.Call)]
    (call,) = (c for c in calls if ast.unparse(c.func) == "saif_vllm.engine_args")
    values = [ast.literal_eval(value) for value in call.args]
    named = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg is not None}
    inspect.signature(saif_vllm.engine_args).bind(*values, **named)


def test_every_make_target_the_documents_name_exists() -> None:
    text = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text += (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    named = set(re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)`", text, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert {a or b for a, b in named} <= targets


def test_links_to_files_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
