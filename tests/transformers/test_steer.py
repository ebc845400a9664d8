from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from saif_fast.latent_set import LatentSet
from saif_fast.request import SteeringRequest
from saif_fast.set_dir import SetDirectory
from saif_kernels import Window
from saif_transformers import steer

sys.path.insert(0, str(Path(__file__).parent))
from random_model import (
    N_LAYERS,
    Ask,
    dense,
    edited,
    merged,
    naive_generate,
    naive_logits,
    naive_steer,
    tiny_model,
)

LAST = N_LAYERS - 1
PROMPTS = ([1, 5, 6, 7, 8, 9, 10], [1, 11, 12], [1, 13, 14, 15, 16], [1, 17, 18, 19])
N_TOKENS = 6
# fp32 sums in another order, through three layers of a model with activations of about 10.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    model = tiny_model()
    model.generation_config.eos_token_id = None  # every row generates N_TOKENS
    return model


def padded(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    longest = max(len(prompt) for prompt in prompts)
    pads = [longest - len(prompt) for prompt in prompts]
    rows = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    mask = [[0] * pad + [1] * len(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}


def generate(
    model: LlamaForCausalLM,
    sets: Mapping[str, LatentSet],
    requests: Any,
    prompts: Sequence[Sequence[int]] = PROMPTS,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[list[list[int]], torch.Tensor]:
    """Tokens, and logits [rows, tokens, vocabulary], of the model's own generate."""
    inputs = padded(prompts)
    with steer(model, sets, requests, **(options or {})):
        output = model.generate(
            **inputs,
            max_new_tokens=N_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **kwargs,
        )
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    return new.tolist(), torch.stack(output.logits, dim=1)


def assert_naive(
    model: LlamaForCausalLM,
    sets: Mapping[str, LatentSet],
    got: tuple[list[list[int]], torch.Tensor],
    asks: Sequence[Ask],
) -> None:
    for row, (prompt, ask) in enumerate(zip(PROMPTS, asks, strict=True)):
        tokens, logits = naive_generate(model, prompt, ask, sets, N_TOKENS)
        assert got[0][row] == tokens, f"row {row}"
        torch.testing.assert_close(got[1][row], logits, **TOLERANCE)


EDITS = [
    "add:3",
    "clamp:4",
    "at_least:2",
    "scale:2.5",
    "ablate",
    "project:3",
    "add:3@gated",
    "clamp:4@gated",
    "at_least:2@gated",
]


@pytest.mark.parametrize("layer", [0, LAST], ids=["first", "last"])
@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_equals_the_formula(model: LlamaForCausalLM, edit: str, layer: int) -> None:
    sets = {"s": edited([edit] * 6, layer)}
    got = generate(model, sets, ["s"] * 4)
    assert_naive(model, sets, got, [Ask({"s": 1.0})] * 4)
    plain = generate(model, sets, None)
    assert not torch.allclose(got[1], plain[1], **TOLERANCE), "the edit changes nothing"


WINDOWS = {
    "all": ({"saif_scope": "all"}, {"prompt": True}),
    "prompt": ({"saif_scope": "prompt"}, {"prompt": True, "stop": 1}),
    "start": ({"saif_start": 2}, {"start": 2}),
    "stop": ({"saif_stop": 3}, {"stop": 3}),
    "start-stop": ({"saif_start": 1, "saif_stop": 4}, {"start": 1, "stop": 4}),
    "decay": ({"saif_decay": "0.5"}, {"omega": 0.5}),
    "decay-power": ({"saif_decay": "0.7,1"}, {"omega": 0.7, "power": 1.0}),
    "all-start-decay": (
        {"saif_scope": "all", "saif_start": 1, "saif_decay": "0.4,2"},
        {"prompt": True, "start": 1, "omega": 0.4, "power": 2.0},
    ),
}


@pytest.mark.parametrize("options, ask", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("layer", [0, LAST], ids=["first", "last"])
def test_windows_equal_the_formula(
    model: LlamaForCausalLM, layer: int, options: dict[str, Any], ask: dict[str, Any]
) -> None:
    sets = {"s": edited(["add:3", "clamp:4", "scale:2"], layer)}
    got = generate(model, sets, ["s*1.3"] * 4, options=options)
    assert_naive(model, sets, got, [Ask({"s": 1.3}, **ask)] * 4)


def mixed() -> tuple[dict[str, LatentSet], list[Any], list[Ask]]:
    sets = {
        "both": merged(edited(["clamp:3", "add:2"], 0), edited(["scale:2", "at_least:2"], LAST)),
        "dense": dense(1),
        "other": edited(["ablate", "clamp:2@gated"], LAST, seed=9),
        "unused": edited(["add:5"], 1),
    }
    window = Window(prompt=True, start=1, stop=4, omega=0.3, power=2.0)
    requests = [
        "both*0.7 + dense*1.5 + other*-0.5",
        None,
        {"saif": "dense*2", "saif_scope": "prompt"},
        SteeringRequest(sets=(("other", 1.0), ("dense", 0.5)), window=window),
    ]
    asks = [
        Ask({"both": 0.7, "dense": 1.5, "other": -0.5}),
        Ask(),
        Ask({"dense": 2.0}, prompt=True, stop=1),
        Ask({"other": 1.0, "dense": 0.5}, prompt=True, start=1, stop=4, omega=0.3, power=2.0),
    ]
    return sets, requests, asks


def test_rows_of_a_batch_differ_in_sets_strengths_and_windows(model: LlamaForCausalLM) -> None:
    sets, requests, asks = mixed()
    assert_naive(model, sets, generate(model, sets, requests), asks)


@pytest.mark.parametrize(
    "kwargs", [{"use_cache": False}, {"prefill_chunk_size": 2}], ids=["no-cache", "chunked-prefill"]
)
def test_generate_is_the_same_however_the_model_is_called(
    model: LlamaForCausalLM, kwargs: dict[str, Any]
) -> None:
    sets, requests, _ = mixed()
    cached = generate(model, sets, requests)
    other = generate(model, sets, requests, **kwargs)
    assert other[0] == cached[0]
    torch.testing.assert_close(other[1], cached[1], **TOLERANCE)


def test_two_generations_in_one_block_are_two_prompts(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4", "add:3"], 0)}
    alone, _ = generate(model, sets, "s", [PROMPTS[1]])
    with steer(model, sets, "s"):
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=3, do_sample=False)
        again = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=N_TOKENS, do_sample=False)
    assert again[0, len(PROMPTS[1]) :].tolist() == alone[0]


def test_a_plain_forward_after_a_generation_begins_anew(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4", "add:3"], 0)}
    expected = naive_logits(model, PROMPTS[0], len(PROMPTS[0]), Ask({"s": 1.0}), sets)
    with steer(model, sets, "s"), torch.no_grad():
        model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=3, do_sample=False)
        got = model(torch.tensor([PROMPTS[0]])).logits[0]
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_embeddings_as_the_prompt(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4", "add:3"], 0)}
    alone, _ = generate(model, sets, "s", [PROMPTS[0]])
    embeddings = model.get_input_embeddings()(torch.tensor([PROMPTS[0]]))
    with steer(model, sets, "s"):
        got = model.generate(inputs_embeds=embeddings, max_new_tokens=N_TOKENS, do_sample=False)
    assert got.tolist() == alone


def test_plain_forwards_prefill_and_decode(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4", "scale:2"], 0)}
    tokens = [*PROMPTS[0], 20, 21]
    expected = naive_logits(model, tokens, len(PROMPTS[0]), Ask({"s": 1.0}), sets)
    with steer(model, sets, "s"), torch.no_grad():
        first = model(torch.tensor([tokens[:-2]]), use_cache=True)
        second = model(torch.tensor([tokens[-2:]]), past_key_values=first.past_key_values)
    got = torch.cat([first.logits, second.logits], dim=1)[0]
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_plain_forwards_of_a_prompt_in_chunks(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4", "scale:2"], 0)}
    prompt = PROMPTS[0]
    expected = naive_logits(model, prompt, len(prompt), Ask({"s": 1.0}), sets)
    with steer(model, sets, ["s"], prompt_lens=[len(prompt)]), torch.no_grad():
        first = model(torch.tensor([prompt[:4]]), use_cache=True)
        second = model(torch.tensor([prompt[4:]]), past_key_values=first.past_key_values)
    got = torch.cat([first.logits, second.logits], dim=1)[0]
    torch.testing.assert_close(got, expected, **TOLERANCE)


def test_bf16_layer_output_is_within_one_rounding_of_the_formula() -> None:
    model = tiny_model(torch.bfloat16, n_layers=N_LAYERS)
    sets = {"s": edited(["clamp:4", "scale:2", "add:3"], LAST), "t": dense(LAST)}
    inputs = padded(PROMPTS)
    block = model.model.layers[LAST]
    seen: list[torch.Tensor] = []

    def forward(requests: Any) -> torch.Tensor:
        with steer(model, sets, requests, saif_scope="all"), torch.no_grad():
            handle = block.register_forward_hook(lambda m, a, output: seen.append(output.clone()))
            model(**inputs)
            handle.remove()
        return seen.pop()

    before, after = forward(None), forward(["s + t*0.5"] * 4)
    for row, prompt in enumerate(PROMPTS):
        hidden = before[row, -len(prompt) :]
        # The tables hold the rows in the model's dtype, so the formula is given rounded ones.
        rounded = {name: _rounded(latent_set) for name, latent_set in sets.items()}
        ask = Ask({"s": 1.0, "t": 0.5}, prompt=True)
        expected = naive_steer(hidden, LAST, len(prompt), ask, rounded)
        got = after[row, -len(prompt) :]
        assert not torch.equal(got, hidden)
        # Constants fold into one vector that is rounded once more: half a bf16 step of it.
        torch.testing.assert_close(got.float(), expected.float(), rtol=2**-7, atol=2**-5)
    pads = inputs["attention_mask"] == 0
    assert torch.equal(after[pads], before[pads]), "padding was steered"


def _rounded(latent_set: LatentSet) -> LatentSet:
    sites = []
    for site in latent_set.sites:
        fields = {**vars(site)}
        for name in ("W_enc", "W_dec", "vector"):
            if fields[name] is not None:
                fields[name] = fields[name].bfloat16().float()
        sites.append(type(site)(**fields))
    return LatentSet(tuple(sites), latent_set.d_model, latent_set.num_layers, latent_set.provenance)


def hooks_of(model: LlamaForCausalLM) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_nothing_stays_behind(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4"], 0)}
    before, hooks = generate(model, sets, None), hooks_of(model)
    with steer(model, sets, "s"):
        assert hooks_of(model) > hooks
    assert hooks_of(model) == hooks and "generate" not in vars(model)
    with pytest.raises(ZeroDivisionError), steer(model, sets, "s"):
        raise ZeroDivisionError
    assert hooks_of(model) == hooks and "generate" not in vars(model)
    after = model.generate(**padded(PROMPTS), max_new_tokens=N_TOKENS, do_sample=False)
    assert after[:, max(map(len, PROMPTS)) :].tolist() == before[0]


def test_an_error_inside_generate_takes_the_hooks_off(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4"], 0)}
    hooks = hooks_of(model)
    with pytest.raises(ValueError, match="requests: expected one per row"):
        generate(model, sets, ["s", None])
    assert hooks_of(model) == hooks and "generate" not in vars(model)


def test_unsteered_rows_keep_their_bits(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4"], 0)}
    _, alone = generate(model, sets, None)
    _, beside = generate(model, sets, ["s", None, "s", None])
    assert torch.equal(beside[1::2], alone[1::2])
    assert not torch.allclose(beside[::2], alone[::2])


def test_sets_come_from_a_directory(model: LlamaForCausalLM, tmp_path: Any) -> None:
    sets = {"s": edited(["clamp:4"], 0)}
    sets["s"].save(tmp_path / "s.safetensors")
    directory = SetDirectory(tmp_path)
    assert generate(model, directory, "s")[0] == generate(model, sets, "s")[0]  # type: ignore[arg-type]


BAD_REQUESTS = {
    "unknown set": ("french", {}, "available"),
    "unknown set in a request": (SteeringRequest(sets=(("french", 1.0),)), {}, "french"),
    "unknown option": ("s", {"saif_scop": "all"}, "saif_scop"),
    "misspelt key": ({"siaf": "s"}, {}, "unknown steering argument 'siaf'"),
    "misspelt option": ("s", {"siaf_scope": "all"}, "unknown steering argument 'siaf_scope'"),
    "absurd strength": ("s*1e9", {}, "strength"),
    "no number in a request": (SteeringRequest(sets=(("s", float("nan")),)), {}, "strength"),
    "two clamps of one latent": ("s + same", {}, "both set latent 0"),
    "another model's set": ("wide", {}, "hidden size 8"),
}


@pytest.mark.parametrize("request_, options, message", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_requests_are_refused(
    model: LlamaForCausalLM, request_: Any, options: dict[str, Any], message: str
) -> None:
    sets = {
        "s": edited(["clamp:4"], 0),
        "same": edited(["clamp:2"], 0),
        "wide": LatentSet.from_vector(torch.ones(8), layer=0, num_layers=N_LAYERS),
    }
    hooks = hooks_of(model)
    with pytest.raises(ValueError, match=message):
        generate(model, sets, request_, options=options)
    assert hooks_of(model) == hooks


def test_a_forward_with_gradients_is_refused(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4"], 0)}
    with pytest.raises(ValueError, match="no_grad"), steer(model, sets, "s"):
        model(torch.tensor([PROMPTS[0]]))


def test_a_cache_filled_before_needs_prompt_lens(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4"], 0)}
    with torch.no_grad():
        cache = model(torch.tensor([PROMPTS[0]]), use_cache=True).past_key_values
        with pytest.raises(ValueError, match="prompt_lens"), steer(model, sets, "s"):
            model(torch.tensor([[20]]), past_key_values=cache)


def test_a_static_cache_is_refused(model: LlamaForCausalLM) -> None:
    sets = {"s": edited(["clamp:4"], 0)}
    with pytest.raises(ValueError, match="dynamic cache"):
        generate(model, sets, "s", cache_implementation="static")
