"""Named tuples of tensors that inherit fields, and the shape and dtype that a field may state."""

from __future__ import annotations

from operator import itemgetter
from typing import Annotated, ClassVar, NamedTuple, Self, dataclass_transform, get_type_hints

import torch
from torch import Tensor


@dataclass_transform(frozen_default=True)
class TensorTuple(tuple[Tensor, ...]):
    """A named tuple of tensors. Subclasses inherit its fields, which ``NamedTuple`` does not allow.

    A class lists its own fields as annotations; those of its base come first. Kernels of Triton
    take a tuple that has ``_fields``.
    """

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls._fields = (*cls._fields, *cls.__annotations__)
        for i, name in enumerate(cls._fields):
            setattr(cls, name, property(itemgetter(i)))

    def __new__(cls, *values: Tensor, **named: Tensor) -> Self:
        """Take the fields in their order, by name, or both."""
        values += tuple(named.pop(name) for name in cls._fields[len(values) :] if name in named)
        if named or len(values) != len(cls._fields):
            raise TypeError(
                f"{cls.__name__}: expected the fields {', '.join(cls._fields)}, "
                f"got {len(values)} of them and {sorted(named)}"
            )
        return super().__new__(cls, values)

    def __getnewargs__(self) -> tuple[Tensor, ...]:
        return tuple(self)

    def _asdict(self) -> dict[str, Tensor]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **named: Tensor) -> Self:
        return type(self)(**(self._asdict() | named))


class Column(NamedTuple):
    """What a field holds per entry: a row of ``d_model`` channels or one number, and its dtype."""

    is_row: bool
    dtype: torch.dtype | None  # None: the model's


Row = Annotated[Tensor, Column(is_row=True, dtype=None)]  # [n, d_model] model dtype
Number = Annotated[Tensor, Column(is_row=False, dtype=torch.float32)]  # [n] fp32
Flag = Annotated[Tensor, Column(is_row=False, dtype=torch.bool)]  # [n] bool


def columns(table: type[TensorTuple]) -> dict[str, Column]:
    """Return the column of each field of ``table``, by name."""
    hints = get_type_hints(table, include_extras=True)
    return {name: hints[name].__metadata__[0] for name in table._fields}
