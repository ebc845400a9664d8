"""Scopes that would not do what was asked for."""

from __future__ import annotations

from saif_fast.request import PROMPT_ONLY
from saif_vllm.request import Parsed

# Fields of SamplingParams; vLLM's other prompt_logprob fields only refine them.
PROMPT_LOGPROBS = ("prompt_logprobs", "prompt_logprob_token_ids")


def check_scope(asked: Parsed, prompt_logprobs: bool) -> None:
    """Raise ValueError where the scope leaves out the positions that the request is about.

    Args:
        asked: by the request.
        prompt_logprobs: whether the request wants log-probabilities of its prompt.

    Raises:
        ValueError: log-probabilities of a prompt that is not steered, which an evaluation would
            take for the steered model's; or a steered prompt that nothing could show.
    """
    if asked.sets and prompt_logprobs and not asked.window.prompt:
        raise ValueError(
            "saif_scope: expected 'all' or 'prompt' where log-probabilities of the prompt are "
            "asked for (prompt_logprobs, or echo with logprobs), got 'generated': they would be "
            "the unsteered model's"
        )
    if prompt_logprobs or asked.window != PROMPT_ONLY:
        return
    if not any(offered.changes_kv for offered, _ in asked.sets):
        raise ValueError(
            "saif_scope: expected 'generated' or 'all' for sets at the last layer, got 'prompt', "
            "which could change nothing but the first token; it needs prompt_logprobs or a set at "
            "a lower layer"
        )
