"""The judge: a scorer that asks another model, at any endpoint that speaks OpenAI's chat API.

A judge is used only where a task's file names it. It sends the replies to that endpoint.
"""

from __future__ import annotations

import os
import string
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from saif_fast.tasks.scorers import Score, Scorer

if TYPE_CHECKING:
    from openai import OpenAI

QUESTION = """\
Instruction: {instruction}
Request: {content}
Reply: {reply}

Does the reply follow the instruction? Say yes or no, and nothing else."""

_VERDICTS = {"yes": Score(True, True), "no": Score(False, False)}


class JudgeError(ValueError):
    """An error of a judge that did not answer, or neither yes nor no.

    ``scores`` has what it did answer, in the order of the replies, and None elsewhere.
    """

    def __init__(self, message: str, scores: Sequence[Score | None] = ()) -> None:
        super().__init__(message)
        self.scores = list(scores)


class Judge(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="kind",
    tag="judge",
):
    """Another model says whether the reply follows the instruction. An empty reply never does.

    The question may use ``{instruction}``, ``{content}`` and ``{reply}``. The judge must say yes or
    no, and nothing else; strict and loose are the same.
    """

    base_url: str  # such as http://localhost:8000/v1
    model: str
    api_key_env: str | None = None  # the environment variable that holds the key
    question: str = QUESTION
    timeout_s: Annotated[float, Meta(gt=0)] = 60.0
    threads: Annotated[int, Meta(ge=1)] = 8

    def __post_init__(self) -> None:
        try:
            parsed = list(string.Formatter().parse(self.question))
        except ValueError as error:
            raise ValueError(f"question: expected a template, got {error}") from None
        fields = {field for _, field, _, _ in parsed if field is not None}
        if "reply" not in fields or not fields <= {"instruction", "content", "reply"}:
            raise ValueError(
                "question: expected {reply}, and of other fields {instruction} and {content} only, "
                f"got {self.question!r}"
            )

    def scorer(self, wordings: Sequence[str]) -> Scorer:
        """Return the scorer of a task whose instruction has these wordings."""
        return Judged(self, wordings[0])


@dataclass(frozen=True)
class Judged:
    """A scorer by a judge. Each call of ``score_all`` asks several questions at a time."""

    judge: Judge
    instruction: str

    def __call__(self, content: str, reply: str) -> Score:
        (score,) = self.score_all([(content, reply)])
        return score

    def score_all(self, answers: Sequence[tuple[str, str]]) -> list[Score]:
        """Score pairs of content and reply, in their order.

        Raises:
            JudgeError: the judge did not answer, or neither yes nor no. After the first such
                failure no more questions are sent.
        """
        client = self._client()
        scores: list[Score | None] = [
            None if reply.strip() else Score(False, False) for _, reply in answers
        ]
        failed: list[JudgeError] = []

        def ask(index: int) -> None:
            if failed:
                return
            try:
                scores[index] = self._ask(client, *answers[index])
            except JudgeError as error:
                failed.append(error)

        with ThreadPoolExecutor(self.judge.threads) as pool:
            list(pool.map(ask, [i for i, score in enumerate(scores) if score is None]))
        if failed:
            raise JudgeError(str(failed[0]), scores)
        return [score for score in scores if score is not None]

    def _client(self) -> OpenAI:
        from openai import OpenAI

        name = self.judge.api_key_env
        key = "none" if name is None else os.environ.get(name)
        if not key:
            raise JudgeError(f"judge: expected an API key in the variable {name}, got none")
        return OpenAI(base_url=self.judge.base_url, api_key=key, timeout=self.judge.timeout_s)

    def _ask(self, client: OpenAI, content: str, reply: str) -> Score:
        from openai import OpenAIError

        question = self.judge.question.format(
            instruction=self.instruction, content=content, reply=reply
        )
        try:
            completion = client.chat.completions.create(
                model=self.judge.model,
                messages=[{"role": "user", "content": question}],
                temperature=0.0,
            )
            said = (completion.choices[0].message.content or "").strip()
        # A server that is not quite compatible sends no JSON, or leaves out what the client reads.
        except (OpenAIError, AttributeError, TypeError, IndexError, ValueError) as error:
            raise JudgeError(
                f"judge: expected an answer of {self.judge.model!r} at {self.judge.base_url}, "
                f"got {type(error).__name__}: {error}"
            ) from error
        verdict = _VERDICTS.get(said.rstrip(".!").casefold())
        if verdict is None:
            raise JudgeError(
                f"judge: expected yes or no of {self.judge.model!r}, got {said[:80]!r}"
            )
        return verdict
