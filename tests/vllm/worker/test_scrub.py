"""A KV cache is cleared of what is not finite, and of nothing else."""

from __future__ import annotations

import pytest
import torch

from saif_vllm.worker.scrub import can_scrub, scrub_kv


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_what_is_not_finite_becomes_zero_and_nothing_else_changes(dtype: torch.dtype) -> None:
    cache = torch.randn(3, 2, 5, 4).to(dtype)
    nested = [cache[:1], (cache[1:].transpose(1, 2),)]  # views of any strides
    expected = cache.clone()
    cache[0, 1, 2, 3], cache[2, 0, 4, 0], cache[1, 1, 0, 1] = torch.nan, torch.inf, -torch.inf
    expected[0, 1, 2, 3] = expected[2, 0, 4, 0] = expected[1, 1, 0, 1] = 0
    scrub_kv(nested, "auto")
    assert torch.equal(cache, expected)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8", torch.float8_e4m3fn),
        ("fp8_e4m3", torch.float8_e4m3fn),
        ("fp8_e5m2", torch.float8_e5m2),
    ],
)
def test_so_it_does_in_eight_bits(name: str, dtype: torch.dtype) -> None:
    bits = torch.arange(256, dtype=torch.uint8).repeat(1100, 1)  # every number; blocks in pieces
    values = bits[0].view(dtype).float()
    expected = torch.where(values.isfinite(), values, 0.0)
    scrub_kv([bits], name)
    assert torch.equal(bits[0].view(dtype).float(), expected)
    assert torch.equal(bits, bits[:1].expand_as(bits))
    as_floats = torch.arange(256, dtype=torch.uint8)[None].view(dtype)
    scrub_kv([as_floats], name)
    assert torch.equal(as_floats[0].float(), expected)


def test_caches_that_nobody_knows_are_known_not_to_be() -> None:
    assert can_scrub("auto") and can_scrub("bfloat16") and can_scrub("fp8_e5m2")
    assert not can_scrub("nvfp4") and not can_scrub("int8_per_token_head")
