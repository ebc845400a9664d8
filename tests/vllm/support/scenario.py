"""One engine in a process of its own: reads a job (JSON), serves its batches, writes what came out.

python scenario.py JOB RESULT
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec


def start(job: dict[str, Any]) -> Any:
    import vllm

    options = dict(job["engine"])
    if job["set_dir"] is not None:
        import saif_vllm

        options |= saif_vllm.engine_args(job["set_dir"], **job["engine_args"])
    return vllm.LLM(**options)


def change_sets(set_dir: str, change: dict[str, str | None]) -> None:
    """Put the content of another set under a name, or take the name away (None)."""
    for name, source in change.items():
        file = Path(set_dir, f"{name}.safetensors")
        if source is None:
            file.unlink()
        else:
            partial = file.with_suffix(".partial")
            partial.write_bytes(Path(set_dir, f"{source}.safetensors").read_bytes())
            partial.replace(file)


def serve(llm: Any, batch: list[dict[str, Any]]) -> Any:
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": request["prompt"]} for request in batch]
    for prompt, request in zip(prompts, batch, strict=True):
        if "cache_salt" in request:
            prompt["cache_salt"] = request["cache_salt"]
    params = [
        SamplingParams(
            temperature=0,
            logprobs=2,
            ignore_eos=True,
            max_tokens=request["max_tokens"],
            extra_args=request.get("extra_args"),
        )
        for request in batch
    ]
    before = [repr(p) for p in params]
    try:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    except ValueError as error:
        return {"error": str(error), "type": type(error).__name__}
    assert before == [repr(p) for p in params], "a caller's SamplingParams was changed"
    return [
        {
            "tokens": list(output.outputs[0].token_ids),
            "gaps": [top_two_gap(step) for step in output.outputs[0].logprobs],
            "cached": output.num_cached_tokens,
        }
        for output in outputs
    ]


def top_two_gap(logprobs: dict[int, Any]) -> float:
    best = sorted((entry.logprob for entry in logprobs.values()), reverse=True)
    return best[0] - best[1]


def preemptions(llm: Any) -> int:
    if not llm.llm_engine.log_stats:
        return 0
    counted = {metric.name: metric for metric in llm.get_metrics()}
    return int(counted["vllm:num_preemptions"].value)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    began = time.perf_counter()
    llm = start(job)
    seconds = time.perf_counter() - began
    config = llm.llm_engine.vllm_config
    result = {
        "seconds": seconds,
        "v2": config.use_v2_model_runner,
        "compilation": config.compilation_config.mode.name,
        "batches": [],
    }
    for batch in job["batches"]:
        if isinstance(batch, dict):
            change_sets(job["set_dir"], batch)
        else:
            result["batches"].append(serve(llm, batch))
    if job["events"]:
        from stream import serve_events

        change = functools.partial(change_sets, job["set_dir"])
        result["stream"] = serve_events(llm, job["events"], change)
    result["preemptions"] = preemptions(llm)
    if job["set_dir"] is not None:
        import saif_vllm

        result["reports"] = [msgspec.to_builtins(x) for x in saif_vllm.report(llm)]
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    main()
