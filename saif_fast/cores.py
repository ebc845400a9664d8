"""The cores that this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return the number of cores that this process may use: fewer than there are in a container.

    Examples:
        >>> usable_cores()
        2
    """
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has no affinity
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))
