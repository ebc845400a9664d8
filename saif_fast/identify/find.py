"""``find_latents``: SAIF in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saif_fast.identify.activations import ResidualSource, collect, residual_source
from saif_fast.identify.pairs import ContrastPairs
from saif_fast.identify.statistics import DEFAULT_K, LatentStatistics, check_choice
from saif_fast.latent_set import LatentSet
from saif_fast.model_info import check_sae
from saif_fast.sae import SparseAutoencoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def find_latents(
    model: PreTrainedModel | ResidualSource,
    tokenizer: PreTrainedTokenizerBase,
    sae: SparseAutoencoder,
    pairs: ContrastPairs,
    *,
    k: int = DEFAULT_K,
    beta: float = 0.0,
    chat: bool | None = None,
    allow_mismatch: bool = False,
) -> LatentSet:
    """Find the latents that answer to an instruction, and freeze them in a set (arXiv 2502.11356).

    Short for :func:`collect`, :meth:`LatentStatistics.compute` and
    :meth:`LatentStatistics.latent_set`. Call these for several sets from one run of the model.

    Args:
        model: a transformers model, or another source of residuals such as ``saif_vllm.residuals``.
        tokenizer: the model's.
        sae: an SAE of one of the model's layers, from ``load_sae``.
        pairs: prompts with and without the instruction, from ``build_pairs`` or ``load_pairs``.
        k: latents in the set, at most; those that rise most consistently.
        beta: each latent is added at mu + beta * sigma of its activations with the instruction.
        chat: apply the chat template to the prompts; None = if the tokenizer has one.
        allow_mismatch: take an SAE of another model of this shape, with a warning that says how
            well it fits.

    Raises:
        ValueError: the SAE does not fit the model or allows no edits, ``k`` or ``beta`` is out of
            range, or the pairs cannot be encoded: all of these before the model runs. Or no latent
            rises with the instruction.

    Examples:
        >>> sae = load_sae("gemma-scope-2b-pt-res-canonical:layer_20/width_16k/canonical")
        >>> pairs = build_pairs(contents, ["Answer in French.", "Please reply in French."])
        >>> french = find_latents(model, tokenizer, sae, pairs, allow_mismatch=True)
        >>> french.save("sets/french.safetensors")
    """
    source = residual_source(model)
    check_choice(sae, k, beta)
    check_sae(sae, source.model, allow_mismatch=allow_mismatch)
    activations = collect(source, tokenizer, pairs, [sae.layer], chat=chat)
    statistics = LatentStatistics.compute(sae, activations, allow_mismatch=allow_mismatch)
    return statistics.latent_set(k, beta)
