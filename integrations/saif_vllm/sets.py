"""The sets an engine offers: read from the set directory by front end, engine core and workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory
from saif_vllm.config import SET_DIR_VARIABLE, SteeringConfig


class OfferedSets:
    """Latent sets by name, checked against the model and against what was frozen at start.

    Args:
        sets: by name.
        config: hooked layers and capacities.
        hidden_size, num_layers: of the model.

    Raises:
        ValueError: a set was made for another model, edits a layer that is not hooked, or the
            capacities do not hold all sets.
    """

    def __init__(
        self,
        sets: Mapping[str, LatentSet],
        config: SteeringConfig,
        hidden_size: int,
        num_layers: int,
    ) -> None:
        if config.layers[-1] >= num_layers:
            raise ValueError(
                f"layers: expected 0 to {num_layers - 1} for this model, got {config.layers[-1]}"
            )
        for name, latent_set in sets.items():
            _check_set(name, latent_set, config, hidden_size, num_layers)
        self.sets = dict(sets)
        # Two names of one content share a slot.
        self.by_hash = {found.content_hash: found for found in sets.values()}
        self.last_layer = num_layers - 1
        if len(self.by_hash) > config.max_sets:
            raise ValueError(
                f"max_sets: expected at least the {len(self.by_hash)} sets of the set directory, "
                f"got {config.max_sets}"
            )
        for layer in config.layers:
            live = sum(found.n_live.get(layer, 0) for found in self.by_hash.values())
            if live > config.max_latents:
                raise ValueError(
                    f"max_latents: expected at least the {live} live latents of all sets at layer "
                    f"{layer}, got {config.max_latents}"
                )

    @classmethod
    def load(cls, vllm_config: Any, config: SteeringConfig) -> OfferedSets:
        """Read the directory named by the environment.

        Raises:
            ValueError: the variable is not set, a file is not a latent set, or as the class.
        """
        path = os.environ.get(SET_DIR_VARIABLE)
        if path is None:
            raise ValueError(
                f"{SET_DIR_VARIABLE}: expected the set directory in the environment, got nothing; "
                "saif_vllm.engine_args sets it"
            )
        model = vllm_config.model_config
        return cls(
            SetDirectory(path).load_all(),
            config,
            model.get_hidden_size(),
            model.get_total_num_hidden_layers(),
        )

    def changes_kv(self, content_hash: str) -> bool:
        """Whether a set edits a layer below the last, so that later layers' KV depends on it."""
        return self.by_hash[content_hash].layers[0] < self.last_layer


def _check_set(
    name: str, latent_set: LatentSet, config: SteeringConfig, hidden_size: int, num_layers: int
) -> None:
    try:
        latent_set.check_model(hidden_size, num_layers)
    except ValueError as error:
        raise ValueError(f"set {name!r}: {error}") from error
    for layer in latent_set.layers:
        if layer not in config.layers:
            raise ValueError(
                f"set {name!r}: expected a hooked layer ({', '.join(map(str, config.layers))}), "
                f"got layer {layer}; layers are fixed at start, see engine_args(layers=...)"
            )
