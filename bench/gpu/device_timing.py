"""The device time of one call: a CUDA graph of many calls over rotated inputs, between events."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

MIN_CALLS, MAX_CALLS = 4, 256


def n_copies(nbytes: int, l2_bytes: int) -> int:
    """Return how many input sets to rotate, so that each has left the cache when it returns."""
    return max(MIN_CALLS, min(MAX_CALLS, -(-2 * l2_bytes // max(nbytes, 1))))


class Loop:
    """One call for each input set, captured as a CUDA graph: no host time, no launch gap.

    Args:
        call: what to time; it must not wait for the device.
        inputs: argument tuples, one per call.
    """

    def __init__(self, call: Callable[..., object], inputs: Sequence[tuple[Any, ...]]) -> None:
        self.n_calls = len(inputs)
        self.microseconds: list[float] = []  # per call, of each replay
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and makes handles before the capture
            for _ in range(2):
                call(*inputs[0])
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            for arguments in inputs:
                call(*arguments)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def replay(self) -> None:
        """Run all calls and note the device time of one."""
        # An untimed replay keeps the device busy while the host launches the timed one. Otherwise
        # the host's 5 to 10 us would count, a fifth of a few short calls.
        self._graph.replay()
        self._begin.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        self.microseconds.append(1e3 * self._begin.elapsed_time(self._end) / self.n_calls)

    def median(self) -> float:
        """Return microseconds per call, without the first replays, which warm up."""
        return statistics.median(self.microseconds[2:])


def copy_bandwidth() -> float:
    """Return bytes per microsecond of a large copy, read and written ones together."""
    source = torch.randn(2**28, device="cuda")  # 1 GiB
    loop = Loop(torch.Tensor.copy_, [(torch.empty_like(source), source)])
    for _ in range(12):
        loop.replay()
    return 2 * source.nbytes / loop.median()
