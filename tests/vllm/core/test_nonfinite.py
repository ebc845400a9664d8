"""Who ends with a request that is not finite, and which blocks leave the prefix cache."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from saif_kernels import Window
from saif_vllm.core.nonfinite import end_requests
from saif_vllm.request import SetUse, Steered


class Scheduler:
    """The part of vLLM's scheduler that ``end_requests`` uses, with blocks of four tokens."""

    block_size = 4

    def __init__(self, **blocks: list[int]) -> None:
        self.blocks = {name: [held] for name, held in blocks.items()}
        self.requests: dict[str, Any] = {}
        self.evicted: set[int] = set()
        self.ended: list[str] = []
        self.ended_nonfinite: set[int] = set()
        self.scrubs = 0
        self.kv_cache_manager = SimpleNamespace(
            block_pool=SimpleNamespace(null_block=SimpleNamespace(block_id=0), blocks=range(100)),
            get_block_ids=lambda name: tuple(self.blocks[name]),
            evict_blocks=self.evicted.update,
        )
        self.saif_admission = SimpleNamespace(
            scrub_kv=self._scrub_kv,
            note_nonfinite_ends=self.ended_nonfinite.update,
            ended_otherwise=lambda serial: serial not in self.ended_nonfinite,
        )

    def _scrub_kv(self) -> None:
        self.scrubs += 1

    def add(self, name: str, serial: int | None, changes_kv: bool = True) -> None:
        """Add a request of 10 prompt tokens that steers generated ones; None: an unsteered one."""
        use = SetUse("a", "a" * 64, 1.0, changes_kv)
        steered = Steered((use,), Window(), request_id=name, serial=serial or 0)
        self.requests[name] = SimpleNamespace(
            request_id=name,
            saif_admitted=None if serial is None else SimpleNamespace(steered=steered),
            num_prompt_tokens=10,
            num_tokens=14,
        )

    def finish_requests(self, names: list[str], status: Any) -> list[Any]:
        assert status.name == "FINISHED_ERROR"
        self.ended += names
        return [self.requests.pop(name) for name in names]


def step(**computed: int) -> Any:
    """Make a step of these requests, each with its number of tokens computed before."""
    cached = SimpleNamespace(req_ids=list(computed), num_computed_tokens=list(computed.values()))
    return SimpleNamespace(scheduled_new_reqs=[], scheduled_cached_reqs=cached)


def test_it_ends_with_those_who_share_what_it_steered_and_no_others() -> None:
    # The prompt fills blocks 1 and 2; its last tokens, steered from the tenth on, are in a third.
    scheduler = Scheduler(bad=[1, 2, 3, 4], good=[1, 2, 5, 0], alike=[1, 2, 3, 6], plain=[1, 2, 7])
    for serial, name in enumerate(("bad", "good", "alike")):
        scheduler.add(name, serial)
    scheduler.add("plain", None)
    ended = end_requests(scheduler, step(bad=0, good=0, alike=0), [0])
    assert [request.request_id for request in ended] == scheduler.ended == ["bad", "alike"]
    assert scheduler.evicted == {1, 2, 3, 4} and scheduler.scrubs == 1
    # The step that ran meanwhile finds it again.
    assert end_requests(scheduler, step(bad=14), [0]) == []
    assert scheduler.evicted == {1, 2, 3, 4} and scheduler.scrubs == 2


def test_what_was_computed_before_the_step_stays_where_it_is() -> None:
    scheduler = Scheduler(bad=[1, 2, 3, 4], alike=[1, 2, 3, 9])
    scheduler.add("bad", 0)
    scheduler.add("alike", 1)
    end_requests(scheduler, step(bad=13), [0])
    assert scheduler.ended == ["bad"] and scheduler.evicted == {4}


def test_at_the_last_layer_nobody_shares_what_is_steered() -> None:
    scheduler = Scheduler(bad=[1, 2, 3, 4], alike=[1, 2, 3, 4])
    scheduler.add("bad", 0, changes_kv=False)
    scheduler.add("alike", 1, changes_kv=False)
    end_requests(scheduler, step(bad=0), [0])
    assert scheduler.ended == ["bad"]


@pytest.mark.parametrize("how", ["aborted", "preempted"])
def test_where_its_blocks_are_not_known_any_more_the_whole_prefix_cache_goes(how: str) -> None:
    scheduler = Scheduler(bad=[], other=[1, 2])
    if how == "preempted":
        scheduler.add("bad", 0)
    scheduler.add("other", 1)
    end_requests(scheduler, step(bad=0), [0])
    assert scheduler.evicted == set(range(1, 100)) and scheduler.scrubs == 1
    assert scheduler.ended == (["bad"] if how == "preempted" else [])
