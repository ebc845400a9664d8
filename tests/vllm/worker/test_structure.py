"""How layers are found and their outputs read, on models made of a line each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from saif_vllm.worker.op import steering_hook
from saif_vllm.worker.structure import ResidualForm, decoder_layers, probe, verify_forms

D_MODEL, N_TOKENS = 16, 8
Returns = Callable[[Tensor, Tensor], Any]  # of a layer's change and the stream before it


class Layer(nn.Module):
    def __init__(self, returns: Returns) -> None:
        super().__init__()
        self.mix, self.returns = nn.Linear(D_MODEL, D_MODEL), returns

    def forward(self, x: Tensor) -> Any:
        return self.returns(torch.tanh(self.mix(x)), x)


class Model(nn.Module):
    """Layers in a row, each output read by ``reads``, then a norm."""

    def __init__(self, returns: Returns, reads: Callable[[Any], Tensor], n_layers: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Layer(returns) for _ in range(n_layers)])
        self.norm, self.reads = nn.LayerNorm(D_MODEL), reads
        self.n_forwards = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n_forwards += 1
        for layer in self.layers:
            x = self.reads(layer(x))
        return self.norm(x)


def probed(model: Model, layer: int, x: Tensor | None = None) -> ResidualForm:
    x = torch.randn(N_TOKENS, D_MODEL) if x is None else x
    with torch.no_grad():
        return probe(model.layers[layer], lambda: model(x).float().flatten(), D_MODEL, N_TOKENS)


KNOWN: dict[str, tuple[Returns, Callable[[Any], Tensor], ResidualForm]] = {
    "sum": (lambda change, x: (change, x), lambda out: out[0] + out[1], ResidualForm.SUM),
    "first": (lambda change, x: (x + change, x), lambda out: out[0], ResidualForm.FIRST),
    "first_of_one": (lambda change, x: (x + change,), lambda out: out[0], ResidualForm.FIRST),
    "first_and_none": (
        lambda change, x: (x + change, None),
        lambda out: out[0],
        ResidualForm.FIRST,
    ),
    "tensor": (lambda change, x: x + change, lambda out: out, ResidualForm.FIRST),
    "batch_of_one": (lambda change, x: (x + change)[None], lambda out: out[0], ResidualForm.FIRST),
    "sum_of_batches": (
        lambda change, x: (change[None], x[None]),
        lambda out: (out[0] + out[1])[0],
        ResidualForm.SUM,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", [0, 2], ids=["first_layer", "last_layer"])
@pytest.mark.parametrize("case", KNOWN)
def test_what_is_read_is_found(case: str, layer: int, dtype: torch.dtype) -> None:
    returns, reads, stream = KNOWN[case]
    model = Model(returns, reads).to(dtype)
    assert probed(model, layer, torch.randn(N_TOKENS, D_MODEL, dtype=dtype)) is stream
    assert model.n_forwards == 5  # whatever is found: ranks stay in step
    assert not any(module._forward_hooks for module in model.modules())


def test_a_stream_of_zeros_is_as_good_as_any() -> None:
    # What a pipeline rank that is not the first sees in a dummy batch.
    for case, (returns, reads, stream) in KNOWN.items():
        assert probed(Model(returns, reads), 1, torch.zeros(N_TOKENS, D_MODEL)) is stream, case


UNKNOWN: dict[str, tuple[Returns, Callable[[Any], Tensor], str]] = {
    "difference": (lambda change, x: (change, -x), lambda out: out[0] - out[1], "got neither"),
    "weighted": (lambda change, x: (change, x), lambda out: 1.05 * out[0] + out[1], "got neither"),
    "product": (lambda change, x: (change, x), lambda out: out[0] * out[1], "got neither"),
    "second": (lambda change, x: (x, x + change), lambda out: out[1], "first output that the rest"),
    "three": (lambda change, x: (change, x, x), lambda out: out[0] + out[1], "got \\(\\[8, 16\\],"),
    "dictionary": (lambda change, x: {"x": x + change}, lambda out: out["x"], "got dict"),
    "list": (lambda change, x: [change, x], lambda out: out[0] + out[1], "got list"),
    "other_width": (
        lambda change, x: (x + change).view(N_TOKENS * 2, -1),
        lambda out: out.view(N_TOKENS, D_MODEL),
        "got \\[16, 8\\]",
    ),
    "several_streams": (
        lambda change, x: (x + change).expand(2, -1, -1),
        lambda out: out[0],
        "got \\[2, 8, 16\\]",
    ),
    # Sequence parallelism: another rank has the other half.
    "half_of_the_batch": (
        lambda change, x: (change[: N_TOKENS // 2], x[: N_TOKENS // 2]),
        lambda out: (out[0] + out[1]).repeat(2, 1),
        "all 8 tokens of a batch, got \\(\\[4, 16\\], \\[4, 16\\]\\)",
    ),
    "none_first": (lambda change, x: (None, x + change), lambda out: out[1], "got \\(NoneType,"),
    "not_a_number": (lambda change, x: x + change, lambda out: out * torch.nan, "change of nan"),
}


@pytest.mark.parametrize("layer", [0, 2], ids=["first_layer", "last_layer"])
@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_is_refused(case: str, layer: int) -> None:
    returns, reads, sentence = UNKNOWN[case]
    model = Model(returns, reads)
    with pytest.raises(ValueError, match=f"^Layer: expected a .*{sentence}"):
        probed(model, layer)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_too_noisy_to_tell_is_refused() -> None:
    model = Model(KNOWN["sum"][0], lambda out: out[0] + out[1] + 0.1 * torch.randn_like(out[0]))
    with pytest.raises(ValueError, match="when nothing was"):
        probed(model, 1)


@pytest.mark.parametrize("times", [0, 2])
def test_a_layer_that_does_not_run_once_is_refused(times: int) -> None:
    model = Model(*KNOWN["sum"][:2])
    x = torch.randn(N_TOKENS, D_MODEL)

    def forward() -> Tensor:
        y = x
        for _ in range(times):
            y = model.reads(model.layers[0](y))
        return y

    with pytest.raises(ValueError, match=f"runs once per forward, got {times} runs"):
        probe(model.layers[0], forward, D_MODEL, N_TOKENS)


class Rank(nn.Module):
    """A pipeline rank: its part of a model, others' layers missing, as vLLM has them."""

    def __init__(self, whole: Model, owned: range, d_model: int = D_MODEL) -> None:
        super().__init__()
        from vllm.model_executor.models.utils import PPMissingLayer

        layers = [layer if i in owned else PPMissingLayer() for i, layer in enumerate(whole.layers)]
        self.layers, self.norm = nn.ModuleList(layers), whole.norm
        self.do_not_compile = False
        self.owned, self.d_model = owned, d_model

    def forward(self, change: Tensor, x: Tensor) -> Any:
        from vllm.sequence import IntermediateTensors

        assert self.do_not_compile
        for i in self.owned:
            change, x = self.layers[i](change + x)
        if self.owned.stop < len(self.layers):
            return IntermediateTensors({"hidden_states": change, "residual": x})
        return self.norm(change + x)


def verified(
    rank: Rank, hooked: list[int], monkeypatch: pytest.MonkeyPatch
) -> dict[int, ResidualForm]:
    monkeypatch.setattr("vllm.config.set_current_vllm_config", lambda _: nullcontext())

    @torch.inference_mode()
    def dummy_run(n_tokens: int, is_profile: bool, skip_eplb: bool) -> None:
        rank(*torch.zeros(2, n_tokens, D_MODEL))

    runner = SimpleNamespace(_dummy_run=dummy_run, get_model=lambda: rank, max_num_tokens=512)
    model_config = SimpleNamespace(get_hidden_size=lambda: D_MODEL)
    config = SimpleNamespace(model_config=model_config)
    return verify_forms(runner, config, rank.layers, hooked)


def test_each_pipeline_rank_verifies_its_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    whole = Model(*KNOWN["sum"][:2], n_layers=6)
    for owned, expected in ((range(3), [1, 2]), (range(3, 6), [3, 5])):
        rank = Rank(whole, owned)
        found = verified(rank, [1, 2, 3, 5], monkeypatch)
        assert found == dict.fromkeys(expected, ResidualForm.SUM)
        assert not rank.do_not_compile and "forward" not in vars(rank)


def test_a_ranks_last_layer_needs_one_like_it_before(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    whole = Model(*KNOWN["sum"][:2])
    # Its output goes to the next rank unread.
    with pytest.raises(ValueError, match="layer 1: expected another Layer before it"):
        verified(Rank(whole, range(1, 2)), [1], monkeypatch)
    assert verified(Rank(whole, range(2, 3)), [2], monkeypatch) == {2: ResidualForm.SUM}

    class Other(Layer):
        pass

    whole.layers[0] = Other(KNOWN["sum"][0])
    with pytest.raises(ValueError, match="layer 1: expected another Layer before it"):
        verified(Rank(whole, range(2)), [1], monkeypatch)


def test_decoder_layers_are_the_outermost_list_of_that_length() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    model.others = nn.ModuleList([nn.Linear(2, 2) for _ in range(4)])
    for layer in model.layers:
        layer.experts = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    assert decoder_layers(model, 3) is model.layers
    model.tower = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    with pytest.raises(ValueError, match=r"3 decoder layers, got \['layers', 'tower'\]"):
        decoder_layers(model, 3)
    with pytest.raises(ValueError, match=r"got \[\]"):
        decoder_layers(model, 5)


def test_decoder_layers_of_a_multimodal_model_are_its_language_models() -> None:
    model, language = nn.Module(), nn.Module()
    model.vision = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    model.language = language
    language.layers = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    model.get_language_model = lambda: language
    assert decoder_layers(model, 3) is language.layers


@pytest.mark.parametrize("case", KNOWN)
def test_the_hook_steers_what_was_found_in_the_compiled_graph(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward_context = pytest.importorskip("vllm.forward_context")
    returns, reads, stream = KNOWN[case]

    def steer(hidden: Tensor, residual: Tensor | None) -> None:
        assert hidden.shape == (N_TOKENS, D_MODEL)
        hidden.add_(1 + (hidden if residual is None else hidden + residual))

    context = SimpleNamespace(no_compile_layers={"saif.layers.0": SimpleNamespace(steer=steer)})
    monkeypatch.setattr(forward_context, "get_forward_context", lambda: context)
    layer, x = Layer(returns), torch.randn(N_TOKENS, D_MODEL)
    with torch.no_grad():
        plain = reads(layer(x))
        layer.register_forward_hook(steering_hook("saif.layers.0", stream))
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for run in (layer, compiled):
            torch.testing.assert_close(reads(run(x)), 2 * plain + 1)
