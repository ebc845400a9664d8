"""The embedded model's tasks, their splits and wordings."""

from __future__ import annotations

import collections
import itertools

import pytest

from saif_fast.tasks import SPLITS, Score
from saif_fast.tasks.embedded import embedded_task, embedded_task_names
from saif_fast.tasks.embedded.corpus import FORMATS, parse
from saif_fast.tasks.embedded.wordings import NEUTRAL, WORDINGS


def test_every_format_of_the_corpus_is_a_task() -> None:
    assert set(embedded_task_names()) == set(FORMATS) == set(WORDINGS)
    assert all(embedded_task(name).name == name for name in embedded_task_names())


def test_splits_are_disjoint_in_scenes_not_only_in_words() -> None:
    task = embedded_task("french")
    keys = [{parse(content).key for content in task.contents(split)} for split in SPLITS]
    assert [len(split) for split in keys] == [220, 60, 200]
    assert all(not a & b for a, b in itertools.combinations(keys, 2))


def test_select_and_report_are_held_out_of_training() -> None:
    task = embedded_task("french")
    assert all(parse(content).held_out for content in task.select + task.report)
    assert not any(parse(content).held_out for content in task.identify)


@pytest.mark.parametrize("name", embedded_task_names())
def test_wordings_languages(name: str) -> None:
    wordings = embedded_task(name).wordings
    assert collections.Counter(wording.language for wording in wordings) == {
        "en": 9,
        "fr": 2,
        "de": 1,
        "zh": 1,
    }
    assert sum(not wording.trained for wording in wordings) == 2
    assert len({wording.text for wording in wordings}) == 13


@pytest.mark.parametrize("name", embedded_task_names())
def test_scorer_accepts_its_target_and_no_other_format(name: str) -> None:
    task = embedded_task(name)
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
    task = embedded_task(name)
    assert task.scorer(task.report[0], reply) == Score(False, True)


def test_negatives_have_neutral_sentences_and_the_other_instructions() -> None:
    task = embedded_task("json")
    own = {wording.text for wording in task.wordings}
    assert task.neutral == NEUTRAL
    assert len(task.others) == 13 * (len(embedded_task_names()) - 1)
    assert not own & set(task.others)


def test_parse_inverts_content_and_refuses_others() -> None:
    for content in embedded_task("french").report:
        assert parse(content).content == content
    with pytest.raises(ValueError, match="expected a sentence of the embedded corpus"):
        parse("Tell me about my black cat in the moon.")
