"""The text and the residuals that the SAEs of SmolLM2 are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from saif_fast import embedded
from tools.smollm2 import residuals
from tools.smollm2.prompts import INSTRUCTED, chat_prompts
from tools.smollm2.text import SOURCES, _fortunes

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM


def test_shares_of_the_sources_add_up() -> None:
    assert sum(source.share for source in SOURCES) == 100


def test_prompts_repeat_and_a_longer_list_begins_with_a_shorter_one() -> None:
    prompts = chat_prompts(400, seed=0)
    assert chat_prompts(40, seed=0) == prompts[:40]
    assert chat_prompts(40, seed=1) != prompts[:40]
    contents = [prompt[-1]["content"] for prompt in prompts]
    assert not any("{" in content for content in contents)
    systems = sum(prompt[0]["role"] == "system" for prompt in prompts)
    assert 0.05 < systems / len(prompts) < 2 * 0.15 * INSTRUCTED


def test_fortunes_are_sayings_without_indexes_and_offensive_ones(tmp_path: Path) -> None:
    folder = tmp_path / "usr/share/games/fortunes"
    (folder / "off").mkdir(parents=True)
    first = "A saying that is long enough to be kept,\n\tover two lines."
    second = "Another saying, as long as the first one."
    (folder / "wise").write_text(f"{first}\n%\nshort\n%\n{second}\n")
    (folder / "wise.dat").write_text("An index, whose bytes are not a saying of any kind.\n")
    (folder / "off" / "bad").write_text("An offensive saying that nobody should learn from.\n")
    assert list(_fortunes(tmp_path)) == [
        "A saying that is long enough to be kept, over two lines.",
        second,
    ]


def test_residuals_are_those_of_each_sequence_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(embedded.model_path()).eval()
    monkeypatch.setattr(residuals, "BATCH_TOKENS", 12)
    monkeypatch.setattr(residuals, "MEDIANS", float("inf"))
    monkeypatch.setattr(residuals, "REPEATS", 1)
    sequences = [[5, 6, 7, 8, 9], [5, 6, 10], [20, 21], [22, 23, 24, 25, 26, 27, 28]]
    residuals.collect(model, sequences, [0, 2], tmp_path / "residuals")

    starts = [0, 2, 0, 0]  # the prefix 5 6 of the second sequence is that of the first
    for layer in (0, 2):
        alone = [output(model, layer, sequence) for sequence in sequences]
        expected = torch.cat([x[start:] for x, start in zip(alone, starts, strict=True)])
        found = residuals.read(tmp_path / "residuals", layer)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def output(model: LlamaForCausalLM, layer: int, sequence: list[int]) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    hook = model.model.layers[layer].register_forward_hook(lambda *hooked: kept.append(hooked[-1]))
    model.model(input_ids=torch.tensor([sequence]))
    hook.remove()
    return kept[0][0]


def test_long_residuals_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    x = torch.ones(9, 4)
    x[3] *= 4.1
    x[5] *= 3.9
    save_file({"residuals": x}, tmp_path / "layer07.safetensors")
    assert residuals.read(tmp_path, 7).shape == (8, 4)


def test_the_selection_is_sae_lens_own() -> None:
    saes = pytest.importorskip("sae_lens.saes.batchtopk_sae")
    from tools.smollm2.sae import BatchTopK

    pre = torch.randn(16, 50, generator=torch.Generator().manual_seed(0))
    for k in (1.0, 2.5, 40.0):
        torch.testing.assert_close(BatchTopK(k)(pre), saes.BatchTopK(k)(pre), rtol=0, atol=0)
