from __future__ import annotations

from types import ModuleType

import pytest

import saif_vllm

pytest.importorskip("vllm")


@pytest.mark.parametrize("name", saif_vllm.__all__)
def test_a_public_name_is_there_and_stays(name: str) -> None:
    found = getattr(saif_vllm, name)
    assert not isinstance(found, ModuleType)
    assert getattr(saif_vllm, name) is found  # and is not hidden by a module of that name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'saif_vllm' has no attribute 'nothing'"):
        _ = saif_vllm.nothing


def test_a_refused_request_is_a_value_error() -> None:
    assert issubclass(saif_vllm.SteeringRequestError, ValueError)
