from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from offered import config
from torch import Tensor, nn

from saif_vllm.attach import refuse_unsupported
from saif_vllm.op import steering_hook
from saif_vllm.structure import decoder_layers


@pytest.mark.parametrize(
    "output",
    [
        (torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4)),
        (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)),
        {"hidden": torch.zeros(3, 4)},
        None,
    ],
    ids=["three", "batched", "dictionary", "nothing"],
)
def test_a_layer_that_returns_something_else_is_refused(output: object) -> None:
    with pytest.raises(TypeError, match="does not know this model's structure"):
        steering_hook("saif.layers.1")(nn.Identity(), (), output)


def test_the_op_stays_in_the_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    forward_context = pytest.importorskip("vllm.forward_context")

    def steer(hidden: Tensor, residual: Tensor | None) -> None:
        hidden.add_(1)

    context = SimpleNamespace(no_compile_layers={"saif.layers.0": SimpleNamespace(steer=steer)})
    monkeypatch.setattr(forward_context, "get_forward_context", lambda: context)
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(steering_hook("saif.layers.0"))
    x = torch.randn(3, 4)
    with torch.no_grad():
        plain = nn.functional.linear(x, layer.weight, layer.bias)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), plain + 1)


def test_decoder_layers_are_found_by_structure() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    model.experts = nn.ModuleList([nn.Linear(2, 2) for _ in range(4)])
    assert decoder_layers(model, 3) is model.layers
    model.tower = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    with pytest.raises(ValueError, match=r"expected one list of 3 decoder layers, got \['layers'"):
        decoder_layers(model, 3)
    with pytest.raises(ValueError, match=r"got \[\]"):
        decoder_layers(model, 5)


class CohereDecoderLayer(nn.Module):
    pass


class CohereEagleDecoderLayer(CohereDecoderLayer):
    pass


def test_a_stream_that_is_not_the_sum_of_the_outputs_is_refused() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([CohereEagleDecoderLayer()])
    with pytest.raises(ValueError, match="CohereEagleDecoderLayer"):
        decoder_layers(model, 1)


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
        kv_transfer_config=on.get("kv_transfer_config"),
    )


@pytest.mark.parametrize(
    "on",
    [
        {"use_ubatching": True},
        {"prefill_context_parallel_size": 2},
        {"kv_sharing_fast_prefill": True},
        {"enable_sp": True},
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
