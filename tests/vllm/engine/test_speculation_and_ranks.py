"""Steering where a step has several tokens of a request, and where a model has several ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from engine_job import RANKS_ANYWHERE, Job, run
from hf_reference import Comparison
from reported import check_reports

from saif_fast.embedded import model_path

pytestmark = pytest.mark.engine

DRAFTS = 3  # at most, a step
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": DRAFTS,
    "prompt_lookup_min": 1,
    "prompt_lookup_max": 3,
}


@pytest.mark.parametrize("mode", ["v1-eager", pytest.param("v2-eager", marks=pytest.mark.slow)])
def test_ngram_speculation_equals_the_reference(
    mode: str,
    set_dir: Path,
    requests: Mapping[str, dict[str, Any]],
    reference: Mapping[str, Any],
) -> None:
    asked = list(requests.values())
    engine = {"speculative_config": NGRAM, "disable_log_stats": False}
    served = run(Job(model_path(), [asked], mode, set_dir, engine=engine)).check()
    drafted = served.counters["spec_decode_num_draft_tokens"]
    assert 0 < served.counters["spec_decode_num_accepted_tokens"] < drafted
    comparison = Comparison()
    for (name, expected), got in zip(reference.items(), served.batches[0], strict=True):
        comparison.add(name, expected, got)
    comparison.check()
    check_reports(served, zip(asked, served.batches[0], strict=True), drafts=DRAFTS)


@pytest.mark.parametrize(
    ("mode", "engine"),
    [
        ("v1-eager", {"tensor_parallel_size": 2}),
        pytest.param("v1-eager", {"pipeline_parallel_size": 2}, marks=pytest.mark.slow),
    ],
    ids=["tensor_parallel", "pipeline_parallel"],
)
def test_two_ranks_equal_the_reference(
    mode: str,
    engine: dict[str, Any],
    set_dir: Path,
    requests: Mapping[str, dict[str, Any]],
    reference: Mapping[str, Any],
) -> None:
    asked = list(requests.values())
    job = Job(model_path(), [asked], mode, set_dir, engine=engine, env=RANKS_ANYWHERE)
    served = run(job).check()
    comparison = Comparison()
    for (name, expected), got in zip(reference.items(), served.batches[0], strict=True):
        comparison.add(name, expected, got)
    comparison.check()
    check_reports(served, zip(asked, served.batches[0], strict=True))


@pytest.mark.slow
def test_data_parallel_ranks_equal_the_reference(
    set_dir: Path, requests: Mapping[str, dict[str, Any]], reference: Mapping[str, Any]
) -> None:
    asked = [{**request, "rank": i % 2} for i, request in enumerate(requests.values())]
    job = Job(
        model_path(),
        [asked],
        set_dir=set_dir,
        engine={"data_parallel_size": 2},
        env=RANKS_ANYWHERE,
        one_process=False,
        asynchronous=True,
    )
    served = run(job).check()
    comparison = Comparison()
    for (name, expected), got in zip(reference.items(), served.batches[0], strict=True):
        comparison.add(name, expected, got)
    comparison.check()
    # Only the first rank answers.
    ours = [request for request in asked if request["rank"] == 0 and request["extra_args"]]
    assert len(served.reports) == len(ours)
    assert all(report["steered"] == report["planned"] > 0 for report in served.reports)
