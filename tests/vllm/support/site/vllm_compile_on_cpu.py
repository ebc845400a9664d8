"""The GPU's compile mode (VLLM_COMPILE) on a CPU: vLLM's own backend, passes and piecewise graphs.

The CPU platform replaces the mode by a simpler one; here it is put back. The passes name operators
that a CPU build lacks: dummies that no graph contains.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from after_import import after_import

_libraries: list[Any] = []  # a library's operators live as long as it does


@after_import("vllm.platforms.cpu")
def keep_mode(module: Any) -> None:
    platform = module.CpuPlatform
    original = platform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        from vllm.config import CompilationMode

        compilation = vllm_config.compilation_config
        wanted = compilation.mode
        original(cls, vllm_config)
        if wanted != CompilationMode.VLLM_COMPILE:
            return
        compilation.mode = wanted
        compilation.compile_sizes = []
        compilation.splitting_ops = ["vllm::unified_attention_with_output"]
        for name, value in vars(compilation.pass_config).items():
            if isinstance(value, bool):
                setattr(compilation.pass_config, name, False)

    platform.check_and_update_config = classmethod(check_and_update_config)


@after_import("vllm.compilation.passes.utility.fix_functionalization")
def define_missing_operators(module: Any) -> None:
    import torch

    named = re.findall(r"torch\.ops\.(\w+)\.(\w+)\.default", Path(module.__file__).read_text())
    for namespace, name in sorted(set(named)):
        if not hasattr(getattr(torch.ops, namespace), name):
            library = torch.library.Library(namespace, "FRAGMENT")
            library.define(f"{name}(Tensor x) -> ()")
            _libraries.append(library)
