"""The embedded model: a tiny instruction-following Llama with two SAEs, shipped as data.

It shows and tests the whole of SAIF without a download; see ``data/MODEL_CARD.md``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

__all__ = [
    "DATA",
    "MODEL_NAME",
    "NAME",
    "file_hashes",
    "model_path",
    "sae_path",
    "verify",
]

NAME = "embedded"  # what the model and its SAE are called where a path or hub name is expected
MODEL_NAME = "saif-fast/embedded"  # what its config and its SAEs call it

DATA = Path(__file__).parent / "data"
HASHES = "hashes.json"
PARTS = ("model", "sae_last", "sae_middle")


def model_path() -> Path:
    """Return the directory of the Hugging Face model and its tokenizer."""
    return DATA / "model"


def sae_path(which: Literal["last", "middle"] = "last") -> Path:
    """Return the directory of the SAE on the last block's output, or on the middle block's."""
    if which not in ("last", "middle"):
        raise ValueError(f"which: expected 'last' or 'middle', got {which!r}")
    return DATA / f"sae_{which}"


def file_hashes(data: Path = DATA) -> dict[str, str]:
    """Return the SHA-256 of every file of the model and the SAEs, by path relative to ``data``."""
    files = sorted(path for part in PARTS for path in (data / part).rglob("*") if path.is_file())
    return {
        path.relative_to(data).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def verify(data: Path = DATA) -> None:
    """Check the shipped files against ``hashes.json``; ValueError names the first that differs."""
    expected = json.loads((data / HASHES).read_text())
    found = file_hashes(data)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{name}: expected sha256 {expected.get(name)}, got {found.get(name)}; "
                "reported numbers belong to the frozen files, rebuild them with `make tiny-model`"
            )
