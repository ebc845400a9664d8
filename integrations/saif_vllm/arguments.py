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
    """Return keyword arguments for ``vllm.LLM`` or ``EngineArgs`` that switch steering on.

    The arguments hold everything that decides what the engine serves. So several engines in one
    process can each have their own, and another process can start an engine with them. Also patches
    the front end in this process, so that the engine cannot start unpatched.

    Args:
        set_dir: directory of latent sets (``<name>.safetensors``). The arguments hold its absolute
            path.
        layers: decoder layers to hook; None: the layers of the sets in the directory. They are
            frozen at start, so name the layers of sets that will be added later.
        max_sets, max_latents, max_sets_per_request, max_strength, warn_dose, max_dose,
            max_captures: see :class:`~saif_vllm.config.SteeringConfig`.
        worker_extension_cls: qualified name of your own worker extension, a subclass of
            ``saif_vllm.worker.extension.SaifWorkerExtension``.

    Example::

        llm = LLM("google/gemma-2-2b-it", **saif_vllm.engine_args("sets", layers=[20]))
        llm.generate(prompt, SamplingParams(extra_args={"saif": "french*1.2"}))

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
