"""The entry point ``vllm.general_plugins: saif``, called in every vLLM process.

The standard library only at import: vLLM logs and swallows a plugin's import failure.
"""

from __future__ import annotations

import logging

from saif_vllm.config import disabled


def register() -> None:
    """Patch the front end and the engine core in this process, where it can be steered.

    Where ``SAIF_DISABLE`` is set: nothing at all. Where this vLLM is not supported, a warning: an
    engine that serves without steering starts as usual. One that is to steer does not start, by
    ``engine_args`` or the worker extension, which say the same.
    """
    if disabled():
        return
    try:
        arm()
    except (ImportError, RuntimeError):
        logging.getLogger(__name__).warning("steering is not available here", exc_info=True)


def arm() -> None:
    """Patch the front end and the engine core in this process, or nothing; again is harmless.

    Raises:
        ImportError: a package that the patches need is missing.
        RuntimeError: as :func:`saif_vllm.seams.check`.
    """
    from saif_vllm import seams

    # Before the patches are imported: with a vLLM that is too old they could not be, and what is
    # said is which versions are supported.
    seams.check()

    from saif_vllm.core import patches as core
    from saif_vllm.frontend import patches as frontend

    frontend.arm()
    core.arm()
