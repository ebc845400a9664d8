"""Training of one SAE of SmolLM2 with sae-lens: BatchTopK, saved as JumpReLU, mostly in bf16."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from saif_fast.sae import load_sae
from saif_fast.smollm2 import MODEL_NAME

__all__ = ["BATCH", "D_SAE", "LEARNING_RATE", "STEPS", "K", "fit", "train_sae"]

D_SAE = 2880  # seven of them stay below the 48 MB that the repository has room for
K = 32.0
BATCH = 512
STEPS = 1200
LEARNING_RATE = 6e-4
# A latent that was silent for so many batches is drawn towards what the others leave out.
DEAD_AFTER = 150


class BatchTopK(torch.nn.Module):
    """The activation function of sae-lens' BatchTopK SAE without its sort: a third of each step."""

    def __init__(self, k: float) -> None:
        """Keep ``k`` latents per token on average."""
        super().__init__()
        self.k = k

    def forward(self, pre: Tensor) -> Tensor:
        """Return ``pre`` [tokens, d_sae] where it is positive and among the largest, else 0."""
        rank = pre.numel() - int(self.k * len(pre))
        values = pre.detach().flatten().float().numpy()
        # All that equal the least one are kept: in bf16 several do.
        least = float(np.partition(values, rank)[rank])
        return torch.where((pre >= least) & (pre > 0), pre, 0.0)


def train_sae(sources: Sequence[Tensor], layer: int, seed: int, path: Path) -> None:
    """Train an SAE on the residuals of a layer, and save it.

    They are scaled to norm sqrt(d_model) on average. The factor is folded back, so that the saved
    SAE reads and writes the model's own units.

    Args:
        sources: residuals [tokens, d_model]; each source makes up an equal part of every batch.
        layer: where they are from.
        seed: of the weights and of the order of tokens.
        path: a new directory for the SAE.

    Examples:
        >>> train_sae([plain, chats], layer=23, seed=0, path=Path("layer23"))
        >>> load_sae("layer23").d_sae
        2880
    """
    torch.manual_seed(seed)
    d_model = sources[0].shape[1]
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=d_model,
            d_sae=D_SAE,
            k=K,
            device="cpu",
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(
                model_name=MODEL_NAME,
                hook_name=f"blocks.{layer}.hook_resid_post",
                prepend_bos=False,
            ),
        )
    )
    sae.activation_fn = BatchTopK(K)
    with torch.no_grad():
        # The mean is far from 0 in a few directions, and Adam would take long to get there.
        first = next(_batches(sources, seed, 16 * BATCH))
        sae.b_dec.copy_(first.mean(0) * d_model**0.5 / first.norm(dim=1).mean())
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=STEPS * BATCH,
            train_batch_size_samples=BATCH,
            lr=LEARNING_RATE,
            lr_end=LEARNING_RATE / 10,
            lr_warm_up_steps=50,
            lr_decay_steps=STEPS // 3,
            device="cpu",
            autocast=True,
            dead_feature_window=DEAD_AFTER,
            n_batches_for_norm_estimate=50,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        _batches(sources, seed, BATCH),
    )
    trainer.fit()
    weights, config = sae.save_inference_model(path)
    tensors = load_file(weights)
    for name in ("W_enc", "W_dec"):
        tensors[name] = tensors[name].bfloat16()
    save_file(tensors, weights)
    # sae-lens writes the keys in an order that changes from run to run.
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


@torch.inference_mode()
def fit(path: Path, x: Tensor) -> dict[str, float]:
    """Measure a saved SAE on residuals [tokens, d_model].

    Returns:
        The explained variance, the mean L0 and the share of latents that fire.
    """
    sae = load_sae(path)
    x = x.float()
    error, l0 = 0.0, 0
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    for rows in x.split(4096):
        latents = sae.encode(rows)
        error += (sae.decode(latents) - rows).pow(2).sum().item()
        l0 += int((latents > 0).sum())
        fired |= (latents > 0).any(0)
    return {
        "explained_variance": 1 - error / (x - x.mean(0)).pow(2).sum().item(),
        "l0": l0 / len(x),
        "alive": fired.float().mean().item(),
    }


def _batches(sources: Sequence[Tensor], seed: int, size: int) -> Iterator[Tensor]:
    """Yield batches [size, d_model] fp32, an equal part of each from every source."""
    generator = torch.Generator().manual_seed(seed)
    streams = [_shuffled(source, generator, size // len(sources)) for source in sources]
    while True:
        yield torch.cat([next(stream) for stream in streams]).float()


def _shuffled(x: Tensor, generator: torch.Generator, size: int) -> Iterator[Tensor]:
    """Yield ``size`` rows at a time, all of them in a new order in each round."""
    while True:
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x) - size + 1, size):
            yield x[order[start : start + size]]
