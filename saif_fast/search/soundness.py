"""The soundness of a search's replies, by the model's own."""

from __future__ import annotations

from collections.abc import Sequence

from saif_fast.evaluate.methods import Candidate
from saif_fast.evaluate.trials import Reply
from saif_fast.quality import Answer, Yardstick
from saif_fast.runtime import Runtime
from saif_fast.tasks import Prompter, Task

_N_CONTENTS = 32  # of the task's select contents, on which a yardstick is calibrated


class YardstickSoundness:
    """A :data:`saif_fast.search.race.Soundness` by yardsticks, one for each length of replies.

    A steered reply is measured as a reply to the content with the instruction, since that is what
    it should be; the unsteered model's as a reply to the content alone.

    Args:
        task: the task.
        prompter: turns a content and an instruction into the model's text.
        runtime: generates the replies that the yardsticks are taken from, and tells how likely
            replies are.
    """

    def __init__(self, task: Task, prompter: Prompter, runtime: Runtime) -> None:
        self._task, self._prompter, self._runtime = task, prompter, runtime
        self._yardsticks: dict[int, Yardstick] = {}

    def yardstick(self, max_tokens: int) -> Yardstick:
        """Return the yardstick of replies of ``max_tokens`` tokens at most, calibrated once.

        Raises:
            NoYardstick: the model's own replies repeat themselves, or there are too few contents.
        """
        if max_tokens not in self._yardsticks:
            self._yardsticks[max_tokens] = Yardstick.calibrate(
                self._runtime,
                self._prompter,
                self._task.select[:_N_CONTENTS],
                instructions=[self._task.wordings[0].text],
                max_tokens=max_tokens,
            )
        return self._yardsticks[max_tokens]

    def __call__(self, items: Sequence[tuple[Candidate, Reply]], max_tokens: int) -> list[bool]:
        """Tell of each reply whether it is sound."""
        wording = self._task.wordings[0].text
        answers = [
            Answer(reply.content, reply.text, None if candidate.is_nothing else wording)
            for candidate, reply in items
        ]
        yardstick = self.yardstick(max_tokens)
        return [each.sound for each in yardstick.measure(self._runtime, answers)]
