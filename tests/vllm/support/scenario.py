"""Engines in a process of their own, one after the other: reads jobs (JSON), serves the batches of
each, writes what came out.

python scenario.py JOBS RESULTS
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

    return vllm.LLM(**engine_options(job))


def engine_options(job: dict[str, Any]) -> dict[str, Any]:
    options = dict(job["engine"])
    if job["set_dir"] is not None:
        import saif_vllm

        options |= saif_vllm.engine_args(job["set_dir"], **job["engine_args"])
    return options


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
    prompts = [{"prompt_token_ids": request["prompt"]} for request in batch]
    for prompt, request in zip(prompts, batch, strict=True):
        if "cache_salt" in request:
            prompt["cache_salt"] = request["cache_salt"]
    params = [sampling_params(request) for request in batch]
    loras = [lora_request(request.get("lora")) for request in batch]
    before = [repr(p.extra_args) for p in params]
    try:
        outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=loras)
    except ValueError as error:
        return {"error": str(error), "type": type(error).__name__}
    assert before == [repr(p.extra_args) for p in params], "a caller's extra_args were changed"
    return [
        {
            **completion(output.outputs[0]),
            "others": [completion(one) for one in output.outputs[1:]],  # of n > 1
            "cached": output.num_cached_tokens,
            "prompt_logprobs": [
                step[token].logprob
                for token, step in zip(
                    output.prompt_token_ids, output.prompt_logprobs or (), strict=False
                )
                if step is not None
            ],
        }
        for output in outputs
    ]


def sampling_params(request: dict[str, Any]) -> Any:
    """Make vLLM's ``SamplingParams`` of a request, whose ``params`` may hold any of its fields.

    With ``numpy``, the values of ``extra_args`` are numpy's.
    """
    import numpy as np
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    others = dict(request.get("params", {}))
    if "structured_outputs" in others:
        others["structured_outputs"] = StructuredOutputsParams(**others["structured_outputs"])
    extra_args = request.get("extra_args")
    if request.get("numpy"):
        extra_args = {key: np.array(value)[()] for key, value in extra_args.items()}
    return SamplingParams(
        **{"temperature": 0, "logprobs": 2, "ignore_eos": True, **others},
        max_tokens=request["max_tokens"],
        extra_args=extra_args,
    )


def lora_request(path: str | None) -> Any:
    """Make a request for the adapter in a directory; None: no adapter."""
    from vllm.lora.request import LoRARequest

    return None if path is None else LoRARequest(path, 1, path)


def completion(output: Any) -> dict[str, Any]:
    steps = zip(output.token_ids, output.logprobs, strict=True)
    return {
        "tokens": list(output.token_ids),
        "finish": output.finish_reason,
        "gaps": [top_two_gap(step) for step in output.logprobs],
        "logprobs": [step[token].logprob for token, step in steps],
    }


def top_two_gap(logprobs: dict[int, Any]) -> float:
    best = sorted((entry.logprob for entry in logprobs.values()), reverse=True)
    return best[0] - best[1]


def counters(llm: Any) -> dict[str, int]:
    """Return vLLM's own counters, such as ``num_preemptions``; none if its statistics are off."""
    from vllm.v1.metrics.reader import Counter

    metrics = llm.get_metrics() if llm.llm_engine.log_stats else []
    return {
        metric.name.removeprefix("vllm:"): int(metric.value)
        for metric in metrics
        if isinstance(metric, Counter)
    }


def run(job: dict[str, Any]) -> dict[str, Any]:
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
        elif isinstance(batch[0], str):
            method, arguments = batch
            llm.collective_rpc(method, kwargs=arguments)
        else:
            result["batches"].append(serve(llm, batch))
    if job["events"]:
        from stream import serve_events

        change = functools.partial(change_sets, job["set_dir"])
        result["stream"] = serve_events(llm, job["events"], change)
    result["counters"] = counters(llm)
    if job["set_dir"] is not None:
        import saif_vllm

        result["reports"] = [msgspec.to_builtins(x) for x in saif_vllm.report(llm)]
    return result


def main() -> None:
    jobs, results = json.loads(Path(sys.argv[1]).read_text()), []
    for i, job in enumerate(jobs):
        if i:
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
        results.append(run(job))
        Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    main()
