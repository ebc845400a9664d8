"""The journal of a search: every reply is kept as it comes, so that a search can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from saif_fast.evaluate.trials import Reply, Trial, scored
from saif_fast.tasks import Score


class _Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the file: replies of pairs, or of a trial, or what was found out about these."""

    key: str
    texts: list[str] | None = None
    scores: list[Score] | None = None
    sound: list[bool] | None = None
    token_ids: list[list[int]] | None = None


class Journal:
    """Replies of trials and their scores, in memory and, with a ``path``, as JSON lines in a file.

    Replies are kept before they are scored, since a scorer that asks a server can fail. The first
    line of the file holds the settings of the search. Where the process was killed while it wrote,
    half a line is dropped.

    Args:
        path: the file; None = memory only.
        settings: what the replies depend on besides the trials, as JSON.

    Raises:
        ValueError: the file belongs to other settings, or is no journal.
    """

    def __init__(self, path: Path | None, settings: dict[str, object]) -> None:
        self._path = path
        self._texts: dict[str, list[str]] = {}
        self._scores: dict[str, list[Score]] = {}
        self._sound: dict[str, list[bool]] = {}
        self._token_ids: dict[str, list[list[int]]] = {}
        if path is None:
            return
        first = msgspec.json.encode(settings, order="deterministic") + b"\n"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(first)
            return
        data = path.read_bytes()
        whole, newline, half = data.rpartition(b"\n")
        begun, *lines = whole.split(b"\n")
        if begun + newline != first:
            raise ValueError(f"{path}: {_changed(begun, settings)}; remove the file to begin anew")
        for line in lines:
            self._keep(msgspec.json.decode(line, type=_Entry))
        if half:
            path.write_bytes(whole + newline)

    def has_texts(self, trial: Trial) -> bool:
        """Return whether the trial's replies are there."""
        return _key(trial) in self._texts

    def add_texts(self, trial: Trial, texts: Sequence[str]) -> None:
        """Keep the replies to the trial's contents."""
        self._write(_Entry(_key(trial), texts=list(texts)))

    def replies(self, trial: Trial) -> list[Reply]:
        """Return the trial's replies with their scores, which are computed once."""
        key = _key(trial)
        texts = self._texts[key]
        if key not in self._scores:
            self._write(_Entry(key, scores=[reply.score for reply in scored(trial, texts)]))
        answered = zip(trial.contents, texts, self._scores[key], strict=True)
        return [Reply(*each) for each in answered]

    def sound(self, trial: Trial) -> list[bool] | None:
        """Return which of the trial's replies are sound; None if that was not asked."""
        return self._sound.get(_key(trial))

    def add_sound(self, trial: Trial, sound: Sequence[bool]) -> None:
        """Keep which of the trial's replies are sound."""
        self._write(_Entry(_key(trial), sound=list(sound)))

    def scores(self, pairs: str) -> list[Score] | None:
        """Return the scores of the replies to pairs by their hash; None if they are not there."""
        return self._scores.get(pairs)

    def add_scores(self, pairs: str, scores: Sequence[Score]) -> None:
        """Keep the scores of the replies to pairs: they decide which replies are read."""
        self._write(_Entry(pairs, scores=list(scores)))

    def token_ids(self, pairs: str) -> list[list[int]] | None:
        """Return the replies to pairs by their hash, as token ids; None if they are not there."""
        return self._token_ids.get(pairs)

    def add_token_ids(self, pairs: str, token_ids: list[list[int]]) -> None:
        """Keep the replies to pairs: what is read off them decides what the candidates are."""
        self._write(_Entry(pairs, token_ids=token_ids))

    def _write(self, entry: _Entry) -> None:
        self._keep(entry)
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(entry) + b"\n")

    def _keep(self, entry: _Entry) -> None:
        if entry.texts is not None:
            self._texts[entry.key] = entry.texts
        if entry.scores is not None:
            self._scores[entry.key] = entry.scores
        if entry.sound is not None:
            self._sound[entry.key] = entry.sound
        if entry.token_ids is not None:
            self._token_ids[entry.key] = entry.token_ids


def _key(trial: Trial) -> str:
    """Hash all that decides a trial's replies and their scores, given the journal's settings."""
    candidate = trial.candidate
    latent_set = candidate.latent_set
    parts = [
        trial.task.name,
        None if latent_set is None else latent_set.content_hash,
        candidate.strength,
        dict(candidate.options),
        candidate.logit_bias and sorted(candidate.logit_bias.items()),
        candidate.instructed and trial.task.wordings[0].text,
        list(trial.contents),
        trial.tokens,
    ]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:32]


def _changed(begun: bytes, settings: dict[str, object]) -> str:
    try:
        old = msgspec.json.decode(begun, type=dict[str, object])
    except msgspec.DecodeError:
        return "expected the journal of a search, got another file"
    new = msgspec.to_builtins(settings)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    changes = ", ".join(f"{name} {old.get(name)!r}, not {new.get(name)!r}" for name in names)
    return f"expected the journal of a search with the same settings, got one with {changes}"
