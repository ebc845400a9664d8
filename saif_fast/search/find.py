"""``search``: from a task to the set that makes a model follow it best."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saif_fast.evaluate.methods import Candidate, Method, prompted, unsteered
from saif_fast.evaluate.study import instruction_shift
from saif_fast.evaluate.subject import Subject
from saif_fast.hf import chat_texts
from saif_fast.identify import ContrastPairs, pairs_of
from saif_fast.identify.activations import collect_readings
from saif_fast.logit_bias import Unembedding
from saif_fast.runtime import Generation, GenerationRequest
from saif_fast.search.journal import Journal
from saif_fast.search.race import ROUNDS, Round, Standing, Track, race, reply_tokens
from saif_fast.search.soundness import YardstickSoundness
from saif_fast.search.space import WINDOWS, Evidence, Grid, Point, check_windows, space
from saif_fast.tasks import Task
from saif_fast.tasks.scorers import score_all

N_PAIRS = 96
REPLY_TOKENS = 32  # of the replies to pairs, unless the task needs more
# Fewer replies that follow the instruction than this, and those that do not are read as well.
_LEAST_REPLIES = 8
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

    turns = [size - 2 * (size // 4), size // 4, size // 4]
    for turn, n_new in enumerate(turns):
        # Ranked anew each turn; what was answered before is in the journal.
        standings = run(rounds[:1]) if turn else []
        for grid in grids:
            best = [
                points[grid.name][each.index]
                for each in standings
                if each.method == grid.name and each.outcome.loose
            ]
            known = points[grid.name]
            new = grid.around(best[:_BEST], known, n_new, seed)
            drawn = (point for point in grid.draw(size, seed) if point not in {*known, *new})
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


def gather(
    task: Task, subject: Subject, track: Track, pairs: ContrastPairs, journal: Journal
) -> Evidence:
    """Let the model answer the pairs, and read what the instruction does to it.

    Args:
        task: the task, whose scorer tells which replies follow the instruction.
        subject: the model and its SAEs.
        track: generates the replies, unsteered.
        pairs: pairs of the instruction.
        journal: replies that are there already, and where new ones go.

    Examples:
        >>> evidence = gather(task, subject, track, pairs_of(task), Journal(None, {}))
        >>> grids = space(evidence)
    """
    track.say(f"reading {len(pairs.pairs)} pairs and their replies at {len(subject.layers)} layers")
    prompts = list(dict.fromkeys(t for pair in pairs.pairs for t in (pair.positive, pair.negative)))
    tokens = reply_tokens(task, REPLY_TOKENS)
    ids = journal.token_ids(pairs.data_hash)
    if ids is None:
        texts = chat_texts(subject.tokenizer, prompts) if subject.templated else prompts
        requests = [GenerationRequest(prompt=text, max_tokens=tokens) for text in texts]
        ids = [generation.token_ids for generation in track.runtime.generate(requests)]
        journal.add_token_ids(pairs.data_hash, ids)
    decoded = subject.tokenizer.batch_decode(ids, skip_special_tokens=True)
    replies = dict(zip(prompts, map(Generation, decoded, ids), strict=True))
    scored = [pair for pair in pairs.pairs if pair.content]
    scores = journal.scores(pairs.data_hash)
    if scores is None:
        answers = [(pair.content, replies[pair.positive].text) for pair in scored]
        scores = score_all(task.scorer, answers)
        journal.add_scores(pairs.data_hash, scores)
    followed = [pair for pair, score in zip(scored, scores, strict=True) if score.loose]
    read = followed if len(followed) >= _LEAST_REPLIES else pairs.pairs
    track.say(f"{len(followed)} of {len(scored)} replies follow the instruction")
    sides = {t for pair in read for t in (pair.positive, pair.negative)}
    readings = collect_readings(
        subject.model,
        subject.tokenizer,
        pairs,
        {prompt: replies[prompt].token_ids for prompt in sides},
        subject.layers,
        chat=subject.chat,
    )
    vocabulary = subject.model.config.get_text_config().vocab_size
    wanted = [
        _frequencies([replies[getattr(pair, side)].token_ids for pair in read], vocabulary)
        for side in ("positive", "negative")
    ]
    return Evidence(
        readings=readings,
        layers=subject.layers,
        saes=subject.saes,
        unembedding=Unembedding(subject.model),
        wanted=wanted[0] - wanted[1],
        shift=instruction_shift(subject, readings["last"]),
        allow_mismatch=subject.allow_mismatch,
    )


def _frequencies(replies: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """Return the share of each token among all tokens of the replies: [vocabulary] fp32."""
    counts = Counter(token for reply in replies for token in reply)
    found = torch.zeros(vocabulary)
    found[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.float32)
    return found / found.sum().clamp(min=1)
