"""What steering costs beside what it is for: perplexity and next-token KL on other texts."""

from __future__ import annotations

import msgspec


class CapabilityCost(msgspec.Struct, frozen=True):
    """A steered model against the same model unsteered, over the same tokens of the same texts.

    With ``p`` the unsteered and ``q`` the steered distribution of a token ``t`` given those before
    it in its text, and all means over the texts' tokens except the first of each::

        perplexity         = exp(mean(-log p(t)))
        steered_perplexity = exp(mean(-log q(t)))
        kl                 = mean(sum_v p(v) * (log p(v) - log q(v)))      nats per token

    Attributes:
        perplexity: of the unsteered model.
        steered_perplexity: of the model steered at every token.
        kl: divergence of the steered next-token distribution from the unsteered one; 0 where
            steering changes nothing.
        n_tokens: number of tokens in the means.
    """

    perplexity: float
    steered_perplexity: float
    kl: float
    n_tokens: int
