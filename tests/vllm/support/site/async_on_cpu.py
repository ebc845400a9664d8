"""Asynchronous scheduling on a CPU: a batch is scheduled before the last one's tokens are known.

The CPU platform switches it off; here it stays as asked for. The model runner then wants streams
and events to copy tokens by, which on a CPU have nothing to wait for.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from after_import import after_import


class Nothing:
    """A stream or an event."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _wait(self, *args: Any) -> None:
        pass

    wait_stream = record = synchronize = _wait


@after_import("vllm.platforms.cpu")
def keep_asynchronous(module: Any) -> None:
    platform = module.CpuPlatform
    original = platform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, vllm_config: Any) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        original(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    platform.check_and_update_config = classmethod(check_and_update_config)


@after_import("vllm.v1.worker.cpu_model_runner")
def without_streams(module: Any) -> None:
    torch.cuda.Event = torch.cuda.Stream = torch.cuda.current_stream = Nothing
    torch.cuda.stream = nullcontext
