"""Scopes that would not do what was asked for."""

from __future__ import annotations

from saif_kernels import Window
from saif_vllm.request import Steered
from saif_vllm.sets import OfferedSets

# Fields of SamplingParams; vLLM's other prompt_logprob fields only refine them.
PROMPT_LOGPROBS = ("prompt_logprobs", "prompt_logprob_token_ids")
_PROMPT_ONLY = Window(prompt=True, start=0, stop=1)  # ``saif_scope="prompt"``


def check_scope(steered: Steered, offered: OfferedSets, prompt_logprobs: bool) -> None:
    """Raise ValueError where the scope leaves out the positions that the request is about.

    Args:
        steered: what is asked for.
        offered: tells which sets change the KV cache, and so more than their own positions.
        prompt_logprobs: whether the request wants log-probabilities of its prompt.

    Raises:
        ValueError: log-probabilities of a prompt that is not steered, which an evaluation would
            take for the steered model's; or a steered prompt that nothing could show.
    """
    if prompt_logprobs and not steered.window.prompt:
        raise ValueError(
            "saif_scope: expected 'all' or 'prompt' where log-probabilities of the prompt are "
            "asked for (prompt_logprobs, or echo with logprobs), got 'generated': they would be "
            "the unsteered model's"
        )
    if prompt_logprobs or steered.window != _PROMPT_ONLY:
        return
    if not any(offered.changes_kv(use.content_hash) for use in steered.sets):
        raise ValueError(
            "saif_scope: expected 'generated' or 'all' for sets at the last layer, got 'prompt', "
            "which could change nothing but the first token; it needs prompt_logprobs or a set at "
            "a lower layer"
        )
