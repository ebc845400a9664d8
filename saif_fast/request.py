"""The steering keys of a request: flat, because HTTP carries only strings and numbers."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec
import torch

from saif_fast.latent_set import LatentSet
from saif_fast.limits import MAX_STRENGTH
from saif_fast.names import NAME_PATTERN, listed
from saif_fast.values import NUMBER, plain, quoted
from saif_fast.windows import WINDOW_KEYS, parse_window, said
from saif_kernels import Window, largest_norm

REQUEST_KEYS = ("saif", *WINDOW_KEYS)
_LEAST_STRENGTH = 2.0**-126  # fp32's least normal number; a device may flush lesser ones to 0
_TERM_LENGTH = 128  # characters of a name, a strength and what is around them, at most

_STRENGTH = re.compile(NUMBER)
# A strength is whatever stands behind the "*", so that a message can say what it should be. A plus
# sign at its beginning or in its exponent belongs to it; every other plus begins a new term.
_TERM = re.compile(
    rf"(?P<name>{NAME_PATTERN})"
    r"(?: *\* *(?P<strength>[+-]?(?:[0-9.]+[eE][+-]?[0-9]+|[^ +*]+)))?"
)
_PLUS = re.compile(r" *\+ *")

# "saif" in another order, or with a letter missing. Words such as "safe" and "said" are neither.
_MISSPELT = frozenset(
    map("".join, (*itertools.permutations("saif"), *itertools.combinations("saif", 3)))
)
_WITH_OTHER_LETTERS = re.compile(r".*s.*a.*i.*f")  # "saif" with one or two letters too many


class SteeringRequest(msgspec.Struct, frozen=True):
    """A parsed request: sets with strengths, and the tokens that they steer."""

    sets: tuple[tuple[str, float], ...]
    window: Window = Window()
    scope: str = "generated"  # as given: two scopes can have the same window
    says_window: bool = True  # else the sets' own one counts: see :func:`with_defaults`


def parse_request(
    extra_args: Mapping[str, object] | None,
    *,
    available: Collection[str],
    max_strength: float = MAX_STRENGTH,
    max_sets: int = 8,
) -> SteeringRequest | None:
    """Read the ``saif*`` keys of a request. Other keys are ignored.

    Names are those of set files. Numbers are ASCII. Spaces may stand around ``*``, ``+`` and ``,``
    only.

    =============== =========================================== ==================================
    key             value                                       meaning
    =============== =========================================== ==================================
    ``saif``        ``"french"``, ``"french*0.8 + formal*0.4"`` sets and strengths, 1 unless given
    ``saif_scope``  generated (default), prompt, all            positions that are steered
    ``saif_start``  int >= 0, in generated tokens               first one steered
    ``saif_stop``   int > start, in generated tokens            first one no longer steered
    ``saif_decay``  omega, or "omega,power"; 0 to 1000          1 / (1 + omega * t) ** power
    =============== =========================================== ==================================

    A request with none of the last four keys leaves the window to its sets: :func:`with_defaults`.

    Args:
        extra_args: the request's free dictionary, vLLM's ``extra_args``.
        available: names of the sets that may be asked for.
        max_strength: largest absolute strength.
        max_sets: most sets in one request.

    Returns:
        The parsed request; None where no steering is asked for.

    Raises:
        ValueError: the keys say anything else, or something that would change nothing. The message
            names what is available.

    Examples:
        >>> request = parse_request({"saif": "french*0.8", "saif_start": 4}, available=["french"])
        >>> request.sets, request.window.start
        ((('french', 0.8),), 4)
    """
    check_keys(extra_args)
    given = {
        key: plain(extra_args[key]) for key in REQUEST_KEYS if extra_args and key in extra_args
    }
    if not given:
        return None
    if "saif" not in given:
        raise ValueError(
            f"{sorted(given)[0]!r} was given without 'saif'; available sets: {listed(available)}"
        )
    sets = _parse_sets(given["saif"], available, max_strength, max_sets)
    scope, window = parse_window(given)
    return SteeringRequest(sets, window, scope, says_window=len(given) > 1)


def with_defaults(
    request: SteeringRequest, defaults: Mapping[str, Mapping[str, str | int | float]]
) -> SteeringRequest:
    """Return the request with the window of its sets, if it says none itself.

    Args:
        request: a parsed request.
        defaults: those of the sets that it names, by name.

    Raises:
        ValueError: two of its sets have different windows.

    Examples:
        >>> asked = parse_request({"saif": "french"}, available=["french"])
        >>> with_defaults(asked, {"french": {"saif_stop": 8}}).window.stop
        8
    """
    if request.says_window:
        return request
    (first, *others) = (name for name, _ in request.sets)
    chosen = parse_window(defaults[first])
    for other in others:
        if parse_window(defaults[other]) != chosen:
            raise ValueError(
                "saif_scope: expected a request to say which tokens are steered "
                f"({', '.join(WINDOW_KEYS)}), because its sets say different things, "
                f"{first!r} {said(defaults[first])} and {other!r} {said(defaults[other])}"
            )
    scope, window = chosen
    return SteeringRequest(request.sets, window, scope)


def check_keys(extra_args: Mapping[str, object] | None) -> None:
    """Raise ValueError for a key that is nearly one of ours.

    Its request would be served unsteered, and nobody would notice.
    """
    for key in extra_args or ():
        if _is_near(str(key)) and key not in REQUEST_KEYS:
            raise ValueError(
                f"unknown steering argument {quoted(key)}; available: {', '.join(REQUEST_KEYS)}"
            )


def _is_near(key: str) -> bool:
    name = key.lower()
    if "f" not in name and "sai" not in name:  # most keys, and a body may have any number of them
        return False
    stem = name.replace("-", "_").partition("_")[0]
    return (
        "saif" in name
        or stem in _MISSPELT
        or (4 < len(stem) < 7 and _WITH_OTHER_LETTERS.match(stem) is not None)
    )


def check_strength(name: str, value: float, max_strength: float = MAX_STRENGTH) -> float:
    """Return ``value``; raise ValueError unless it is finite, within ``max_strength`` and not 0."""
    if not abs(value) <= max_strength:
        raise ValueError(
            f"saif: expected a strength between {-max_strength:g} and {max_strength:g} for set "
            f"{name!r}, got {quoted(value)}"
        )
    if abs(value) < _LEAST_STRENGTH:
        raise ValueError(
            f"saif: expected a strength other than 0 for set {name!r}, got {quoted(value)}, which "
            "changes nothing: leave the set out, or 'saif' for an unsteered request"
        )
    return value


def check_reached(window: Window, max_tokens: int, *, prompt_shows: bool = True) -> None:
    """Raise ValueError where a generation ends before its window begins.

    Args:
        window: the tokens that are steered.
        max_tokens: number of tokens that are generated, at most.
        prompt_shows: whether steering of the prompt alone changes what is returned.
    """
    if window.start >= max_tokens and not (window.prompt and prompt_shows):
        raise ValueError(
            f"saif_start: expected less than the most tokens that are generated (max_tokens), "
            f"{max_tokens}, got {window.start}, from where nothing would be steered"
        )


def check_combination(sets: Mapping[str, LatentSet]) -> None:
    """Raise ValueError where two sets of a request edit the same latent and cannot be combined.

    Which edits combine is :attr:`Edit.combines`.
    """
    owner: dict[tuple[int, str | None, int], str] = {}
    for name, latent_set in sets.items():
        for tensors in latent_set.sites:
            sae = tensors.site.sae
            for latent in tensors.site.latents:
                # Without an SAE, equal indices of two sets do not mean the same latent.
                if latent.edit.combines or sae is None:
                    continue
                key = (tensors.site.layer, sae.content_hash, latent.index)
                if key in owner:
                    raise ValueError(
                        f"sets {owner[key]!r} and {name!r} both set latent {latent.index} at layer "
                        f"{tensors.site.layer}; a request can have only one of them"
                    )
                owner[key] = name


def check_length(sets: Iterable[tuple[LatentSet, float]], dtype: torch.dtype) -> None:
    """Raise ValueError where sets and strengths come to a change that ``dtype`` cannot hold.

    The op would cut such a change down, which is not what was asked for.
    """
    largest, reach = largest_norm(dtype), defaultdict[int, float](float)
    for latent_set, strength in sets:
        for layer, length in latent_set.reach.items():
            reach[layer] += abs(strength) * length
    for layer, length in reach.items():
        if not length <= largest:
            raise ValueError(
                f"saif: expected a change of norm {largest:g} at most, strength times the set's "
                f"norm, for a model in {dtype}, got {length:.4g} at layer {layer}; "
                f"{largest / length:.2g} times the strength would do"
            )


def _parse_sets(
    text: object, available: Collection[str], max_strength: float, max_sets: int
) -> tuple[tuple[str, float], ...]:
    if not isinstance(text, str):
        raise ValueError(
            "saif: expected a string such as 'name' or 'name*0.8 + other*0.4', "
            f"got {quoted(text)}; available sets: {listed(available)}"
        )
    if len(text) > max_sets * _TERM_LENGTH:
        raise ValueError(
            f"saif: expected at most {max_sets * _TERM_LENGTH} characters for the at most "
            f"{max_sets} sets of a request, got {len(text)}: {quoted(text)}"
        )
    sets: dict[str, float] = {}
    for name, strength in _terms(text, available):
        if len(sets) == max_sets:
            raise ValueError(
                f"saif: expected at most {max_sets} sets in a request, got more in {quoted(text)}"
            )
        if name not in available:
            raise ValueError(f"unknown set {name!r}; available sets: {listed(available, name)}")
        if name in sets:
            raise ValueError(f"saif: set {name!r} is given twice in {quoted(text)}")
        sets[name] = 1.0 if strength is None else _strength(name, strength, max_strength, available)
    return tuple(sets.items())


def _terms(text: str, available: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """Yield names and strengths of ``text``, as they are written."""
    at = 0
    while term := _TERM.match(text, at):
        plus = _PLUS.match(text, term.end())
        if plus is None and term.end() < len(text):
            break
        yield term["name"], term["strength"]
        if plus is None:
            return
        at = plus.end()
    raise ValueError(
        "saif: expected 'name' or 'name*strength' between '+', with no space but around these, "
        f"got {quoted(text[at:].partition('+')[0])} in {quoted(text)}; "
        f"available sets: {listed(available)}"
    )


def _strength(name: str, text: str, max_strength: float, available: Collection[str]) -> float:
    value = float(text) if _STRENGTH.fullmatch(text) else math.nan
    if math.isnan(value):
        raise ValueError(
            f"saif: expected a strength between {-max_strength:g} and {max_strength:g} for set "
            f"{name!r}, got {quoted(text)}; available sets: {listed(available)}"
        )
    return check_strength(name, value, max_strength)
