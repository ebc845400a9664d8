"""As scenario.py with an ``AsyncLLM``: the requests of a batch are sent side by side.

A request is one of scenario.py, with its data-parallel ``rank`` if it must be that, or a session of
streaming input, whose ``pieces`` are such requests, sent one by one. Before a piece is sent, its
``sets`` change in the set directory. A request that ``gives_up`` is aborted when the first token of
its batch is there. Instead of a batch, the name of a utility of the engine core gets its answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import scenario


async def serve(
    engine: Any, set_dir: str, request: dict[str, Any], request_id: str, begun: asyncio.Event
) -> dict[str, Any]:
    """Return tokens, and why they ended; or the error. Sets ``begun`` at the first token."""
    from vllm.sampling_params import RequestOutputKind

    pieces = request.get("pieces", [request])
    params = [scenario.sampling_params(piece) for piece in pieces]
    for one in params:
        one.output_kind = RequestOutputKind.DELTA
    prompts = [{"prompt_token_ids": piece["prompt"]} for piece in pieces]
    tokens: list[int] = []
    arrived = asyncio.Condition()

    async def stream() -> AsyncIterator[Any]:
        from vllm.engine.protocol import StreamingInput

        due = 0
        for piece, prompt, one in zip(pieces, prompts, params, strict=True):
            scenario.change_sets(set_dir, piece.get("sets", {}))
            yield StreamingInput(prompt, one)
            due += piece["max_tokens"]
            if piece.get("wait"):  # for its tokens, before the next piece comes
                async with arrived:
                    await arrived.wait_for(lambda due=due: len(tokens) >= due)

    outputs = engine.generate(
        stream() if "pieces" in request else prompts[0],
        params[0],
        request_id,
        data_parallel_rank=request.get("rank"),
    )
    finish_reason = None
    try:
        async for output in outputs:
            async with arrived:
                for one in output.outputs:
                    tokens += one.token_ids
                    finish_reason = one.finish_reason
                arrived.notify_all()
            begun.set()
    except asyncio.CancelledError:
        finish_reason = "given up"
    except ValueError as error:
        return {"error": str(error), "type": type(error).__name__}
    return {"tokens": tokens, "finish_reason": finish_reason}


async def serve_batch(
    engine: Any, set_dir: str, batch: list[dict[str, Any]], number: int
) -> list[dict[str, Any]]:
    begun = asyncio.Event()
    serving = [
        asyncio.create_task(serve(engine, set_dir, request, f"{number}.{i}", begun))
        for i, request in enumerate(batch)
    ]
    for task, request in zip(serving, batch, strict=True):
        if request.get("gives_up"):
            await begun.wait()
            task.cancel()
    return await asyncio.gather(*serving)


async def run(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    import saif_vllm

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**scenario.engine_options(job)))
    try:
        batches: list[Any] = []
        for i, batch in enumerate(job["batches"]):
            if isinstance(batch, str):
                batches.append(await engine.engine_core.call_utility_async(batch))
            else:
                batches.append(await serve_batch(engine, job["set_dir"], batch, i))
        reports = await saif_vllm.report_async(engine)
    finally:
        engine.shutdown()
    return {"batches": batches, "reports": [msgspec.to_builtins(report) for report in reports]}


def main() -> None:
    (job,) = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([asyncio.run(run(job))]))


if __name__ == "__main__":
    main()
