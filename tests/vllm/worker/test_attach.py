from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from offered import config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saif_vllm.worker.attach import attach, refuse_unsupported
from saif_vllm.worker.structure import ResidualForm


def vllm_config(**on: Any) -> Any:
    """Make a configuration with only ``on`` switched on."""

    def section(**off: Any) -> SimpleNamespace:
        return SimpleNamespace(**{name: on.get(name, value) for name, value in off.items()})

    return SimpleNamespace(
        parallel_config=section(
            use_ubatching=False, prefill_context_parallel_size=1, pipeline_parallel_size=1
        ),
        cache_config=section(kv_sharing_fast_prefill=False, cache_dtype="auto"),
        compilation_config=SimpleNamespace(pass_config=section(enable_sp=False)),
        model_config=SimpleNamespace(
            **vars(section(is_encoder_decoder=False, is_diffusion=False)),
            get_total_num_hidden_layers=lambda: 3,
        ),
        observability_config=section(enable_layerwise_nvtx_tracing=False),
        kv_transfer_config=on.get("kv_transfer_config"),
    )


@pytest.mark.parametrize(
    "on",
    [
        {"use_ubatching": True},
        {"prefill_context_parallel_size": 2},
        {"kv_sharing_fast_prefill": True},
        {"enable_sp": True},
        {"enable_layerwise_nvtx_tracing": True},
        {"is_encoder_decoder": True},
        {"is_diffusion": True},
        {"kv_transfer_config": object()},
        {"cache_dtype": "nvfp4"},
    ],
    ids=lambda on: next(iter(on)),
)
def test_engine_features_that_would_steer_wrongly_are_refused(on: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected off in an engine that steers"):
        refuse_unsupported(vllm_config(**on), config())


def test_the_last_pipeline_rank_has_to_have_a_hooked_layer() -> None:
    two_ranks = vllm_config(pipeline_parallel_size=2)
    refuse_unsupported(two_ranks, config(layers=(0, 2)))
    with pytest.raises(ValueError, match="also hook the last layer"):
        refuse_unsupported(two_ranks, config(layers=(0,)))


def test_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_unsupported(vllm_config(), config())
    # KV is as without steering where only the last layer is hooked.
    refuse_unsupported(vllm_config(kv_transfer_config=object()), config(layers=(2,)))
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ValueError, match="the Rust front end"):
        refuse_unsupported(vllm_config(), config())


D_MODEL, N_TOKENS = 64, 32


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A worker with a model of three layers, which a runner says to take 1000 bytes."""

    def verify(runner: Any, vllm_config: Any, layers: Any, hooked: Any) -> dict[int, ResidualForm]:
        return dict.fromkeys(hooked, ResidualForm.FIRST)

    monkeypatch.setattr("saif_vllm.worker.attach.verify_forms", verify)  # it runs a real model
    model = nn.Module()
    model.layers = nn.ModuleList(nn.Identity() for _ in range(3))
    runner = SimpleNamespace(
        get_model=lambda: model, max_num_tokens=N_TOKENS, model_memory_usage=1000
    )
    vllm_config = SimpleNamespace(
        model_config=SimpleNamespace(
            get_hidden_size=lambda: D_MODEL,
            get_total_num_hidden_layers=lambda: 3,
            dtype=torch.float32,
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        compilation_config=SimpleNamespace(static_forward_context={}),
    )
    return SimpleNamespace(vllm_config=vllm_config, model_runner=runner, device="cpu")


def test_the_tables_are_added_to_the_models_memory_and_logged(
    worker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="vllm.saif"):
        steering = attach(worker, config(max_captures=16))
    # At least: encoders, decoders and vectors of two layers, and the residuals that are kept.
    assert steering.nbytes > 4 * D_MODEL * 2 * (2 * 1024 + 32 + 16)
    assert worker.model_runner.model_memory_usage == 1000 + steering.nbytes
    assert f"Steering layers [1, 2]: {steering.nbytes / 2**20:.1f} MiB" in caplog.text


class Allocated(TorchDispatchMode):
    """Bytes of all storage that torch ops make, kept so that none is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self._storage: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                self._storage[storage.data_ptr()] = storage
        return result

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storage.values())


def test_all_that_is_allocated_is_counted(worker: Any) -> None:
    with Allocated() as allocated:
        steering = attach(worker, config(max_captures=16))
    assert steering.nbytes <= allocated.nbytes < 1.01 * steering.nbytes
