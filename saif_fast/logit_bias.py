"""From the last block's output to the logits, where a constant change is nearly a logit bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from saif_fast import hf

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The OpenAI API and vLLM accept biases in this range only.
API_LIMIT = 100.0
_TOKENS_PER_CHUNK = 256  # bounds the [tokens, vocabulary] logits in memory
_TOKENS_PER_FORWARD = 8192


class Unembedding:
    """A model's map from the last block's output to logits: final norm, output matrix, soft cap.

    Raises:
        ValueError: the model's decoder has not exactly one norm behind its blocks.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        norms = [
            child
            for child in model.get_decoder().children()
            if not isinstance(child, nn.ModuleList) and "norm" in type(child).__name__.lower()
        ]
        if len(norms) != 1:
            raise ValueError(
                f"model: expected one norm between its blocks and its logits, "
                f"got {len(norms)} in {type(model).__name__}"
            )
        self._norm, self._head = norms[0], model.get_output_embeddings()
        self._cap: float | None = getattr(
            model.config.get_text_config(), "final_logit_softcapping", None
        )
        self._device, self._dtype = model.device, model.dtype

    @torch.inference_mode()
    def logits(self, residual: Tensor) -> Tensor:
        """Return logits [n, vocabulary] fp32 of residuals [n, d_model] after the last block."""
        logits: Tensor = self._head(self._norm(residual.to(self._device, self._dtype))).float()
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        return logits.cpu()

    def mean_logits(self, residual: Tensor) -> Tensor:
        """Return the mean [vocabulary] over n of :meth:`logits`."""
        total = sum(self.logits(part).sum(0) for part in residual.split(_TOKENS_PER_CHUNK))
        assert isinstance(total, Tensor)
        return total / len(residual)

    def shift(self, vector: Tensor, residual: Tensor) -> Tensor:
        """Return the mean change [vocabulary] of the logits when ``vector`` is added.

        ``vector`` is [d_model], and is added to each row of ``residual`` [n, d_model]. Nothing is
        linearised: the norm is applied to the sum. The mean over the vocabulary is taken out,
        because softmax does not see it.
        """
        return centred(self.mean_logits(residual + vector) - self.mean_logits(residual))

    def promoted(self, vector: Tensor, n: int) -> tuple[list[int], list[int]]:
        """Return the n tokens that ``vector`` [d_model] raises most and lowers most: logit lens."""
        order = self.logits(vector[None])[0].argsort(descending=True)
        return order[:n].tolist(), order.flip(0)[:n].tolist()


def last_residuals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> Tensor:
    """Return residuals [n, d_model] fp32 after the last block, at each prompt's last token.

    The prompts are final: a chat template has been applied.
    """
    ids = hf.encode_texts(tokenizer, prompts)
    last = len(hf.decoder_layers(model)) - 1
    found = torch.empty(len(ids), model.config.get_text_config().hidden_size)
    for batch, _, _, hidden in hf.run_decoder(model, ids, [last], _TOKENS_PER_FORWARD):
        found[batch] = hidden[last][:, -1].float().cpu()  # padding is on the left
    return found


def centred(logits: Tensor) -> Tensor:
    """Return the same logits [vocabulary] with mean 0. All probabilities stay the same."""
    return logits - logits.mean()


def largest(shift: Tensor, n: int | None = None, *, raised: bool = False) -> dict[int, float]:
    """Return the ``n`` largest entries of a shift [vocabulary], largest first: token id to bias.

    They are the largest by absolute value, or with ``raised`` by value: the tokens that the shift
    raises most. ``n`` = None returns all.

    Raises:
        ValueError: n is not between 1 and the vocabulary's size.
    """
    if n is not None and not 1 <= n <= len(shift):
        raise ValueError(f"tokens: expected 1 to {len(shift)}, the vocabulary's size, got {n}")
    size = shift if raised else shift.abs()
    chosen = size.argsort(descending=True, stable=True)[:n]
    return {int(token): float(shift[token]) for token in chosen}


def clamped(bias: dict[int, float], limit: float = API_LIMIT) -> dict[int, float]:
    """Return the bias with every value clamped to -limit .. limit."""
    return {token: min(limit, max(-limit, value)) for token, value in bias.items()}
