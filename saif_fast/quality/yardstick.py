"""A yardstick for replies, taken from the unsteered model's own: is a reply sound, and on topic?

A fluent text is one that the unsteered model finds probable, and a text is on its topic if the
model finds it more probable as a reply to its content than as a reply to another content. With
``r`` the reply, ``n`` its tokens, ``c`` its content and ``o`` another one, each with the
instruction that the reply should follow::

    fluency = log p(r | c) / n
    topic   = (log p(r | c) - log p(r | o)) / n

both in nats per token. By Bayes' rule ``n * topic`` is ``log p(c | r) - log p(o | r)``, how much
more the reply says for ``c`` than for ``o``, without how likely either is before the reply.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from saif_fast.quality.repetition import Repetition, repetition
from saif_fast.runtime import GenerationRequest, LogProbRequest, Runtime
from saif_fast.tasks import Prompter

MAX_LOOP = 0.2  # of a text; a loop is one whatever the model does unsteered
_LEAST_REPLIES = 8  # that thresholds can be taken from


class NoYardstick(ValueError):
    """Error where no yardstick can be taken: few contents, or replies that repeat themselves."""


class Answer(NamedTuple):
    """A reply to a content; ``instruction`` is what it should follow, None = a plain reply."""

    content: str
    text: str
    instruction: str | None = None


class ReplyQuality(msgspec.Struct, frozen=True):
    """The quality of one reply.

    Attributes:
        distinct: as in :class:`~saif_fast.quality.repetition.Repetition`.
        loop: as in :class:`~saif_fast.quality.repetition.Repetition`.
        fluency: nats per token; None = not asked, because the reply repeats itself.
        topic: nats per token; None = not asked, because the reply repeats itself or is not fluent.
        failed: the first criterion that the reply does not meet; None = it meets all.
    """

    distinct: float
    loop: float
    fluency: float | None
    topic: float | None
    failed: str | None

    @property
    def sound(self) -> bool:
        """Whether the reply meets every criterion."""
        return self.failed is None


class Thresholds(msgspec.Struct, frozen=True):
    """What a sound reply has: :attr:`loop` at most, and of the others at least these values."""

    distinct: float
    loop: float
    fluency: float
    topic: float

    def repeated(self, repeat: Repetition) -> bool:
        """Whether a text repeats itself too much."""
        return repeat.distinct < self.distinct or repeat.loop > self.loop


class Yardstick:
    """The thresholds of one model, and how its replies are measured.

    Args:
        prompter: turns a content and an instruction into the model's text.
        contents: contents, three or more, of which the other contents are drawn.
        thresholds: what a sound reply has.
        seed: seed of the draws.

    Raises:
        NoYardstick: there are fewer than three contents.

    Examples:
        >>> yardstick = Yardstick.calibrate(runtime, subject.prompter, task.select)
        >>> yardstick.measure(runtime, [Answer("What is rain?", "Rain is water.")])[0].sound
        True
    """

    def __init__(
        self,
        prompter: Prompter,
        contents: Sequence[str],
        thresholds: Thresholds,
        seed: int = 0,
    ) -> None:
        if len(set(contents)) < 3:
            raise NoYardstick(
                f"contents: expected 3 or more different ones, got {len(set(contents))}"
            )
        self.thresholds = thresholds
        self._prompter, self._contents, self._seed = prompter, sorted(set(contents)), seed

    @classmethod
    def calibrate(
        cls,
        runtime: Runtime,
        prompter: Prompter,
        contents: Sequence[str],
        *,
        instructions: Sequence[str] = (),
        max_tokens: int = 64,
        seed: int = 0,
    ) -> Yardstick:
        """Take the thresholds from the unsteered model's replies to ``contents``.

        The replies are scored after **other** contents. A greedy reply is nearly the most probable
        text after its own prompt, which no other text could reach; after another prompt it is sound
        text that the prompt does not foretell.

        ==========  ==============================================================================
        distinct    twice what the 5 % most repetitive plain replies repeat, within 0.5 and 0.8
        loop        :data:`MAX_LOOP`
        fluency     median log-probability of the replies after another content
        topic       95 % quantile of what a reply says for a content that it does not answer,
                    against a third one: one in twenty replies off the topic passes
        ==========  ==============================================================================

        Args:
            runtime: generates and scores.
            prompter: turns a content and an instruction into the model's text.
            contents: contents, three or more; 32 are enough.
            instructions: given in turn with the contents, for as many replies again.
            max_tokens: length of the replies. Take that of the replies to be judged: the first
                tokens of a reply depend most on its content, so means over short replies are lower.
            seed: seed of the draws of other contents.

        Raises:
            NoYardstick: most replies repeat themselves, or as :class:`Yardstick`.

        Examples:
            >>> Yardstick.calibrate(runtime, subject.prompter, task.select).thresholds
            Thresholds(distinct=0.7, loop=0.2, fluency=-1.8, topic=0.3)
        """
        least = Thresholds(distinct=0.5, loop=MAX_LOOP, fluency=-np.inf, topic=-np.inf)
        yardstick = cls(prompter, contents, least, seed)
        asked: list[tuple[str, str | None]] = [(content, None) for content in contents]
        if instructions:
            turns = itertools.cycle(instructions)
            asked += [(content, next(turns)) for content in contents]
        generations = runtime.generate(
            [
                GenerationRequest(prompt=prompter(content, instruction), max_tokens=max_tokens)
                for content, instruction in asked
            ]
        )
        texts = [generation.text for generation in generations]
        repeats = [repetition(text) for text in texts]
        sound = [
            Answer(content, text, instruction)
            for (content, instruction), text, repeat in zip(asked, texts, repeats, strict=True)
            if not least.repeated(repeat)
        ]
        if len(sound) < _LEAST_REPLIES:
            raise NoYardstick(
                f"replies: expected {_LEAST_REPLIES} or more of the unsteered model that do not "
                f"repeat themselves, got {len(sound)} of {len(texts)}"
            )
        drawn = [yardstick._others(answer.content) for answer in sound]
        after = [
            np.array(yardstick._means(runtime, sound, other)) for other in zip(*drawn, strict=True)
        ]
        plain = [repeat.distinct for repeat in repeats[: len(contents)]]
        repeated = 1.0 - float(np.quantile(plain, 0.05))
        yardstick.thresholds = Thresholds(
            distinct=float(np.clip(1.0 - 2.0 * repeated, 0.5, 0.8)),
            loop=MAX_LOOP,
            fluency=float(np.median(after[0])),
            topic=float(np.quantile(after[0] - after[1], 0.95)),
        )
        return yardstick

    def measure(self, runtime: Runtime, answers: Sequence[Answer]) -> list[ReplyQuality]:
        """Measure replies, in order; what fails a criterion costs the engine nothing more."""
        least = self.thresholds
        repeats = [repetition(answer.text) for answer in answers]
        own = [
            None if least.repeated(repeat) else answer.content
            for answer, repeat in zip(answers, repeats, strict=True)
        ]
        fluency = self._means(runtime, answers, own)
        other = [
            None if value is None or value < least.fluency else self._others(answer.content)[0]
            for answer, value in zip(answers, fluency, strict=True)
        ]
        after_other = self._means(runtime, answers, other)
        judged = []
        for (distinct, loop), mean, unlike in zip(repeats, fluency, after_other, strict=True):
            topic = None if mean is None or unlike is None else mean - unlike
            if mean is None:
                failed = "repetition"
            elif topic is None:
                failed = "fluency"
            else:
                failed = "topic" if topic < least.topic else ""
            judged.append(ReplyQuality(distinct, loop, mean, topic, failed or None))
        return judged

    def _others(self, content: str) -> list[str]:
        """Draw two other contents, always the same ones, whatever else is judged."""
        others = [other for other in self._contents if other != content]
        return random.Random(f"{self._seed}:{content}").sample(others, 2)

    def _means(
        self, runtime: Runtime, answers: Sequence[Answer], contents: Sequence[str | None]
    ) -> list[float | None]:
        """Return the mean log-probability of each answer's text as a reply to one of ``contents``.

        An answer without a content is not asked for.
        """
        requests = [
            LogProbRequest(
                prompt=self._prompter(content, answer.instruction), continuation=answer.text
            )
            for answer, content in zip(answers, contents, strict=True)
            if content is not None
        ]
        scores = iter(runtime.log_probs(requests) if requests else [])
        return [None if content is None else float(np.mean(next(scores))) for content in contents]
