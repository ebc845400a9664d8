"""Prompts in chunks, requests thrown out and resumed: each is steered where its positions say."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import embedded_sets
import hf_reference
import pytest
from engine_job import Job, Served, run
from workload import is_steered, random_events

from saif_fast.embedded import model_path
from saif_fast.latent_set import LatentSet

pytestmark = pytest.mark.engine

ASKED: dict[str, dict[str, Any] | None] = {
    "unsteered": None,
    "generated": {"saif": "clamp_middle"},
    "last_layer": {"saif": "add_last"},
    "prompt": {"saif": "vector_middle*0.5", "saif_scope": "prompt"},
    "all": {"saif": "vector_middle*0.3", "saif_scope": "all"},
    "window": {"saif": "vector_middle", "saif_start": 3, "saif_stop": 12},
    "decay": {"saif": "both", "saif_start": 1, "saif_decay": 0.2},
    "two_sets": {"saif": "clamp_middle*0.5 + vector_last*0.3"},
}


def long_requests(max_tokens: int) -> dict[str, dict[str, Any]]:
    """Make prompts of about 150 tokens, all of other lengths, so every chunk ends elsewhere."""
    text = [token for prompt in embedded_sets.prompts(16) for token in prompt]
    return {
        name: {
            "prompt": text[7 * i : 7 * i + 140 + 5 * i],
            "max_tokens": max_tokens,
            "extra_args": extra_args,
        }
        for i, (name, extra_args) in enumerate(ASKED.items())
    }


@pytest.mark.parametrize(
    ("mode", "max_tokens"), [("v1-eager", 40), ("v2-eager", 24)], ids=["v1", "v2"]
)
def test_chunks_and_preemption_change_nothing(
    mode: str,
    max_tokens: int,
    set_dir: Path,
    sets: Mapping[str, LatentSet],
    hf_model: Any,
) -> None:
    asked = long_requests(max_tokens)
    engine = {
        "max_num_batched_tokens": 48,  # a prompt takes four steps, between the others' tokens
        "max_num_seqs": 8,
        "num_gpu_blocks_override": 24,  # of 32 tokens, for 8 requests of about 200
        "disable_log_stats": False,
    }
    served = run(Job(model_path(), [list(asked.values())], mode, set_dir, engine=engine)).check()
    assert served.preemptions > 0
    comparison = hf_reference.Comparison()
    for (name, request), got in zip(asked.items(), served.batches[0], strict=True):
        comparison.add(name, hf_reference.generate(hf_model, sets, request), got)
    comparison.check()


# As many tokens per step as requests: while others generate, a prompt comes token by token. Room is
# for two of the longest prompts, for eight sets and for the live latents of six.
CRAMPED = {
    "max_num_seqs": 12,
    "max_num_batched_tokens": 12,
    "max_model_len": 192,
    "num_gpu_blocks_override": 11,
    "scheduling_policy": "priority",
    "disable_log_stats": False,
}
FEW_SETS = {"max_sets": 8, "max_latents": 48, "max_sets_per_request": 3}


@dataclass(frozen=True)
class Random:
    """A random workload on one engine.

    Attributes:
        size, seed: of the workload.
        asynchronous: the next step is scheduled before the last one's tokens are known.
        shared: prefixes are cached.
        mode: of the engine.
    """

    size: int
    seed: int
    asynchronous: bool
    shared: bool
    mode: str = "v1-eager"

    def __str__(self) -> str:
        words = ["async" if self.asynchronous else "sync", "shared" if self.shared else "unshared"]
        return "-".join([self.mode, *words, str(self.size)])

    def serve(self, events: Sequence[Mapping[str, Any]], set_dir: Path | None) -> Served:
        engine = {
            **CRAMPED,
            "async_scheduling": self.asynchronous,
            "enable_prefix_caching": self.shared,
        }
        return run(
            Job(
                model_path(),
                mode=self.mode,
                set_dir=set_dir,
                engine_args={} if set_dir is None else FEW_SETS,
                engine=engine,
                site=("async_on_cpu",) if self.asynchronous else (),
                events=events,
            )
        ).check()


def slow(case: Random) -> Any:
    return pytest.param(case, marks=pytest.mark.slow)


RANDOM = (
    Random(150, 1, asynchronous=True, shared=True),
    Random(150, 1, asynchronous=False, shared=False),
    slow(Random(600, 2, asynchronous=True, shared=True)),
    slow(Random(600, 2, asynchronous=False, shared=True)),
    slow(Random(40, 3, asynchronous=True, shared=True, mode="v2-eager")),
)


@pytest.fixture(scope="module")
def text() -> list[int]:
    return [token for prompt in embedded_sets.prompts(48) for token in prompt]


@pytest.fixture(scope="module")
def alone(hf_model: Any, sets: Mapping[str, LatentSet]) -> Any:
    """Generate a request of ``random_events`` by Hugging Face, once."""
    known: dict[str, dict[str, Any]] = {}

    def generate(request: Mapping[str, Any]) -> dict[str, Any]:
        contents = {name: sets[content] for name, content in request["contents"].items()}
        asked = {name: request[name] for name in ("prompt", "max_tokens", "extra_args")}
        key = repr((asked, request["contents"]))
        if key not in known:
            known[key] = hf_reference.generate(hf_model, contents, asked)
        return known[key]

    return generate


def compare(
    stream: Mapping[str, Any], requests: Sequence[Mapping[str, Any]], alone: Any
) -> hf_reference.Comparison:
    """Compare every output with its solo run, aborted ones as far as they came."""
    comparison = hf_reference.Comparison()
    for i, (request, got) in enumerate(zip(requests, stream["requests"], strict=True)):
        expected = alone(request)
        assert len(got["tokens"]) == request["n"]
        for tokens in got["tokens"]:
            n = request["max_tokens"] if got["finished"] else len(tokens)
            cut = {name: values[:n] for name, values in expected.items()}
            comparison.add(f"{i} {request['extra_args']}", cut, {"tokens": tokens})
    return comparison


@pytest.mark.parametrize("case", RANDOM, ids=str)
def test_random_requests_equal_their_solo_runs(
    case: Random,
    set_dir: Path,
    sets: Mapping[str, LatentSet],
    text: list[int],
    alone: Any,
    tmp_path: Path,
) -> None:
    events = random_events(case.seed, case.size, text, sets)
    requests = [event["request"] for event in events if "request" in event]
    served = case.serve(events, shutil.copytree(set_dir, tmp_path / "sets"))
    stream = served.stream
    # All that was to happen did.
    assert stream["asynchronous"] == case.asynchronous
    assert served.preemptions > 0
    assert stream["one_token_chunks"] > 0
    assert stream["most_waiting_for_room"] > 0
    n_ended = sum(not got["finished"] for got in stream["requests"])
    assert 0 < n_ended < case.size / 5
    assert len({got["id"] for got in stream["requests"]}) < case.size  # ids came back
    check_reports(served, requests, complete=not case.shared)
    compare(stream, requests, alone).check(most_excused=case.size // 50)


def check_reports(served: Served, requests: Sequence[Mapping[str, Any]], complete: bool) -> None:
    """Check that each steered output has a report with as many tokens as its window holds.

    Args:
        complete: nothing comes from the prefix cache, so that all positions are computed.
    """
    reports = {report["serial"]: report for report in served.reports}
    serial = n_checked = 0
    for request, got in zip(requests, served.stream["requests"], strict=True):
        if request["extra_args"] is None:
            continue
        for tokens, fresh in zip(got["tokens"], got["fresh"], strict=True):
            report = reports.get(serial)
            serial += 1
            if report is None:
                assert not got["finished"] and not tokens  # aborted before its first step
                continue
            assert report["request_id"] == got["id"]
            assert report["planned"] == report["steered"]
            if not got["finished"]:
                continue
            computed = [position for begin, end in fresh for position in range(begin, end)]
            if complete:
                assert computed == list(range(len(request["prompt"]) + len(tokens) - 1))
            steered = sum(is_steered(request, position) for position in computed)
            assert report["planned"] == steered, (request, fresh, report)
            n_checked += 1
    assert n_checked > len(requests) / 2


@pytest.mark.parametrize("case", [RANDOM[0], RANDOM[2]], ids=str)
def test_random_requests_of_plain_vllm(
    case: Random, sets: Mapping[str, LatentSet], text: list[int], alone: Any
) -> None:
    # How often an engine without the plugin differs from its solo runs, to be read beside ours.
    plain = [
        {**event, "request": {**event["request"], "extra_args": None, "contents": {}}}
        if "request" in event
        else event
        for event in random_events(case.seed, case.size, text, sets)
        if "sets" not in event
    ]
    requests = [event["request"] for event in plain if "request" in event]
    compare(case.serve(plain, None).stream, requests, alone).check(most_excused=case.size // 50)
