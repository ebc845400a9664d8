"""Catalog of the sets an engine offers: the set directory at the time a request arrives."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from saif_fast.banks import HookedModel
from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory, UnknownSet, reading
from saif_kernels import LatentEdits
from saif_vllm.config import SteeringConfig, hooked_model
from saif_vllm.request import Found


class Offered(NamedTuple):
    """A set that fits this engine, compiled for its layers.

    Only the core loads ``compiled`` into the workers. The front end compiles too, since that checks
    whether the set fits.
    """

    found: Found
    latent_set: LatentSet
    compiled: dict[int, LatentEdits]

    @property
    def name(self) -> str:
        """Name of the set; equal contents may have several."""
        return self.found.name

    @property
    def changes_kv(self) -> bool:
        """Whether the set edits a layer below the last, so that later layers' KV depends on it."""
        return self.latent_set.layers[0] < self.latent_set.num_layers - 1


class _Recent(OrderedDict[Hashable, Offered]):
    """The ``capacity`` sets that were asked for last."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity

    def keep(self, key: Hashable, offered: Offered) -> Offered:
        """Put a set in as the latest one, and return it."""
        self[key] = offered
        self.move_to_end(key)
        while len(self) > self._capacity:
            self.popitem(last=False)
        return offered


class SetCatalog(Collection[str]):
    """The names that requests may use. Front ends and engine core have a catalog each, over one
    directory.

    A file that is added, replaced or removed counts from the next request on. A file is read when
    it has changed; otherwise a request costs one ``stat`` per set.

    Args:
        directory: the files of the sets.
        config: hooked layers and capacities.
        model: the model that a set must fit.

    Raises:
        ValueError: the model does not have a hooked layer.
    """

    def __init__(self, directory: SetDirectory, config: SteeringConfig, model: HookedModel) -> None:
        if config.layers[-1] >= model.num_layers:
            raise ValueError(
                f"layers: expected 0 to {model.num_layers - 1} for this model, "
                f"got {config.layers[-1]}"
            )
        self.config, self.model = config, model
        self.max_tokens: int | None = None  # upper bound of the tokens a request can generate
        self._directory = directory
        # Bounded by what the engine can load, or they would grow with the sets ever asked for.
        self._by_name, self._by_content = (_Recent(4 * config.max_sets) for _ in range(2))

    @classmethod
    def from_vllm_config(cls, vllm_config: Any, config: SteeringConfig) -> SetCatalog:
        """Open the directory that the engine was started with, and check every set in it.

        Raises:
            ValueError: there is no such directory, or a set does not fit; the message names it.
        """
        catalog = cls(SetDirectory(config.set_dir), config, hooked_model(vllm_config, config))
        catalog.check_sets()
        catalog.max_tokens = vllm_config.model_config.max_model_len - 1
        return catalog

    def check_sets(self) -> None:
        """Check the sets in the directory: those that are loaded at start in full, all others by
        their headers.

        Raises:
            ValueError: a set does not fit; the message names it.
        """
        for name in islice(self, self.config.max_sets):
            try:
                self[name]
            except UnknownSet:  # its file is gone
                continue
        for name, header in self._directory.headers():
            with reading(name):
                self.model.check_header(header, self.config.max_latents)

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self._directory.identity(name))
        except ValueError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._directory.names())

    def __len__(self) -> int:
        return len(self._directory.names())

    def __getitem__(self, name: str) -> Offered:
        """Return the set that the file ``<name>.safetensors`` holds now.

        Raises:
            UnknownSet: there is no such file.
            ValueError: the file cannot be read, is no latent set, or does not fit this engine.
        """
        known = self._by_name.get(name)
        if known is None or known.found.identity != self._directory.identity(name):
            known = self._read(name)
        return self._by_name.keep(name, known)

    def _read(self, name: str) -> Offered:
        data, identity = self._directory.read(name)
        with reading(name):
            latent_set = LatentSet.from_bytes(data)
            found = Found(name, latent_set.content_hash, identity, data)
            return self._fit(found, latent_set)

    def _fit(self, found: Found, latent_set: LatentSet) -> Offered:
        return Offered(
            found, latent_set, self.model.edits_by_layer(latent_set, self.config.max_latents)
        )

    def read_received(self, found: Found) -> Offered:
        """Return a set that came with a request, even if the file of its name has changed since.

        Raises:
            ValueError: the set does not fit this engine.
        """
        known = self._by_content.get(found.content_hash)
        kept = msgspec.structs.replace(found, data=b"")
        if known is None:
            with reading(found.name):
                latent_set = LatentSet.from_bytes(found.data)
                if latent_set.content_hash != found.content_hash:
                    raise ValueError("content does not match its hash")
                known = self._fit(kept, latent_set)
        return self._by_content.keep(found.content_hash, known)._replace(found=kept)

    def is_current(self, found: Found) -> bool:
        """Return whether the file of this name is still the one that was found."""
        try:
            return self._directory.identity(found.name) == found.identity
        except ValueError:  # The core's main loop calls this, and must go on.
            return False

    def lookup(self) -> Lookup:
        """Return the lookup of the request that is being served, or a new one."""
        current = _lookup.get()
        return current if current is not None and current.catalog is self else Lookup(self)

    @contextmanager
    def one_request(self) -> Iterator[None]:
        """Use one :class:`Lookup` for all that runs inside, and in tasks that begin there."""
        token = _lookup.set(self.lookup())
        try:
            yield
        finally:
            _lookup.reset(token)


class Lookup(Collection[str]):
    """The sets of one request: each name is looked up once, so that all checks see the same set.

    Args:
        catalog: where sets are looked up.
        found: sets that are known already.
    """

    def __init__(self, catalog: SetCatalog, found: Iterable[Offered] = ()) -> None:
        self.catalog = catalog
        self._found = {offered.name: offered for offered in found}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self[name])  # else raises, naming what there is

    def __iter__(self) -> Iterator[str]:
        return iter(self.catalog)

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, name: str) -> Offered:
        """Return the set of that name; raises as :meth:`SetCatalog.__getitem__`."""
        if name not in self._found:
            self._found[name] = self.catalog[name]
        return self._found[name]


# Over HTTP a request is checked before its answer begins, and becomes a request of the engine much
# later, perhaps in a task of its own. A context variable follows it there.
_lookup: ContextVar[Lookup | None] = ContextVar("saif_lookup", default=None)
