"""Edits: their text form, their coefficients, and what they mean."""

from __future__ import annotations

import pytest

from saif_fast.edits import EDIT_KINDS, Edit

TEXTS = ["add:3", "clamp:80", "at_least:2.5", "scale:0.5", "ablate", "project:-4"]
# What the activation becomes, as the table in Edit's docstring says.
MEANING = {
    "add:3": lambda a: a + 3,
    "clamp:80": lambda a: 80,
    "at_least:2.5": lambda a: max(a, 2.5),
    "scale:0.5": lambda a: 0.5 * a,
    "ablate": lambda a: 0,
    "project:-4": lambda a: -4,
}


def test_every_kind_is_covered_here() -> None:
    assert {text.partition(":")[0] for text in TEXTS} == set(EDIT_KINDS)


@pytest.mark.parametrize("text", [*TEXTS, "add:3@gated", "ablate@gated", "clamp:1e-3"])
def test_text_form_round_trips(text: str) -> None:
    assert Edit.parse(str(Edit.parse(text))) == Edit.parse(text)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("a", [0.0, 1.0, 7.0, 100.0])
def test_coefficients_give_the_stated_activation(text: str, a: float) -> None:
    p, q, lo = Edit.parse(text).coefficients
    assert a + max(lo, p + q * a) == pytest.approx(MEANING[text](a))


def test_only_ungated_additions_are_constant() -> None:
    constant = [text for text in [*TEXTS, "add:3@gated"] if Edit.parse(text).is_constant]
    assert constant == ["add:3"]


@pytest.mark.parametrize(
    "text",
    ["", "clamp", "clamp:", "clamp:x", "clamp:nan", "clamp:inf", "clamp:1e39", "add:-1e7",
     "ablate:1", "ablate:", "boost:2", "add:1@", "add:1@always", "project:1@gated"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="edit"):
        Edit.parse(text)


def test_text_form_keeps_every_digit() -> None:
    edit = Edit("clamp", 1.23456789012)
    assert Edit.parse(str(edit)) == edit
