"""What studies of one model share: evidence that is read once, settings, and measured replies."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import msgspec

from saif_fast.evaluate.candidates import projection, random_latents, saif_set
from saif_fast.evaluate.methods import Candidate
from saif_fast.evaluate.subject import Subject
from saif_fast.evaluate.trials import Reply, Trial
from saif_fast.hf import chat_texts
from saif_fast.identify import ActivationSet, LatentStatistics, build_pairs, collect
from saif_fast.identify.activations import residual_source
from saif_fast.logit_bias import Unembedding
from saif_fast.search.journal import Journal
from saif_fast.search.race import Outcome, Track, outcomes_of, reply_tokens
from saif_fast.search.soundness import YardstickSoundness
from saif_fast.studies.reading import ReadOnce
from saif_fast.studies.result import LeftOut, Share
from saif_fast.tasks import Position, Prompter, Task, render

STRENGTHS = (0.5, 1.0, 1.5)  # of SAIF's set, tried at each SAE
MULTIPLES = (1.0, 1.5, 2.0)  # of the projection, tried at the same layers


class Budget(msgspec.Struct, frozen=True):
    """How much is generated and read.

    Attributes:
        report: report contents per figure.
        select: select contents that each setting is tried on.
        tokens: of a reply, unless the task needs more.
        pairs: contrast pairs per instruction.
        wordings: of each language, in the studies that compare wordings.
        contents: identify contents per wording there.
        draws: draws of random latents.
        k: latents of SAIF's set.
        seed: seed of every draw.
    """

    report: int = 24
    select: int = 8
    tokens: int = 32
    pairs: int = 96
    wordings: int = 3
    contents: int = 12
    draws: int = 3
    k: int = 15
    seed: int = 0


@dataclass(frozen=True)
class Figure:
    """Counts of one candidate's replies to report contents, and the replies."""

    outcome: Outcome
    replies: Sequence[Reply] = field(default=(), repr=False)

    @property
    def follow(self) -> Share:
        """The share of replies that do fully what was asked."""
        return Share.of(self.outcome.strict, self.outcome.n)

    @property
    def sound(self) -> Share:
        """The share of sound replies; see :mod:`saif_fast.quality`."""
        return Share.of(self.outcome.sound, self.outcome.n)

    @property
    def both(self) -> Share:
        """The share of replies that are both."""
        return Share.of(self.outcome.both, self.outcome.n)

    @classmethod
    def pooled(cls, figures: Sequence[Figure]) -> Figure:
        """Add the counts of several candidates, such as draws of random latents."""
        counts = zip(*(figure.outcome for figure in figures), strict=True)
        return cls(Outcome(*(sum(column) for column in counts)))


@dataclass(frozen=True)
class Setting:
    """A setting that was tried on the select contents.

    Attributes:
        candidate: what steers.
        sae: index of its SAE among the subject's.
        layer: the SAE's.
        strength: strength of the set, or multiple of the projection.
        outcome: its replies to the select contents.
    """

    candidate: Candidate
    sae: int
    layer: int
    strength: float
    outcome: Outcome

    @property
    def works(self) -> bool:
        """Whether any reply followed, and any was sound."""
        return self.outcome.score > 0

    @property
    def rank(self) -> tuple[float, ...]:
        """What settings are ordered by. Of equal ones SAIF's own is best: strength 1, last."""
        outcome = self.outcome
        near = -abs(self.strength - 1.0)
        return outcome.score, outcome.strict, outcome.loose, near, self.layer


@dataclass(frozen=True, eq=False)
class StudyContext:
    """A model that is studied, with everything that was read or measured so far.

    Attributes:
        model: what ``--model`` names.
        subject: the model and its SAEs, those of lower layers first.
        tasks: instructions of studies that look at one at a time, by name.
        several: instructions of studies that compare them; ``tasks`` are among them.
        track: generates.
        budget: how much.
    """

    model: str
    subject: Subject
    tasks: Mapping[str, Task]
    several: Mapping[str, Task]
    track: Track
    budget: Budget

    @cached_property
    def source(self) -> ReadOnce:
        """The model's residuals at the SAEs' layers."""
        layers = [sae.layer for sae in self.subject.saes]
        return ReadOnce(residual_source(self.subject.model), layers)

    @cached_property
    def unembedding(self) -> Unembedding:
        """The model's map to logits."""
        return Unembedding(self.subject.model)

    @cached_property
    def last(self) -> int:
        """Index of the SAE of the highest layer, which is SAIF's own choice."""
        saes = self.subject.saes
        return max(range(len(saes)), key=lambda i: saes[i].layer)

    @cached_property
    def _kept(self) -> dict[tuple[object, ...], object]:
        return {}

    @cached_property
    def _journals(self) -> dict[Position, Journal]:
        return {"post": Journal(None, {}), "pre": Journal(None, {})}

    @cached_property
    def _labels(self) -> itertools.count[int]:
        return itertools.count()

    def tokens(self, task: Task) -> int:
        """Return the length of the task's replies."""
        return reply_tokens(task, self.budget.tokens)

    def activations(self, task: Task, position: Position = "post") -> ActivationSet:
        """Return the activations of the task's pairs at the SAEs' layers, read once.

        Args:
            task: the task, of which the identify contents and all wordings are used.
            position: whether the instruction comes after the content or before it.
        """
        key = ("activations", task.name, position)
        if key not in self._kept:
            pairs = build_pairs(
                task.identify,
                [wording.text for wording in task.wordings],
                position=position,
                neutral=task.neutral,
                others=task.others,
                max_pairs=self.budget.pairs,
                seed=self.budget.seed,
            )
            self.track.say(f"{task.name}: reading {len(pairs.pairs)} pairs, {position}")
            layers = sorted({sae.layer for sae in self.subject.saes})
            self._kept[key] = collect(
                self.source, self.subject.tokenizer, pairs, layers, chat=self.subject.chat
            )
        kept = self._kept[key]
        assert isinstance(kept, ActivationSet)
        return kept

    def statistics(self, task: Task, sae: int, position: Position = "post") -> LatentStatistics:
        """Return the statistics of one of the SAEs, by its index, on :meth:`activations`."""
        key = ("statistics", task.name, sae, position)
        if key not in self._kept:
            self._kept[key] = LatentStatistics.compute(
                self.subject.saes[sae],
                self.activations(task, position),
                allow_mismatch=self.subject.allow_mismatch,
            )
        kept = self._kept[key]
        assert isinstance(kept, LatentStatistics)
        return kept

    def top(self, task: Task, sae: int, position: Position = "post") -> list[int]:
        """Return the first k latents of SAIF's ranking."""
        return self.statistics(task, sae, position).ranking()[: self.budget.k]

    def soundness(self, task: Task) -> YardstickSoundness:
        """Return what tells whether replies to the task are sound, calibrated once."""
        key = ("soundness", task.name)
        if key not in self._kept:
            self._kept[key] = YardstickSoundness(task, self.subject.prompter, self.track.runtime)
        kept = self._kept[key]
        assert isinstance(kept, YardstickSoundness)
        return kept

    def settings(
        self, task: Task, method: str = "saif", position: Position = "post"
    ) -> list[Setting]:
        """Try SAIF's set, or a projection, at every SAE's layer, on select contents; best first.

        Both methods have as many candidates: three strengths of the set, three multiples of the
        projection (arXiv 2410.12877, which takes multiple 1).

        Args:
            task: the task.
            method: ``saif`` or ``project``.
            position: where the instruction stands in the pairs that are read.

        Raises:
            LeftOut: the instruction raises no sparse latent at any SAE.
        """
        key = ("settings", task.name, method, position)
        if key not in self._kept:
            found = [
                (i, sae.layer, value, self._candidate(task, i, method, value, position))
                for i, sae in enumerate(self.subject.saes)
                if self.statistics(task, i, position).ranking()
                for value in (STRENGTHS if method == "saif" else MULTIPLES)
            ]
            if not found:
                raise LeftOut(f"no sparse latent rises with the instruction {task.name!r}")
            self.track.say(f"{task.name}: trying {len(found)} settings of {method}, {position}")
            contents = task.select[: self.budget.select]
            outcomes = self._run(task, [each[-1] for each in found], contents, ask_all=False)
            settings = [
                Setting(candidate, i, layer, value, figure.outcome)
                for (i, layer, value, candidate), figure in zip(found, outcomes, strict=True)
            ]
            self._kept[key] = sorted(settings, key=lambda each: each.rank, reverse=True)
        kept = self._kept[key]
        assert isinstance(kept, list)
        return kept

    def _candidate(
        self, task: Task, sae: int, method: str, value: float, position: Position
    ) -> Candidate:
        if method == "saif":
            return self.steered(task, sae, strength=value, position=position)
        layer = self.subject.saes[sae].layer
        return Candidate(latent_set=projection(self.activations(task, position), layer, value))

    def steered(
        self,
        task: Task,
        sae: int,
        k: int | None = None,
        beta: float = 0.0,
        strength: float = 1.0,
        position: Position = "post",
    ) -> Candidate:
        """Make the candidate of SAIF's set; ``k`` None = the budget's."""
        statistics = self.statistics(task, sae, position)
        return Candidate(latent_set=saif_set(statistics, k or self.budget.k, beta).scaled(strength))

    def random(self, task: Task, setting: Setting) -> list[Candidate]:
        """Make sets of as many random latents as the setting's, whose sum is as long."""
        statistics, like = self.statistics(task, setting.sae), setting.candidate.latent_set
        assert like is not None
        drawn = random_latents(statistics, like, self.budget.draws, [1.0], self.budget.seed)
        return list(drawn.candidates)

    def measure(
        self,
        task: Task,
        candidates: Mapping[str, Candidate | Sequence[Candidate]],
        *,
        position: Position = "post",
        tokens: int | None = None,
    ) -> dict[str, Figure]:
        """Run candidates on report contents in one batch; what ran before is not run again.

        Args:
            task: the task whose verifier counts.
            candidates: candidates by name; several of one name are pooled.
            position: where the instruction stands in the prompts of instructed candidates.
            tokens: length of the replies; None = :meth:`tokens`.

        Examples:
            >>> figures = context.measure(task, {"prompted": Candidate(instructed=True)})
            >>> str(figures["prompted"].follow)
            '21/24'
        """
        listed = {
            name: [each] if isinstance(each, Candidate) else list(each)
            for name, each in candidates.items()
        }
        contents = task.report[: self.budget.report]
        flat = [candidate for each in listed.values() for candidate in each]
        self.track.say(f"{task.name}: {len(flat)} candidates on {len(contents)} report contents")
        figures = iter(self._run(task, flat, contents, position=position, tokens=tokens))
        found = {name: [next(figures) for _ in each] for name, each in listed.items()}
        return {
            name: own[0] if len(own) == 1 else Figure.pooled(own) for name, own in found.items()
        }

    def _run(
        self,
        task: Task,
        candidates: Sequence[Candidate],
        contents: Sequence[str],
        *,
        position: Position = "post",
        tokens: int | None = None,
        ask_all: bool = True,
    ) -> list[Figure]:
        tokens = tokens or self.tokens(task)
        trials = [
            Trial(f"study.{next(self._labels)}", task, candidate, contents, tokens)
            for candidate in candidates
        ]
        track, journal = self.track, self._journals[position]
        if position == "pre":
            track = replace(track, prompter=self._before)
        replies = track.run(trials, journal)
        outcomes = outcomes_of(trials, replies, self.soundness(task), journal, ask_all=ask_all)
        return [Figure(*each) for each in zip(outcomes, replies, strict=True)]

    @property
    def _before(self) -> Prompter:
        """The prompter that puts the instruction before the content."""

        def prompt(content: str, instruction: str | None) -> str:
            text = render(content, instruction, "pre")
            if not self.subject.templated:
                return text
            return chat_texts(self.subject.tokenizer, [text])[0]

        return prompt

    @property
    def fixed(self) -> dict[str, str | int | float]:
        """Seeds and budgets, for a result's settings."""
        return dict(msgspec.structs.asdict(self.budget))
