"""``make soak``: thousands of short requests through one engine, in processes as users start it,
while sets come and go: memory stays flat, nothing is held for ever, outputs equal their solo runs,
and a set is loaded in no time.

It writes bench/results/cpu/soak.md. A run of less than FULL minutes judges neither memory nor what
happened how often, and writes build/soak.md. It is beside the tests, not in bench/, as it passes or
fails and shares their support: run it with ``support`` and ``support/site`` on PYTHONPATH, and
SAIF_TEST_SITE=core_state (the Makefile does).
"""

from __future__ import annotations

import datetime
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import embedded_sets
import hf_reference
import torch
from churn import Churn, put_strays
from memory import WARM_UP, Memory
from stream import Stream
from workload import RandomRequests, set_names

import saif_vllm
from bench.machine import RESULTS, described, machine
from saif_fast.edits import Edit
from saif_fast.embedded import model_path, sae_path
from saif_fast.latent_set import LatentSet
from saif_fast.records import Latent
from saif_fast.sae import load_sae

FULL = 10  # minutes
A_MINUTE = 2000  # requests
N_SETS, N_CONTENTS, MAX_SETS = 64, 128, 16
IN_FLIGHT = 64
SAMPLED = 50  # one in so many is compared
PAUSE = 0.01  # seconds between two changes of the files that a thread of its own changes
MOST_LATENTS = 64  # of a set at a layer
LOADED_IN = 50.0  # milliseconds, at the median
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_model_len": 96,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 128,
    "kv_cache_memory_bytes": 1 << 28,  # asked for, or vLLM takes most of the machine's
    "num_gpu_blocks_override": 32,  # for 32 requests of up to three blocks
    "disable_log_stats": False,
    "seed": 0,
}
EDITS = ("add:12", "clamp:20", "at_least:15", "scale:-2", "ablate", "project:20")
# Poisoners: the engine cuts down what they change, and their neighbours' outputs are compared, too.
POISON = ("add:1e6", "clamp:1e6", "at_least:1e6", "scale:-1e6", "project:1e6")
LONG = 1e10  # times a usual vector


def contents(rng: random.Random) -> list[LatentSet]:
    """What the files hold: some latents or a vector, at the middle or the last layer; of one in
    eight the strongest there are.
    """
    saes = [load_sae(sae_path(where)) for where in embedded_sets.LAYERS]
    made = []
    for i in range(N_CONTENTS):
        sae = rng.choice(saes)
        if i % 4 == 0:
            vector = torch.randn(sae.d_model, generator=torch.Generator().manual_seed(i))
            vector *= LONG if i % 16 == 0 else 1
            found = LatentSet.from_vector(vector, layer=sae.layer, num_layers=3)
        else:
            edit = Edit.parse(rng.choice(POISON if i % 16 == 5 else EDITS))
            n_latents = rng.randint(1, 8)
            if i % 16 == 1:  # the largest that there are
                edit, n_latents = Edit.parse(rng.choice(EDITS[1:])), MOST_LATENTS
            latents = [Latent(j, edit) for j in rng.sample(range(sae.d_sae), n_latents)]
            found = LatentSet.from_sae(sae, latents, num_layers=3)
        made.append(found)
    return made


class Directory:
    """A set directory whose files come, change and go; names never come back."""

    def __init__(self, rng: random.Random, made: list[LatentSet]) -> None:
        self._rng, self._made = rng, made
        self._folder = tempfile.TemporaryDirectory(prefix="saif-soak-")
        self.path, self.other = Path(self._folder.name, "sets"), Path(self._folder.name, "other")
        self.now: dict[str, LatentSet] = {}
        self._n_names = 0
        while len(self.now) < N_SETS:
            self._add()
        # Beside them, what is no set, and files that change more quickly than requests come.
        files = [found.save(self.other / f"{i}.safetensors") for i, found in enumerate(made[:8])]
        put_strays(self.path, files[0].read_bytes())
        self.churn, self._whole = Churn(self.path, files, PAUSE), files[0].read_bytes()

    def damage(self) -> str:
        """Cut the file of a set short; return the set's name."""
        self._file("broken").write_bytes(self._whole[:-1])
        return "broken"

    def change(self) -> None:
        name = self._rng.choice(sorted(self.now))
        if self._rng.random() < 0.5:
            self._write(name)
        else:
            self._file(name).unlink()
            del self.now[name]
            self._add()

    def _add(self) -> None:
        self._write(f"s{self._n_names}")
        self._n_names += 1

    def _write(self, name: str) -> None:
        self.now[name] = self._rng.choice(self._made)
        self.now[name].save(self._file(name))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.safetensors"


class Soak:
    """The run: one engine, its requests, and what is to be compared afterwards."""

    def __init__(self, seed: int) -> None:
        from vllm import LLM

        self.rng = random.Random(seed)
        text = [token for prompt in embedded_sets.prompts(48) for token in prompt]
        self.directory = Directory(self.rng, contents(self.rng))
        self.requests = RandomRequests(self.rng, text, head=48, tail=24, max_tokens=10, max_sets=2)
        steering = saif_vllm.engine_args(
            self.directory.path,
            layers=list(embedded_sets.LAYERS.values()),
            max_sets=MAX_SETS,
            max_latents=160,
            max_sets_per_request=2,
            worker_extension_cls="worker_state.WorkerState",
        )
        self.llm = LLM(str(model_path()), **ENGINE, **steering)
        self.stream, self.memory, self.count = Stream(self.llm), Memory(), Counter[str]()
        self.sampled: dict[int, dict[str, Any]] = {}
        self.at_start = self.worker_state()
        self.restless = (*Churn.names, self.directory.damage())
        self.loads()  # those of the start are none of the run's
        self.llm.collective_rpc("saif_watch_pauses")

    def core_state(self) -> dict[str, int]:
        """Return the core's state, after all requests sent before have been admitted."""
        return self.llm.llm_engine.engine_core.call_utility("saif_state")

    def loads(self) -> dict[str, list[float]]:
        """Return the times of loading sets since the last call."""
        return self.llm.llm_engine.engine_core.call_utility("saif_loads")

    def worker_state(self) -> dict[str, Any]:
        return self.llm.collective_rpc("saif_worker_state")[0]

    def send(self, request: dict[str, Any]) -> None:
        number = self.count["sent"]
        self.stream.add(number, request)
        self.count["sent"] += 1
        if number % SAMPLED == 0:
            # As the front end has just found them.
            offered = self.llm.llm_engine.input_processor.saif_catalog._by_name
            used = {name: offered[name].latent_set for name in set_names(request)}
            self.sampled[number] = {"request": request, "sets": used}

    def send_restless(self) -> None:
        """Send a request for a set that may be gone, or whose file is cut short."""
        asked = {"extra_args": {"saif": self.rng.choice(self.restless)}, "n": 1}
        try:
            self.send({**self.requests.draw(self.directory.now), **asked})
        except ValueError as error:
            assert "unknown set 'churn-" in str(error) or "'broken': not a comp" in str(error), (
                error
            )
            self.count["refused for their sets' files"] += 1

    def step(self) -> None:
        for number, (tokens, finished) in self.stream.step().items():
            self.count["served"] += finished
            if number in self.sampled:
                self.sampled[number] |= {"tokens": tokens, "finished": finished}

    def run(self, n_requests: int, seconds: float) -> None:
        """Run until ``n_requests`` were sent and ``seconds`` are over."""
        end, next_sample = time.monotonic() + seconds, 0
        while self.count["sent"] < n_requests or time.monotonic() < end:
            while len(self.stream) < IN_FLIGHT:
                self.send(self.requests.draw(self.directory.now))
                if self.rng.random() < 0.1:
                    self.send_restless()
                if self.rng.random() < 0.05:
                    victim = self.rng.choice(self.stream.keys)
                    self.count["aborted"] += self.stream.abort(victim)
                if self.rng.random() < 0.05:
                    waiting = self.core_state()["waiting for room"]
                    self.count["most waiting for room"] = max(
                        waiting, self.count["most waiting for room"]
                    )
                    self.directory.change()
                    self.count["sets changed"] += 1
            self.step()
            # Seldom, as it costs some milliseconds.
            if self.count["sent"] >= next_sample:
                self.memory.sample(self.count["sent"])
                next_sample += 100
                if next_sample % 1000 == 0:
                    print(self.memory.last(), flush=True)
        self.drain()

    def drain(self) -> None:
        while len(self.stream):
            self.step()

    def fill_all_slots(self) -> list[str]:
        """Send requests for as many new sets as there are slots, at once: none may wait."""
        chosen: dict[str, str] = {}
        while len(chosen) < MAX_SETS:
            self.directory.change()
            now = self.directory.now.items()
            chosen = {x.content_hash: name for name, x in now if not sum(x.n_live.values())}
        for name in list(chosen.values())[:MAX_SETS]:
            prompt = self.requests.draw(self.directory.now)["prompt"][-20:]
            self.send({"prompt": prompt, "max_tokens": 60, "extra_args": {"saif": name}})
        state = self.core_state()
        self.drain()
        if state["uses of sets"] != MAX_SETS or state["waiting for room"]:
            return [f"{MAX_SETS} requests for a set each, with as many slots: {state}"]
        return []

    def leaks(self) -> list[str]:
        """Return what is still held although there is no request."""
        # The worker hears that requests have ended with the next batch.
        self.send({"prompt": [1, 2, 3], "max_tokens": 2, "extra_args": None})
        self.drain()
        core, worker = self.core_state(), self.worker_state()
        print("engine core:", core)
        print("worker:", {name: value for name, value in worker.items() if name != "tables"})
        held = [
            f"engine core: {core[name]} {name}"
            for name in ("requests", "uses of sets", "waiting for room")
            if core[name]
        ]
        if core["sets loaded"] != core["sets placed"] or core["sets loaded"] > MAX_SETS:
            held.append(f"engine core: {core}")
        front_end = len(self.llm.llm_engine.input_processor.saif_catalog._by_name)
        for where, n_sets in (("engine core", core["sets remembered"]), ("front end", front_end)):
            if n_sets > 4 * MAX_SETS:
                held.append(f"{where}: {n_sets} sets remembered")
        if worker != self.at_start:
            held.append(f"worker: expected {self.at_start}, got {worker}")
        return held

    def compare(self) -> hf_reference.Comparison:
        """Compare the sampled requests with each alone by Hugging Face."""
        model, comparison = embedded_sets.load_model(), hf_reference.Comparison()
        for number, found in self.sampled.items():
            expected = hf_reference.generate(model, found["sets"], found["request"])
            for tokens in found.get("tokens", ()):
                n = len(expected["tokens"]) if found["finished"] else len(tokens)
                cut = {name: values[:n] for name, values in expected.items()}
                comparison.add(f"{number}", cut, {"tokens": tokens})
        return comparison


def loading(loads: dict[str, list[float]], pauses: list[dict[str, Any]]) -> dict[str, str]:
    """Rows of the report: how long sets take to load, and what generation notices of it."""

    def spread(times: list[float]) -> str:
        if not times:
            return "none"
        return f"median {statistics.median(times):.2f} ms, largest {max(times):.2f} ms"

    def pause(found: dict[str, Any]) -> str:
        mean, longest = 1e3 * found["seconds"] / max(found["n"], 1), 1e3 * found["longest"]
        return f"mean {mean:.2f} ms, longest {longest:.2f} ms of {found['n']:,}"

    pairs = zip(loads["loaded"], loads["latents"], strict=True)
    large = [ms for ms, latents in pairs if latents == MOST_LATENTS]
    without, having = pauses
    return {
        "sets loaded": f"{len(loads['loaded']):,}; {len(large):,} of {MOST_LATENTS} live latents",
        "loading a set, core and worker": spread(loads["loaded"]),
        f"loading a set of {MOST_LATENTS} latents": spread(large),
        "reading a set that came with a request before, beside generation": spread(loads["read"]),
        "pause between two forwards while sets were loaded": pause(having),
        "pause between two forwards otherwise": pause(without),
    }


def write_report(rows: dict[str, str], wrong: list[str], full: bool) -> None:
    """Print the result, and write it as Markdown."""
    lines = [
        "# Soak",
        "",
        f"`make soak`, {datetime.date.today()}. {described(machine())}",
        "The embedded model in one engine; sets come and go as `tests/vllm/soak.py` says.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        f"| result | {'**failed**' if wrong else 'passed'} |",
        *(f"\nFailed: {line}" for line in wrong),
    ]
    folder = RESULTS / "cpu" if full else RESULTS.parents[1] / "build"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "soak.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), f"\nwrote {folder / 'soak.md'}")


def main() -> int:
    minutes = float(os.environ.get("SOAK_MINUTES") or FULL)
    full = minutes >= FULL
    soak = Soak(seed=0)
    began = time.monotonic()
    with soak.directory.churn.running():
        soak.run(int(WARM_UP * full + minutes * A_MINUTE), 60 * minutes)
    soak.count["changes by another thread"] = soak.directory.churn.changes
    seconds = time.monotonic() - began
    loads, pauses = soak.loads(), soak.llm.collective_rpc("saif_paused")[0]
    sent = soak.count["sent"]
    wrong = soak.fill_all_slots() + soak.leaks()
    metrics = {metric.name: metric for metric in soak.llm.get_metrics()}
    soak.count["preemptions"] = int(metrics["vllm:num_preemptions"].value)
    soak.llm.llm_engine.engine_core.shutdown()

    memory, grows = soak.memory.report(full)
    wrong += grows
    happened = ("sets changed", "changes by another thread", "refused for their sets' files")
    happened += ("aborted", "preemptions", "most waiting for room")
    if soak.stream.errors:
        wrong.append(f"internal errors: {soak.stream.errors}")
    if full:
        wrong += [f"expected some {name}, got none" for name in happened if not soak.count[name]]
        if MOST_LATENTS not in loads["latents"]:
            wrong.append(f"expected a set of {MOST_LATENTS} latents to be loaded, got none")
    if loads["loaded"] and statistics.median(loads["loaded"]) > LOADED_IN:
        wrong.append(f"loading a set takes more than {LOADED_IN:g} ms at the median")
    comparison = soak.compare()
    wrong += comparison.wrong
    if full and len(comparison.excused) > comparison.compared / 50:
        wrong.append(f"near ties: {len(comparison.excused)} of {comparison.compared}")
    rows = {
        "minutes": f"{seconds / 60:.1f}",
        "requests": f"{sent:,}",
        **{name: f"{soak.count[name]:,}" for name in happened},
        "internal errors": f"{soak.stream.errors:,}",
        "outputs compared with their solo runs": (
            f"{comparison.compared:,}: {len(comparison.wrong)} differ, "
            f"{len(comparison.excused)} more at a near tie"
        ),
        **loading(loads, pauses),
        **memory,
    }
    write_report(rows, wrong, full)
    return bool(wrong)


if __name__ == "__main__":  # vLLM starts its processes by importing this file again
    sys.exit(main())
