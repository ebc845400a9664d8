"""Random requests over sets that come and go, and which of their tokens are to be steered."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saif_fast.latent_set import LatentSet
from saif_fast.request import check_combination

STRENGTHS = (1.0, 1.0, 0.5, 0.3, -0.4)
SCOPES = ("generated", "generated", "generated", "prompt", "all")
DECAYS = (None, None, 0.2, "0.5,1")
N_HEADS = 6
N_NAMES = 10


@dataclass(frozen=True)
class RandomRequests:
    """Requests as ``stream.py`` takes them.

    Attributes:
        rng: decides everything.
        text: token ids that prompts are cut from.
        head: most tokens that prompts share.
        tail: most tokens of a prompt behind what it shares.
        max_tokens: most tokens that are generated.
        max_sets: most sets in a request.
    """

    rng: random.Random
    text: Sequence[int]
    head: int = 100
    tail: int = 40
    max_tokens: int = 24
    max_sets: int = 3

    def draw(self, sets: Mapping[str, LatentSet]) -> dict[str, Any]:
        """Draw a request for some of ``sets``, those there are now."""
        rng = self.rng
        prompt, max_tokens = self._prompt(), rng.randint(1, self.max_tokens)
        return {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "extra_args": None if rng.random() < 0.15 else self._steering(sets, max_tokens),
            "n": rng.choice((1, 1, 1, 1, 2, 3)),
            "priority": rng.randrange(3),
        }

    def _prompt(self) -> list[int]:
        rng, text = self.rng, self.text
        begin = 7 * rng.randrange(N_HEADS)
        head = text[begin : begin + rng.choice((0, self.head // 3, self.head))]
        begin = rng.randrange(len(text) - self.tail)
        return [*head, *text[begin : begin + rng.randint(2, self.tail)]]

    def _steering(self, sets: Mapping[str, LatentSet], max_tokens: int) -> dict[str, Any]:
        rng = self.rng
        chosen = self._combination(sets)
        asked: dict[str, Any] = {
            "saif": " + ".join(f"{name}*{rng.choice(STRENGTHS)}" for name in chosen)
        }
        scope = rng.choice(SCOPES)
        if scope == "prompt" and all(sets[x].layers[0] == sets[x].num_layers - 1 for x in chosen):
            scope = "all"  # or it would be refused: no text would show it
        if scope != "generated":
            asked["saif_scope"] = scope
        if scope != "prompt":
            if rng.random() < 0.3:
                asked["saif_start"] = rng.randrange(8) % max_tokens  # or it would be refused
            if rng.random() < 0.3:
                # "all" up to 1 is "prompt".
                asked["saif_stop"] = asked.get("saif_start", 0) + rng.randint(2, 12)
            if (decay := rng.choice(DECAYS)) is not None:
                asked["saif_decay"] = decay
        return asked

    def _combination(self, sets: Mapping[str, LatentSet]) -> list[str]:
        while True:
            wanted = self.rng.choice((1, 1, self.rng.randint(1, min(self.max_sets, len(sets)))))
            chosen = self.rng.sample(sorted(sets), wanted)
            try:
                check_combination({name: sets[name] for name in chosen})
            except ValueError:
                continue
            return chosen


def set_names(request: Mapping[str, Any]) -> list[str]:
    """Return the names of sets in a request of :class:`RandomRequests`."""
    asked = request["extra_args"]
    return [] if asked is None else [term.split("*")[0] for term in asked["saif"].split(" + ")]


def is_steered(request: Mapping[str, Any], position: int) -> bool:
    """Return whether the request's window holds this position: its definition, once more."""
    asked = request["extra_args"] or {}
    scope, generated = asked.get("saif_scope", "generated"), position - len(request["prompt"]) + 1
    if scope == "prompt":
        return generated <= 0
    if generated < 0:
        return bool(scope == "all")
    return bool(asked.get("saif_start", 0) <= generated < asked.get("saif_stop", math.inf))


def random_events(
    seed: int, n_requests: int, text: Sequence[int], sets: Mapping[str, LatentSet]
) -> list[dict[str, Any]]:
    """Draw what happens at which step: requests, aborts, changes of the set directory.

    A request carries ``contents``: which of ``sets`` each name in it stands for as it comes in.
    """
    rng = random.Random(seed)
    requests = RandomRequests(rng, text)
    base, changing = rng.sample(sorted(sets), N_NAMES), [f"changing_{i}" for i in range(4)]
    there: dict[str, str] = {name: name for name in base}
    events: list[dict[str, Any]] = []
    step = 0

    def change(name: str, content: str | None) -> None:
        events.append({"step": step, "sets": {name: content}})
        there.pop(name, None)
        if content is not None:
            there[name] = content

    for name in changing:
        change(name, rng.choice(sorted(sets)))
    for i in range(n_requests):
        step += rng.choice((0, 0, 1, 3, 8, 12))
        if rng.random() < 0.2:
            name = rng.choice(changing)
            gone = name in there and rng.random() < 0.3
            change(name, None if gone else rng.choice(sorted(sets)))
        offered = {name: sets[content] for name, content in there.items()}
        # Often for one of the names that change: there are few of them.
        few = {name: offered[name] for name in changing if name in offered}
        request = requests.draw(few if few and rng.random() < 0.4 else offered)
        request["contents"] = {name: there[name] for name in set_names(request)}
        events.append({"step": step, "request": request})
        if rng.random() < 0.12:
            events.append({"step": step + rng.randrange(60), "abort": i})
    return sorted(events, key=lambda event: event["step"])
