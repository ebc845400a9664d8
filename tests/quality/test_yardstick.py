"""The yardstick and the ratings, with a runtime whose probabilities are written down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from saif_fast.quality.yardstick import MAX_LOOP, Answer, Thresholds, Yardstick
from saif_fast.runtime import Generation, GenerationRequest, LogProbRequest

SUBJECTS = ("rain", "bread", "horses", "music", "glass", "winter", "maps", "salt", "rivers")
CONTENTS = tuple(f"What about {subject}?" for subject in SUBJECTS)
KNOWN = {"is", "an", "old", "thing", "that", "many", "people", "like", "very", "much", "oui"}


def prompter(content: str, instruction: str | None) -> str:
    return content if instruction is None else f"{content} {instruction}"


def own(subject: str) -> str:
    return f"{subject} is an old thing that many people like very much"


class ToyRuntime:
    """Words cost 1 nat, those of the prompt 0.1, unknown ones 6, French 3 unless asked for."""

    def __init__(self, *, loops: bool = False) -> None:
        self.loops, self.scored = loops, list[LogProbRequest]()
        self.calls = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        subjects = [request.prompt.split()[2].strip("?") for request in requests]
        texts = ["la la la la la" if self.loops else own(subject) for subject in subjects]
        return [Generation(text, []) for text in texts]

    def log_probs(self, requests: Sequence[LogProbRequest]) -> list[list[float]]:
        assert all(request.saif is None for request in requests)
        self.scored += requests
        self.calls += 1
        return [
            [self._word(word, request.prompt) for word in request.continuation.split()]
            for request in requests
        ]

    def _word(self, word: str, prompt: str) -> float:
        if word in prompt.replace("?", " ").split():
            return -0.1
        if word == "oui" and "French" not in prompt:
            return -3.0
        return -1.0 if word in KNOWN | set(SUBJECTS) else -6.0

    def close(self) -> None:
        raise AssertionError("whoever opened the runtime closes it")


@pytest.fixture
def runtime() -> ToyRuntime:
    return ToyRuntime()


@pytest.fixture
def yardstick(runtime: ToyRuntime) -> Yardstick:
    return Yardstick(prompter, CONTENTS, Thresholds(0.7, MAX_LOOP, -1.5, 0.05))


def test_thresholds_are_those_of_own_replies_after_other_contents(runtime: ToyRuntime) -> None:
    got = Yardstick.calibrate(runtime, prompter, CONTENTS).thresholds
    assert got.distinct == pytest.approx(0.8), "a reply without repetition is not asked for"
    assert got.loop == MAX_LOOP
    assert got.fluency == pytest.approx(-1.0), "no word of the reply is in another content's prompt"
    assert got.topic == pytest.approx(0.0)
    assert len(runtime.scored) == 2 * len(CONTENTS)
    for request in runtime.scored:
        assert request.continuation.split()[0] not in request.prompt


def test_instructions_are_given_in_turn_and_stay_with_their_replies(runtime: ToyRuntime) -> None:
    instructions = ("In French.", "In capitals.")
    Yardstick.calibrate(runtime, prompter, CONTENTS, instructions=instructions)
    prompts = [request.prompt for request in runtime.scored]
    assert len(prompts) == 4 * len(CONTENTS)
    assert sum("French" in prompt for prompt in prompts) == 2 * 5
    assert sum("capitals" in prompt for prompt in prompts) == 2 * 4


def test_a_model_that_only_loops_gives_no_yardstick() -> None:
    with pytest.raises(ValueError, match=r"replies: expected 8 or more .* got 0 of 9"):
        Yardstick.calibrate(ToyRuntime(loops=True), prompter, CONTENTS)


def test_two_contents_are_too_few() -> None:
    with pytest.raises(ValueError, match="contents: expected 3 or more different ones, got 2"):
        Yardstick(prompter, ("a", "b", "a"), Thresholds(0.7, 0.2, -1.5, 0.05))


CASES = {
    "sound": (Answer(CONTENTS[0], own("rain")), None),
    "in the language asked for": (
        Answer(CONTENTS[0], "rain is an old thing oui that many people like", "In French."),
        None,
    ),
    "loop": (Answer(CONTENTS[0], "rain is la la la la la la"), "repetition"),
    "few words over and over": (
        Answer(CONTENTS[0], "rain is old rain is old much rain is old rain is old very much"),
        "repetition",
    ),
    "empty": (Answer(CONTENTS[0], " "), "repetition"),
    "another content's": (Answer(CONTENTS[0], own("bread")), "topic"),
    "no words of a language": (
        Answer(CONTENTS[0], "rain xq wvk is zzu old gthp that pqr"),
        "fluency",
    ),
    "noise": (Answer(CONTENTS[0], "xq wvk zzu gthp pqr"), "fluency"),
}


@pytest.mark.parametrize("answer, failed", CASES.values(), ids=CASES)
def test_each_criterion_fails_what_it_is_for(
    yardstick: Yardstick, runtime: ToyRuntime, answer: Answer, failed: str | None
) -> None:
    (got,) = yardstick.measure(runtime, [answer])
    assert got.failed == failed
    assert got.sound == (failed is None)
    assert (got.fluency is None) == (failed == "repetition")
    # A reply that is not fluent costs no second question.
    assert (got.topic is None) == (failed in ("repetition", "fluency"))


def test_fluency_and_topic_are_means_over_the_reply(
    yardstick: Yardstick, runtime: ToyRuntime
) -> None:
    (got,) = yardstick.measure(runtime, [Answer(CONTENTS[1], own("bread"))])
    after_own = np.mean([-0.1] + [-1.0] * 10)
    assert got.fluency == pytest.approx(after_own)
    assert got.topic == pytest.approx(after_own - -1.0)


def test_a_judgement_does_not_depend_on_its_neighbours(
    yardstick: Yardstick, runtime: ToyRuntime
) -> None:
    answers = [answer for answer, _ in CASES.values()]
    together = yardstick.measure(runtime, answers)
    assert runtime.calls == 2, "one call per criterion"
    assert together == [yardstick.measure(runtime, [answer])[0] for answer in answers]
    assert yardstick.measure(runtime, []) == []
