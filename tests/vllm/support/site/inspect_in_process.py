"""A vLLM that looks at a model's class in its own process.

By default it starts a process per class, which imports vLLM again, to keep CUDA out of this one.
Tests of many classes on a CPU need not wait for that.
"""

from __future__ import annotations

from typing import Any

from after_import import after_import


@after_import("vllm.model_executor.models.registry")
def inspect_here(module: Any) -> None:
    module._run_in_subprocess = lambda function: function()
