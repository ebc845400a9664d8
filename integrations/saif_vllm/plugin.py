"""The entry point ``vllm.general_plugins: saif``, called in every vLLM process.

The standard library only at import: vLLM logs and swallows a plugin's import failure.
"""

from __future__ import annotations

import logging

from saif_vllm.config import disabled


def register() -> None:
    """Install the seams of front end, engine core and worker in this process.

    Where ``SAIF_DISABLE`` is set: nothing at all. Where this vLLM is not supported, a warning: one
    that serves without steering starts as usual. One that is to steer does not, by
    ``engine_args`` or the worker extension, which say the same.
    """
    if disabled():
        return
    try:
        from saif_vllm import seams

        seams.arm()
    except (ImportError, RuntimeError):
        logging.getLogger(__name__).warning("steering is not available here", exc_info=True)
