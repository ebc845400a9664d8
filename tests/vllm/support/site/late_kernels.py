"""An engine that ends if a GPU would compile a kernel of ours after the engine's start.

As vLLM's --jit-monitor-mode=error does, on a CPU.
"""

from __future__ import annotations

import atexit
import os
from contextlib import ExitStack
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

from after_import import after_import

_compiled: set[Any] = set()
_launched_late: set[str] = set()  # names of kernels
_starts = True


def _tell(key: Any) -> None:
    if _starts:
        _compiled.add(key)
        return
    _launched_late.add(key[0])
    if key not in _compiled:
        raise RuntimeError(f"compiled after the start: {key}")


@after_import("saif_vllm.worker.attach")
def begin(module: Any) -> None:
    attach, stack = module.attach, ExitStack()

    def attach_model(*args: Any) -> Any:
        global _starts
        from compiled_kernels import launches_told

        _starts = True
        _compiled.clear()
        stack.close()
        stack.enter_context(launches_told(_tell))
        return attach(*args)

    module.attach = attach_model


@after_import("saif_vllm.worker.canary")
def end(module: Any) -> None:
    check = module.check_steering

    def check_and_serve(*args: Any) -> None:
        global _starts
        check(*args)
        _starts = False

    module.check_steering = check_and_serve


@atexit.register
def report() -> None:
    print("launched after the start:", *sorted(_launched_late), flush=True)
