"""A model's name and shape without its weights, and the check that an SAE belongs to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import msgspec

from saif_fast.text import read_text

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from saif_fast.sae import SparseAutoencoder

# A hub name, or TransformerLens' short form of one. A path has dots or slashes in other places.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# A model's place in the hub's cache. Without a connection vLLM gives this path as its name.
_SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/[^/]+/?")
# For these rotary embeddings ``max_position_embeddings`` is the length before scaling.
_SCALED_ROPE = ("linear", "dynamic")


@dataclass(frozen=True)
class ModelInfo:
    """A model's name, shape and context, from its config."""

    name: str  # for records: the config's own model_name, else where it was loaded from
    d_model: int
    num_layers: int
    context: int | None = None  # tokens of a prompt and its reply together; None = not known
    # The name in its files, where the model is in a directory of another name.
    stored_name: str | None = None

    @classmethod
    def from_config(cls, config: PretrainedConfig) -> ModelInfo:
        """Read a transformers config that was loaded from a directory or from the hub."""
        text = config.get_text_config()
        return cls(
            name=model_name(config),
            d_model=text.hidden_size,
            num_layers=text.num_hidden_layers,
            context=_context(text),
            stored_name=stored_name(config.name_or_path),
        )

    def __str__(self) -> str:
        stored = "" if self.stored_name is None else f", by its files {self.stored_name!r}"
        return f"{self.name!r}{stored} (d_model {self.d_model}, {self.num_layers} layers)"


def model_name(config: PretrainedConfig) -> str:
    """Return the config's own ``model_name``, else the hub name or directory it came from."""
    name: str = getattr(config, "model_name", None) or config.name_or_path
    return name


def stored_name(source: str) -> str | None:
    """Return the name that a model's directory gives it.

    For a snapshot in the hub's cache it is in the path; for any other directory it is
    ``_name_or_path`` in the stored config, which loading overwrites.
    """
    if cached := _SNAPSHOT.search(source):
        return cached[1].replace("--", "/", 1)
    if not Path(source).is_dir() or not source:  # "": the model was made, not loaded
        return None
    try:
        config = msgspec.json.decode(read_text(Path(source) / "config.json"), type=_StoredConfig)
    except (OSError, ValueError):  # loading the model will say what is wrong
        return None
    return config._name_or_path or None


class _StoredConfig(msgspec.Struct):
    _name_or_path: str | None = None


def _context(text_config: PretrainedConfig) -> int | None:
    length: int | None = getattr(text_config, "max_position_embeddings", None)
    rope = getattr(text_config, "rope_parameters", None) or {}
    if length is not None and rope.get("rope_type") in _SCALED_ROPE:
        return int(length * rope.get("factor", 1.0))
    return length


def same_model(one: str, other: str) -> bool:
    """Return whether two names mean one model, whatever organisation or directory holds it."""
    # TransformerLens, and SAEs trained with it, call the hub's gpt2 gpt2-small.
    names = {PurePath(name).name.lower().replace("gpt2-small", "gpt2") for name in (one, other)}
    return len(names) == 1


def check_sae(
    sae: SparseAutoencoder, model: ModelInfo, *, allow_mismatch: bool = False
) -> str | None:
    """Compare an SAE with a model by shapes and then by names, before anything runs.

    A directory's name says nothing about the model in it, so only a possible hub name is compared.

    Returns:
        A description of both where their names do not agree; None where they agree, or where the
        SAE names no model.

    Raises:
        ValueError: the SAE has another width, or a layer that the model lacks. Or, without
            ``allow_mismatch``, both have names, which are of different models.
    """
    theirs, names = sae.model_name, [model.name, model.stored_name or ""]
    described = sae.name if theirs is None else f"{sae.name} of {theirs!r}"
    if sae.d_model != model.d_model:
        raise ValueError(
            f"sae d_model: expected the model's {model.d_model}, got {sae.d_model}: "
            f"{described} does not fit {model}"
        )
    if not 0 <= sae.layer < model.num_layers:
        raise ValueError(
            f"sae layer: expected 0 to {model.num_layers - 1}, got {sae.layer}: "
            f"{described} does not fit {model}"
        )
    if theirs is None or any(same_model(name, theirs) for name in names):
        return None
    clash = f"sae: expected one of {model}, got one of {theirs!r}"
    if not allow_mismatch and _on_hub(theirs) and any(_on_hub(name) for name in names):
        raise ValueError(
            f"{clash}; allow_mismatch (--allow-mismatch) takes it nevertheless, as its shape fits"
        )
    return f"{clash}, whose shape fits"


def _on_hub(name: str) -> bool:
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).is_dir()
