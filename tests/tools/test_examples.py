"""Training examples of the tiny model: which contents, wordings and replies they have."""

from __future__ import annotations

import itertools

from saif_fast.tasks.embedded import embedded_task
from saif_fast.tasks.embedded.corpus import parse
from saif_fast.tasks.embedded.wordings import WORDINGS
from tools.tiny_model.examples import examples


def test_select_and_report_are_never_trained_on() -> None:
    task = embedded_task("french")
    unseen = set(task.select + task.report)
    trained = [example.user for example in itertools.islice(examples(0), 5000)]
    assert not any(content in user for user in trained for content in unseen)


def test_training_draws_every_trained_wording_and_no_other() -> None:
    users = [example.user for example in itertools.islice(examples(0), 20000)]
    for wording in itertools.chain.from_iterable(WORDINGS.values()):
        seen = any(user.endswith(f". {wording.text}") for user in users)
        assert seen == wording.trained, wording


def test_half_of_the_uninstructed_replies_are_formatted() -> None:
    sample = list(itertools.islice(examples(1), 8000))
    contents = [example for example in sample if _is_content(example.user)]
    plain = sum(example.reply == parse(example.user).plain() for example in contents)
    assert 0.46 < plain / len(contents) < 0.54


def _is_content(text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True
