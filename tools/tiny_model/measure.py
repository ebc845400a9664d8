"""Measurements of the build: greedy replies, and accuracy per instruction."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from saif_fast.tasks import Score, Split, Task, render
from saif_fast.tasks.embedded import embedded_task, embedded_task_names
from saif_fast.tasks.embedded.corpus import parse
from saif_fast.tasks.scorers import Scorer
from tools.tiny_model.train import chat_prompt

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


class PlainReply:
    """A scorer of replies without an instruction: strict and loose are the same."""

    def __call__(self, content: str, reply: str) -> Score:
        exact = reply.strip() == parse(content).plain()
        return Score(exact, exact)


@torch.inference_mode()
def replies(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    users: Sequence[str],
    *,
    temperature: float = 0.0,
    max_tokens: int = 24,
    batch: int = 100,
) -> list[str]:
    """Generate replies to user texts, greedily unless a temperature is given."""
    texts: list[str] = []
    for start in range(0, len(users), batch):
        prompts = [chat_prompt(tokenizer, user) for user in users[start : start + batch]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_tokens,
            **sampling,
        )
        new = output[:, inputs["input_ids"].shape[1] :]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def accuracy(scorer: Scorer, contents: Sequence[str], texts: Sequence[str]) -> tuple[float, float]:
    """Return the strict and the loose share of replies."""
    scores = [scorer(content, text) for content, text in zip(contents, texts, strict=True)]
    return (
        sum(score.strict for score in scores) / len(scores),
        sum(score.loose for score in scores) / len(scores),
    )


def prompted_users(task: Task, contents: Sequence[str], *, trained: bool, seed: int) -> list[str]:
    """Combine each content with a random wording of the task, 70 % of them after the content."""
    rng = random.Random(seed)
    texts = [wording.text for wording in task.wordings if wording.trained == trained]
    return [
        render(content, rng.choice(texts), "post" if rng.random() < 0.7 else "pre")
        for content in contents
    ]


def prompted_accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    split: Split,
    *,
    trained: bool = True,
) -> dict[str, float]:
    """Measure strict accuracy per task with the instruction in the prompt, on one split."""
    result = {}
    for name in embedded_task_names():
        task = embedded_task(name)
        contents = task.contents(split)
        users = prompted_users(task, contents, trained=trained, seed=1)
        result[name] = accuracy(task.scorer, contents, replies(model, tokenizer, users))[0]
    return result


@dataclass(frozen=True)
class Measurements:
    """The numbers of the model card. Accuracies are strict shares, if not said otherwise."""

    seed: int
    steps: int
    loss: float
    parameters: int
    vocabulary: int
    prompted: dict[str, float]
    prompted_unseen: dict[str, float]
    plain: float
    unsteered: dict[str, tuple[float, float]]
    sampled: dict[str, float]
    fits: dict[str, dict[str, float]]


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    fits: dict[str, dict[str, float]],
    *,
    steps: int,
    loss: float,
    seed: int,
) -> Measurements:
    """Measure a finished model on the report contents."""
    tasks = {name: embedded_task(name) for name in embedded_task_names()}
    report = next(iter(tasks.values())).report
    greedy = replies(model, tokenizer, report)
    torch.manual_seed(seed)
    sampled = replies(model, tokenizer, report, temperature=1.0)
    return Measurements(
        seed=seed,
        steps=steps,
        loss=loss,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=len(tokenizer),
        prompted=prompted_accuracy(model, tokenizer, "report"),
        prompted_unseen=prompted_accuracy(model, tokenizer, "report", trained=False),
        plain=accuracy(PlainReply(), report, greedy)[0],
        unsteered={name: accuracy(task.scorer, report, greedy) for name, task in tasks.items()},
        sampled={name: accuracy(task.scorer, report, sampled)[0] for name, task in tasks.items()},
        fits=fits,
    )
