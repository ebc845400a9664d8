"""Keys of blocks: equal where the KV is, different where it is not."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from saif_kernels import Window
from saif_vllm.core.prefix_cache import SteeredHasher, steering_key
from saif_vllm.request import SetUse, Steered

BLOCK = 4


def plain_hasher(request: Any) -> list[bytes]:
    """Hash as vLLM does: chained on the last of ``block_hashes``, over the new full blocks."""
    hashes: list[bytes] = []
    last = request.block_hashes[-1] if request.block_hashes else b"root"
    for start in range(len(request.block_hashes) * BLOCK, len(request.tokens) - BLOCK + 1, BLOCK):
        last = hashlib.sha256(last + bytes(request.tokens[start : start + BLOCK])).digest()
        hashes.append(last)
    return hashes


def steered(*names: str, strength: float = 1.0, deep: bool = True, **window: Any) -> Steered:
    uses = tuple(SetUse(name, name * 64, strength, changes_kv=deep) for name in names)
    return Steered(uses, Window(**window))


def blocks(
    asked: Steered | None,
    n_tokens: int = 20,
    prompt_len: int = 10,
    hasher: Any = None,
    grow: Sequence[int] = (),
) -> list[bytes]:
    """Hash a request's blocks; ``grow``: token counts at which the hasher is called before."""
    params = SimpleNamespace(extra_args=None if asked is None else {"saif": asked})
    request = SimpleNamespace(
        sampling_params=params, num_prompt_tokens=prompt_len, block_hashes=[], tokens=[]
    )
    hasher = hasher or SteeredHasher(plain_hasher, BLOCK)
    for n in (*grow, n_tokens):
        request.tokens = list(range(n))
        request.block_hashes.extend(hasher(request))
    return request.block_hashes


PLAIN = blocks(None)


def shared(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Count the blocks that one request finds of another's."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return len(list(pairs))


def test_without_steering_below_the_last_layer_keys_are_vllms() -> None:
    assert blocks(None, hasher=plain_hasher) == PLAIN
    assert blocks(steered("a", deep=False, prompt=True)) == PLAIN
    pooling = SimpleNamespace(sampling_params=None, block_hashes=[], tokens=list(range(20)))
    assert SteeredHasher(plain_hasher, BLOCK)(pooling) == PLAIN


# A prompt of 10 tokens: its last, position 9, is in the third block.
@pytest.mark.parametrize(
    ("asked", "n_shared"),
    [
        (steered("a"), 2),
        (steered("a", start=2), 2),  # position 11 is the last of the third block
        (steered("a", start=3), 3),
        (steered("a", start=11), 5),
        (steered("a", prompt=True), 0),
    ],
    ids=["generated", "start_in_the_block", "start_behind_it", "never_reached", "prompt"],
)
def test_up_to_where_steering_begins_it_shares_with_everyone(asked: Steered, n_shared: int) -> None:
    assert shared(blocks(asked), PLAIN) == n_shared
    assert not set(blocks(asked)[n_shared:]) & set(PLAIN)


def test_the_same_steering_shares_all() -> None:
    for asked in (
        steered("a"),
        steered("b", prompt=True),
        steered("a", start=1, stop=4, omega=0.1),
    ):
        assert blocks(asked) == blocks(asked)


def test_whatever_changes_kv_is_in_the_key() -> None:
    asked = [
        steered("a"),
        steered("b"),
        steered("a", "b"),
        steered("a", strength=0.5),
        steered("a", start=1),
        steered("a", stop=3),
        steered("a", omega=0.1),
        steered("a", omega=0.1, power=1.0),
        steered("a", prompt=True),
        steered("a", prompt=True, stop=1),
    ]
    last = [blocks(x)[-1] for x in asked]
    assert len({*last, PLAIN[-1]}) == len(asked) + 1


def test_what_changes_no_kv_is_not_in_the_key() -> None:
    deep, shallow = steered("a").sets[0], steered("b", deep=False).sets[0]
    assert blocks(Steered((deep, shallow), Window())) == blocks(Steered((deep,), Window()))
    two, swapped = steered("a", "b"), steered("b", "a")
    assert blocks(two) == blocks(swapped)


def test_a_reply_is_the_next_turns_prompt_and_is_not_steered_there() -> None:
    first = blocks(steered("a"), n_tokens=20, prompt_len=10)
    second = blocks(steered("a"), n_tokens=30, prompt_len=22)
    assert shared(first, second) == 2  # the first turn's prompt
    assert shared(second, blocks(None, n_tokens=30)) == 5
    # Steered everywhere: all of the first turn.
    everywhere = steered("a", prompt=True)
    assert shared(blocks(everywhere), blocks(everywhere, n_tokens=30, prompt_len=22)) == 5


def test_scopes_that_steer_the_prompt_alike_share_it() -> None:
    only, everywhere = steered("a", prompt=True, stop=1), steered("a", prompt=True)
    assert shared(blocks(only), blocks(everywhere)) == 2


def test_keys_do_not_depend_on_how_the_request_grew() -> None:
    for asked in (steered("a"), steered("a", prompt=True), steered("a", start=3)):
        assert blocks(asked, grow=(3, 10, 11, 13, 17)) == blocks(asked)


def test_where_vllm_takes_hashes_back_they_are_made_anew() -> None:
    asked, hasher = steered("a", prompt=True), SteeredHasher(plain_hasher, BLOCK)
    request = SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args={"saif": asked}),
        num_prompt_tokens=10,
        block_hashes=[],
        tokens=[*range(14), 99, 99],
    )
    request.block_hashes.extend(hasher(request))
    del request.block_hashes[3:]
    request.tokens = list(range(20))
    request.block_hashes.extend(hasher(request))
    assert request.block_hashes == blocks(asked)


@pytest.mark.parametrize("prompt_len", range(1, 9))
@pytest.mark.parametrize(
    "window",
    [
        {},
        {"start": 2},
        {"start": 1, "stop": 3},
        {"stop": 2},
        {"prompt": True},
        {"prompt": True, "stop": 1},
        {"prompt": True, "start": 2},
        {"prompt": True, "omega": 0.5},
    ],
    ids=str,
)
def test_equal_keys_mean_equal_scales(prompt_len: int, window: dict[str, Any]) -> None:
    """Against the definition: two requests may share a block only if every position is alike."""
    asked = steered("a", **window)

    def scales(length: int, end: int) -> list[float]:
        w, found = asked.window, []
        for position in range(end):
            g = position - (length - 1)
            inside = w.prompt if g < 0 else w.start <= g < w.stop
            found.append((1 + w.omega * max(g - w.start, 0)) ** -w.power if inside else 0.0)
        return found

    for end in range(1, 14):
        key = steering_key(asked, prompt_len, end)
        if key is None or not asked.window.prompt:  # and no block is keyed without need
            assert (key is None) == (not any(scales(prompt_len, end)))
        for other in range(1, 14):
            if steering_key(asked, other, end) == key:
                assert scales(other, end) == scales(prompt_len, end)
