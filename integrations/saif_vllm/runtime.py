"""The runtime ``vllm`` of ``saif_fast``: greedy generation and log-probabilities by vLLM."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from saif_fast.cores import usable_cores
from saif_fast.hf import encode_continuations, encode_texts
from saif_fast.latent_set import LatentSet
from saif_fast.runtime import Generation, GenerationRequest, LogProbRequest
from saif_fast.set_dir import SetDirectory
from saif_vllm.arguments import engine_args

_KV_CACHE_ON_CPU = 1 << 30  # bytes; by default vLLM takes most of the machine's memory


class VllmRuntime:
    """A ``saif_fast.runtime.Runtime`` on vLLM.

    The default capacities are raised to hold all sets that exist at start. The sets of a mapping
    are fixed then. A directory is read as requests arrive, but one that is empty at start makes an
    engine that does not steer, unless ``layers`` are among the options.

    Args:
        model: a directory or a hub name.
        sets: the sets that a request may name.
        cpu_threads: OpenMP threads of an engine on a CPU, bound to no core; None = one per core but
            one. ``OMP_NUM_THREADS`` and ``VLLM_CPU_OMP_THREADS_BIND`` in the environment win.
        options: for ``saif_vllm.engine_args`` and ``vllm.LLM``. By default nothing is compiled,
            because a tiny model is served before a compiler is done, and on a CPU the KV cache is
            1 GiB.

    Raises:
        ValueError: a set does not fit the model.
    """

    def __init__(
        self,
        model: str | Path,
        sets: SetDirectory | Mapping[str, LatentSet],
        *,
        cpu_threads: int | None = None,
        **options: Any,
    ) -> None:
        from vllm import LLM
        from vllm.platforms import current_platform

        options = {"enforce_eager": True, "use_tqdm_on_load": False, **options}
        if current_platform.is_cpu():
            options = {"kv_cache_memory_bytes": _KV_CACHE_ON_CPU, **options}
        known = dict(inspect.signature(engine_args).parameters)
        del known["set_dir"]
        steering = {name: options.pop(name) for name in options.keys() & known}
        self._folder = tempfile.TemporaryDirectory(prefix="saif-sets-")
        if not isinstance(sets, SetDirectory):
            # The engine reads its sets from files.
            for name, latent_set in sets.items():
                latent_set.save(SetDirectory(self._folder.name).path(name))
            sets = SetDirectory(self._folder.name)
        there = [sum(header.n_live.values()) for _, header in sets.headers()]
        if there or "layers" in steering:
            for name, needed in {"max_sets": len(there), "max_latents": sum(there)}.items():
                steering.setdefault(name, max(known[name].default, needed))
            ours = engine_args(sets.root, **steering)
            ours["additional_config"] |= options.get("additional_config", {})
            options |= ours
        with _cpu_threads(cpu_threads) if current_platform.is_cpu() else nullcontext():
            self._llm = LLM(str(model), **options)
        self._tokenizer = self._llm.get_tokenizer()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Generate greedily, in the order of ``requests``; all are checked before any runs.

        Raises:
            ValueError: a request does not parse, names an unknown set or token, or is longer than
                the model's context.
        """
        from vllm import SamplingParams

        prompts = encode_texts(self._tokenizer, [request.prompt for request in requests])
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=request.max_tokens,
                logit_bias=request.logit_bias,
                extra_args=request.extra_args or None,
                # The texts are decoded below, as the reference runtime decodes them.
                detokenize=False,
            )
            for request in requests
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
        )
        generated = [list(output.outputs[0].token_ids) for output in outputs]
        texts = self._tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [
            Generation(text=text, token_ids=row) for text, row in zip(texts, generated, strict=True)
        ]

    def log_probs(self, requests: Sequence[LogProbRequest]) -> list[list[float]]:
        """Return the log-probability of each token of each continuation, in nats.

        All requests are checked before any runs. The texts are not read from the prefix cache.

        Raises:
            ValueError: a request does not parse, names an unknown set, or has an empty prompt or
                continuation, or both together fill the model's context.
        """
        from vllm import SamplingParams

        pairs = encode_continuations(
            self._tokenizer,
            [request.prompt for request in requests],
            [request.continuation for request in requests],
            self._llm.model_config.max_model_len,
        )
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=1,  # the least that vLLM generates
                prompt_logprobs=0,  # of the prompt's own tokens alone
                flat_logprobs=True,
                extra_args=request.extra_args or None,
                detokenize=False,
            )
            for request in requests
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": [*prompt, *continuation]} for prompt, continuation in pairs],
            params,
            use_tqdm=False,
        )
        return [
            output.prompt_logprobs.logprobs[-len(continuation) :]
            for output, (_, continuation) in zip(outputs, pairs, strict=True)
        ]

    def close(self) -> None:
        """End the engine's processes; the runtime cannot be used afterwards."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        self._folder.cleanup()


@contextmanager
def _cpu_threads(threads: int | None = None) -> Iterator[None]:
    """Choose the OpenMP threads of an engine that starts inside, where the user has not.

    By default vLLM binds a thread to each core. The engine's core and the front end then run on
    a bound thread's core, and the other threads spin until it is back: ten times slower on two
    cores. The engine's processes take the variables with them when they are made.
    """
    chosen = {
        "OMP_NUM_THREADS": str(threads or max(1, usable_cores() - 1)),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    ours = {name: value for name, value in chosen.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
