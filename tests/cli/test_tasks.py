from __future__ import annotations

from pathlib import Path

import pytest
from one_sentence import sentence

from saif_fast.cli.loading import task_for
from saif_fast.tasks import get_task, task_names
from saif_fast.tasks.embedded import embedded_task, embedded_task_names


def test_the_list_has_every_general_task_with_its_numbers(saif) -> None:
    result = saif("tasks")
    assert result.exit_code == 0, result.stderr
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:6]]
        for line in result.stdout.splitlines()
        if len(cells := line.split("│")) == 7
    }
    assert set(rows) == set(task_names())
    assert rows["french"] == ["Answer in French.", "language language=fr", "19", "443"]


def test_one_task_is_shown_with_all_its_wordings(saif) -> None:
    lines = saif("tasks", "numbered_list").stdout.splitlines()
    assert lines[:2] == ["task: numbered_list", "verifier: numbered_list"]
    assert "not all the same. A cut list is a list." in lines[3]
    assert "contents: 211 to identify, 84 to select, 148 to report" in lines
    wordings = {f"  {wording.text}" for wording in get_task("numbered_list").wordings}
    assert wordings <= set(lines)


def test_the_embedded_models_tasks_are_its_own(saif) -> None:
    listed = saif("tasks", "--model", "embedded").stdout
    assert all(name in listed for name in embedded_task_names()) and "bullets" not in listed
    shown = saif("tasks", "one_word", "--model", "embedded").stdout
    assert shown.startswith("task: one_word\nverifier: ExactTarget\n")


def test_a_users_file_is_shown(saif, tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("wordings: {en: [Sign.]}\nverifier: {kind: judge, base_url: u, model: m}\n")
    shown = saif("tasks", path).stdout
    assert shown.startswith("task: own\nverifier: judge base_url=u model=m\nAnother model says")


@pytest.mark.parametrize(
    ("model", "name", "found"),
    [
        ("embedded", "french", embedded_task("french")),
        ("embedded", "embedded:french", embedded_task("french")),
        ("own/model", "french", get_task("french")),
        ("own/model", "embedded:french", embedded_task("french")),
    ],
)
def test_a_plain_name_is_the_models(model: str, name: str, found) -> None:
    assert task_for(model, name) is found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bulets",), "task: expected one of bullets"),
        (("one_word",), "task: expected one for model any, bullets"),
        (("bullets", "--model", "embedded"), "expected one for model embedded, french"),
        (("embedded:bullets",), "expected one of the embedded model's, french"),
        (("missing.yaml",), "missing.yaml"),
    ],
)
def test_a_task_that_is_not_there_is_one_sentence(saif, arguments, says: str) -> None:
    assert says in sentence(saif("tasks", *arguments))
