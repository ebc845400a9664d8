"""Configuration of an engine that steers: what is fixed at start, and where the sets are.

It travels in vLLM's ``additional_config``, which reaches every process of the engine, since all
processes must agree on layers and capacities. vLLM's compile key includes it, since the hooked
layers shape the compiled graph. Other sets need no other graph, so the key leaves out their
directory (``unhashed.py``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from saif_vllm.unhashed import path_of

if TYPE_CHECKING:
    from saif_fast.banks import HookedModel

DISABLE_VARIABLE = "SAIF_DISABLE"
PLUGIN_NAME = "saif"  # the entry point's name, as VLLM_PLUGINS knows it
EXTENSION = "saif_vllm.worker.extension.SaifWorkerExtension"
_LARGEST = 1e6  # strength or dose: far beyond use, far within the fp32 of the banks


def disabled() -> bool:
    """Return whether ``SAIF_DISABLE`` (anything but empty or 0) tells the plugin to do nothing."""
    return os.environ.get(DISABLE_VARIABLE, "") not in ("", "0")


def refuse_disabled() -> None:
    """Raise RuntimeError if ``SAIF_DISABLE`` is set; called where steering is asked for."""
    if disabled():
        raise RuntimeError(
            f"{DISABLE_VARIABLE}: expected unset or 0 in an engine that steers, "
            f"got {os.environ[DISABLE_VARIABLE]!r}"
        )


@dataclass(frozen=True)
class SteeringConfig:
    """Settings of steering, frozen when the engine starts.

    Attributes:
        set_dir: absolute path of the directory of latent sets.
        layers: hooked decoder layers, ascending; a set for another layer is rejected.
        max_sets: sets that can be loaded at a time; the directory may hold more.
        max_latents: live latents of all loaded sets together, per hooked layer.
        max_sets_per_request: sets that one request may combine.
        max_strength: largest absolute strength of a request.
        warn_dose: dose above which the log warns of a request. A token's dose is the norm of its
            change, relative to the norm of its residual stream. None: no warnings.
        max_dose: dose that any token's change is scaled down to; None: no cap but the range of the
            model's dtype, see :func:`saif_kernels.steer_`.
        max_captures: residuals that can be kept at a time for identification, per hooked layer;
            0: none, and no op for it.
        version: of this plugin. A graph compiled by another version must not be reused.
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
        # A relative path would depend on the working directory of each process.
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
    def from_vllm_config(cls, vllm_config: Any) -> SteeringConfig | None:
        """Read the settings from ``vllm_config``; None: this engine does not steer.

        Raises:
            ValueError: ``additional_config["saif"]`` was not made by
                :func:`saif_vllm.engine_args` of this version.
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


def hooked_model(vllm_config: Any, config: SteeringConfig) -> HookedModel:
    """Return the model that a set must fit in an engine of this configuration."""
    from saif_fast.banks import HookedModel

    model = vllm_config.model_config
    return HookedModel(
        config.layers,
        model.get_hidden_size(),
        model.get_total_num_hidden_layers(),
        model.dtype,
    )
