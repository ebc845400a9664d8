"""A set that a search found, with the search in its provenance, and the words that tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec

from saif_fast.latent_set import LatentSet
from saif_fast.search.race import ROUNDS, Round, Standing, reply_tokens
from saif_fast.tasks import Task


def found_set(
    standing: Standing,
    task: Task,
    standings: Sequence[Standing],
    *,
    rounds: Sequence[Round] = ROUNDS,
    seed: int = 0,
) -> LatentSet:
    """Return the set of a standing, whose provenance says how it was found and what it did.

    Args:
        standing: one whose candidate is a set.
        task: the task.
        standings: all of the search, the prompted model's among them.
        rounds: the search's.
        seed: the search's.

    Examples:
        >>> standings = search(task, subject, track)
        >>> best = next(each for each in standings if each.candidate.latent_set is not None)
        >>> found_set(best, task, standings).save("sets/french.safetensors")
    """
    latent_set = standing.candidate.latent_set
    assert latent_set is not None
    asked = next(each for each in standings if each.method == "prompted")
    tried = ", ".join(
        f"{min(each.contents, len(task.select))} contents of "
        f"{reply_tokens(task, each.max_tokens)} tokens"
        for each in rounds
    )
    notes = {
        **latent_set.provenance.notes,
        "search": f"task {task.name}, seed {seed}, {len(standings)} candidates, {tried}",
        "found": f"{described(standing)}: {counts(standing)}; prompted: {counts(asked)}",
    }
    provenance = msgspec.structs.replace(latent_set.provenance, notes=notes)
    return replace(latent_set, provenance=provenance)


def described(standing: Standing) -> str:
    """Name a standing's method and parameters."""
    return f"{standing.method} ({parameters(standing)})"


def parameters(standing: Standing) -> str:
    """Name a standing's parameters."""
    return ", ".join(f"{name} {value}" for name, value in standing.candidate.parameters.items())


def counts(standing: Standing) -> str:
    """Say how many replies follow, and how many of them are sound."""
    outcome = standing.outcome
    sound = f", {outcome.sound} are sound, {outcome.both} both" if outcome.strict else ""
    return f"{outcome.strict}/{outcome.n} follow{sound}"
