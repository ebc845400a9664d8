"""``search``: from a task to the set that makes a model follow it best."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saif_fast.evaluate.methods import Candidate, Method, prompted, unsteered
from saif_fast.evaluate.subject import Subject
from saif_fast.identify import ContrastPairs, pairs_of
from saif_fast.search.gather import gather
from saif_fast.search.journal import Journal
from saif_fast.search.race import ROUNDS, Round, Standing, Track, race, reply_tokens
from saif_fast.search.soundness import YardstickSoundness
from saif_fast.search.space import WINDOWS, Grid, Point, check_windows, space
from saif_fast.tasks import Task

N_PAIRS = 96
_BEST = 3  # points of a method around which more are tried


def search(
    task: Task,
    subject: Subject,
    track: Track,
    *,
    pairs: ContrastPairs | None = None,
    size: int = 80,
    windows: Sequence[str] = tuple(WINDOWS),
    controls: bool = False,
    rounds: Sequence[Round] = ROUNDS,
    journal: Path | None = None,
    seed: int = 0,
) -> list[Standing]:
    """Find what makes a model follow a task's instruction: read it, build candidates, race them.

    Args:
        task: the task; its identify and select contents are used, never those to report on.
        subject: the model and its SAEs.
        track: what the candidates run on. Its engine must hook ``subject.layers``.
        pairs: pairs of the instruction; None = of the task's identify contents and main wordings.
        size: candidates per method. Half of them are drawn from its whole grid. The others lie
            around its best ones, in two turns, or are drawn too where none follows.
        windows: which tokens are steered; see :func:`saif_fast.search.space.space`.
        controls: search random latents too.
        rounds: the rounds of the race.
        journal: a file for the replies, from which an interrupted search goes on; None = none.
        seed: seed of every draw.

    Returns:
        All candidates, best first, among them the prompted and the unsteered model.

    Raises:
        NoYardstick: the model's own replies repeat themselves, so that quality is not measured.
        JudgeError: the task's judge does not answer; replies are kept in the journal.
        ValueError: the journal belongs to another search, or as :func:`collect_readings`.

    Examples:
        >>> standings = search(get_task("french"), subject, track)
        >>> best = next(each for each in standings if each.candidate.latent_set is not None)
        >>> best.candidate.latent_set.save("sets/french.safetensors")
    """
    check_windows(windows)
    pairs = (
        pairs_of(task, task.main_wordings, max_pairs=N_PAIRS, seed=seed) if pairs is None else pairs
    )
    settings = {
        **settings_of([task], subject, track),
        "pairs": pairs.data_hash,
        "size": size,
        "seed": seed,
        "windows": list(windows),
        "controls": controls,
        "rounds": [list(each) for each in rounds],
    }
    kept = Journal(journal, settings)  # refuses another search's before the model runs
    soundness = YardstickSoundness(task, track.prompter, track.runtime)
    soundness.yardstick(reply_tokens(task, rounds[0].max_tokens))  # before anything that takes long
    evidence = gather(task, subject, track, pairs, kept)
    for sae in evidence.without_latents:
        track.say(f"{sae.name}: no sparse latent rises with the instruction; it is left out")
    grids = space(evidence, windows, controls=controls)
    points: dict[str, list[Point]] = {grid.name: [] for grid in grids}
    made: dict[str, list[Candidate]] = {grid.name: [] for grid in grids}

    def add(grid: Grid, found: Sequence[Point]) -> None:
        points[grid.name] += found
        made[grid.name] += (grid.candidate(evidence, point) for point in found)

    def run(rounds: Sequence[Round]) -> list[Standing]:
        methods = [Method(name, tuple(candidates)) for name, candidates in made.items()]
        return race(task, [unsteered(), prompted(), *methods], track, soundness, kept, rounds)

    near = size // 4
    for n_new in filter(None, (size - 2 * near, near, near)):
        # Ranked anew each turn; what was answered before is in the journal.
        standings = run(rounds[:1]) if any(made.values()) else []
        for grid in grids:
            best = [
                points[grid.name][each.index]
                for each in standings
                if each.method == grid.name and each.outcome.loose
            ]
            known = points[grid.name]
            new = grid.around(best[:_BEST], known, n_new, seed)
            spare = grid.draw(len(known) + n_new, seed)
            drawn = (point for point in spare if point not in {*known, *new})
            add(grid, [*new, *itertools.islice(drawn, n_new - len(new))])
    return run(rounds)


def settings_of(tasks: Sequence[Task], subject: Subject, track: Track) -> dict[str, object]:
    """Return what replies and scores depend on besides the candidates, for a journal."""
    return {
        "tasks": {task.name: _described(task.scorer) for task in tasks},
        "model": subject.info.name,
        "chat": subject.templated,
        "saes": [sae.content_hash for sae in subject.saes],
        "runtime": track.name,
    }


def _described(scorer: Any) -> str:
    """Describe a scorer by what it is, without addresses in memory."""
    shown = repr(scorer)
    if " at 0x" not in shown:
        return shown
    name: str = getattr(scorer, "__qualname__", type(scorer).__qualname__)
    return name
