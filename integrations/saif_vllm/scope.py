"""Scopes that would not do what was asked for."""

from __future__ import annotations

from saif_fast.request import check_reached
from saif_vllm.request import Parsed

# Fields of SamplingParams; vLLM's other prompt_logprob fields only refine them.
PROMPT_LOGPROBS = ("prompt_logprobs", "prompt_logprob_token_ids")


def check_scope(asked: Parsed, prompt_logprobs: bool, max_tokens: int | None = None) -> None:
    """Raise ValueError where the scope leaves out the positions that the request is about.

    Args:
        asked: by the request.
        prompt_logprobs: whether the request wants log-probabilities of its prompt.
        max_tokens: most tokens that are generated, where that is known.

    Raises:
        ValueError: log-probabilities of a prompt that is not steered, which an evaluation would
            take for the steered model's; a steered prompt that nothing could show; or a window that
            begins after all that is generated.
    """
    if asked.sets and prompt_logprobs and not asked.window.prompt:
        raise ValueError(
            "saif_scope: expected 'all' or 'prompt' where log-probabilities of the prompt are "
            "asked for (prompt_logprobs, or echo with logprobs), got 'generated': they would be "
            "the unsteered model's"
        )
    window = asked.window
    prompt_shows = prompt_logprobs or any(offered.changes_kv for offered, _ in asked.sets)
    if max_tokens is not None:
        check_reached(window, max_tokens, prompt_shows=prompt_shows)
    if window.prompt and window.stop == 1 and not prompt_shows:
        given = (
            repr(asked.scope) if asked.scope == "prompt" else f"{asked.scope!r} up to saif_stop 1"
        )
        raise ValueError(
            "saif_scope: expected 'generated', or 'all' with no saif_stop or a later one, for sets "
            f"at the last layer, got {given}, which could change nothing but the first token; it "
            "needs prompt_logprobs or a set at a lower layer"
        )
