"""What is no engine to identify from is refused; the rest is engine/test_identification.py."""

from __future__ import annotations

import pytest

import saif_vllm


class Async:
    """The part of an ``AsyncLLM`` that is looked at."""

    async def collective_rpc(self, method: str) -> None: ...


def test_what_is_no_engine_is_refused() -> None:
    with pytest.raises(ValueError, match=r"llm: expected a vllm\.LLM, got a dict"):
        saif_vllm.residuals({})
    with pytest.raises(ValueError, match=r"expected a vllm.LLM, got Async; identification"):
        saif_vllm.residuals(Async())
