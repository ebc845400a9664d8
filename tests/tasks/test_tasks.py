"""Tasks by name, whosever they are, and what a task refuses."""

from __future__ import annotations

import dataclasses

import pytest

from saif_fast.tasks import Score, Task, Wording, get_task, render


def always(content: str, reply: str) -> Score:
    return Score(True, True)


OWN = Task(
    name="own",
    wordings=(Wording("en", "Be brief."),),
    scorer=always,
    identify=("a",),
    select=("b",),
    report=("c",),
)


def test_render() -> None:
    assert render("Content.", "Instruction.") == "Content. Instruction."
    assert render("Content.", "Instruction.", "pre") == "Instruction. Content."
    assert render("Content.") == "Content."
    with pytest.raises(ValueError, match="position: expected 'post' or 'pre', got 'both'"):
        render("Content.", "Instruction.", "both")  # type: ignore[arg-type]


def test_own_task_by_module_and_attribute(monkeypatch: pytest.MonkeyPatch) -> None:
    import math

    monkeypatch.setattr(math, "own_task", OWN, raising=False)
    assert get_task("math:own_task") is OWN
    assert OWN.contents("select") == ("b",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("klingon", "expected one of bullets, .*, got 'klingon'"),
        ("no_such_module:task", "No module named"),
        ("math:no_task", "no attribute"),
        ("math:pi", "expected a Task at 'math:pi', got float"),
    ],
)
def test_unknown_tasks_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_task(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"report": ("a",)}, "expected disjoint contents, got 'a' in identify and in report"),
        ({"select": ("b", "b")}, "expected disjoint contents, got 'b' in select and in select"),
        ({"select": ()}, "expected contents to select, got none"),
        ({"wordings": ()}, "expected at least one wording"),
    ],
)
def test_ill_formed_tasks_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OWN, **change)  # type: ignore[arg-type]


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split: expected one of identify, select, report"):
        OWN.contents("train")  # type: ignore[arg-type]
