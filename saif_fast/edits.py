"""Edits of one latent, and the coefficients (p, q, lo) by which the kernels apply them."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import msgspec

EditKind = Literal["add", "clamp", "at_least", "scale", "ablate", "project"]
# Beyond every useful activation, far within fp32 and bf16.
MAX_VALUE = 1e6
EDIT_KINDS: tuple[EditKind, ...] = get_args(EditKind)


class Coefficients(NamedTuple):
    """Coefficients of ``D = max(lo, p + q * a)``, the change of a latent's activation ``a``."""

    p: float
    q: float
    lo: float


class Edit(msgspec.Struct, frozen=True, omit_defaults=True):
    """An edit of one latent activation ``a``.

    ========== ====================== =====
    kind       a becomes              value
    ========== ====================== =====
    add        a + value              c
    clamp      value                  c
    at_least   max(a, value)          c
    scale      value * a              m
    ablate     0                      none
    project    value (a = <x, u>)     z
    ========== ====================== =====

    ``gated`` edits act only where the latent is active. ``project`` reads the residual stream
    along a unit direction instead of an SAE latent (arXiv 2410.12877), so it has no threshold.

    Raises:
        ValueError: the value is out of range, or a ``project`` edit is gated.
    """

    kind: EditKind
    value: float = 0.0
    gated: bool = False

    def __post_init__(self) -> None:
        if not abs(self.value) <= MAX_VALUE:
            raise ValueError(
                f"edit value: expected a number between {-MAX_VALUE:g} and {MAX_VALUE:g}, "
                f"got {self.value}"
            )
        if self.kind == "project" and self.gated:
            raise ValueError("edit project: expected no gate, since a direction is always active")

    @classmethod
    def parse(cls, text: str) -> Edit:
        """Read ``kind:value`` or ``ablate``, each followed by ``@gated`` for a gated edit.

        Raises:
            ValueError: the text has another form.

        Examples:
            >>> Edit.parse("clamp:80@gated")
            Edit(kind='clamp', value=80.0, gated=True)
        """
        body, at, gate = text.strip().partition("@")
        kind, colon, value = body.partition(":")
        if kind not in EDIT_KINDS or (at and gate != "gated") or bool(colon) == (kind == "ablate"):
            raise ValueError(
                f"edit: expected KIND:VALUE with KIND one of {', '.join(EDIT_KINDS)}, or ablate, "
                f"each optionally with @gated behind it, got {text!r}"
            )
        try:
            number = float(value) if colon else 0.0
        except ValueError:
            raise ValueError(f"edit {kind}: expected a number, got {value!r}") from None
        return cls(kind, number, bool(at))

    def __str__(self) -> str:
        value = "" if self.kind == "ablate" else f":{self.value!r}"
        return f"{self.kind}{value}{'@gated' if self.gated else ''}"

    @property
    def coefficients(self) -> Coefficients:
        """The coefficients (p, q, lo) of this edit."""
        match self.kind:
            case "add":
                return Coefficients(self.value, 0.0, -math.inf)
            case "clamp" | "project":
                return Coefficients(self.value, -1.0, -math.inf)
            case "at_least":
                return Coefficients(self.value, -1.0, 0.0)
            case "scale":
                return Coefficients(0.0, self.value - 1.0, -math.inf)
            case "ablate":
                return Coefficients(0.0, -1.0, -math.inf)

    @property
    def is_constant(self) -> bool:
        """Whether the change is the same for every token, so that it folds into a set's vector."""
        return self.coefficients.q == 0.0 and not self.gated

    @property
    def combines(self) -> bool:
        """Whether another set of the same request may edit the same latent too.

        Additions combine. Edits that depend on the activation (clamp, scale, ...) do not.
        """
        return self.kind == "add"
