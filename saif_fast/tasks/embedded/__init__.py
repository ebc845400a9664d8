"""The embedded model's tasks: exact replies over a small corpus of scenes."""

from __future__ import annotations

from saif_fast.tasks.embedded.tasks import embedded_task, embedded_task_names

__all__ = ["embedded_task", "embedded_task_names"]
