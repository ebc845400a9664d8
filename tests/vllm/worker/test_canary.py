"""The start-up canary on stand-ins of model runners: what it runs, proves, compiles and leaves."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from saif_fast.banks import HookedModel, LayerBanks
from saif_kernels import LatentEdits, RequestRows, Tally, Window
from saif_vllm.request import Placed, SetUse
from saif_vllm.worker import canary
from saif_vllm.worker.batch import BatchRequest, BatchTables
from saif_vllm.worker.capture import LastTokenCapture
from saif_vllm.worker.layers import WorkerSteering
from saif_vllm.worker.proof import Proof

sys.path.append(str(Path(__file__).parents[1] / "support" / "site"))
from compiled_kernels import launches_told

D_MODEL, LAYERS = 32, (1, 3)
MAX_TOKENS, MAX_REQUESTS = 96, 4
SERIALS = itertools.count()


def make_steering(
    warn_dose: float | None = None,
    max_dose: float | None = None,
    captures: bool = False,
    layers: tuple[int, ...] = LAYERS,
) -> WorkerSteering:
    n = len(layers)
    fits = HookedModel(layers, D_MODEL, 5, torch.float32)
    tables = LayerBanks(fits, 4, 8, "cpu", owned=layers)
    proof = Proof(Tally.allocate(n, MAX_TOKENS, MAX_REQUESTS, "cpu"), layers, warn_dose)
    capture = LastTokenCapture(n, 4, D_MODEL, torch.float32, "cpu") if captures else None
    rows = RequestRows.allocate(MAX_REQUESTS, 2, "cpu")
    return WorkerSteering(tables, BatchTables(rows, proof, MAX_TOKENS, capture), max_dose)


class Runner:
    """A runner whose model returns the residual stream that our layers steer, padding apart."""

    decode_query_len = uniform_decode_query_len = 1

    def __init__(
        self,
        steering: WorkerSteering,
        max_num_tokens: int = MAX_TOKENS,
        max_num_reqs: int = MAX_REQUESTS,
    ) -> None:
        self.steering = steering
        self.max_num_tokens, self.max_num_reqs = max_num_tokens, max_num_reqs
        self.max_model_len = 1024
        compilation = SimpleNamespace(cudagraph_capture_sizes=[])
        self.vllm_config = SimpleNamespace(compilation_config=compilation)
        self.ran: list[tuple[int, bool]] = []
        self.broken: Callable[[int], bool] = lambda n_tokens: False
        self.is_padding = torch.zeros(max_num_tokens, dtype=torch.bool)

    def model(self, n_tokens: int, uniform_decode: bool) -> tuple[Tensor, None]:
        self.ran.append((n_tokens, uniform_decode))
        self.steering.batch.clear_tokens()  # as the seam does before a dummy batch
        hidden = self.stream(n_tokens)
        for layer in self.steering.layers.values():
            if not self.broken(n_tokens):
                layer.steer(hidden, None)
        padding = self.is_padding[:n_tokens]
        hidden[padding] = 1e6 * torch.randn(int(padding.sum()), D_MODEL)  # what was there before
        return hidden, None

    def stream(self, n_tokens: int) -> Tensor:
        return torch.ones(n_tokens, D_MODEL)


class V1(Runner):
    def _prepare_padding_mask(self, num_tokens_unpadded: int, num_tokens_padded: int) -> Tensor:
        self.is_padding[:num_tokens_unpadded] = False
        self.is_padding[num_tokens_unpadded:num_tokens_padded] = True
        return self.is_padding[:num_tokens_padded]

    def _dummy_run(
        self, n_tokens: int, *, uniform_decode: bool, skip_eplb: bool, force_attention: bool
    ) -> Any:
        self._prepare_padding_mask(0, n_tokens)
        return self.model(n_tokens, uniform_decode)


class V2(Runner):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_state = SimpleNamespace(prepare_inputs=lambda input_batch, req_states: {})

    def _dummy_run(self, n_tokens: int, *, uniform_decode: bool, skip_eplb: bool) -> Any:
        self.is_padding[:n_tokens] = True
        batch = SimpleNamespace(is_padding=self.is_padding[:n_tokens])
        self.model_state.prepare_inputs(batch, None)
        return self.model(n_tokens, uniform_decode)


either = pytest.mark.parametrize("version", [V1, V2])
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warned": {"warn_dose": 0.1},
    "capped": {"max_dose": 0.5},
    "captures": {"captures": True},
}
with_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@either
def test_padding_tells_nothing_of_a_layer(version: type[Any]) -> None:
    steering = make_steering()
    runner = version(steering)
    before = dict(vars(getattr(runner, "model_state", runner)))
    canary.check_steering(steering, runner)
    # And the runner's own dummy batches are as before.
    assert vars(getattr(runner, "model_state", runner)) == before
    runner._dummy_run(
        3,
        uniform_decode=False,
        skip_eplb=True,
        **({} if version is V2 else {"force_attention": True}),
    )
    assert runner.is_padding[:3].all()


@either
def test_a_pipeline_rank_that_receives_zeros_starts(version: type[Any]) -> None:
    steering = make_steering(max_dose=64.0)
    runner = version(steering)
    with torch.inference_mode():
        buffer = torch.zeros(MAX_TOKENS, D_MODEL)
    runner.intermediate_tensors = SimpleNamespace(tensors={"hidden_states": buffer})
    runner.stream = lambda n_tokens: buffer[:n_tokens].clone()
    canary.check_steering(steering, runner)
    assert not buffer.any()


@pytest.mark.parametrize(
    ("version", "sizes", "decode", "prefill"),
    [
        pytest.param(V1, {}, [1], [16, 65], id="v1"),
        pytest.param(V2, {}, [1], [16, 65], id="v2"),
        pytest.param(V1, {"max_num_reqs": 80}, [1, 65], [16, 65], id="v1, many requests"),
        # V2 has no fewer tokens but in batches of one token per request.
        pytest.param(V2, {"max_num_reqs": 80}, [1, 65], [81], id="v2, many requests"),
        pytest.param(V1, {"max_num_tokens": 64}, [1], [16, 64], id="v1, never a tile"),
        pytest.param(V2, {"max_num_tokens": 8}, [1], [8], id="v2, never a tile"),
    ],
)
def test_both_regimes_are_run(
    version: type[Any], sizes: dict[str, int], decode: list[int], prefill: list[int]
) -> None:
    steering = make_steering()
    runner = version(steering, **sizes)
    canary.check_steering(steering, runner)
    assert sorted({n for n, uniform in runner.ran if uniform}) == decode
    assert sorted({n for n, uniform in runner.ran if not uniform}) == prefill


@either
def test_a_batch_beyond_the_largest_graph_is_run(version: type[Any]) -> None:
    steering = make_steering()
    runner = version(steering)
    runner.vllm_config.compilation_config.cudagraph_capture_sizes = [1, 80, 8]
    canary.check_steering(steering, runner)
    assert max(runner.ran) == (81, False)
    runner.ran.clear()
    runner.vllm_config.compilation_config.cudagraph_capture_sizes = [MAX_TOKENS]
    canary.check_steering(steering, runner)
    assert max(runner.ran) == (MAX_TOKENS, False)


@either
def test_a_regime_that_does_not_steer_stops_the_start(version: type[Any]) -> None:
    steering = make_steering()
    runner = version(steering)
    runner.broken = lambda n_tokens: n_tokens > 64
    with pytest.raises(RuntimeError, match="layer 1 steered no token of a prefill batch of size 6"):
        canary.check_steering(steering, runner)


@either
@with_options
def test_nothing_is_left(
    version: type[Any], options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    steering = make_steering(**options)
    before = {name: table.clone() for name, table in steering.tensors().items()}
    canary.check_steering(steering, version(steering))
    batch = steering.batch
    assert batch.proof.report() == []
    totals = batch.proof.totals()
    assert (totals.planned, totals.steered) == (0, 0)
    assert set(totals.dose.values()) == {0.0}
    assert not caplog.records
    assert len(batch._free_rows) == MAX_REQUESTS
    # The first row of requests is written when one takes it, and so is the first set's slot.
    rewritten = ("request_rows", "table", "ended_rows", "layers.1.", "layers.3.")
    for name, table in steering.tensors().items():
        if not name.startswith(rewritten):
            assert torch.equal(table, before[name]), name
    for layer in steering.layers.values():
        assert not layer.bank.vector.any()
        assert not layer.bank.n_latents.any()


@pytest.fixture
def launched() -> Iterator[list[Any]]:
    keys: list[Any] = []
    with launches_told(keys.append):
        yield keys


def serve(steering: WorkerSteering, runner: Runner, positions: torch.dtype) -> None:
    """Run steps of requests that come, go and come back."""

    def asking(*pairs: tuple[int, float], **window: Any) -> Placed:
        uses = tuple(SetUse("x", "x", strength, False) for _, strength in pairs)
        capture = -1 if steering.batch.capture is None else 1
        slots = tuple(slot for slot, _ in pairs)
        return Placed(uses, Window(**window), capture, serial=next(SERIALS), slots=slots)

    one = BatchRequest(asking((0, 1.0)), 5)
    decaying = BatchRequest(asking((1, -2.0), (2, 0.5), start=1, stop=9, omega=0.3), 3)
    plain = BatchRequest(None, 4)
    whole = BatchRequest(asking((2, 1.0), prompt=True), 70)
    batches: list[list[tuple[BatchRequest, range]]] = [
        [(one, range(5)), (plain, range(4))],
        [(one, range(5, 6)), (plain, range(4, 5)), (decaying, range(3))],
        [(plain, range(5, 6)), (decaying, range(3, 4))],
        [(whole, range(70)), (one, range(6))],
        [(whole, range(70, 71))],
        [(plain, range(6, 7))],
    ]
    at = torch.zeros(MAX_TOKENS, dtype=positions)
    starts = torch.zeros(MAX_REQUESTS + 1, dtype=torch.int32)
    for batch in batches:
        lengths = [len(found) for _, found in batch]
        n_tokens = sum(lengths)
        at[:n_tokens] = torch.tensor([p for _, found in batch for p in found])
        starts[1 : len(batch) + 1] = torch.tensor(lengths).cumsum(0)
        steering.batch.begin_step(
            [request for request, _ in batch], starts[: len(batch) + 1], at, n_tokens
        )
        hidden = torch.ones(n_tokens + 3, D_MODEL)  # of padding
        for layer in steering.layers.values():
            layer.steer(hidden, None)
        steering.batch.finish_step()


@pytest.mark.extended  # twelve seconds each
@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run in the interpreter")
@pytest.mark.parametrize(
    ("options", "positions"),
    [({}, torch.int64), ({"warn_dose": 0.1, "max_dose": 0.5, "captures": True}, torch.int32)],
    ids=["no options", "all options"],
)
def test_nothing_is_compiled_after_the_start(
    options: dict[str, Any], positions: torch.dtype, launched: list[Any]
) -> None:
    steering = make_steering(**options, layers=LAYERS[:1])  # the interpreter is slow
    runner = V1(steering)
    canary.check_steering(steering, runner)
    compiled = set(launched)
    launched.clear()
    serve(steering, runner, positions)
    names = {name for name, _ in launched}
    assert names >= {"_steps_kernel", "_tally_kernel", "_token_kernel", "_tile_kernel"}
    assert set(launched) - compiled == set()


def test_what_the_start_compiles_is_no_late_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import knobs

    told: list[str] = []
    monkeypatch.setattr(knobs.runtime, "jit_post_compile_hook", told.append)
    steering = make_steering()
    runner = V1(steering)

    def compiles(n_tokens: int) -> bool:
        hook = knobs.runtime.jit_post_compile_hook
        if hook is not None:
            hook("compiled")
        return False

    runner.broken = compiles
    canary.check_steering(steering, runner)
    assert not told
    compiles(1)
    assert told == ["compiled"]


def test_edits_of_a_set_are_no_trace() -> None:
    """A set that is loaded after the canary steers as if there had been none."""
    fresh, started = make_steering(), make_steering()
    canary.check_steering(started, V1(started))
    edits = LatentEdits.empty(D_MODEL)._replace(vector=torch.ones(D_MODEL))
    for steering in (fresh, started):
        for layer in LAYERS:
            steering.banks.banks[layer].write_set(0, 0, edits)
        serve(steering, V1(steering), torch.int64)
    reports = [
        [(found.planned, found.steered, found.dose) for found in steering.batch.proof.report()]
        for steering in (fresh, started)
    ]
    assert reports[0] == reports[1] != []
