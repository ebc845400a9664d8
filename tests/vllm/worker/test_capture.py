"""The residual at a request's last prompt token is kept, and nothing else."""

from __future__ import annotations

import torch

from saif_vllm.worker.capture import LastTokenCapture, Wanted

D_MODEL = 4


def step(capture: LastTokenCapture, *spans: range) -> torch.Tensor:
    """Run one step of each request's positions; a token's stream is its position, plus 100 times
    its request's index.
    """
    starts = [0, *torch.tensor([len(span) for span in spans]).cumsum(0).tolist()]
    positions = torch.tensor([position for span in spans for position in span])
    capture.begin_step(torch.tensor(starts, dtype=torch.int32), positions)
    stream = torch.tensor([100.0 * i + p for i, span in enumerate(spans) for p in span])
    stream = stream[:, None].expand(-1, D_MODEL)
    capture.keep(0, stream / 4, stream * 3 / 4)
    return capture.store[0, :, 0]


def test_the_last_prompt_token_is_kept_when_it_comes() -> None:
    capture = LastTokenCapture(1, 3, D_MODEL, torch.float32, "cpu")
    assert step(capture, range(8)).tolist() == [0, 0, 0]
    capture.assign([Wanted(request=0, place=2, last_position=4), Wanted(1, 0, 9)])
    assert step(capture, range(3), range(10), range(5)).tolist() == [109, 0, 0]  # one is a chunk
    assert step(capture, range(3, 5), range(10, 11), range(5, 6)).tolist() == [109, 0, 4]
    capture.assign([])
    assert step(capture, range(5)).tolist() == [109, 0, 4]


def test_what_is_kept_keeps_its_memory() -> None:
    capture = LastTokenCapture(2, 3, D_MODEL, torch.float32, "cpu")
    before = {name: buffer.data_ptr() for name, buffer in capture.tensors().items()}
    capture.assign([Wanted(0, 1, 0)])
    step(capture, range(1))
    assert {name: buffer.data_ptr() for name, buffer in capture.tensors().items()} == before
