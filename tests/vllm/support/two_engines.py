"""Engines side by side in one process: the arguments of all are made before any is started.

python two_engines.py JOB RESULTS
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import async_scenario
import msgspec
import scenario


async def run(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each engine's answers and report, in the order of the directories.

    Engines start in the job's ``order``, the last as an ``AsyncLLM`` if they are of several
    processes. All are asked when all have started, and the first of them once more at the end.
    """
    from vllm import LLM, AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    import saif_vllm

    batch, order = job["batch"], job["order"]
    arguments = [{**job["engine"], **saif_vllm.engine_args(path)} for path in job["set_dirs"]]
    engines = {i: LLM(**arguments[i]) for i in (order[:-1] if job["asynchronous"] else order)}
    if job["asynchronous"]:
        engines[order[-1]] = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments[order[-1]]))
    results: list[dict[str, Any]] = [{"batches": []} for _ in arguments]
    for turn, i in enumerate((*order, order[0])):
        engine, result = engines[i], results[i]
        if isinstance(engine, AsyncLLM):
            result["batches"].append(await async_scenario.serve_batch(engine, "", batch, turn))
            reports = await saif_vllm.report_async(engine)
        else:
            result["batches"].append(scenario.serve(engine, batch))
            reports = saif_vllm.report(engine)
        result["reports"] = [msgspec.to_builtins(report) for report in reports]
    for engine in engines.values():
        if isinstance(engine, AsyncLLM):
            engine.shutdown()
    return results


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(asyncio.run(run(job))))


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    main()
