"""Build of the embedded model: ``python -m tools.tiny_model.build [--out DIR]``.

It makes tokenizer, model, two SAEs, hashes and model card, and writes nothing unless the model
passes the gate. The same seeds and library versions give the same files. The shipped ones are
frozen by hash.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saif_fast.embedded import DATA, HASHES, PARTS, file_hashes
from tools.tiny_model.card import write_card
from tools.tiny_model.measure import Measurements, measure, prompted_accuracy
from tools.tiny_model.tokenizer import build_tokenizer
from tools.tiny_model.train import LEARNING_RATE, build_model, train
from tools.tiny_model.train_sae import train_sae

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SEED = 0
STEPS = 2000
MAX_ROUNDS = 4
GATE_ACCURACY = 0.95
GATE_TASKS = 5
SAE_LAYERS = {"sae_last": 2, "sae_middle": 1}


def build(out: Path, seed: int = SEED) -> Measurements:
    """Train everything and write it to ``out``; RuntimeError if the gate is never passed."""
    # One thread: on a busy machine a second one makes each step ten times slower.
    torch.set_num_threads(1)
    started = time.monotonic()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    steps = 0
    for round_ in range(MAX_ROUNDS):
        # Later rounds see new examples at a lower learning rate.
        loss = train(model, tokenizer, STEPS, seed + 100 * round_, LEARNING_RATE / (1 + round_))
        steps += STEPS
        accuracies = prompted_accuracy(model, tokenizer, "select")
        print(f"{steps} steps, loss {loss:.3f}, prompted {accuracies}", flush=True)
        if sum(value >= GATE_ACCURACY for value in accuracies.values()) >= GATE_TASKS:
            break
    else:
        raise RuntimeError(
            f"prompted accuracy: expected {GATE_ACCURACY} in {GATE_TASKS} tasks after {steps} "
            f"steps, got {accuracies}; nothing was written"
        )
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder)
        model.save_pretrained(staged / "model")
        save_tokenizer(tokenizer, staged / "model")
        fits = {
            name: train_sae(model, tokenizer, layer, seed, staged / name)
            for name, layer in SAE_LAYERS.items()
        }
        measurements = measure(model, tokenizer, fits, steps=steps, loss=loss, seed=seed)
        for part in PARTS:
            shutil.rmtree(out / part, ignore_errors=True)
            shutil.copytree(staged / part, out / part, copy_function=shutil.copyfile)
    (out / HASHES).write_text(json.dumps(file_hashes(out), indent=2) + "\n")
    write_card(out, measurements)
    print(f"written to {out} after {time.monotonic() - started:.0f} s", flush=True)
    return measurements


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Save the tokenizer, under the class name that every version of transformers knows."""
    tokenizer.backend_tokenizer.no_padding()  # otherwise the last batch's padding is saved too
    tokenizer.save_pretrained(path)
    config = path / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA, help="default: the package's own data")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    build(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
