"""A tryout of one set before it is handed out: replies before and after, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from saif_fast.evaluate.subject import Subject
from saif_fast.latent_set import LatentSet
from saif_fast.quality import Answer, NoYardstick, Yardstick
from saif_fast.runtime import GenerationRequest, LogProbRequest
from saif_fast.tasks import Scorer
from saif_fast.tasks.scorers import score_all

N_CONTENTS = 8
N_YARDSTICK = 24  # contents that give a yardstick, of models that repeat themselves now and then
MAX_TOKENS = 32


class Verdict(StrEnum):
    """What a set does to a model's replies."""

    FOLLOWS = "follows"
    CHANGES = "changes the text"
    NOTHING = "changes nothing"
    BREAKS = "breaks the text"


@dataclass(frozen=True)
class Tryout:
    """Replies to the same contents without and with a set.

    Attributes:
        contents: the contents.
        before: the unsteered replies.
        after: the steered replies.
        follow: number of replies that follow the instruction, before and after; None without a
            scorer.
        sound: number of sound replies, before and after; None for a model that gives no yardstick.
    """

    contents: Sequence[str]
    before: Sequence[str]
    after: Sequence[str]
    follow: tuple[int, int] | None
    sound: tuple[int, int] | None

    @property
    def verdict(self) -> Verdict:
        """What the set does.

        It breaks the text where it costs more than half of the sound replies, and changes nothing
        where more than half of the replies stay as they are. It follows where more replies do what
        was asked than without it.
        """
        if self.sound is not None and 2 * self.sound[1] < self.sound[0]:
            return Verdict.BREAKS
        if self.follow is not None and self.follow[1] > self.follow[0]:
            return Verdict.FOLLOWS
        same = sum(x == y for x, y in zip(self.before, self.after, strict=True))
        return Verdict.NOTHING if 2 * same > len(self.contents) else Verdict.CHANGES


def try_out(
    latent_set: LatentSet,
    subject: Subject,
    contents: Sequence[str],
    *,
    more: Sequence[str] = (),
    max_tokens: int = MAX_TOKENS,
    instruction: str | None = None,
    scorer: Scorer | None = None,
) -> Tryout:
    """Try a set at strength 1 on the loaded model, with the request's other options as they are.

    Args:
        latent_set: the set.
        subject: the model.
        contents: what it is tried on; contents that the set was not found on are fairer.
        more: more contents, from the replies to which the yardstick is taken.
        max_tokens: of a reply.
        instruction: a wording of the instruction, after which steered replies are measured.
        scorer: tells whether a reply follows the instruction; None = nothing does.

    Examples:
        >>> tried = try_out(french, subject, task.select[:8], scorer=task.scorer)
        >>> print(tried.verdict)
        follows
    """
    runtime = subject.open({"tried": latent_set})
    prompts = [subject.prompter(content, None) for content in contents]
    answered = runtime.generate(
        [
            GenerationRequest(prompt=prompt, saif=saif, max_tokens=max_tokens)
            for saif in (None, "tried")
            for prompt in prompts
        ]
    )
    texts = [generation.text for generation in answered]
    before, after = texts[: len(contents)], texts[len(contents) :]
    try:
        yardstick = Yardstick.calibrate(
            runtime,
            subject.prompter,
            (*contents, *more),
            instructions=[] if instruction is None else [instruction],
            max_tokens=max_tokens,
        )
    except NoYardstick:
        sound = None
    else:
        answers = [
            Answer(content, text, asked)
            for replies, asked in ((before, None), (after, instruction))
            for content, text in zip(contents, replies, strict=True)
        ]
        judged = [quality.sound for quality in yardstick.measure(runtime, answers)]
        sound = sum(judged[: len(contents)]), sum(judged[len(contents) :])
    follow = None
    if scorer is not None:
        follow = _followed(scorer, contents, before), _followed(scorer, contents, after)
    return Tryout(contents, before, after, follow, sound)


def _followed(scorer: Scorer, contents: Sequence[str], replies: Sequence[str]) -> int:
    scores = score_all(scorer, list(zip(contents, replies, strict=True)))
    return sum(score.strict for score in scores)


def best_layer(
    sets: Sequence[LatentSet], subject: Subject, prompts: Sequence[tuple[str, str]]
) -> int:
    """Choose the set that makes the model's own instructed replies most likely without asking.

    A reply is scored after the prompt that does not ask for it, steered at every token: one forward
    per set, and no generation.

    Args:
        sets: the sets.
        subject: the model.
        prompts: pairs of final texts, with the instruction and without it.

    Returns:
        The index of the best set.

    Examples:
        >>> best = sets[best_layer(sets, subject, prompts)]
    """
    names = {f"set{i}": latent_set for i, latent_set in enumerate(sets)}
    runtime = subject.open(names)
    replies = runtime.generate(
        [GenerationRequest(prompt=asked, max_tokens=MAX_TOKENS) for asked, _ in prompts]
    )
    texts = [
        (plain, reply.text)
        for (_, plain), reply in zip(prompts, replies, strict=True)
        if reply.text
    ]
    scored = iter(
        runtime.log_probs(
            [
                LogProbRequest(prompt=plain, continuation=text, saif=name)
                for name in names
                for plain, text in texts
            ]
        )
    )
    gains = [sum(sum(next(scored)) for _ in texts) for _ in names]
    return max(range(len(sets)), key=gains.__getitem__)
