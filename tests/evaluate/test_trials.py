from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch

from saif_fast.evaluate.methods import Candidate, Method, strengths
from saif_fast.evaluate.trials import Trial, run, select
from saif_fast.latent_set import LatentSet
from saif_fast.runtime import Generation, GenerationRequest, LogProbRequest
from saif_fast.tasks import Score, Task, Wording, render


class ShoutingRuntime:
    """Answers in capitals where the strength is 2 or more, else as asked; knows only its sets."""

    def __init__(self, sets: Mapping[str, LatentSet]) -> None:
        self.sets, self.closed = dict(sets), False
        self.calls: list[list[GenerationRequest]] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self.calls.append(list(requests))
        return [Generation(self._reply(request), []) for request in requests]

    def log_probs(self, requests: Sequence[LogProbRequest]) -> list[list[float]]:
        raise AssertionError("a trial scores no text")

    def _reply(self, request: GenerationRequest) -> str:
        if request.saif is None:
            return request.prompt
        name, _, strength = request.saif.partition("*")
        assert name in self.sets
        return request.prompt.upper() if float(strength) >= 2.0 else request.prompt

    def close(self) -> None:
        self.closed = True


class Opened:
    """An opener that remembers what it opened."""

    def __init__(self) -> None:
        self.runtimes: list[ShoutingRuntime] = []

    def __call__(self, sets: Mapping[str, LatentSet]) -> ShoutingRuntime:
        self.runtimes.append(ShoutingRuntime(sets))
        return self.runtimes[-1]


def shouts(content: str, reply: str) -> Score:
    return Score(reply == content.upper(), reply.isupper())


TASK = Task(
    name="shout",
    wordings=(Wording("en", "Shout."), Wording("fr", "Crie.")),
    scorer=shouts,
    identify=("i",),
    select=("one", "two", "three"),
    report=("four",),
    max_tokens=7,
)
VECTOR = LatentSet.from_vector(torch.ones(4), layer=0, num_layers=1)
OTHER = LatentSet.from_vector(torch.zeros(4), layer=0, num_layers=1)


def test_the_middle_of_a_plateau_is_chosen() -> None:
    method = strengths("vector", VECTOR, [0.5, 1.0, 2.0, 3.0, 4.0])
    (choice,) = select(TASK, [method], TASK.select, render, Opened())
    assert choice.candidate.strength == 3.0
    assert choice.selected == (3, 3, 3)
    assert choice.n_candidates == 5


def test_of_equal_candidates_the_choice_is_always_the_same() -> None:
    method = strengths("vector", VECTOR, [0.1, 0.2, 0.3, 0.4])
    chosen = {
        select(TASK, [method], TASK.select, render, Opened())[0].candidate.strength
        for _ in range(3)
    }
    assert chosen == {0.2}


def test_select_refuses_unequal_searches() -> None:
    methods = [strengths("a", VECTOR, [1.0]), strengths("b", VECTOR, [1.0, 2.0])]
    with pytest.raises(ValueError, match="same number"):
        select(TASK, methods, TASK.select, render, Opened())


def test_everything_runs_in_one_call_and_equal_sets_are_loaded_once() -> None:
    opened = Opened()
    same = LatentSet.from_vector(torch.ones(4), layer=0, num_layers=1)
    trials = [
        Trial("a", TASK, Candidate(latent_set=VECTOR), TASK.report),
        Trial("b", TASK, Candidate(latent_set=same, strength=2.0), TASK.report),
        Trial("c", TASK, Candidate(latent_set=OTHER), TASK.report),
    ]
    replies = run(trials, render, opened)
    (runtime,) = opened.runtimes
    assert sorted(runtime.sets) == ["a", "c"]
    assert [request.saif for request in runtime.calls[0]] == ["a*1.0", "a*2.0", "c*1.0"]
    assert [[reply.text for reply in each] for each in replies] == [["four"], ["FOUR"], ["four"]]
    assert runtime.closed


def test_every_field_of_a_candidate_reaches_its_request() -> None:
    opened = Opened()
    candidate = Candidate(
        latent_set=VECTOR,
        strength=1.25,
        options={"saif_scope": "all"},
        logit_bias={3: 1.0},
        instructed=True,
    )
    run([Trial("a", TASK, candidate, TASK.report)], render, opened)
    assert opened.runtimes[0].calls == [
        [
            GenerationRequest(
                prompt="four Shout.",
                saif="a*1.25",
                options={"saif_scope": "all"},
                logit_bias={3: 1.0},
                max_tokens=7,
            )
        ]
    ]


def test_the_runtime_is_closed_when_generation_fails() -> None:
    opened = Opened()

    def fails(content: str, instruction: str | None) -> str:
        return content

    def open_broken(sets: Mapping[str, LatentSet]) -> ShoutingRuntime:
        runtime = opened({})  # knows no set, so the reply's assertion fails
        return runtime

    with pytest.raises(AssertionError):
        run([Trial("a", TASK, Candidate(latent_set=VECTOR), TASK.report)], fails, open_broken)
    assert opened.runtimes[0].closed


def test_select_contents_are_all_that_selection_sees() -> None:
    opened = Opened()
    select(TASK, [Method("m", (Candidate(),))], TASK.select, render, opened)
    assert {r.prompt for r in opened.runtimes[0].calls[0]} == set(TASK.select)


@pytest.mark.parametrize("split", ["identify", "select"])
def test_contents_in_two_splits_are_refused(split: str) -> None:
    contents = {"identify": ("a",), "select": ("b",), "report": ("c",), split: ("x", "c")}
    with pytest.raises(ValueError, match="disjoint"):
        Task(name="t", wordings=TASK.wordings, scorer=shouts, **contents)
