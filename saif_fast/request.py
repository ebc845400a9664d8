"""What a request may ask for: flat keys, since HTTP carries only strings and numbers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

import msgspec

from saif_fast.latent_set import LatentSet
from saif_fast.names import NAME_PATTERN, listed
from saif_kernels import OPEN_STOP, Window

REQUEST_KEYS = ("saif", "saif_scope", "saif_start", "saif_stop", "saif_decay")
SCOPES = ("generated", "prompt", "all")
# The scope "prompt": the last prompt token (generated index 0) belongs to it as well.
PROMPT_ONLY = Window(prompt=True, start=0, stop=1)
MAX_STRENGTH = 10.0  # unless configured
# "saf" is 0.86 from "saif"; words such as "safe" and "said" are 0.75.
_MISSPELT = 0.8
MAX_DECAY = 1000.0  # far beyond use, far within fp32, which the tables are in
_TERM = re.compile(rf"(?P<name>{NAME_PATTERN})\s*(?:\*\s*(?P<strength>\S+))?")


class SteeringRequest(msgspec.Struct, frozen=True):
    """Sets with strengths, and where they apply."""

    sets: tuple[tuple[str, float], ...]
    window: Window = Window()


def parse_request(
    extra_args: Mapping[str, object] | None,
    *,
    available: Collection[str],
    max_strength: float = MAX_STRENGTH,
    max_sets: int = 8,
) -> SteeringRequest | None:
    """Read the ``saif*`` keys of a request; keys of others are left alone. None: nothing asked.

    =============== =========================================== ==================================
    key             value                                       meaning
    =============== =========================================== ==================================
    ``saif``        ``"french"``, ``"french*0.8 + formal*0.4"`` sets and strengths (1 unless given)
    ``saif_scope``  generated (default), prompt, all            positions that are steered
    ``saif_start``  int >= 0, in generated tokens               first one steered
    ``saif_stop``   int > start, in generated tokens            first one no longer steered
    ``saif_decay``  omega, or "omega,power"; 0 to 1000          1 / (1 + omega * t) ** power
    =============== =========================================== ==================================

    Args:
        extra_args: the request's free dictionary.
        available: names of the sets that may be asked for.
        max_strength: largest absolute strength.
        max_sets: most sets in one request.

    Raises:
        ValueError: anything else; the message names what is available.
    """
    check_keys(extra_args)
    given = {key: value for key, value in (extra_args or {}).items() if key in REQUEST_KEYS}
    if not given:
        return None
    if "saif" not in given:
        raise ValueError(
            f"{sorted(given)[0]!r} was given without 'saif'; available sets: {listed(available)}"
        )
    sets = _parse_sets(given["saif"], available, max_strength, max_sets)
    return SteeringRequest(sets=sets, window=_parse_window(given))


def check_keys(extra_args: Mapping[str, object] | None) -> None:
    """Raise ValueError for a key that nearly is one of ours.

    Such a request would be served unsteered, which no one would notice.
    """
    for key in extra_args or {}:
        if key not in REQUEST_KEYS and _is_near(str(key)):
            raise ValueError(
                f"unknown steering argument {key!r}; available: {', '.join(REQUEST_KEYS)}"
            )


def check_strength(name: str, value: float, max_strength: float = MAX_STRENGTH) -> float:
    """Return ``value``, or raise ValueError unless it is finite and within ``max_strength``."""
    if not abs(value) <= max_strength:
        raise ValueError(
            f"saif: expected a strength between {-max_strength:g} and {max_strength:g} for set "
            f"{name!r}, got {value!r}"
        )
    return value


def _is_near(key: str) -> bool:
    name = key.lower().replace("-", "_")
    stem = name.partition("_")[0]
    return (
        name.startswith("saif")
        or sorted(stem) == sorted("saif")
        # No longer word comes so close, and a body may have any number of keys.
        or (len(stem) <= 6 and difflib.SequenceMatcher(None, stem, "saif").ratio() >= _MISSPELT)
    )


def check_combination(sets: Mapping[str, LatentSet]) -> None:
    """Raise ValueError where two sets set the same latent: one request cannot have both.

    Additions combine; two edits that depend on the activation (clamp, scale, ...) of one latent do
    not.
    """
    owner: dict[tuple[int, str | None, int], str] = {}
    for name, latent_set in sets.items():
        for tensors in latent_set.sites:
            sae = tensors.site.sae
            for latent in tensors.site.latents:
                # Without an SAE an index names nothing that another set could mean too.
                if latent.edit.kind == "add" or sae is None:
                    continue
                key = (tensors.site.layer, sae.content_hash, latent.index)
                if key in owner:
                    raise ValueError(
                        f"sets {owner[key]!r} and {name!r} both set latent {latent.index} at layer "
                        f"{tensors.site.layer}; a request can have only one of them"
                    )
                owner[key] = name


def _parse_sets(
    text: object, available: Collection[str], max_strength: float, max_sets: int
) -> tuple[tuple[str, float], ...]:
    if not isinstance(text, str):
        raise ValueError(
            "saif: expected a string such as 'name' or 'name*0.8 + other*0.4', "
            f"got {_quoted(text)}; "
            f"available sets: {listed(available)}"
        )
    sets: dict[str, float] = {}
    for term in _terms(text):
        match = _TERM.fullmatch(term)
        if match is None:
            raise ValueError(
                "saif: expected 'name' or 'name*strength' between '+', "
                f"got {_quoted(term)} in {_quoted(text)}; available sets: {listed(available)}"
            )
        name = match["name"]
        if name not in available:
            raise ValueError(f"unknown set {name!r}; available sets: {listed(available, name)}")
        if name in sets:
            raise ValueError(f"saif: set {name!r} is given twice in {_quoted(text)}")
        sets[name] = _strength(name, match["strength"], max_strength, available)
    if len(sets) > max_sets:
        raise ValueError(f"saif: expected at most {max_sets} sets in a request, got {len(sets)}")
    return tuple(sets.items())


def _terms(text: str) -> list[str]:
    # A plus directly behind "*" or inside an exponent belongs to the number ("a*+1", "a*1e+2").
    return [term.strip() for term in re.split(r"(?<![*eE])(?<!\*\s)\+", text)]


def _strength(
    name: str, text: str | None, max_strength: float, available: Collection[str]
) -> float:
    if text is None:
        return 1.0
    try:
        return check_strength(name, float(text), max_strength)
    except ValueError:
        raise ValueError(
            f"saif: expected a strength between {-max_strength:g} and {max_strength:g} for set "
            f"{name!r}, got {_quoted(text)}; available sets: {listed(available)}"
        ) from None


def _parse_window(given: Mapping[str, object]) -> Window:
    scope = given.get("saif_scope", "generated")
    if scope not in SCOPES:
        raise ValueError(f"saif_scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
    if scope == "prompt":
        beside = sorted(set(given) - {"saif", "saif_scope"})
        if beside:
            raise ValueError(
                f"{beside[0]}: expected none with saif_scope 'prompt', "
                "since it counts generated tokens"
            )
        return PROMPT_ONLY
    start = _tokens(given, "saif_start", 0, 0)
    stop = _tokens(given, "saif_stop", OPEN_STOP, start + 1)
    omega, power = _decay(given.get("saif_decay", 0.0))
    return Window(prompt=scope == "all", start=start, stop=stop, omega=omega, power=power)


def _tokens(given: Mapping[str, object], key: str, default: int, least: int) -> int:
    value = given.get(key, default)
    if isinstance(value, float) and value.is_integer():  # JSON has one number type
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= OPEN_STOP:
        raise ValueError(
            f"{key}: expected an integer >= {least} in generated tokens, got {value!r}"
        )
    return value


def _decay(value: object) -> tuple[float, float]:
    parts = value.split(",") if isinstance(value, str) else [value]
    try:
        numbers = [float(part) for part in parts]  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    legal = all(0 <= number <= MAX_DECAY for number in numbers)
    if isinstance(value, bool) or not legal or len(numbers) not in (1, 2):
        raise ValueError(
            f"saif_decay: expected omega or 'omega,power', each from 0 to {MAX_DECAY:g}, "
            f"got {str(value)[:40]!r}"
        )
    return numbers[0], numbers[1] if len(numbers) == 2 else Window().power


def _quoted(value: object) -> str:
    """As a message has it: what is wrong is seen from its beginning."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"
