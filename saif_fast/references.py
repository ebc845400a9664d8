"""The reference models: what a name for ``--model`` and ``--sae`` means.

``embedded`` is shipped with this package, ``smollm2`` is fetched once. To add one: a module with
``NAME``, ``MODEL_NAME``, ``model_path`` and ``sae_path``, and a line in each function here.
"""

from __future__ import annotations

from saif_fast import embedded, smollm2

__all__ = ["model_source", "reference_of", "sae_source", "sae_sources"]


def model_source(model: str) -> str:
    """Return the directory or hub name that ``model`` means.

    Raises:
        ValueError: it is SmolLM2, which is neither here nor within reach.
    """
    match model:
        case embedded.NAME:
            return str(embedded.model_path())
        case smollm2.NAME:
            return str(smollm2.model_path())
        case _:
            return model


def sae_source(sae: str) -> str:
    """Return the source that ``sae`` means for ``load_sae``.

    ``embedded`` and ``embedded:last`` are the shipped SAE of the last layer, ``embedded:middle``
    that of the middle one; ``smollm2:23`` is the repository's SAE of SmolLM2's layer 23.

    Raises:
        ValueError: there is no such SAE.
    """
    name, _, which = sae.partition(":")
    match name:
        case embedded.NAME:
            if which not in ("", "last", "middle"):
                raise ValueError(f"sae: expected embedded:last or embedded:middle, got {sae!r}")
            return str(embedded.sae_path("middle" if which == "middle" else "last"))
        case smollm2.NAME:
            return str(smollm2.sae_path(which))
        case _:
            return sae


def sae_sources(sae: str) -> list[str]:
    """Return the sources of ``sae``: several where it names a model with SAEs of several layers.

    Raises:
        ValueError: there is no such SAE.
    """
    if sae == smollm2.NAME:
        return [str(path) for path in smollm2.sae_paths()]
    return [sae_source(sae)]


def reference_of(model_name: str) -> str | None:
    """Return the reference whose model is recorded as ``model_name``, if it is on this machine."""
    match model_name:
        case embedded.MODEL_NAME:
            return embedded.NAME
        case smollm2.MODEL_NAME if smollm2.is_fetched():
            return smollm2.NAME
        case _:
            return None
