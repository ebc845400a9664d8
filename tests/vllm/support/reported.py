"""Expected reports of requests, counted from their windows alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine_job import Served


def planned(request: Mapping[str, Any], cached: int = 0) -> int:
    """Count a request's positions that are computed and inside its window.

    Args:
        cached: tokens whose KV was there already: they are not computed.
    """
    asked, prompt_len = request["extra_args"], len(request["prompt"])
    scope = asked.get("saif_scope", "generated")
    start, stop = asked.get("saif_start", 0), asked.get("saif_stop", float("inf"))
    count = 0
    for position in range(cached, prompt_len + request["max_tokens"] - 1):
        generated = position - (prompt_len - 1)  # the last prompt token makes the first one
        if scope == "prompt":
            count += generated <= 0
        else:
            count += start <= generated < stop or (scope == "all" and generated < 0)
    return count


def check_reports(
    served: Served, requests: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], drafts: int = 0
) -> None:
    """Check that each steered request is reported once, and was steered wherever it should be.

    Args:
        requests: all that were served, in order, each with what came out.
        drafts: most tokens of speculation. Those that are proposed behind the last token of a
            request are computed, steered and thrown away.
    """
    steered = [
        (request, got)
        for request, got in requests
        if request["extra_args"] is not None
        for _ in range(request.get("params", {}).get("n", 1))
    ]
    assert len(served.reports) == len(steered) > 0
    for (request, got), report in zip(steered, served.reports, strict=True):
        assert report["steered"] == report["planned"], report
        least = planned(request, got["cached"])
        beyond = planned({**request, "max_tokens": request["max_tokens"] + drafts}, got["cached"])
        assert least <= report["planned"] <= beyond, (request["extra_args"], report)
        # A sum of equal doses is rounded, and so may their mean be, upwards.
        doses = [(dose["max"], dose["mean"]) for dose in report["dose"].values()]
        assert any((1 + 1e-5) * most >= mean > 0 for most, mean in doses) or not least, report
