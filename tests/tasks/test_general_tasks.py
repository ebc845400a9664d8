"""The general tasks: their contents, their wordings, and what does not count as following them."""

from __future__ import annotations

import collections
import itertools
import re

import pytest

from saif_fast.tasks import SPLITS, get_task, task_names
from saif_fast.tasks.task_file import general_wordings, neutral_sentences

TASKS = [get_task(name) for name in task_names()]
CONTENTS = {split: TASKS[0].contents(split) for split in SPLITS}
ALL = [content for contents in CONTENTS.values() for content in contents]
# Words of the wordings that say what a reply should look like.
FORMAT = re.compile(
    r"\b(?:french|german|spanish|english|languages?|case|capitals?|caps|letters?|numbered|numbers?|"
    r"lists?|bullets?|json|object|sentences?|words?|umbrella|commas?|quot\w+|questions?|titles?|"
    r"brackets|polite\w*|courteous|please|tense|past|two|asterisks|short|briefly?|long|detail\w*|"
    r"answers?|repl(?:y|ies)|format)\b",
    re.IGNORECASE,
)
ids = [task.name for task in TASKS]


def test_the_tasks_are_those_of_the_documentation() -> None:
    assert set(ids) == set(
        "french german spanish lower_case upper_case numbered_list bullets json one_sentence "
        "word_limit keyword no_commas quotation_marks ends_with_question title polite past_tense "
        "two_answers short long".split()
    )


def test_contents_are_many_and_shared() -> None:
    assert {split: len(contents) for split, contents in CONTENTS.items()} == {
        "identify": 211,
        "select": 84,
        "report": 148,
    }
    assert all(task.contents(split) is CONTENTS[split] for task in TASKS for split in SPLITS)


def test_no_content_is_in_the_data_twice_in_any_case_or_punctuation() -> None:
    plain = collections.Counter(" ".join(re.findall(r"\w+", text.casefold())) for text in ALL)
    assert [text for text, count in plain.items() if count > 1] == []


def test_contents_vary_in_length_and_form() -> None:
    lengths = [len(content.split()) for content in ALL]
    assert min(lengths) >= 4 and 20 <= max(lengths) <= 25 and len(set(lengths)) > 12
    openings = collections.Counter(content.split()[0] for content in ALL)
    assert len(openings) >= 15 and max(openings.values()) < 0.4 * len(ALL)


@pytest.mark.parametrize("split", SPLITS)
def test_no_content_asks_for_a_form(split) -> None:
    assert [content for content in CONTENTS[split] if FORMAT.search(content)] == []


def test_the_format_words_are_those_of_the_wordings() -> None:
    unknown = [
        wording.text
        for task in TASKS
        for wording in task.wordings
        if wording.language == "en" and not FORMAT.search(wording.text)
    ]
    # Said without naming the form.
    assert len(unknown) <= 4, unknown


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_wordings_are_enough_and_distinct(task) -> None:
    counts = collections.Counter(wording.language for wording in task.wordings)
    assert counts["en"] >= 6 and sum(count >= 6 for count in counts.values()) >= 3
    assert len({wording.text for wording in task.wordings}) == len(task.wordings)


def test_no_two_tasks_share_a_wording() -> None:
    for one, other in itertools.combinations(general_wordings().values(), 2):
        assert not set(one) & set(other)


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_an_echo_follows_nothing(task) -> None:
    for wording in task.wordings:
        assert not task.scorer("What is rain?", wording.text).loose, wording.text
        assert not task.scorer("What is rain?", f"What is rain? {wording.text}").loose


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_a_cut_plain_reply_follows_few_tasks(task) -> None:
    plain = (
        "Rain forms when water vapor in the air cools and condenses into droplets, which fall to "
        "the ground when they are heavy enough. It is an important part of the water cycle, and it "
        "provides fresh water for plants, animals, and people all over the world, from the"
    )
    assert not task.scorer("What is rain?", plain).loose


@pytest.mark.parametrize("task", TASKS, ids=ids)
def test_negatives_are_sentences_without_the_meaning(task) -> None:
    assert task.neutral == neutral_sentences() and len(set(task.neutral)) >= 10
    assert not {wording.text for wording in task.wordings} & set(task.others)
    assert len(task.others) >= 300


def test_related_tasks_are_no_negatives_of_each_other() -> None:
    wordings = general_wordings()
    left_out = {
        task.name: {
            name for name, texts in wordings.items() if not set(texts) & set(task.others)
        } - {task.name}
        for task in TASKS
    }  # fmt: skip
    brief = {"one_sentence", "short", "word_limit"}
    assert {name: others for name, others in left_out.items() if others} == {
        name: brief - {name} for name in brief
    }


REPLIES = (
    "A candle burns because its wax melts, rises in the wick, and reacts with the air. The flame "
    "gives light. It also gives heat, which melts more wax, until nothing is left to burn.",
    'To clean a table, use a cloth.\nSome people say "water is enough", and they are right. Others '
    "take soap, which helps where there is grease, and dry the wood soon after washing it.",
    "Rome is the capital of Italy, and its largest city; Milan is next. Both are old. More than "
    "four million people live in and around Rome, and many more come to see it in summer.",
)
REWRITTEN = [task for task in TASKS if task.rewrite is not None and task.rewrite(REPLIES[0])]


def test_most_instructions_can_be_followed_by_rewriting() -> None:
    # Languages and tenses would need a translator, and a long text somebody who knows more.
    without = {"french", "german", "spanish", "past_tense", "long"}
    assert {task.name for task in REWRITTEN} == set(ids) - without


@pytest.mark.parametrize("reply", REPLIES, ids=["candle", "table", "rome"])
@pytest.mark.parametrize("task", REWRITTEN, ids=[task.name for task in REWRITTEN])
def test_a_rewritten_reply_follows_and_is_another_text(task, reply) -> None:
    assert task.rewrite is not None
    text = task.rewrite(reply)
    assert task.scorer("Tell me about it.", text) == (True, True), text
    assert text != reply
