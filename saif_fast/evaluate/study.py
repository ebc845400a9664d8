"""The whole comparison: identify on some contents, choose on others, report on yet others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from saif_fast.edits import EditKind
from saif_fast.evaluate.candidates import (
    bias_methods,
    constant,
    noise_vectors,
    projections,
    random_latents,
    saif_grid,
)
from saif_fast.evaluate.intervals import Accuracy
from saif_fast.evaluate.methods import (
    Method,
    check_equal_search,
    log_grid,
    prompted,
    strengths,
    unsteered,
)
from saif_fast.evaluate.results import ResultRow
from saif_fast.evaluate.subject import Subject, check_prompts
from saif_fast.evaluate.trials import Choice, Opener, Reply, Trial, run, select
from saif_fast.identify import (
    ActivationSet,
    LatentStatistics,
    collect,
    diff_in_means,
    pairs_of,
)
from saif_fast.identify.activations import encode_pairs
from saif_fast.logit_bias import Unembedding, centred
from saif_fast.model_info import ModelInfo
from saif_fast.names import set_name
from saif_fast.sae import SparseAutoencoder
from saif_fast.tasks import Task

SCOPES = ("generated", "all")
LIVE_EDITS: tuple[EditKind, ...] = ("at_least", "clamp")
# vLLM's V2 model runner takes no more biases per request. Requests with more run elsewhere.
MAX_BIASES = 1024


@dataclass(frozen=True)
class Search:
    """The search that every method gets: ``len(ks) * len(betas)`` candidates, 60 unless changed.

    Raises:
        ValueError: fewer than 20 random draws, or numbers that cannot be divided evenly.
    """

    ks: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30)
    betas: tuple[float, ...] = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0)
    norms: tuple[float, ...] = (0.5, 1.0, 2.0)  # of random latents and noise, times SAIF's norm
    strengths: tuple[float, float] = (0.1, 10.0)  # of dense vectors, times their own length
    biases: tuple[float, float] = (0.5, 50.0)  # largest absolute bias, in logits
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 20 or self.draws * len(self.norms) != self.size or len(self.ks) % 2:
            raise ValueError(
                f"search: expected an even number of k and at least 20 draws for each norm, got "
                f"{len(self.ks)} k x {len(self.betas)} beta over {len(self.norms)} norms"
            )

    @property
    def size(self) -> int:
        """Number of candidates of every tuned method."""
        return len(self.ks) * len(self.betas)

    @property
    def draws(self) -> int:
        """Number of random draws at each norm."""
        return self.size // len(self.norms)


def check_task(
    task: Task, subject: Subject, n_select: int | None = None, n_report: int | None = None
) -> None:
    """Check, before the model runs, everything that would make a study of the task fail later.

    Args:
        task: the task.
        subject: the subject of the study.
        n_select: number of select contents that are used; None = all.
        n_report: number of report contents that are used; None = all.

    Raises:
        ValueError: the model's logits cannot be read, the sides of a pair are the same tokens, or a
            prompt is empty or fills the context. The message names task and content.

    Examples:
        >>> check_task(get_task("french"), subject)
    """
    Unembedding(subject.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # running the pairs warns
        pairs = pairs_of(task)
    context = ModelInfo.from_config(subject.model.config).context
    encode_pairs(subject.tokenizer, pairs, chat=subject.templated, context=context)
    check_prompts(task, subject, n_select, n_report)


def activations_of(task: Task, subject: Subject, seed: int = 0) -> ActivationSet:
    """Collect the activations of the task's pairs at every SAE's layer and at the last one."""
    last = subject.model.config.get_text_config().num_hidden_layers - 1
    layers = {last, subject.sae.layer, *(sae.layer for sae in subject.others.values())}
    return collect(
        subject.model,
        subject.tokenizer,
        pairs_of(task, seed=seed),
        sorted(layers),
        chat=subject.chat,
    )


def measure(
    sae: SparseAutoencoder, subject: Subject, activations: ActivationSet
) -> LatentStatistics:
    """Measure what the instruction does to the latents of one of the subject's SAEs."""
    return LatentStatistics.compute(sae, activations, allow_mismatch=subject.allow_mismatch)


def tune(
    task: Task,
    subject: Subject,
    statistics: LatentStatistics,
    search: Search,
    n_select: int | None = None,
) -> Choice:
    """Choose SAIF's k and beta for a task on its select contents.

    Args:
        task: the task.
        subject: the subject of the study.
        statistics: measurements of the task's latents, from :func:`measure`.
        search: the candidates.
        n_select: number of select contents that are used; None = all.

    Examples:
        >>> statistics = measure(sae, subject, activations_of(task, subject))
        >>> choice = tune(task, subject, statistics, Search())
        >>> choice.candidate.latent_set.save("sets/own.safetensors")
    """
    grid = saif_grid("saif", statistics, search.ks, search.betas)
    (choice,) = select(task, [grid], task.select[:n_select], subject.prompter, subject.open)
    return choice


def choose(
    task: Task, subject: Subject, search: Search, n_select: int | None = None
) -> list[Choice]:
    """Choose the best candidate of every method on a task's select contents.

    Args:
        task: the task.
        subject: the subject of the study.
        search: the candidates of every method.
        n_select: number of select contents that are used; None = all.

    Examples:
        >>> choices = choose(get_task("french"), subject, Search())
        >>> [choice.method for choice in choices][:3]
        ['unsteered', 'prompted', 'saif']
    """
    activations = activations_of(task, subject, search.seed)
    statistics = measure(subject.sae, subject, activations)
    contents = task.select[:n_select]

    def best(methods: Sequence[Method]) -> list[Choice]:
        return select(task, methods, contents, subject.prompter, subject.open)

    untuned = best([unsteered(), prompted()])
    without_sae = instruction_shift(subject, activations)
    first = [
        saif_grid("saif", statistics, search.ks, search.betas),
        *bias_methods("logit_bias_no_sae", without_sae, search.biases, search.size),
        *_other_methods(subject, activations, statistics, search),
    ]
    check_equal_search(first)
    chosen = best(first)
    saif = chosen[0].candidate.latent_set
    assert saif is not None
    # For a set below the last layer this is its logit lens: as if no block came after it.
    last = max(activations.negative)
    shift = Unembedding(subject.model).shift(constant(saif), activations.negative[last])
    second = [
        *bias_methods("logit_bias", shift, search.biases, search.size),
        random_latents(statistics, saif, search.draws, search.norms, search.seed),
        noise_vectors(saif, search.draws, search.norms, search.seed),
    ]
    check_equal_search([*first, *second])
    return [*untuned, *chosen, *best(second)]


def instruction_shift(subject: Subject, activations: ActivationSet) -> Tensor:
    """Return the mean difference [vocabulary] of the logits with and without the instruction.

    No SAE is involved.
    """
    unembedding, last = Unembedding(subject.model), max(activations.negative)
    return centred(
        unembedding.mean_logits(activations.positive[last])
        - unembedding.mean_logits(activations.negative[last])
    )


def _other_methods(
    subject: Subject, activations: ActivationSet, statistics: LatentStatistics, search: Search
) -> list[Method]:
    """Make difference in means, live edits, and the methods at the other SAEs' layers."""
    full, half = (
        log_grid(*search.strengths, search.size),
        log_grid(*search.strengths, search.size // 2),
    )
    fewer = search.ks[::2]
    methods = [
        strengths("diff_in_means", diff_in_means(activations, subject.sae.layer), full),
        saif_grid("live", statistics, fewer, search.betas, kinds=LIVE_EDITS),
        projections("project", activations, subject.sae.layer, full),
    ]
    for name, sae in subject.others.items():
        other = measure(sae, subject, activations)
        vector = diff_in_means(activations, sae.layer)
        methods += [
            saif_grid(f"saif_{name}", other, fewer, search.betas, scopes=SCOPES),
            saif_grid(f"live_{name}", other, fewer, search.betas, kinds=LIVE_EDITS),
            strengths(f"diff_in_means_{name}", vector, half, SCOPES),
            projections(f"project_{name}", activations, sae.layer, half, SCOPES),
        ]
    return methods


def report(
    choices: Mapping[str, Sequence[Choice]],
    tasks: Mapping[str, Task],
    subject: Subject,
    runtime: str,
    open_with: Opener,
    n_report: int | None = None,
) -> tuple[dict[str, dict[str, ResultRow]], dict[str, dict[str, list[Reply]]]]:
    """Run the chosen candidates on the report contents, all requests in one mixed batch.

    SAIF's chosen set is named after its task, another one ``task.method``. Candidates with more
    biases than every vLLM takes run on the Transformers runtime; each result names its runtime.

    Args:
        choices: the chosen candidates, by task.
        tasks: the tasks, by the same names.
        subject: the subject of the study.
        runtime: name of the runtime that ``open_with`` starts, for the results.
        open_with: starts the runtime that generates.
        n_report: number of report contents that are used; None = all.

    Returns:
        Results, and replies, by task and method.

    Examples:
        >>> results, replies = report({"french": choices}, {"french": task}, subject,
        ...                           "transformers", subject.open)
        >>> print(results["french"]["saif"].strict)
    """
    trials: dict[bool, list[tuple[str, Choice, Trial]]] = {False: [], True: []}
    for name, chosen in choices.items():
        task = tasks[name]
        for choice in chosen:
            label = set_name(
                task.name if choice.method == "saif" else f"{task.name}.{choice.method}"
            )
            trial = Trial(label, task, choice.candidate, task.report[:n_report])
            wide = len(choice.candidate.logit_bias or ()) > MAX_BIASES
            trials[wide].append((name, choice, trial))
    results: dict[str, dict[str, ResultRow]] = {name: {} for name in choices}
    replies: dict[str, dict[str, list[Reply]]] = {name: {} for name in choices}
    for wide, planned in trials.items():
        if not planned:
            continue
        opener = subject.open if wide else open_with
        answered = run([trial for _, _, trial in planned], subject.prompter, opener)
        for (name, choice, _), answers in zip(planned, answered, strict=True):
            accuracy = Accuracy.from_scores(reply.score for reply in answers)
            ran_on = "transformers" if wide else runtime
            results[name][choice.method] = ResultRow.from_choice(choice, accuracy, ran_on)
            replies[name][choice.method] = answers
    return results, replies
