"""What is read of an instruction: the model's own replies, and rewritten ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from random_model import tiny_model, tiny_sae, tiny_tokenizer
from shouter import TASK

from saif_fast.evaluate.subject import Subject
from saif_fast.identify import pairs_of
from saif_fast.runtime import Generation, GenerationRequest
from saif_fast.search.gather import gather
from saif_fast.search.journal import Journal
from saif_fast.search.race import Track
from saif_fast.tasks import Score, Task, render

TOKENIZER = tiny_tokenizer()


def encoded(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


class Parrot:
    """Replies ``w5 w6 w7 w8`` to the instruction, where it follows, and ``w1 w2 w3 w4`` else."""

    def __init__(self, follows: bool) -> None:
        self.follows = follows

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        texts = [
            "w5 w6 w7 w8" if self.follows and "w30" in each.prompt else "w1 w2 w3 w4"
            for each in requests
        ]
        return [Generation(text, encoded(text)) for text in texts]


def task(rewrites: bool) -> Task:
    return dataclasses.replace(
        TASK,
        wordings=tuple(dataclasses.replace(TASK.wordings[0], text=t) for t in ("w30", "w30 w31")),
        identify=tuple(f"w{i} w{i + 1}" for i in range(10, 20)),
        select=("w20", "w21", "w22"),
        report=("w23",),
        scorer=lambda content, reply: Score("w5" in reply, "w5" in reply),
        rewrite=(lambda reply: reply.replace("w1", "w5")) if rewrites else None,
    )


@pytest.mark.parametrize(
    ("follows", "rewrites", "read"),
    [
        (True, True, ["last", "reply", "rewritten"]),
        (True, False, ["last", "reply"]),
        (False, True, ["last", "rewritten"]),  # its replies tell nothing of the instruction
        (False, False, ["last", "reply"]),  # better than nothing
    ],
)
def test_replies_that_follow_are_read(
    follows: bool, rewrites: bool, read: list[str], track: Track
) -> None:
    subject = Subject(tiny_model(), TOKENIZER, tiny_sae(1), chat=False)
    chosen = task(rewrites)
    pairs = pairs_of(chosen, max_pairs=12)
    on = dataclasses.replace(track, runtime=Parrot(follows), prompter=render)  # type: ignore[arg-type]
    evidence = gather(chosen, subject, on, pairs, Journal(None, {}))
    assert list(evidence.readings) == read
    first = evidence.readings["last"]
    for name, found in evidence.readings.items():
        assert found.reading == name and found.plain is first.plain
        # The last token of a reply yields none that was read.
        each = 1 if name == "last" else len(encoded("w1 w2 w3 w4")) - 1
        assert found.positive[1].shape[0] == each * len(pairs.pairs)
    if follows or rewrites:
        wanted = evidence.wanted
        assert wanted[encoded("w5")[0]] > 0 > wanted[encoded("w1")[0]]
    else:
        assert torch.all(evidence.wanted == 0)
