"""The window of a request: which tokens are steered, and how strongly, as flat keys say it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from saif_fast.values import NUMBER, quoted
from saif_kernels import OPEN_STOP, Window

WINDOW_KEYS = ("saif_scope", "saif_start", "saif_stop", "saif_decay")
SCOPES = ("generated", "prompt", "all")
# The scope "prompt". The last prompt token, generated index 0, belongs to it as well.
PROMPT_ONLY = Window(prompt=True, start=0, stop=1)
MAX_DECAY = 1000.0  # far beyond every useful one, far within the tables' fp32
_DECAY = re.compile(rf"({NUMBER})(?: *, *({NUMBER}))?")
_DECAY_LENGTH = 128  # characters


def parse_window(given: Mapping[str, object]) -> tuple[str, Window]:
    """Return the scope as given, and the window that it makes with the other keys.

    Args:
        given: values of :data:`WINDOW_KEYS`, each left out or as :func:`parse_request` has it.

    Raises:
        ValueError: a value is none of these.

    Examples:
        >>> parse_window({"saif_scope": "all", "saif_stop": 8})
        ('all', Window(prompt=True, start=0, stop=8, omega=0.0, power=3.0))
    """
    scope = given.get("saif_scope", "generated")
    if not isinstance(scope, str) or scope not in SCOPES:
        raise ValueError(f"saif_scope: expected one of {', '.join(SCOPES)}, got {quoted(scope)}")
    if scope == "prompt":
        beside = sorted(set(given) & set(WINDOW_KEYS) - {"saif_scope"})
        if beside:
            raise ValueError(
                f"{beside[0]}: expected none with saif_scope 'prompt', "
                "since it counts generated tokens"
            )
        return scope, PROMPT_ONLY
    start = _tokens(given, "saif_start", 0, 0)
    stop = _tokens(given, "saif_stop", OPEN_STOP, start + 1)
    omega, power = _decay(given.get("saif_decay", 0.0))
    return scope, Window(prompt=scope == "all", start=start, stop=stop, omega=omega, power=power)


def check_window(defaults: Mapping[str, object]) -> None:
    """Raise ValueError unless a set's ``defaults`` are a window that a request could say."""
    unknown = sorted(set(defaults) - set(WINDOW_KEYS))
    if unknown:
        raise ValueError(
            f"defaults: expected keys among {', '.join(WINDOW_KEYS)}, got {unknown[0]!r}"
        )
    parse_window(defaults)


def said(defaults: Mapping[str, object]) -> str:
    """Return a set's ``defaults`` as a request would say them."""
    return " ".join(f"{key}={value}" for key, value in defaults.items()) or "saif_scope=generated"


def _tokens(given: Mapping[str, object], key: str, default: int, least: int) -> int:
    value = given.get(key, default)
    if isinstance(value, float) and value.is_integer():  # JSON has one number type
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= OPEN_STOP:
        raise ValueError(
            f"{key}: expected an integer >= {least} in generated tokens, got {quoted(value)}"
        )
    return value


def _decay(value: object) -> tuple[float, float]:
    numbers: list[float] = []
    if (
        isinstance(value, str)
        and len(value) <= _DECAY_LENGTH
        and (match := _DECAY.fullmatch(value))
    ):
        numbers = [float(number) for number in match.groups() if number is not None]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        numbers = [value]
    if not numbers or not all(0 <= number <= MAX_DECAY for number in numbers):
        raise ValueError(
            f"saif_decay: expected omega or 'omega,power', each from 0 to {MAX_DECAY:g}, "
            f"got {quoted(value)}"
        )
    omega, power = (*numbers, Window().power)[:2]
    return float(omega), float(power)
