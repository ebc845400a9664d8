"""How an engine is started with steering: what is fixed at start, and where the sets are.

All of it is in vLLM's ``additional_config``, which reaches every process of the engine and is part
of the compile key: the hooked layers shape the compiled graph, and on capacities all processes must
agree. Other sets need no other graph, so the key does not hold their directory (``unhashed.py``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from saif_vllm.unhashed import UnhashedPath, path_of

DISABLE_VARIABLE = "SAIF_DISABLE"
PLUGIN_NAME = "saif"  # the entry point's name, as VLLM_PLUGINS knows it
EXTENSION = "saif_vllm.worker.SaifWorkerExtension"
_LARGEST = 1e6  # strength or dose: far beyond use, far within fp32, which the tables are in


def disabled() -> bool:
    """Whether ``SAIF_DISABLE`` (anything but empty or 0) tells the plugin to do nothing at all."""
    return os.environ.get(DISABLE_VARIABLE, "") not in ("", "0")


def refuse_disabled() -> None:
    """Raise RuntimeError where steering is asked for in spite of ``SAIF_DISABLE``."""
    if disabled():
        raise RuntimeError(
            f"{DISABLE_VARIABLE}: expected unset or 0 in an engine that steers, "
            f"got {os.environ[DISABLE_VARIABLE]!r}"
        )


def check_extension(name: str) -> None:
    """Raise ValueError unless the worker extension of this name is ours, or a subclass of it."""
    if name == EXTENSION:
        return
    if name:
        from vllm.utils.import_utils import resolve_obj_by_qualname

        from saif_vllm.worker import SaifWorkerExtension

        if issubclass(resolve_obj_by_qualname(name), SaifWorkerExtension):
            return
    raise ValueError(f"worker_extension_cls: expected {EXTENSION} or a subclass, got {name!r}")


@dataclass(frozen=True)
class SteeringConfig:
    """What is frozen when the engine starts.

    Attributes:
        set_dir: absolute path of the directory of latent sets.
        layers: hooked decoder layers, ascending; a set for another layer is refused.
        max_sets: sets that can be loaded at a time; the directory may hold more.
        max_latents: live latents of all loaded sets together, at each hooked layer.
        max_sets_per_request: sets that one request may combine.
        max_strength: largest absolute strength of a request.
        warn_dose: a request whose change of the residual stream, relative to the stream's norm,
            passes this at some token is warned of in the log; None: none is.
        max_dose: the change of any token is scaled down to this; None: no cap but that of the
            model's dtype, see :func:`saif_kernels.steer_`.
        max_captures: residuals that can be kept at a time for identification, at each hooked layer;
            0: none, and no op for it.
        version: of this plugin. A graph that was compiled by another version must not be reused.
    """

    set_dir: str
    layers: tuple[int, ...]
    max_sets: int
    max_latents: int
    max_sets_per_request: int
    max_strength: float
    warn_dose: float | None
    max_dose: float | None
    max_captures: int
    version: str

    def __post_init__(self) -> None:
        # What a relative path means would be up to the working directory of each process.
        if not isinstance(self.set_dir, str) or not os.path.isabs(self.set_dir):
            raise ValueError(f"set_dir: expected an absolute path, got {self.set_dir!r}")
        layers = self.layers
        if not layers or list(layers) != sorted(set(layers)) or min(layers) < 0:
            raise ValueError(f"layers: expected distinct layers >= 0, ascending, got {layers}")
        for name in ("max_sets", "max_latents", "max_sets_per_request"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
        if not isinstance(self.max_captures, int) or self.max_captures < 0:
            raise ValueError(f"max_captures: expected an integer >= 0, got {self.max_captures!r}")
        for name in ("max_strength", "warn_dose", "max_dose"):
            value = getattr(self, name)
            if value is None and name != "max_strength":
                continue
            if not isinstance(value, int | float) or not 0 < value <= _LARGEST:
                raise ValueError(f"{name}: expected a number > 0, <= {_LARGEST:g}, got {value!r}")

    @classmethod
    def of(cls, vllm_config: Any) -> SteeringConfig | None:
        """What ``vllm_config`` asks for; None: this engine does not steer.

        Raises:
            ValueError: ``additional_config["saif"]`` was not made by :func:`engine_args` of this
                version.
        """
        additional = vllm_config.additional_config
        if not isinstance(additional, dict) or "saif" not in additional:
            return None
        given, names = additional["saif"], {field.name for field in fields(cls)}
        if not isinstance(given, dict) or set(given) != names:
            raise ValueError(
                f"additional_config['saif']: expected the keys {sorted(names)} as made by "
                f"saif_vllm.engine_args, got {given!r}"
            )
        config = cls(
            **{**given, "layers": tuple(given["layers"]), "set_dir": path_of(given["set_dir"])}
        )
        if config.version != version("saif-fast"):
            raise ValueError(
                f"additional_config['saif']: expected version {version('saif-fast')}, "
                f"got {config.version}"
            )
        return config


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
            max_captures: see :class:`SteeringConfig`.
        worker_extension_cls: qualified name of your own worker extension, a subclass of
            ``saif_vllm.worker.SaifWorkerExtension``.

    Raises:
        ValueError: a value out of range, no such directory, or no layer to hook.
        ImportError, RuntimeError: the installed vLLM is not supported, or ``SAIF_DISABLE`` is set.
    """
    from saif_fast.set_dir import SetDirectory
    from saif_vllm import seams

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
    seams.arm()
    given = {
        **asdict(config),
        "set_dir": UnhashedPath(config.set_dir),
        "layers": list(config.layers),
    }
    return {
        "additional_config": {"saif": given},
        "worker_extension_cls": worker_extension_cls or EXTENSION,
    }
