"""The error of a request that cannot be served as asked."""

from __future__ import annotations

from vllm.exceptions import VLLMValidationError


class SteeringRequestError(VLLMValidationError, ValueError):
    """A ValueError for callers in Python; vLLM's servers answer it with HTTP 400."""
