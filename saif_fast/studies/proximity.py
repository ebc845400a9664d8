"""The study of semantic proximity: do the latents raise the instruction's own words?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from saif_fast.studies.context import StudyContext
from saif_fast.studies.result import Cell, Share, StudyResult, Table, larger, outcome_of, said
from saif_fast.tasks import Task

_LETTERS = 4  # of a word; shorter ones are mostly articles and prepositions
_ONE_IN = 1000  # tokens of the vocabulary count as raised, but no fewer than _LEAST
_LEAST = 10
_RANDOM = 200
_PER_CHUNK = 64  # bounds the [latents, vocabulary] logits in memory
_WORD = re.compile(r"[^\W\d_]+")


class Proximity:
    """The logit lens of the instruction's latents against the instruction's words."""

    name = "proximity"
    about = "the logit lens of the latents against the words of the instruction"
    reads_only = True
    claim = "The latents are semantically close to their instruction."

    def run(self, context: StudyContext) -> StudyResult:
        """See :class:`~saif_fast.studies.protocol.OneModel`.

        A latent is *close* if one of the tokens that its decoder row raises most, one in 1,000 of
        the vocabulary, is a word of the instruction that no other instruction has. The claim has
        two parts, at the highest layer that has an SAE: more of the k latents are close than of
        random active ones, and most of them are.
        """
        vocabulary = _vocabulary(context)
        n_raised = max(_LEAST, len(vocabulary) // _ONE_IN)
        rows: list[list[Cell]] = []
        parts: list[bool | None] = []
        told = []
        for name, task in context.tasks.items():
            words = own_words(task)
            wanted = torch.tensor([_names(text, words) for text in vocabulary])
            if not wanted.any():
                parts.append(None)
                told.append(f"{name}: the vocabulary has none of its words")
                continue
            for i, sae in enumerate(context.subject.saes):
                top = context.top(task, i)
                if not top:
                    continue
                found, rank = _close(context, sae.W_dec, top, wanted, n_raised)
                random, random_rank = _close(
                    context, sae.W_dec, _random(context, task, i, top), wanted, n_raised
                )
                example = _example(context, sae.W_dec, top, wanted, vocabulary, n_raised)
                rows.append([name, sae.layer, found, random, rank, random_rank, example])
                if i == context.last:
                    claims = {
                        "more than of random ones": larger(found, random),
                        "most": 2 * found.count > found.n,
                    }
                    parts += claims.values()
                    answers = ", ".join(f"{what}: {said(part)}" for what, part in claims.items())
                    told.append(
                        f"{name}: {found} of its latents are close at layer {sae.layer}, {random} "
                        f"random ones ({answers})"
                    )
        outcome = outcome_of(parts)
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=f"{outcome} on this model: {'; '.join(told)}",
            table=Table(
                [
                    "instruction",
                    "layer",
                    "close",
                    "random latents close",
                    "mean rank of its words, 0 to 1",
                    "the same of random latents",
                    "words raised",
                ],
                rows,
            ),
            settings={**context.fixed, "tokens raised": n_raised, "random latents": _RANDOM},
        )


def own_words(task: Task) -> set[str]:
    """Return the words of a task's wordings, of four letters or more, that no other task has.

    Examples:
        >>> "french" in own_words(get_task("french"))
        True
    """
    others = {word for text in (*task.others, *task.neutral) for word in _words(text)}
    return {word for wording in task.wordings for word in _words(wording.text)} - others


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.casefold()) if len(word) >= _LETTERS]


def _names(token: str, words: set[str]) -> bool:
    """Tell whether a token is one of the words, or the beginning of one."""
    text = token.strip().casefold()
    return len(text) >= _LETTERS and any(word.startswith(text) for word in words)


def _vocabulary(context: StudyContext) -> list[str]:
    size = context.subject.model.config.get_text_config().vocab_size
    known = min(size, len(context.subject.tokenizer))
    texts: list[str] = context.subject.tokenizer.batch_decode([[i] for i in range(known)])
    return [*texts, *[""] * (size - known)]  # some models have more rows than tokens


def _random(context: StudyContext, task: Task, sae: int, top: Sequence[int]) -> list[int]:
    measured = context.statistics(task, sae).measured
    active = (measured.mean > 0) | (measured.density > 0)
    active[list(top)] = False
    pool = active.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(context.budget.seed)
    chosen: list[int] = pool[torch.randperm(len(pool), generator=generator)[:_RANDOM]].tolist()
    return chosen


def _lens(context: StudyContext, rows: Tensor) -> list[Tensor]:
    unit = rows.cpu() / rows.cpu().norm(dim=1, keepdim=True)
    return [context.unembedding.logits(part) for part in unit.split(_PER_CHUNK)]


def _close(
    context: StudyContext, W_dec: Tensor, latents: Sequence[int], wanted: Tensor, n_raised: int
) -> tuple[Share, float]:
    """Return how many latents are close, and the mean rank of the words, 1 for the most raised."""
    close, ranks = 0, []
    for logits in _lens(context, W_dec[list(latents)]):
        raised = logits.topk(n_raised, dim=1).indices
        close += int(wanted[raised].any(1).sum())
        order = logits.argsort(dim=1).argsort(dim=1)[:, wanted].float()
        ranks.append(order.mean(1) / (logits.shape[1] - 1))
    return Share.of(close, len(latents)), float(torch.cat(ranks).mean())


def _example(
    context: StudyContext,
    W_dec: Tensor,
    latents: Sequence[int],
    wanted: Tensor,
    vocabulary: Sequence[str],
    n_raised: int,
) -> str:
    """Return the instruction's words that its latents raise, those of most latents first."""
    counted: Mapping[str, int] = {}
    for logits in _lens(context, W_dec[list(latents)]):
        for row in logits.topk(n_raised, dim=1).indices:
            for text in {vocabulary[int(i)].strip() for i in row[wanted[row]]}:
                counted = {**counted, text: counted.get(text, 0) + 1}
    return ", ".join(sorted(counted, key=lambda text: (-counted[text], text))[:4])
