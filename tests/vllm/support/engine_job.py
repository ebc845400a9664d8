"""Start an engine in a subprocess and collect what it served, or how it refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent
MODES: dict[str, dict[str, Any]] = {
    "v1-eager": {"engine": {"enforce_eager": True}},
    "v1-compiled": {"engine": {"enforce_eager": False}},
    "v1-vllm-compile": {"engine": {"enforce_eager": False}, "site": ("vllm_compile_on_cpu",)},
    "v2-eager": {"engine": {"enforce_eager": True}, "site": ("v2_on_cpu",)},
    # What a GPU runs, CUDA graphs aside.
    "v2-vllm-compile": {
        "engine": {"enforce_eager": False},
        "site": ("v2_on_cpu", "vllm_compile_on_cpu"),
    },
}
# vLLM would give each rank a NUMA node of its own, which this machine may not have.
RANKS_ANYWHERE = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}

Batch = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """An engine and the batches it serves, one after the other.

    Attributes:
        model: directory.
        batches: of requests; see scenario.py for their keys. Or, between two of them, what changes
            in the set directory, or a method of the workers with its keyword arguments. With an
            ``AsyncLLM``, see async_scenario.py.
        events: what happens while it runs, after the batches; of workload.random_events.
        mode: key of MODES.
        set_dir: None = plain vLLM, without our plugin.
        engine_args: for ``saif_vllm.engine_args``.
        engine: for ``vllm.LLM``.
        env: for the subprocess.
        site: modules of ``site/`` that every process imports first.
        one_process: front end, engine core and worker in one, which starts sooner.
        asynchronous: an ``AsyncLLM``.
    """

    model: Path
    batches: Sequence[Batch | Mapping[str, str | None] | tuple[str, Mapping[str, Any]] | str] = ()
    mode: str = "v1-eager"
    set_dir: Path | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    site: Sequence[str] = ()
    one_process: bool = True
    asynchronous: bool = False
    events: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Served:
    """What became of a job: an exit code, all output, and the result of each batch."""

    returncode: int
    log: str
    batches: list[Any]
    seconds: float
    v2: bool | None
    compilation: str | None
    counters: Mapping[str, int]  # vLLM's own; empty with disable_log_stats, LLM's default
    reports: list[dict[str, Any]]  # of saif_vllm.report
    stream: dict[str, Any]  # of stream.serve_events

    @property
    def preemptions(self) -> int:
        return self.counters["num_preemptions"]

    def check(self) -> Served:
        assert self.returncode == 0, self.log[-6000:]
        return self


def run(job: Job, timeout: float = 400) -> Served:
    """Run ``job`` to its end; an engine that refuses to start is a result too."""
    return run_in_turn([job], timeout)[0]


def run_in_turn(jobs: Sequence[Job], timeout: float = 400) -> list[Served]:
    """Run jobs that differ in model, sets and arguments in one process, which imports vLLM once.

    The results of those that came to their end, then one of the job that did not, if any.
    """
    first = jobs[0]
    shared = [(job.mode, job.set_dir is None, job.env, job.site, job.one_process) for job in jobs]
    assert all(one == shared[0] for one in shared)
    env = environment(first.mode, first.site, first.one_process)
    if first.set_dir is None:
        env["VLLM_PLUGINS"] = "none"
    env |= first.env
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder, "jobs.json"), Path(folder, "results.json")
        job_file.write_text(json.dumps([_content(job) for job in jobs]))
        script = "async_scenario.py" if first.asynchronous else "scenario.py"
        command = [sys.executable, str(SUPPORT / script), str(job_file), str(result_file)]
        done = subprocess.run(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        results = json.loads(result_file.read_text()) if result_file.exists() else []
    if done.returncode != 0:
        results.append({})
    return [
        Served(
            returncode=0 if result else done.returncode,
            log=done.stdout,
            batches=result.get("batches", []),
            seconds=result.get("seconds", 0.0),
            v2=result.get("v2"),
            compilation=result.get("compilation"),
            counters=result.get("counters", {}),
            reports=result.get("reports", []),
            stream=result.get("stream", {}),
        )
        for result in results
    ]


def environment(mode: str, site: Sequence[str] = (), one_process: bool = True) -> dict[str, str]:
    """Return the environment of a subprocess with an engine of this mode; see :class:`Job`."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(SUPPORT / "site"), env.get("PYTHONPATH")])
    )
    env["SAIF_TEST_SITE"] = " ".join((*MODES[mode].get("site", ()), *site))
    env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if one_process else "1"
    return env


def _content(job: Job) -> dict[str, Any]:
    return {
        "engine": {
            "model": str(job.model),
            "dtype": "float32",
            "max_model_len": 512,
            "max_num_batched_tokens": 512,
            "max_num_seqs": 20,
            "block_size": 32,  # what CPU attention wants
            "seed": 0,
            **MODES[job.mode]["engine"],
            **job.engine,
        },
        "set_dir": None if job.set_dir is None else str(job.set_dir),
        "engine_args": dict(job.engine_args),
        "batches": job.batches,
        "events": job.events,
    }
