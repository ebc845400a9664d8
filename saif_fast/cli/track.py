"""The runtime on which a command tries candidates, with a directory of sets that grows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from saif_fast.cli.app import say
from saif_fast.cli.loading import start_runtime
from saif_fast.evaluate.subject import Subject
from saif_fast.search import Track
from saif_fast.set_dir import SetDirectory

# Room in the engine: sets of as many candidates as are answered at once, and their live latents.
_MAX_SETS, _MAX_LATENTS = 512, 4096


@contextmanager
def track_of(subject: Subject, model: str, name: str) -> Iterator[Track]:
    """Start the runtime ``name`` on an empty directory of sets."""
    with tempfile.TemporaryDirectory(prefix="saif-search-") as folder:
        sets = SetDirectory(folder)
        say(f"starting {name}")
        if name == "transformers":
            runtime = subject.open(sets)  # the model is loaded already
        else:
            runtime = start_runtime(
                name,
                model,
                sets,
                layers=subject.layers,
                max_sets=_MAX_SETS,
                max_latents=_MAX_LATENTS,
            )
        try:
            yield Track(name, runtime, sets, subject.prompter, say)
        finally:
            runtime.close()
