"""Modes that see where a host waits for a device, also where there is none but the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# They hand the host a value, or make a shape of one: ops, by the beginning of their names.
WAITING_OPS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "unique", "_unique")
WAITING_OPS += ("masked_select", "repeat_interleave", "bincount")
WAITING_METHODS = ("tolist", "numpy", "__array__", "cpu")  # on a CPU no op tells of these


class Ops(TorchDispatchMode):
    """Notes each torch op, what it is given and what it makes; fails where one waits.

    Ops of our own are not looked into.
    """

    def __init__(self, record: list[object]) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        by_mask = name.startswith("index") and any(
            isinstance(value, Tensor) and value.dtype == torch.bool
            for value in tree_flatten(args[1:])[0]
        )
        moved = name == "_to_copy" and kwargs.get("device") is not None
        if by_mask or moved or name.startswith(WAITING_OPS):
            raise AssertionError(f"the host waits for {function}")
        with torch._C.DisableTorchFunction():
            result = function(*args, **kwargs)
        self.record.append((str(function), described((args, kwargs)), described(result)))
        return result


class Methods(TorchFunctionMode):
    """Fails where a method of a tensor waits, other than those in the host's memory."""

    def __init__(self, in_host_memory: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self._in_host_memory = in_host_memory

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        waits = getattr(function, "__name__", "") in WAITING_METHODS
        if waits and not any(args[0] is tensor for tensor in self._in_host_memory):
            raise AssertionError(f"the host waits for {function}")
        return function(*args, **(kwargs or {}))


def described(values: object) -> list[object]:
    """Tensors by shape, strides, dtype and device; all else as it is."""
    return [
        (value.shape, value.stride(), value.dtype, value.device)
        if isinstance(value, Tensor)
        else value
        for value in tree_flatten(values)[0]
    ]
