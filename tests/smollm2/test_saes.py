"""The SAEs of SmolLM2 in the repository: frozen, and read as sae-lens reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from saif_fast import smollm2
from saif_fast.sae import load_sae
from tools.smollm2.train_saes import HASHES, LAYERS, sae_hashes

NAMES = [f"{layer:02d}" for layer in sorted(LAYERS)]


def test_files_are_the_frozen_ones() -> None:
    assert sae_hashes() == json.loads((smollm2.SAES / HASHES).read_text())
    assert {path.partition("/")[0] for path in sae_hashes()} == {f"layer{n}" for n in NAMES}


def test_they_are_small() -> None:
    assert sum(p.stat().st_size for p in smollm2.SAES.rglob("*") if p.is_file()) < 48e6


def test_six_depths_or_more_from_a_third_to_the_last() -> None:
    assert len(LAYERS) >= 6
    assert (min(LAYERS), max(LAYERS)) == (11, 29)


def test_the_card_has_a_row_for_each() -> None:
    card = (smollm2.SAES / "CARD.md").read_text()
    assert [n for n in NAMES if f"\n| layer{n} | {int(n)} | 0." not in card] == []


@pytest.mark.parametrize("name", NAMES)
def test_it_encodes_as_sae_lens_does(name: str) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    path: Path = smollm2.sae_path(name)
    ours, theirs = load_sae(path), sae_lens.SAE.load_from_disk(path)
    assert (ours.layer, ours.d_model, ours.model_name) == (int(name), 576, smollm2.MODEL_NAME)
    assert theirs.cfg.architecture() == "jumprelu"

    # Residuals as the SAE expects them: 32 latents of one strength each, and some noise.
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(64, ours.d_sae, generator=generator) < 32 / ours.d_sae
    noise = torch.randn(64, 576, generator=generator)
    x = ours.decode(chosen * 4 * ours.threshold) + noise
    with torch.inference_mode():
        expected = theirs.encode(x)
    found = ours.encode(x)
    assert 5 < (found > 0).sum(-1).float().mean() < 200
    # Equal but for activations at the threshold, which rounding may put on either side.
    near = ((expected > 0) != (found > 0)).sum()
    assert near <= 2
    both = (expected > 0) & (found > 0)
    torch.testing.assert_close(found[both], expected[both], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.decode(found), theirs.decode(found), rtol=1e-4, atol=1e-3)
