"""The subject of a study or a search: a loaded model and its SAEs."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from saif_fast.hf import chat_texts, check_lengths, encode_texts
from saif_fast.model_info import ModelInfo, check_sae
from saif_fast.runtime import Runtime, Sets, open_runtime
from saif_fast.sae import SparseAutoencoder
from saif_fast.tasks import Prompter, Task, render

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MOST_LAYERS = 12


@dataclass(frozen=True)
class Subject:
    """The subject of a study or a search: a loaded model, its main SAE, and others by name.

    A study derives its random, noise and logit-bias methods from the set chosen with ``sae``. A
    search takes all SAEs alike.

    Raises:
        ValueError: an SAE does not fit the model; see :func:`saif_fast.model_info.check_sae`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sae: SparseAutoencoder
    others: Mapping[str, SparseAutoencoder] = field(default_factory=dict)
    chat: bool | None = None  # apply the chat template; None = if the tokenizer has one
    allow_mismatch: bool = False  # take SAEs of another model

    def __post_init__(self) -> None:
        for sae in self.saes:
            check_sae(sae, self.info, allow_mismatch=self.allow_mismatch)

    @property
    def templated(self) -> bool:
        """Whether prompts go through the chat template."""
        return self.tokenizer.chat_template is not None if self.chat is None else self.chat

    @property
    def prompter(self) -> Prompter:
        """The function that turns a content and an instruction into the text the model reads."""
        if not self.templated:
            return render
        return lambda content, instruction: chat_texts(
            self.tokenizer, [render(content, instruction)]
        )[0]

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        saes: Sequence[SparseAutoencoder],
        *,
        chat: bool | None = None,
        allow_mismatch: bool = False,
    ) -> Subject:
        """Make a subject of a list of SAEs: the first is the main one, others go by their layer.

        Args:
            model: a loaded model.
            tokenizer: the model's.
            saes: one or more SAEs.
            chat: apply the chat template; None = if the tokenizer has one.
            allow_mismatch: take SAEs of another model.

        Examples:
            >>> subject = Subject.of(model, tokenizer, [load_sae("sae14"), load_sae("sae23")])
        """
        main, *others = saes
        named: dict[str, SparseAutoencoder] = {}
        for sae in others:
            layer = f"layer{sae.layer}"
            named[f"{layer}_{sae.name}" if layer in named else layer] = sae
        return cls(model, tokenizer, main, named, chat=chat, allow_mismatch=allow_mismatch)

    @property
    def info(self) -> ModelInfo:
        """The model's name and shape."""
        return ModelInfo.from_config(self.model.config)

    @property
    def saes(self) -> list[SparseAutoencoder]:
        """All SAEs, the main one first."""
        return [self.sae, *self.others.values()]

    @property
    def layers(self) -> list[int]:
        """Layers worth a search: the SAEs', and others from a third of the depth to the last."""
        n = self.info.num_layers
        spread = torch.linspace(n // 3, n - 1, min(_MOST_LAYERS, n - n // 3)).round().int().tolist()
        return sorted({*spread, *(sae.layer for sae in self.saes)})

    def open(self, sets: Sets) -> Runtime:
        """Open the Transformers runtime on the loaded model, with the sets in memory."""
        model: Any = self.model
        return open_runtime("transformers", model, sets, tokenizer=self.tokenizer)


def check_prompts(
    task: Task, subject: Subject, n_select: int | None = None, n_report: int | None = None
) -> None:
    """Raise ValueError where a prompt to be answered is empty or fills the model's context.

    Args:
        task: the task.
        subject: the subject of the study.
        n_select: number of select contents that are used; None = all.
        n_report: number of report contents that are used; None = all.

    Examples:
        >>> check_prompts(get_task("french"), subject, n_report=0)
    """
    prompts: dict[str, str] = {}
    for split, contents in (("select", task.select[:n_select]), ("report", task.report[:n_report])):
        for i, content in enumerate(contents):
            named = f"task {task.name!r}: {split} content {i} {reprlib.repr(content)}"
            prompts[named] = subject.prompter(content, None)
            prompts[f"{named} instructed"] = subject.prompter(content, task.wordings[0].text)
    ids = encode_texts(subject.tokenizer, list(prompts.values()))
    context = ModelInfo.from_config(subject.model.config).context
    check_lengths(ids, context, list(prompts).__getitem__)
