"""The verdict on a task in plain words: what steering is worth beside prompt and logit bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from saif_fast.evaluate.document import TaskResults
from saif_fast.evaluate.intervals import difference
from saif_fast.evaluate.results import ResultRow

Kind = Literal["good", "even", "bad"]
_BIASES, _CHANCE = ("logit_bias",), ("random", "noise")
_OTHERS = ("unsteered", "prompted", *_BIASES, *_CHANCE)  # what is no steering by what was found


@dataclass(frozen=True)
class Verdict:
    """A judgement of a task's results.

    Attributes:
        kind: ``good`` where steering is worth its cost, ``even`` where something else may do as
            well, ``bad`` where something else does better or nothing works.
        headline: the judgement, one sentence.
        sentences: the numbers behind it.
        best: the steering method that it is about; None if there is none.
    """

    kind: Kind
    headline: str
    sentences: tuple[str, ...]
    best: str | None

    def __str__(self) -> str:
        return " ".join([self.headline, *self.sentences])


def success(row: ResultRow) -> float:
    """Return the share by which methods are compared.

    It is that of replies which follow and are sound; of those which follow, where soundness was not
    asked.
    """
    return row.strict if row.both is None else row.both


def best_of(rows: Mapping[str, ResultRow], methods: Iterable[str]) -> str | None:
    """Return the best of some methods: most successes, then score, then replies that follow."""
    return max(
        methods,
        key=lambda method: (success(rows[method]), rows[method].score or 0, rows[method].strict),
        default=None,
    )


def steering(rows: Mapping[str, ResultRow]) -> list[str]:
    """List the methods that steer by what was found: no prompt, no logit bias, no chance."""
    return [method for method in rows if not _is(method, _OTHERS)]


def judge(task: TaskResults) -> Verdict:
    """Judge a task's results.

    Two methods differ where Newcombe's 95 % interval of the difference of their successes leaves
    out 0.

    Examples:
        >>> judge(document.tasks["french"]).headline
        'Steering reaches the prompt.'
    """
    rows = task.rows
    best = best_of(rows, steering(rows))
    prompt = rows.get("prompted")
    asked = [] if prompt is None else [f"Prompted: {counts(prompt)}."]
    fresh = (
        []
        if task.contents == "report"
        else ["These are the contents that the candidates were chosen on: expect less on others."]
    )
    if best is None:
        return Verdict("bad", "No steering was tried.", (*asked, *fresh), None)
    own = rows[best]
    told = [f"Best is {named(best, own)}: {counts(own, intervals=True)}.", *asked]
    if own.strict == 0:
        headline = "No steering makes the model follow."
        return Verdict("bad", headline, (*told, *fresh), best)
    if success(own) == 0:
        if prompt is not None and prompt.strict and success(prompt) == 0:
            told.append("Nor is any of the prompt's: soundness may not fit what is asked here.")
        headline = "No steered reply both follows and is sound."
        return Verdict("bad", headline, (*told, *fresh), best)
    if "unsteered" in rows and _compared(own, rows["unsteered"]) != "better":
        plain = f"Unsteered: {counts(rows['unsteered'])}."
        headline = "Steering does not clearly do more than nothing."
        return Verdict("bad", headline, (*told, plain, *fresh), best)
    kind, headline = _beside_prompt(own, prompt)
    if prompt is not None and (own.strict < prompt.strict) != (success(own) < success(prompt)):
        leader = "steering" if own.strict > prompt.strict else "the prompt"
        told.append(f"By following alone, {leader} is ahead.")
    bias = best_of(rows, [method for method in rows if _is(method, _BIASES)])
    if bias is not None:
        relation = _compared(own, rows[bias])
        does = "does" if success(rows[bias]) >= success(own) else "may do"
        told.append(f"A logit bias {_BIAS[relation].format(does=does)}: {counts(rows[bias])}.")
        kind = {"better": kind, "even": _worse(kind, "even"), "worse": "bad"}[relation]
        headline = "A logit bias does better." if relation == "worse" else headline
    chance = best_of(rows, [method for method in rows if _is(method, _CHANCE)])
    if chance is not None:
        relation = _compared(own, rows[chance])
        told.append(f"{_RANDOM[relation]}: {counts(rows[chance])}.")
        if relation != "better":
            kind, headline = "bad", "Steering does not clearly do more than chance."
    return Verdict(kind, headline, (*told, *fresh), best)


_Relation = Literal["better", "even", "worse"]
_BIAS: Mapping[_Relation, str] = {
    "better": "does less",
    "even": "{does} as well, and costs nothing",
    "worse": "does better, and costs nothing",
}
_RANDOM: Mapping[_Relation, str] = {
    "better": "Random latents or noise, searched alike, do less",
    "even": "Random latents or noise, searched alike, may do as well",
    "worse": "Random latents or noise, searched alike, do better",
}


def _beside_prompt(own: ResultRow, prompt: ResultRow | None) -> tuple[Kind, str]:
    if prompt is None:
        return "good", "Steering makes the model follow."
    match _compared(own, prompt):
        case "better":
            return "good", "Steering beats the prompt."
        case "worse":
            return "bad", "The prompt does better."
    if success(own) >= success(prompt):
        return "good", "Steering reaches the prompt."
    return "even", "The prompt does a little better, but that may be chance."


def _worse(one: Kind, other: Kind) -> Kind:
    order: tuple[Kind, ...] = ("good", "even", "bad")
    return max(one, other, key=order.index)


def _compared(one: ResultRow, other: ResultRow) -> _Relation:
    """Tell whether one row has clearly more successes than another, or clearly fewer."""
    low, high = difference((one.count(success(one)), one.n), (other.count(success(other)), other.n))
    if low > 0:
        return "better"
    return "worse" if high < 0 else "even"


def _is(method: str, kinds: Iterable[str]) -> bool:
    return any(method == kind or method.startswith(f"{kind}_") for kind in kinds)


def named(method: str, row: ResultRow) -> str:
    """Return the method's name, with its layer where it has one."""
    layer = row.parameters.get("layer")
    return method if layer is None else f"{method} at layer {layer}"


def counts(row: ResultRow, *, intervals: bool = False) -> str:
    """Return how many replies follow, are sound, and are both, such as ``31/100 follow``."""

    def told(share: float) -> str:
        return portion(row, share) if intervals else f"{row.count(share)}/{row.n}"

    follow = f"{told(row.strict)} follow"
    if row.quality is None or row.both is None:
        return follow
    return f"{follow}, {row.count(row.quality)}/{row.n} are sound, {told(row.both)} both"


def portion(row: ResultRow, share: float) -> str:
    """Return a share as counts with its interval, such as ``31/100 (23–41 %)``."""
    low, high = row.interval(share)
    return f"{row.count(share)}/{row.n} ({100 * low:.0f}–{100 * high:.0f} %)"
