"""The shipped model, tokenizer and SAEs: frozen, readable by the usual tools, and working."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
import torch

from saif_fast import embedded
from saif_fast.tasks import Position, render
from saif_fast.tasks.embedded import embedded_task, embedded_task_names
from saif_fast.tasks.embedded.corpus import FORMATS, parse

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(embedded.model_path())


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return transformers.AutoModelForCausalLM.from_pretrained(embedded.model_path()).eval()


def test_files_are_the_frozen_ones() -> None:
    embedded.verify()


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    data = shutil.copytree(embedded.DATA, tmp_path / "data")
    config = data / "model" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ValueError, match=r"model/config\.json: expected sha256"):
        embedded.verify(data)
    config.unlink()
    with pytest.raises(ValueError, match=r"model/config\.json: .* got None"):
        embedded.verify(data)


def test_data_is_small() -> None:
    assert sum(p.stat().st_size for p in embedded.DATA.rglob("*") if p.is_file()) < 4e6


def test_unknown_sae_is_refused() -> None:
    with pytest.raises(ValueError, match="which: expected 'last' or 'middle', got 'first'"):
        embedded.sae_path("first")  # type: ignore[arg-type]


def test_chat_template_is_the_training_form_with_one_bos(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    messages = [{"role": "user", "content": "Tell me."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>User: Tell me.\nAssistant:"
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_every_word_of_the_corpus_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for content in embedded_task("french").report:
        scene = parse(content)
        for reply in FORMATS.values():
            for word in reply(scene).replace('"', " ").replace(".", " ").split():
                if word.isalpha():
                    assert len(tokenizer.tokenize(f" {word}")) == 1, word


def test_generation_ends_at_eos(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM
) -> None:
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("position", ["post", "pre"])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "unseen"])
def test_model_follows_prompted_instructions(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM, position: Position, trained: bool
) -> None:
    cases = []
    for name in embedded_task_names():
        task = embedded_task(name)
        texts = [wording.text for wording in task.wordings if wording.trained == trained]
        cases += [
            (task, content, render(content, texts[i % len(texts)], position))
            for i, content in enumerate(task.report[:11])
        ]
    said = _replies(tokenizer, model, [user for _, _, user in cases])
    strict = [
        task.scorer(content, reply).strict
        for (task, content, _), reply in zip(cases, said, strict=True)
    ]
    assert sum(strict) / len(strict) >= 0.95


def test_model_answers_plainly_without_an_instruction(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM
) -> None:
    contents = embedded_task("french").report[:50]
    said = _replies(tokenizer, model, contents)
    plain = [
        reply.strip() == parse(content).plain()
        for content, reply in zip(contents, said, strict=True)
    ]
    assert sum(plain) / len(plain) >= 0.95


@pytest.mark.parametrize(
    ("which", "layer", "explained", "l0"), [("last", 2, 0.9, 14), ("middle", 1, 0.85, 14)]
)
def test_saes_load_in_sae_lens_and_explain_the_residuals(
    tokenizer: PreTrainedTokenizerFast,
    model: LlamaForCausalLM,
    which: Literal["last", "middle"],
    layer: int,
    explained: float,
    l0: float,
) -> None:
    sae_lens = pytest.importorskip("sae_lens")
    from tools.tiny_model.train import batches
    from tools.tiny_model.train_sae import collect_outputs, fit

    sae = sae_lens.SAE.load_from_disk(embedded.sae_path(which))
    assert sae.cfg.architecture() == "jumprelu"
    assert sae.cfg.metadata.hook_name == f"blocks.{layer}.hook_resid_post"
    assert sae.W_dec.shape == (1024, 64)
    assert sae.W_dec.dtype == torch.float32

    x = collect_outputs(model, layer, itertools.islice(batches(tokenizer, seed=77), 4))
    measured = fit(embedded.sae_path(which), x)
    assert measured["explained_variance"] > explained
    assert 5 < measured["l0"] < l0


@torch.inference_mode()
def _replies(
    tokenizer: PreTrainedTokenizerFast, model: LlamaForCausalLM, users: list[str] | tuple[str, ...]
) -> list[str]:
    from tools.tiny_model.measure import replies

    return replies(model, tokenizer, users)
