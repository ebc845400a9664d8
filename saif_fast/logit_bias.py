"""From the last block's output to the logits: there a constant is nearly a logit bias."""

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
_ROWS_PER_CHUNK = 256  # bounds the [rows, vocabulary] logits in memory
_TOKENS_PER_FORWARD = 8192


class Unembedding:
    """The way from the last block's output to the logits: final norm, output matrix, soft cap.

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
        """Logits [n, vocabulary] fp32 of residuals [n, d_model] after the last block."""
        logits: Tensor = self._head(self._norm(residual.to(self._device, self._dtype))).float()
        if self._cap is not None:
            logits = self._cap * torch.tanh(logits / self._cap)
        return logits.cpu()

    def mean_logits(self, residual: Tensor) -> Tensor:
        """Mean over n of :meth:`logits`: [vocabulary]."""
        total = sum(self.logits(part).sum(0) for part in residual.split(_ROWS_PER_CHUNK))
        assert isinstance(total, Tensor)
        return total / len(residual)

    def shift(self, vector: Tensor, residual: Tensor) -> Tensor:
        """Mean change [vocabulary] of the logits when ``vector`` [d_model] joins ``residual``.

        ``residual`` is [n, d_model]. The norm is applied to the sum, so nothing is linearised; the
        mean over the vocabulary, which no softmax sees, is taken out.
        """
        return centred(self.mean_logits(residual + vector) - self.mean_logits(residual))

    def promoted(self, vector: Tensor, n: int) -> tuple[list[int], list[int]]:
        """Tokens that ``vector`` [d_model] raises most and lowers most, n each (the logit lens)."""
        order = self.logits(vector[None])[0].argsort(descending=True)
        return order[:n].tolist(), order.flip(0)[:n].tolist()


def last_residuals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> Tensor:
    """Residuals [n, d_model] fp32 after the last block, at the last token of each final prompt."""
    ids = hf.encode_texts(tokenizer, prompts)
    last = len(hf.decoder_layers(model)) - 1
    found = torch.empty(len(ids), model.config.get_text_config().hidden_size)
    for batch, _, _, hidden in hf.residuals(model, ids, [last], _TOKENS_PER_FORWARD):
        found[batch] = hidden[last][:, -1].float().cpu()  # padding is on the left
    return found


def centred(logits: Tensor) -> Tensor:
    """The same logits ([vocabulary]) with mean 0, which leaves every probability as it was."""
    return logits - logits.mean()


def largest(shift: Tensor, n: int | None = None, *, raised: bool = False) -> dict[int, float]:
    """The ``n`` largest entries of a shift [vocabulary], largest first: token id to bias.

    By absolute value, or with ``raised`` by value, so that the tokens it raises most are kept. None
    gives all of them.

    Raises:
        ValueError: n is not between 1 and the vocabulary's size.
    """
    if n is not None and not 1 <= n <= len(shift):
        raise ValueError(f"tokens: expected 1 to {len(shift)}, the vocabulary's size, got {n}")
    size = shift if raised else shift.abs()
    chosen = size.argsort(descending=True, stable=True)[:n]
    return {int(token): float(shift[token]) for token in chosen}


def clamped(bias: dict[int, float], limit: float = API_LIMIT) -> dict[int, float]:
    """The bias with every value brought into -limit .. limit."""
    return {token: min(limit, max(-limit, value)) for token, value in bias.items()}
