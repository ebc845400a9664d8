"""Built-in tasks, their splits and wordings, and the user's own."""

from __future__ import annotations

import collections
import dataclasses
import itertools

import pytest

from saif_fast.tasks import SPLITS, Score, Task, Wording, get_task, render, task_names
from saif_fast.tasks.corpus import FORMATS, parse
from saif_fast.tasks.wordings import NEUTRAL, WORDINGS


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


def test_every_format_of_the_corpus_is_a_task() -> None:
    assert set(task_names()) == set(FORMATS) == set(WORDINGS)
    assert all(get_task(name).name == name for name in task_names())


def test_splits_are_disjoint_in_scenes_not_only_in_words() -> None:
    task = get_task("french")
    keys = [{parse(content).key for content in task.contents(split)} for split in SPLITS]
    assert [len(split) for split in keys] == [220, 60, 200]
    assert all(not a & b for a, b in itertools.combinations(keys, 2))


def test_select_and_report_are_held_out_of_training() -> None:
    task = get_task("french")
    assert all(parse(content).held_out for content in task.select + task.report)
    assert not any(parse(content).held_out for content in task.identify)


@pytest.mark.parametrize("name", task_names())
def test_wordings_languages(name: str) -> None:
    wordings = get_task(name).wordings
    assert collections.Counter(wording.language for wording in wordings) == {
        "en": 9,
        "fr": 2,
        "de": 1,
        "zh": 1,
    }
    assert sum(not wording.trained for wording in wordings) == 2
    assert len({wording.text for wording in wordings}) == 13


@pytest.mark.parametrize("name", task_names())
def test_scorer_accepts_its_target_and_no_other_format(name: str) -> None:
    task = get_task(name)
    for content in task.report[:50]:
        scene = parse(content)
        for other, reply in FORMATS.items():
            expected = Score(other == name, other == name)
            assert task.scorer(content, f" {reply(scene)}\n") == expected, (other, content)
        assert task.scorer(content, scene.plain()) == Score(False, False)


@pytest.mark.parametrize(
    ("name", "reply"),
    [
        ("french", "Le chat noir court dans le jardin."),
        ("german", "Der Hund bellt in dem Garten."),
        ("upper_case", "THE THE THE THE"),
        ("json", '{"answer": "A dog."}'),
        ("one_word", "Garden."),
        ("keyword", "Honestly, honestly, my cat sleeps."),
        ("twice", "My cat sleeps. My cat sleeps."),
        ("past", "My cat slept."),
    ],
)
def test_the_right_form_with_other_words_is_loose(name: str, reply: str) -> None:
    task = get_task(name)
    assert task.scorer(task.report[0], reply) == Score(False, True)


def test_negatives_have_neutral_sentences_and_the_other_instructions() -> None:
    task = get_task("json")
    own = {wording.text for wording in task.wordings}
    assert task.neutral == NEUTRAL
    assert len(task.others) == 13 * (len(task_names()) - 1)
    assert not own & set(task.others)


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
        ("klingon", "expected one of french, .*, got 'klingon'"),
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


def test_parse_inverts_content_and_refuses_others() -> None:
    for content in get_task("french").report:
        assert parse(content).content == content
    with pytest.raises(ValueError, match="expected a sentence of the embedded corpus"):
        parse("Tell me about my black cat in the moon.")
