"""Every op of torch.ops.saif has inputs to share, a launcher, and passes torch.library's checks."""

from __future__ import annotations

import pytest
import torch
from op_inputs import OPS

import saif_kernels  # noqa: F401  (defines torch.ops.saif)


def names() -> set[str]:
    schemas = torch._C._jit_get_all_schemas()
    return {schema.name.removeprefix("saif::") for schema in schemas if "saif::" in schema.name}


def test_every_op_has_inputs() -> None:
    assert names() == set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.saif, name).default, OPS[name]())


@pytest.mark.parametrize("name", OPS)
def test_gpus_have_a_launcher_and_all_other_devices_the_reference(name: str) -> None:
    for key in ("CUDA", "CompositeExplicitAutograd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"saif::{name}", key)
