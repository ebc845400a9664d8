"""Our kernels on a CPU, through Triton's interpreter, and what a GPU would compile for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from triton.backends.compiler import BaseBackend
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, create_function_from_signature

Key = tuple[str, str]  # a kernel's name, and what it is compiled for


@functools.cache
def _binder(kernel: Any) -> Any:
    jitted = JITFunction(kernel.fn, **kernel.kwargs)
    return create_function_from_signature(jitted.signature, jitted.params, BaseBackend)


@contextmanager
def launches_told(tell: Callable[[Key], None]) -> Iterator[None]:
    """Our steps' kernels are launched inside; ``tell`` is given Triton's own key of each launch."""
    from saif_kernels import prepare_steps, steer, tally_steps

    original = InterpretedFunction.run

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if kernel.fn.__module__.startswith("saif_kernels"):
            _, specialization, options = _binder(kernel)(*args, **kwargs)
            tell((kernel.__name__, f"{specialization} {sorted(options.items())}"))
        return original(kernel, *args, grid=grid, warmup=warmup, **kwargs)

    library = torch.library.Library("saif", "IMPL")
    library.impl("steer_", steer.steer_triton_, "CPU")
    library.impl("prepare_steps_", prepare_steps.prepare_steps_triton_, "CPU")
    library.impl("tally_steps_", tally_steps.tally_steps_triton_, "CPU")
    try:
        with mock.patch.object(InterpretedFunction, "run", run):
            yield
    finally:
        library._destroy()
