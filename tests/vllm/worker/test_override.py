from __future__ import annotations

import pytest

from saif_vllm.worker.override import override


class Owner:
    value = "the class's"


@pytest.mark.parametrize("own", [False, True])
def test_an_attribute_is_as_before_afterwards(own: bool) -> None:
    owner = Owner()
    if own:
        owner.value = "its own"
    before = dict(vars(owner))
    with pytest.raises(ZeroDivisionError), override(owner, "value", "another"):
        assert owner.value == "another"
        raise ZeroDivisionError
    assert vars(owner) == before
