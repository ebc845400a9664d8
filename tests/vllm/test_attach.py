from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from offered import config

from saif_vllm.attach import refuse_unsupported


def vllm_config(**on: Any) -> Any:
    """A configuration of which only ``on`` is switched on."""

    def section(**off: Any) -> SimpleNamespace:
        return SimpleNamespace(**{name: on.get(name, value) for name, value in off.items()})

    return SimpleNamespace(
        parallel_config=section(use_ubatching=False, prefill_context_parallel_size=1),
        cache_config=section(kv_sharing_fast_prefill=False),
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
    ],
    ids=lambda on: next(iter(on)),
)
def test_engine_features_that_would_steer_wrongly_are_refused(on: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected off in an engine that steers"):
        refuse_unsupported(vllm_config(**on), config())


def test_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_unsupported(vllm_config(), config())
    # KV is as without steering where only the last layer is hooked.
    refuse_unsupported(vllm_config(kv_transfer_config=object()), config(layers=(2,)))
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ValueError, match="the Rust front end"):
        refuse_unsupported(vllm_config(), config())
