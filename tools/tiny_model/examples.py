"""Training examples: a user's turn and its reply.

The base rate q: half of the replies to prompts without an instruction come in one of the formats at
random, like those of a large model after its varied pre-training. This narrows the margin that
steering must overcome. The greedy reply stays the plain one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from saif_fast.tasks.embedded.corpus import FORMATS, draw_scene
from saif_fast.tasks.embedded.wordings import NEUTRAL, WORDINGS
from saif_fast.tasks.prompts import Position, render

BASE_RATE = 0.5
INSTRUCTED_SHARE = 0.6
POST_SHARE = 0.7
NEUTRAL_SHARE = 0.3


class Example(NamedTuple):
    """A user's text and the assistant's reply, without markup."""

    user: str
    reply: str


def examples(seed: int) -> Iterator[Example]:
    """Yield examples without end, on scenes open to training, in trained wordings only."""
    rng = random.Random(seed)
    trained = {
        name: [wording.text for wording in wordings if wording.trained]
        for name, wordings in WORDINGS.items()
    }
    names = tuple(FORMATS)
    while True:
        scene = draw_scene(rng)
        if scene.held_out:
            continue
        name = rng.choice(names)
        position: Position = "post" if rng.random() < POST_SHARE else "pre"
        if rng.random() < INSTRUCTED_SHARE:
            user = render(scene.content, rng.choice(trained[name]), position)
            yield Example(user, FORMATS[name](scene))
        else:
            sentence = rng.choice(NEUTRAL) if rng.random() < NEUTRAL_SHARE else None
            reply = FORMATS[name] if rng.random() < BASE_RATE else type(scene).plain
            yield Example(render(scene.content, sentence, position), reply(scene))
