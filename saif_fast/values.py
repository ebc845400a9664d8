"""Values as a request carries them: how they are read, and how messages show them."""

from __future__ import annotations

# ASCII only: Python's own float() also reads "1_000", " 1" and digits of other scripts.
NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"


def plain(value: object) -> object:
    """Return ``value`` as exactly a str, an int or a float if its type derives from one.

    numpy's float64 and str_, and members of enums, pass every check, but cannot be sent to an
    engine.
    """
    # str(value) would not do: a subclass may override it, as enums do.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    return value


def quoted(value: object) -> str:
    """Return ``value`` as an error message shows it: short, however long or deep it is."""
    value = plain(value)
    if isinstance(value, str | bytes):
        return f"{value[:60]!r}…" if len(value) > 60 else repr(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return "an integer of more than 64 bits"
    if value is None or isinstance(value, int | float):
        return repr(value)
    return f"a value of type {type(value).__name__}"[:100]
