"""The runtime on which a command tries candidates, with a directory of sets that grows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from saif_fast.cli.app import say
from saif_fast.cli.loading import start_runtime
from saif_fast.cores import usable_cores
from saif_fast.evaluate.subject import Subject
from saif_fast.replicas import Replicas
from saif_fast.runtime import Runtime
from saif_fast.search import Track
from saif_fast.set_dir import SetDirectory

# Room in the engine: sets of as many candidates as are answered at once, and their live latents.
_MAX_SETS, _MAX_LATENTS = 512, 4096
_MOST_ENGINES = 4
_ENGINE_BYTES = 3 << 30  # what an engine's processes take besides the weights, on a CPU


@contextmanager
def track_of(subject: Subject, model: str, name: str) -> Iterator[Track]:
    """Start the runtime ``name`` on an empty directory of sets."""
    with tempfile.TemporaryDirectory(prefix="saif-search-") as folder:
        sets = SetDirectory(folder)
        if name == "transformers":
            say(f"starting {name}")
            runtime = subject.open(sets)  # the model is loaded already
        else:
            runtime = _engines(subject, model, name, sets)
        try:
            yield Track(name, runtime, sets, subject.prompter, say)
        finally:
            runtime.close()


def _engines(subject: Subject, model: str, name: str, sets: SetDirectory) -> Runtime:
    """Start one engine on a GPU; on a CPU as many as there are cores, if they have room."""
    options: dict[str, object] = {
        "layers": subject.layers,
        "max_sets": _MAX_SETS,
        "max_latents": _MAX_LATENTS,
    }
    n_engines = 1
    if subject.model.device.type == "cpu":
        cores = usable_cores()
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        weights = sum(each.nbytes for each in subject.model.parameters())
        room = memory // 2 // (weights + _ENGINE_BYTES)
        n_engines = max(1, min(cores, room, _MOST_ENGINES))
        if n_engines > 1:
            options["cpu_threads"] = cores // n_engines
    say(f"starting {name}" + (f", {n_engines} engines" if n_engines > 1 else ""))
    replicas: list[Runtime] = []
    try:
        for _ in range(n_engines):
            replicas.append(start_runtime(name, model, sets, **options))
    except BaseException:
        for each in replicas:
            each.close()
        raise
    return replicas[0] if n_engines == 1 else Replicas(replicas)
