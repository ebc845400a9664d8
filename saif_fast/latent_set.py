"""Latent sets: a few latents with their rows and edits, which steer and fit in one small file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from saif_fast import set_file
from saif_fast.edits import Edit
from saif_fast.records import Latent, Provenance, SaeReference, Site
from saif_fast.set_file import SetHeader
from saif_fast.windows import check_window, said
from saif_kernels import LatentEdits

if TYPE_CHECKING:
    from saif_fast.sae import SparseAutoencoder

__all__ = [
    "Latent",
    "LatentSet",
    "Provenance",
    "SaeReference",
    "Site",
    "SiteTensors",
]


@dataclass(frozen=True, eq=False)
class SiteTensors:
    """A :class:`Site` with its rows: fp32, on the CPU, in the model's residual units."""

    site: Site
    W_enc: Tensor  # [k, d_model]
    b_enc: Tensor  # [k]
    threshold: Tensor  # [k]
    W_dec: Tensor  # [k, d_model]
    vector: Tensor | None = None  # [d_model], a dense steering vector that is added as it is

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by field name; ``vector`` only where the site has one."""
        tensors: dict[str, Tensor] = {name: getattr(self, name) for name in set_file.FIELDS}
        return tensors if self.vector is None else {**tensors, "vector": self.vector}


@dataclass(frozen=True, eq=False)
class LatentSet:
    """Latents, edits and vectors at one or more layers: immutable, identified by their hash.

    ``defaults`` are ``saif_scope``, ``saif_start``, ``saif_stop`` and ``saif_decay`` of requests
    that give none of them.

    Raises:
        ValueError: a tensor does not fit, a value is not finite, a layer is given twice or out of
            range, the set contains nothing, or its defaults are no window.
    """

    sites: tuple[SiteTensors, ...]
    d_model: int
    num_layers: int
    provenance: Provenance = field(default_factory=lambda: Provenance(method="made"))
    defaults: Mapping[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = [tensors.site.layer for tensors in self.sites]
        if not layers or layers != sorted(set(layers)):
            raise ValueError(f"sites: expected distinct layers in ascending order, got {layers}")
        for tensors in self.sites:
            self._check_site(tensors)
        check_window(self.defaults)

    def _check_site(self, tensors: SiteTensors) -> None:
        layer, k = tensors.site.layer, len(tensors.site.latents)
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"layer: expected 0 to {self.num_layers - 1}, got {layer}")
        if k == 0 and tensors.vector is None:
            raise ValueError(
                f"layer {layer}: expected at least one latent or a vector, got neither"
            )
        rows, column = (k, self.d_model), (k,)
        expected = {"W_enc": rows, "b_enc": column, "threshold": column, "W_dec": rows}
        for name, tensor in tensors.named().items():
            shape = expected.get(name, (self.d_model,))
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise ValueError(
                    f"layer {layer} {name}: expected {list(shape)} float32, "
                    f"got {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
                )
            # A threshold of -inf makes a linear probe. No other infinity has a meaning.
            if (
                not torch.isfinite(tensor)
                .logical_or(torch.tensor(name == "threshold") & (tensor == -torch.inf))
                .all()
            ):
                raise ValueError(
                    f"layer {layer} {name}: expected finite values, got nan or infinity"
                )
        indices = [latent.index for latent in tensors.site.latents]
        if len(set(indices)) != k:
            raise ValueError(f"layer {layer} latents: expected distinct indices, got {indices}")

    @classmethod
    def from_sae(
        cls,
        sae: SparseAutoencoder,
        latents: Sequence[Latent],
        *,
        num_layers: int,
        provenance: Provenance | None = None,
    ) -> LatentSet:
        """Make a set of latents of an SAE, at the SAE's layer.

        ``project`` edits read and write along the latent's unit decoder direction.

        Args:
            sae: the SAE whose rows are taken.
            latents: indices and edits.
            num_layers: number of the model's decoder blocks.
            provenance: the origin of the set, for its file.

        Raises:
            ValueError: an index is outside the SAE, or the SAE does not allow these edits.

        Examples:
            >>> latents = [Latent(index=622, edit=Edit("clamp", 80.0))]
            >>> LatentSet.from_sae(sae, latents, num_layers=26).save("sets/own.safetensors")
        """
        sae.require_edits()
        if not all(latent.edit.is_constant for latent in latents):
            sae.require_live_edits()
        for latent in latents:
            if not 0 <= latent.index < sae.d_sae:
                raise ValueError(f"latent: expected 0 to {sae.d_sae - 1}, got {latent.index}")
        index = torch.tensor([latent.index for latent in latents], dtype=torch.long)
        W_enc, W_dec = sae.W_enc[:, index].T.contiguous(), sae.W_dec[index].contiguous()
        b_enc, threshold = sae.b_enc[index].clone(), sae.threshold[index].clone()
        for i, latent in enumerate(latents):
            if latent.edit.kind == "project":
                W_enc[i] = W_dec[i] = W_dec[i] / W_dec[i].norm()
                b_enc[i], threshold[i] = 0.0, -torch.inf
        site = Site(layer=sae.layer, latents=list(latents), sae=sae.reference())
        return cls(
            sites=(SiteTensors(site, W_enc, b_enc, threshold, W_dec),),
            d_model=sae.d_model,
            num_layers=num_layers,
            provenance=provenance or Provenance(method="made"),
        )

    @classmethod
    def from_vector(
        cls, vector: Tensor, *, layer: int, num_layers: int, provenance: Provenance | None = None
    ) -> LatentSet:
        """Make a set of a dense steering vector and no latents.

        Args:
            vector: [d_model] in the model's residual units, any float dtype.
            layer: the block after which it is added.
            num_layers: number of the model's decoder blocks (``config.num_hidden_layers``).
            provenance: the origin of the set, for its file.

        Examples:
            >>> LatentSet.from_vector(vector, layer=12, num_layers=26).save("sets/own.safetensors")
        """
        d_model = vector.shape[0]
        rows, scalars = torch.zeros(0, d_model), torch.zeros(0)
        tensors = SiteTensors(
            Site(layer=layer), rows, scalars, scalars, rows, vector.detach().float().cpu()
        )
        return cls((tensors,), d_model, num_layers, provenance or Provenance(method="imported"))

    @classmethod
    def from_direction(
        cls,
        direction: Tensor,
        projection: float,
        *,
        layer: int,
        num_layers: int,
        provenance: Provenance | None = None,
    ) -> LatentSet:
        """Make a set that sets the projection on a direction to one value (arXiv 2410.12877).

        Args:
            direction: [d_model] in the model's residual units; it is normalised here.
            projection: what the residual's projection on the unit direction becomes.
            layer: the block after which it is set.
            num_layers: number of the model's decoder blocks (``config.num_hidden_layers``).
            provenance: the origin of the set, for its file.

        Examples:
            >>> LatentSet.from_direction(direction, 4.5, layer=12, num_layers=26).n_live
            {12: 1}
        """
        unit = (direction.detach().float().cpu() / direction.float().norm().cpu())[None]
        latent = Latent(index=0, edit=Edit("project", projection))
        tensors = SiteTensors(
            Site(layer=layer, latents=[latent]),
            unit,
            torch.zeros(1),
            torch.full((1,), -torch.inf),
            unit.clone(),
        )
        d_model = direction.shape[0]
        return cls((tensors,), d_model, num_layers, provenance or Provenance(method="imported"))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that the set edits, ascending."""
        return tuple(tensors.site.layer for tensors in self.sites)

    @property
    def n_live(self) -> dict[int, int]:
        """Number of live latents (those that need the encoder) by layer."""
        return self.header.n_live

    @cached_property
    def reach(self) -> dict[int, float]:
        """By layer, a bound on the norm of the set's change at strength 1.

        What live latents read of the residual stream comes on top.
        """
        by_layer = {layer: self.edits_at(layer) for layer in self.layers}
        return {
            layer: (edits.vector.norm() + edits.p.abs() @ edits.W_dec.norm(dim=1)).item()
            for layer, edits in by_layer.items()
        }

    @property
    def is_last_layer_constant(self) -> bool:
        """Whether the set is one constant vector after the last block: nearly a logit bias."""
        return self.layers == (self.num_layers - 1,) and not any(self.n_live.values())

    def edits_at(self, layer: int) -> LatentEdits:
        """Return what the kernels read at ``layer``.

        Live latents are rows; constant edits are folded into the vector.
        """
        for tensors in self.sites:
            if tensors.site.layer == layer:
                break
        else:
            return LatentEdits.empty(self.d_model)
        edits = [latent.edit for latent in tensors.site.latents]
        constant = torch.tensor([edit.is_constant for edit in edits], dtype=torch.bool)
        table = torch.tensor([edit.coefficients for edit in edits]).reshape(-1, 3)
        p, q, lo = table[~constant].unbind(dim=1)
        vector = table[constant, 0] @ tensors.W_dec[constant]
        return LatentEdits(
            W_enc=tensors.W_enc[~constant],
            b_enc=tensors.b_enc[~constant],
            threshold=tensors.threshold[~constant],
            W_dec=tensors.W_dec[~constant],
            p=p,
            q=q,
            lo=lo,
            gated=torch.tensor([edit.gated for edit in edits], dtype=torch.bool)[~constant],
            vector=vector if tensors.vector is None else vector + tensors.vector,
        )

    def scaled(self, factor: float) -> LatentSet:
        """Return the set with the values of all edits, and its vectors, times ``factor``.

        A set of constant edits then does at strength 1 what this one does at strength ``factor``.

        Raises:
            ValueError: a value would be out of range.
        """
        sites = []
        for tensors in self.sites:
            latents = [
                msgspec.structs.replace(
                    latent,
                    edit=msgspec.structs.replace(latent.edit, value=latent.edit.value * factor),
                )
                for latent in tensors.site.latents
            ]
            vector = None if tensors.vector is None else tensors.vector * factor
            site = msgspec.structs.replace(tensors.site, latents=latents)
            sites.append(replace(tensors, site=site, vector=vector))
        return replace(self, sites=tuple(sites))

    def check_model(self, hidden_size: int, num_layers: int) -> None:
        """Raise ValueError unless the set was made for a model of this shape."""
        self.header.check_model(hidden_size, num_layers)

    @cached_property
    def content_hash(self) -> str:
        """sha256 over all that steers: shapes, layers, edits, rows, defaults; not provenance."""
        digest = hashlib.sha256()
        for tensors in self.sites:
            site = tensors.site
            edits = [(x.index, x.edit) for x in site.latents]
            source = site.sae.content_hash if site.sae else None
            digest.update(
                msgspec.json.encode([self.d_model, self.num_layers, site.layer, source, edits])
            )
            for name, tensor in tensors.named().items():
                digest.update(name.encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        if self.defaults:
            digest.update(msgspec.json.encode(dict(self.defaults), order="deterministic"))
        return digest.hexdigest()

    @cached_property
    def header(self) -> SetHeader:
        """The header of the set's file."""
        return SetHeader(
            format=2 if self.defaults else 1,
            content_hash=self.content_hash,
            d_model=self.d_model,
            num_layers=self.num_layers,
            sites=[tensors.site for tensors in self.sites],
            provenance=self.provenance,
            defaults=dict(self.defaults),
        )

    def save(self, path: str | Path) -> Path:
        """Write one ``.safetensors`` file; a reader never sees half of it.

        Raises:
            ValueError: ``path`` is a directory, or no set directory would offer such a file.
        """
        path = Path(path)
        set_file.write(path, self.header, [tensors.named() for tensors in self.sites])
        return path

    @classmethod
    def load(cls, path: str | Path) -> LatentSet:
        """Read a set written by :meth:`save`.

        Raises:
            ValueError: as :meth:`from_bytes`, or the file cannot be read. The message begins with
                the path.
        """
        path = Path(path)
        try:
            return cls.from_bytes(set_file.read(path)[0])
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file") from None
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def from_bytes(cls, data: bytes) -> LatentSet:
        """Read the content of a file.

        Raises:
            ValueError: the content is truncated, no safetensors, no latent set, of a newer format,
                or does not match its hash.
        """
        header, fields = set_file.decode(data)
        sites = [
            SiteTensors(site=site, **tensors)
            for site, tensors in zip(header.sites, fields, strict=True)
        ]
        loaded = cls(
            tuple(sites), header.d_model, header.num_layers, header.provenance, header.defaults
        )
        if loaded.content_hash != header.content_hash:
            raise ValueError("content does not match its hash; the file is damaged or was edited")
        return loaded

    def describe(self) -> str:
        """Describe the set for people: layers, latents with statistics and edits, provenance."""
        lines = [
            f"latent set {self.content_hash[:12]}, hidden size {self.d_model}, "
            f"{self.num_layers} layers, method {self.provenance.method}"
        ]
        if self.defaults:
            lines.append(f"unless a request says otherwise: {said(self.defaults)}")
        for tensors in self.sites:
            site = tensors.site
            source = f" from {site.sae.name}" if site.sae else ""
            lines.append(f"layer {site.layer}: {len(site.latents)} latents{source}")
            if tensors.vector is not None:
                lines.append(f"  dense vector, norm {tensors.vector.norm():.4g}")
            for latent in site.latents:
                statistics = ", ".join(
                    f"{name} {value:.4g}"
                    for name, value in msgspec.structs.asdict(latent).items()
                    if isinstance(value, float)
                )
                lines.append(f"  {latent.index:>7} {latent.edit!s:<16} {statistics}".rstrip())
        for name, value in msgspec.to_builtins(self.provenance).items():
            lines.append(f"{name}: {value}")
        return "\n".join(lines)
