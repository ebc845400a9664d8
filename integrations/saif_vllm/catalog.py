"""The sets an engine offers: the set directory as it is when a request comes in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from saif_fast.latent_set import LatentSet
from saif_fast.set_dir import SetDirectory, UnknownSet, reading
from saif_fast.tables import HookedModel
from saif_kernels import LatentEdits
from saif_vllm.config import SteeringConfig, hooked_model
from saif_vllm.request import Found


class Offered(NamedTuple):
    """A set that fits this engine, and what the tables take of it by layer."""

    found: Found
    latent_set: LatentSet
    compiled: dict[int, LatentEdits]

    @property
    def name(self) -> str:
        """Of the set; equal contents may have several."""
        return self.found.name

    @property
    def changes_kv(self) -> bool:
        """Whether the set edits a layer below the last, so that later layers' KV depends on it."""
        return self.latent_set.layers[0] < self.latent_set.num_layers - 1


class _Recent(OrderedDict[Hashable, Offered]):
    """The sets that were asked for last, at most so many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: Hashable, offered: Offered) -> Offered:
        """Remember it as the latest."""
        self[key] = offered
        self.move_to_end(key)
        while len(self) > self._most:
            self.popitem(last=False)
        return offered


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
        self.max_tokens: int | None = None  # that any request can generate
        self._directory = directory
        # However many sets there are, memory goes with what the engine can have loaded.
        self._by_name, self._by_content = (_Recent(4 * config.max_sets) for _ in range(2))

    @classmethod
    def of(cls, vllm_config: Any, config: SteeringConfig) -> SetCatalog:
        """Of the directory that the engine was started with; every set in it is checked.

        Raises:
            ValueError: it is not there, or a set does not fit; the message names it.
        """
        catalog = cls(SetDirectory(config.set_dir), config, hooked_model(vllm_config, config))
        catalog.check()
        catalog.max_tokens = vllm_config.model_config.max_model_len - 1
        return catalog

    def check(self) -> None:
        """Check what the directory offers now: by the files' headers, and those sets that are
        loaded at start as a whole.

        Raises:
            ValueError: a set does not fit; the message names it.
        """
        for name in islice(self, self.config.max_sets):
            try:
                self[name]
            except UnknownSet:  # has gone meanwhile
                continue
        for name, header in self._directory.headers():
            with reading(name):
                self.model.check(header, self.config.max_latents)

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
        """The set that the file ``<name>.safetensors`` holds now.

        Raises:
            UnknownSet: there is none.
            ValueError: it cannot be read, is no latent set, or does not fit this engine.
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
        return Offered(found, latent_set, self.model.compile(latent_set, self.config.max_latents))

    def received(self, found: Found) -> Offered:
        """A set that came with a request, whatever the file of its name holds by now.

        Raises:
            ValueError: it does not fit this engine.
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
        """Whether the file of this name is still the one that was found."""
        try:
            return self._directory.identity(found.name) == found.identity
        except ValueError:  # asked in the core's main loop, which has to go on
            return False

    def lookup(self) -> Lookup:
        """Where the sets of the request that is being served are looked up."""
        current = _lookup.get()
        return current if current is not None and current.catalog is self else Lookup(self)

    @contextmanager
    def one_request(self) -> Iterator[None]:
        """All that is looked up inside, and in tasks that begin there, is for one request."""
        token = _lookup.set(self.lookup())
        try:
            yield
        finally:
            _lookup.reset(token)


class Lookup(Collection[str]):
    """The sets of one request. Each name is looked up once, whoever asks for it, and however often.

    Args:
        catalog: has the sets.
        found: those that are known already.
    """

    def __init__(self, catalog: SetCatalog, found: Iterable[Offered] = ()) -> None:
        self.catalog = catalog
        self._found = {offered.name: offered for offered in found}

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self[name])  # or it says what there is

    def __iter__(self) -> Iterator[str]:
        return iter(self.catalog)

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, name: str) -> Offered:
        """The set of that name; raises as :meth:`SetCatalog.__getitem__`."""
        if name not in self._found:
            self._found[name] = self.catalog[name]
        return self._found[name]


# Over HTTP a request is checked before its answer begins, and is made into requests of the engine
# much later, perhaps in a task of its own: a context goes with it.
_lookup: ContextVar[Lookup | None] = ContextVar("saif_lookup", default=None)
