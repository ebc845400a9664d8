"""A task, a runtime without a model, and candidates whose replies are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from saif_fast.evaluate.methods import Candidate, Method
from saif_fast.evaluate.trials import Reply
from saif_fast.latent_set import LatentSet
from saif_fast.runtime import Generation, GenerationRequest, LogProbRequest
from saif_fast.set_dir import SetDirectory
from saif_fast.tasks import Score, Task, Wording

CONTENTS = tuple(f"content {i}" for i in range(12))


def shouts(content: str, reply: str) -> Score:
    return Score(reply.isupper(), reply[:1].isupper())


TASK = Task(
    name="shout",
    wordings=(Wording("en", "Shout."), Wording("fr", "Crie.")),
    scorer=shouts,
    identify=("i",),
    select=CONTENTS,
    report=("r",),
    max_tokens=64,
)


def vector(obeyed: int) -> LatentSet:
    """A set with which the runtime shouts at the first ``obeyed`` contents."""
    return LatentSet.from_vector(torch.tensor([float(obeyed), 1.0]), layer=0, num_layers=1)


def candidate(obeyed: int) -> Candidate:
    return Candidate(latent_set=vector(obeyed), parameters={"obeyed": obeyed})


class Shouter:
    """Shouts at as many contents as the set says; fails after ``calls`` calls."""

    def __init__(self, sets: SetDirectory, calls: int = 1000) -> None:
        self.sets, self.calls, self.requests = sets, calls, list[GenerationRequest]()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        if self.calls == 0:
            raise KeyboardInterrupt
        self.calls -= 1
        self.requests += requests
        return [Generation(self._reply(request), []) for request in requests]

    def _reply(self, request: GenerationRequest) -> str:
        obeyed = 0.0
        if request.saif is not None:
            (name, _) = request.saif.split("*")
            (site,) = self.sets.load(name).sites
            assert site.vector is not None
            obeyed = site.vector[0].item()
        index = int(request.prompt.split()[1])
        return request.prompt.upper() if index < obeyed else request.prompt

    def log_probs(self, requests: Sequence[LogProbRequest]) -> list[list[float]]:
        raise AssertionError("a race leaves that to its soundness")

    def close(self) -> None: ...


class Soundness:
    """Finds a reply sound unless its content is among the first ``broken``; keeps what it saw."""

    def __init__(self, broken: int = 0) -> None:
        self.broken, self.seen = broken, list[tuple[Candidate, Reply]]()

    def __call__(self, items: Sequence[tuple[Candidate, Reply]], max_tokens: int) -> list[bool]:
        self.seen += items
        return [int(reply.content.split()[1]) >= self.broken for _, reply in items]


def methods(*obeyed: Sequence[int]) -> list[Method]:
    return [
        Method(f"m{i}", tuple(candidate(each) for each in listed))
        for i, listed in enumerate(obeyed)
    ]
