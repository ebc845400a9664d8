"""Training of the embedded SAEs with sae-lens: BatchTopK, saved as JumpReLU."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saif_fast.embedded import MODEL_NAME
from tools.tiny_model.train import batches

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

D_SAE = 1024
K = 10.0
BATCH = 1024
STEPS = 3000
LEARNING_RATE = 1e-3
TEXT_BATCHES = 200


@torch.inference_mode()
def collect_outputs(
    model: LlamaForCausalLM, layer: int, text_batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """Collect outputs of block ``layer`` on all tokens but BOS and padding: [N, d] fp32."""
    kept: list[torch.Tensor] = []
    collected: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
        collected.append(output)

    handle = model.model.layers[layer].register_forward_hook(keep)
    try:
        for ids, _ in text_batches:
            model.model(input_ids=ids)
            real = ids != model.config.pad_token_id
            real[:, 0] = False
            kept.append(collected.pop()[real])
    finally:
        handle.remove()
    return torch.cat(kept)


def train_sae(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, layer: int, seed: int, path: Path
) -> dict[str, float]:
    """Train an SAE on the model's own training texts, and save it.

    Activations are scaled to norm sqrt(d) on average, and the factor is folded back, so that the
    saved SAE reads and writes the model's own units.

    Returns:
        Its :func:`fit` on fresh texts.
    """
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    texts = batches(tokenizer, seed + 1000)
    x = collect_outputs(model, layer, itertools.islice(texts, TEXT_BATCHES))
    torch.manual_seed(seed)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=x.shape[1],
            d_sae=D_SAE,
            k=K,
            device="cpu",
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(
                model_name=MODEL_NAME,
                hook_name=f"blocks.{layer}.hook_resid_post",
                prepend_bos=True,
            ),
        )
    )
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=STEPS * BATCH,
            train_batch_size_samples=BATCH,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE / 10,
            lr_warm_up_steps=100,
            lr_decay_steps=STEPS // 3,
            device="cpu",
            n_batches_for_norm_estimate=100,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        _shuffled(x, seed),
    )
    trainer.fit()
    _, config = sae.save_inference_model(path)
    # sae-lens writes the keys in an order that changes from run to run.
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    return fit(path, collect_outputs(model, layer, itertools.islice(texts, 20)))


@torch.inference_mode()
def fit(path: Path, x: torch.Tensor) -> dict[str, float]:
    """Measure a saved SAE on x [N, d]: explained variance, mean L0, share of latents that fire."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(path)
    latents = sae.encode(x)
    error = (sae.decode(latents) - x).pow(2).sum()
    return {
        "explained_variance": 1 - (error / (x - x.mean(0)).pow(2).sum()).item(),
        "l0": (latents > 0).float().sum(-1).mean().item(),
        "alive": (latents > 0).any(0).float().mean().item(),
    }


def _shuffled(x: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x) - BATCH + 1, BATCH):
            yield x[order[start : start + BATCH]]
