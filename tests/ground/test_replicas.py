from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from saif_fast.replicas import Replicas
from saif_fast.runtime import Generation, GenerationRequest, LogProbRequest


class Echo:
    """A runtime that repeats its requests, and waits in each call until all of ``party`` call."""

    def __init__(self, party: threading.Barrier, *, fails: bool = False) -> None:
        self.seen: list[str] = []
        self.closed = False
        self._party, self._fails = party, fails

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        self._party.wait(timeout=10)
        if self._fails:
            raise ValueError("saif: expected something else")
        self.seen += [request.prompt for request in requests]
        return [Generation(text=request.prompt, token_ids=[]) for request in requests]

    def log_probs(self, requests: Sequence[LogProbRequest]) -> list[list[float]]:
        self._party.wait(timeout=10)
        return [[float(request.continuation)] for request in requests]

    def close(self) -> None:
        self.closed = True
        if self._fails:
            raise RuntimeError("cannot be closed")


def requests(n: int) -> list[GenerationRequest]:
    return [GenerationRequest(prompt=str(i)) for i in range(n)]


def test_requests_are_dealt_out_and_replies_are_in_their_order() -> None:
    party = threading.Barrier(3)  # broken, and an error, unless all three work at once
    echoes = [Echo(party) for _ in range(3)]
    replies = Replicas(echoes).generate(requests(8))
    assert [reply.text for reply in replies] == [str(i) for i in range(8)]
    assert [echo.seen for echo in echoes] == [["0", "3", "6"], ["1", "4", "7"], ["2", "5"]]
    asked = [LogProbRequest(prompt="p", continuation=str(i)) for i in range(5)]
    assert Replicas(echoes).log_probs(asked) == [[float(i)] for i in range(5)]


def test_fewer_requests_than_replicas_leave_some_idle() -> None:
    echoes = [Echo(threading.Barrier(1)) for _ in range(3)]
    runtime = Replicas(echoes)
    assert [reply.text for reply in runtime.generate(requests(1))] == ["0"]
    assert runtime.generate([]) == []
    assert [echo.seen for echo in echoes] == [["0"], [], []]


def test_an_error_of_one_is_raised_and_all_are_closed() -> None:
    echoes = [Echo(threading.Barrier(1)), Echo(threading.Barrier(1), fails=True)]
    runtime = Replicas(echoes)
    with pytest.raises(ValueError, match="expected something else"):
        runtime.generate(requests(4))
    with pytest.raises(RuntimeError, match="cannot be closed"):
        runtime.close()
    assert all(echo.closed for echo in echoes)
