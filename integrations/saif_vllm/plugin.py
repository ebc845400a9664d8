"""The entry point ``vllm.general_plugins: saif``, called in every vLLM process.

Importing this module needs the standard library only: vLLM logs and ignores a plugin that fails to
import.
"""

from __future__ import annotations

import logging

from saif_vllm.config import disabled


def register() -> None:
    """Patch the front end and the engine core in this process.

    If ``SAIF_DISABLE`` is set, do nothing. If this vLLM is not supported, log a warning: an engine
    without steering then starts as usual, and an engine with steering does not, because
    ``engine_args`` and the worker extension raise the same error.
    """
    if disabled():
        return
    try:
        arm()
    except (ImportError, RuntimeError):
        logging.getLogger(__name__).warning("steering is not available here", exc_info=True)


def arm() -> None:
    """Patch the front end and the engine core in this process; calling it again changes nothing.

    Raises:
        ImportError: a package that the patches need is missing.
        RuntimeError: as :func:`saif_vllm.seams.check_seams`. Nothing is patched then.
    """
    from saif_vllm import seams

    # Check before importing the patches: with an unsupported vLLM that import could fail, and its
    # error would not name the supported versions.
    seams.check_seams()

    from saif_vllm.core import patches as core
    from saif_vllm.frontend import patches as frontend

    frontend.arm()
    core.arm()
