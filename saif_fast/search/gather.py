"""The reading of an instruction: replies with and without it, and residuals at their tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from saif_fast.evaluate.study import instruction_shift
from saif_fast.evaluate.subject import Subject
from saif_fast.hf import chat_texts
from saif_fast.identify import ActivationSet, ContrastPairs
from saif_fast.identify.activations import Reading, collect_readings
from saif_fast.identify.pairs import ContrastPair
from saif_fast.logit_bias import Unembedding
from saif_fast.runtime import Generation, GenerationRequest
from saif_fast.search.journal import Journal
from saif_fast.search.race import Track, reply_tokens
from saif_fast.search.space import Evidence
from saif_fast.tasks import Task
from saif_fast.tasks.scorers import score_all

REPLY_TOKENS = 32  # of the replies to pairs, unless the task needs more
# Fewer replies that follow the instruction than this say little of it.
_LEAST_REPLIES = 8

# Token ids of the texts after the two prompts of a pair.
_Sides: TypeAlias = Mapping[ContrastPair, tuple[Sequence[int], Sequence[int]]]


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
    track.say(f"{len(followed)} of {len(scored)} replies follow the instruction")
    own = {
        pair: (replies[pair.positive].token_ids, replies[pair.negative].token_ids)
        for pair in pairs.pairs
    }
    texts_of: dict[Reading, _Sides] = {
        "reply": {pair: own[pair] for pair in followed},
        "rewritten": _rewritten(task, subject, scored, replies, tokens),
    }
    known = {name: found for name, found in texts_of.items() if len(found) >= _LEAST_REPLIES}
    if not known:
        known["reply"] = own  # replies that do not follow are better than none
    readings = _read(subject, pairs, known)
    vocabulary = subject.model.config.get_text_config().vocab_size
    positive, negative = (
        _frequencies([sides[i] for found in known.values() for sides in found.values()], vocabulary)
        for i in (0, 1)
    )
    return Evidence(
        readings=readings,
        layers=subject.layers,
        saes=subject.saes,
        unembedding=Unembedding(subject.model),
        wanted=positive - negative,
        shift=instruction_shift(subject, readings["last"]),
        allow_mismatch=subject.allow_mismatch,
    )


def _rewritten(
    task: Task,
    subject: Subject,
    pairs: Sequence[ContrastPair],
    replies: Mapping[str, Generation],
    tokens: int,
) -> _Sides:
    """Rewrite the replies to the negatives, so that they follow; leave out those that do not.

    Returns:
        Token ids of the rewritten reply, as if it were that to the positive, and of the reply.
    """
    if task.rewrite is None:
        return {}
    made = [(pair, task.rewrite(replies[pair.negative].text)) for pair in pairs]
    texts = [(pair, text) for pair, text in made if text]
    scores = score_all(task.scorer, [(pair.content, text) for pair, text in texts])
    found = {}
    for (pair, text), score in zip(texts, scores, strict=True):
        if score.strict and text != replies[pair.negative].text:
            ids = subject.tokenizer.encode(text, add_special_tokens=False)[:tokens]
            found[pair] = (ids, replies[pair.negative].token_ids)
    return found


def _read(
    subject: Subject, pairs: ContrastPairs, texts: Mapping[Reading, _Sides]
) -> dict[Reading, ActivationSet]:
    """Read the residual stream at the last prompt tokens, and at each kind of texts."""
    readings: dict[Reading, ActivationSet] = {}
    for name, sides in texts.items():
        given = {
            prompt: ids
            for pair, both in sides.items()
            for prompt, ids in zip((pair.positive, pair.negative), both, strict=True)
        }
        found = collect_readings(
            subject.model,
            subject.tokenizer,
            pairs,
            given,
            subject.layers,
            chat=subject.chat,
            plain=[] if readings else None,  # plain text is read once
        )
        last = readings.setdefault("last", found["last"])
        readings[name] = replace(
            found["reply"], plain=last.plain, plain_name=last.plain_name, reading=name
        )
    return readings


def _frequencies(replies: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """Return the share of each token among all tokens of the replies: [vocabulary] fp32."""
    counts = Counter(token for reply in replies for token in reply)
    found = torch.zeros(vocabulary)
    found[list(counts)] = torch.tensor(list(counts.values()), dtype=torch.float32)
    return found / found.sum().clamp(min=1)
