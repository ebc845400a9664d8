"""``engine_args``: the arguments of an engine that switch steering on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from saif_vllm.config import EXTENSION, SteeringConfig
from saif_vllm.unhashed import UnhashedPath


def engine_args(
    set_dir: str | Path,
    *,
    layers: Sequence[int] | None = None,
    max_sets: int = 32,
    max_latents: int = 1024,
    max_sets_per_request: int = 8,
    max_strength: float = 10.0,
    warn_dose: float | None = None,
    max_dose: float | None = 64.0,
    max_captures: int = 0,
    worker_extension_cls: str | None = None,
) -> dict[str, Any]:
    """Keyword arguments for ``vllm.LLM`` or ``EngineArgs`` that switch steering on.

    They hold all that decides what the engine serves; several engines of a process, and those that
    another process starts with them, each have their own. Also installs the front end's seams in
    this process, so that the engine cannot start without them.

    Args:
        set_dir: directory of latent sets (``<name>.safetensors``), from now on as an absolute path.
        layers: decoder layers to hook; those of the sets in the directory unless given. They are
            frozen at start, so name those of sets that will be added later.
        max_sets, max_latents, max_sets_per_request, max_strength, warn_dose, max_dose,
            max_captures: see :class:`~saif_vllm.config.SteeringConfig`.
        worker_extension_cls: qualified name of your own worker extension, a subclass of
            ``saif_vllm.worker.extension.SaifWorkerExtension``.

    Raises:
        ValueError: a value out of range, no such directory, or no layer to hook.
        ImportError, RuntimeError: the installed vLLM is not supported, or ``SAIF_DISABLE`` is set.
    """
    from saif_fast.set_dir import SetDirectory
    from saif_vllm import plugin

    directory = SetDirectory(set_dir)
    if layers is None:
        layers = sorted({layer for _, header in directory.headers() for layer in header.n_live})
        if not layers:
            raise ValueError(
                f"layers: expected where the set directory is empty ({directory.root}), got none"
            )
    config = SteeringConfig(
        set_dir=str(directory.root.absolute()),
        layers=tuple(layers),
        max_sets=max_sets,
        max_latents=max_latents,
        max_sets_per_request=max_sets_per_request,
        max_strength=float(max_strength),
        warn_dose=warn_dose,
        max_dose=max_dose,
        max_captures=max_captures,
        version=version("saif-fast"),
    )
    plugin.arm()
    given = {
        **asdict(config),
        "set_dir": UnhashedPath(config.set_dir),
        "layers": list(config.layers),
    }
    return {
        "additional_config": {"saif": given},
        "worker_extension_cls": worker_extension_cls or EXTENSION,
    }
