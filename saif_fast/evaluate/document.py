"""The results document: everything about an evaluation that a reader of its table asks for."""

from __future__ import annotations

from pathlib import Path
from statistics import harmonic_mean
from typing import Literal

import msgspec

from saif_fast.evaluate.results import ResultRow, ordered
from saif_fast.records import Latent, SaeReference

FORMAT = 1


class Machine(msgspec.Struct, frozen=True):
    """The machine of a run; ``cores`` are those that the process may use."""

    cpu: str
    cores: int
    gpu: str | None = None


class SaeUsed(msgspec.Struct, frozen=True):
    """An SAE of a run, and the block after which it reads."""

    layer: int
    sae: SaeReference


class SearchRound(msgspec.Struct, frozen=True):
    """A round of a search: contents per candidate, tokens per reply, candidates that went on."""

    contents: int
    max_tokens: int
    keep: int


class Run(msgspec.Struct, frozen=True):
    """The origin of a document: what ran, on what, and with which settings.

    Attributes:
        date: when it ended, ISO 8601 in UTC.
        model: the model's name.
        d_model: width of its residual stream.
        num_layers: number of its decoder blocks.
        chat: whether prompts went through the chat template.
        saes: its SAEs.
        runtime: name of the runtime that generated the replies.
        versions: versions of packages, by name.
        machine: the machine.
        seed: seed of every draw.
        candidates: candidates per method that were drawn.
        seconds: time from the loaded model to the last reply; less if a journal had replies.
        windows: names of the windows that were searched.
        rounds: the rounds of each search.
    """

    date: str
    model: str
    d_model: int
    num_layers: int
    chat: bool
    saes: list[SaeUsed]
    runtime: str
    versions: dict[str, str]
    machine: Machine
    seed: int
    candidates: int
    seconds: float
    windows: list[str] = []
    rounds: list[SearchRound] = []


class TriedCandidate(msgspec.Struct, frozen=True):
    """A candidate of a search, and its counts out of ``n`` in the last round that it took part in.

    Attributes:
        method: the method's name.
        parameters: what tells it from the method's others.
        round: the round, from 1.
        strict: replies that do fully what was asked.
        loose: replies that do it at least in part.
        sound: sound replies; None = not asked, because no reply is strictly right.
        both: strictly right and sound replies.
        n: select contents that it was tried on.
    """

    method: str
    parameters: dict[str, int | float | str]
    round: int
    strict: int
    loose: int
    sound: int | None
    both: int
    n: int

    @property
    def score(self) -> float:
        """Harmonic mean of the strict and the sound share; 0 where either is 0."""
        return harmonic_mean([self.strict / self.n, (self.sound or 0) / self.n])


class ShownLatent(msgspec.Struct, frozen=True):
    """A latent of a chosen set: its layer, index and edit, and the tokens that its row promotes."""

    layer: int
    latent: Latent
    promoted: list[str]


class ShownReply(msgspec.Struct, frozen=True):
    """A reply and what was said about it; ``sound`` is None where that was not asked."""

    text: str
    strict: bool
    loose: bool
    sound: bool | None = None


class Example(msgspec.Struct, frozen=True):
    """A content, and the reply of each method to it."""

    content: str
    replies: dict[str, ShownReply]


class TaskResults(msgspec.Struct, frozen=True):
    """The results of one task.

    Attributes:
        instruction: the wording that the prompted model was given.
        contents: the split that ``rows`` and ``examples`` are of. On ``select`` contents the
            candidates were chosen, so that their rows are better than they would be on others.
        max_tokens: number of tokens of a reply, at most.
        rows: the result of each method's best candidate, by method.
        tried: every candidate of the search, best first; empty = not kept.
        latents: the latents of the best candidate's set, by method of which it has any.
        examples: replies to the first contents.
    """

    instruction: str
    contents: Literal["report", "select"]
    max_tokens: int
    rows: dict[str, ResultRow]
    tried: list[TriedCandidate] = []
    latents: dict[str, list[ShownLatent]] = {}
    examples: list[Example] = []


class ResultsDocument(msgspec.Struct, frozen=True):
    """An evaluation's results by task, with their origin, as ``saif report`` reads them."""

    run: Run
    tasks: dict[str, TaskResults]
    format: int = FORMAT


class _Format(msgspec.Struct):
    format: int


def write_results(document: ResultsDocument, path: Path) -> None:
    """Write a document as indented JSON; rows have the table's order.

    Examples:
        >>> write_results(document, Path("results.json"))
    """
    tasks = {
        name: msgspec.structs.replace(
            task, rows={method: task.rows[method] for method in ordered({name: task.rows})}
        )
        for name, task in document.tasks.items()
    }
    document = msgspec.structs.replace(document, tasks=tasks)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def read_results(path: Path) -> ResultsDocument:
    """Read a document that :func:`write_results` wrote.

    Raises:
        ValueError: the file cannot be read, is no results document, or has a newer format. The
            message begins with the path.

    Examples:
        >>> read_results(Path("results.json")).tasks["french"].rows["saif"].strict
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    try:
        found = msgspec.json.decode(data, type=_Format).format
        if found != FORMAT:
            raise ValueError(f"expected format {FORMAT}, got {found}")
        return msgspec.json.decode(data, type=ResultsDocument)
    except (ValueError, msgspec.MsgspecError) as error:  # not UTF-8 is a ValueError
        raise ValueError(
            f"{path}: expected results of saif eval, saif demo-tiny or saif identify --results: "
            f"{error}"
        ) from None
