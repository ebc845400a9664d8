"""The entry point ``vllm.general_plugins: saif``, called in every vLLM process.

The standard library only at import: vLLM logs and swallows a plugin's import failure.
"""

from __future__ import annotations

import logging
import os

from saif_vllm.config import SET_DIR_VARIABLE, disabled


def register() -> None:
    """Install the seams of front end, engine core and worker in this process.

    Where ``SAIF_DISABLE`` is set: nothing at all.

    Raises:
        ImportError, RuntimeError: this vLLM is not supported or the installation is broken, and
            steering was asked for. A vLLM that serves without steering starts as usual.
    """
    if disabled():
        return
    try:
        from saif_vllm import seams

        seams.arm()
    except (ImportError, RuntimeError):
        if SET_DIR_VARIABLE in os.environ:
            raise
        logging.getLogger(__name__).warning("steering is not available here", exc_info=True)
