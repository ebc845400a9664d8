"""The sets an engine offers: the set directory as it is when a request comes in."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory
from saif_fast.tables import HookedModel
from saif_kernels import LatentEdits
from saif_vllm.config import SteeringConfig


class Offered(NamedTuple):
    """A set that fits this engine, and what the tables take of it by layer."""

    name: str
    latent_set: LatentSet
    compiled: dict[int, LatentEdits]

    @property
    def changes_kv(self) -> bool:
        """Whether the set edits a layer below the last, so that later layers' KV depends on it."""
        return self.latent_set.layers[0] < self.latent_set.num_layers - 1


class SetCatalog(Collection[str]):
    """Names that requests may use; front ends and engine core have one each, over one directory.

    The directory alone says what there is: a file that is added, replaced or removed counts from
    the next request on. A file is read when it has changed; else a request costs one ``stat``.

    Args:
        directory: of the sets.
        config: hooked layers and capacities.
        model: what a set must fit.

    Raises:
        ValueError: a hooked layer is none of the model's.
    """

    def __init__(self, directory: SetDirectory, config: SteeringConfig, model: HookedModel) -> None:
        if config.layers[-1] >= model.num_layers:
            raise ValueError(
                f"layers: expected 0 to {model.num_layers - 1} for this model, "
                f"got {config.layers[-1]}"
            )
        self.config, self.model = config, model
        self._directory = directory
        self._read: dict[str, tuple[object, Offered]] = {}  # by name, with the file's identity

    @classmethod
    def of(cls, vllm_config: Any, config: SteeringConfig) -> SetCatalog:
        """Of the directory that the engine was started with; every set in it is checked.

        Raises:
            ValueError: it is not there, or a set does not fit; the message names it.
        """
        directory = SetDirectory(config.set_dir)
        directory.names()  # raises where a file could not be asked for
        catalog = cls(directory, config, model_of(vllm_config, config))
        for name in catalog:
            catalog[name]
        return catalog

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._directory.path(name).exists()

    def __iter__(self) -> Iterator[str]:
        return iter(self._directory.names())

    def __len__(self) -> int:
        return len(self._directory.names())

    def __getitem__(self, name: str) -> Offered:
        """The set that the file ``<name>.safetensors`` holds now.

        Raises:
            ValueError: there is none, it is no latent set, or it does not fit this engine.
        """
        path = self._directory.path(name)
        try:
            stat = path.stat()
        except FileNotFoundError:
            self._read.pop(name, None)
            raise ValueError(
                f"unknown set {name!r}; available sets: {', '.join(self) or 'none'}"
            ) from None
        except OSError as error:
            raise ValueError(f"set {name!r}: {error.strerror}") from error
        # Writing in place changes the time, replacing the file its number.
        identity = stat.st_mtime_ns, stat.st_size, stat.st_ino
        known = self._read.get(name)
        if known is None or known[0] != identity:
            try:
                latent_set = self._directory.load(name)
                compiled = self.model.compile(latent_set, self.config.max_latents)
            except ValueError as error:
                # Where the server keeps its files is none of a client's business.
                reason = str(error).removeprefix(f"{path}: ")
                raise ValueError(f"set {name!r}: {reason}") from error
            # Names that never come back would be kept for ever. Two threads of the core read sets:
            # what is done to the dictionary is atomic.
            for other in list(self._read):
                if other not in self:
                    self._read.pop(other, None)
            known = self._read[name] = identity, Offered(name, latent_set, compiled)
        return known[1]

    def is_current(self, name: str, content_hash: str) -> bool:
        """Whether the file of this name still holds this content."""
        try:
            return self[name].latent_set.content_hash == content_hash
        except (ValueError, OSError):  # asked in the core's main loop, which has to go on
            return False


def model_of(vllm_config: Any, config: SteeringConfig) -> HookedModel:
    """What a set must fit in an engine of this configuration."""
    model = vllm_config.model_config
    return HookedModel(
        config.layers,
        model.get_hidden_size(),
        model.get_total_num_hidden_layers(),
        model.dtype,
    )
