"""``run_studies``: studies of one model share what they read; models are opened one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import msgspec

from saif_fast.quality import NoYardstick
from saif_fast.studies.context import StudyContext
from saif_fast.studies.models import ModelFigures, figures_of
from saif_fast.studies.protocol import OneModel, Study
from saif_fast.studies.result import LeftOut, StudyResult
from saif_fast.version import __version__

# Opens a model that is studied; the model is closed when the context manager exits.
Opening = Callable[[], AbstractContextManager[StudyContext]]


def run_studies(
    studies: Sequence[Study],
    openings: Sequence[Opening],
    done: Callable[[StudyResult], None] = lambda result: None,
) -> list[StudyResult]:
    """Run studies of one model on the first model, and studies across models on all of them.

    Args:
        studies: the studies, from :func:`saif_fast.studies.chosen`.
        openings: what opens each model.
        done: called with each result as it comes, so that an interrupted run leaves some.

    Returns:
        A result per study, in order; those that had nothing to measure say so.

    Raises:
        NoYardstick: a model's own replies to the instructions' contents repeat themselves, so that
            quality is not measured.
        JudgeError: the judge of a task does not answer.

    Examples:
        >>> run_studies(chosen("all"), [opening], write)[0].verdict
        'reproduced on this model: ...'
    """
    single = [study for study in studies if isinstance(study, OneModel)]
    across = [study for study in studies if not isinstance(study, OneModel)]
    found: dict[str, StudyResult] = {}
    models: list[ModelFigures] = []
    records: list[dict[str, str | int | float]] = []
    began = time.monotonic()
    for number, opening in enumerate(openings):
        if number > 0 and not across:
            break
        with opening() as context:
            records.append(_record(context))
            own = single if number == 0 else []
            if not all(study.reads_only for study in own):
                _calibrate(context)
            for study in own:
                context.track.say(f"study {study.name}: {study.about}")
                started = time.monotonic()
                result = _run(study, partial(study.run, context))
                found[study.name] = _finished(result, records[:1], started)
                done(found[study.name])
            if across:
                context.track.say(f"{context.model}: figures to compare with other models'")
                models.append(figures_of(context))
    for comparison in across:
        result = _run(comparison, partial(comparison.conclude, models))
        found[comparison.name] = _finished(result, records, began)
        done(found[comparison.name])
    return [found[study.name] for study in studies]


def _calibrate(context: StudyContext) -> None:
    """Refuse a model without a yardstick before anything that takes long."""
    for task in context.tasks.values():
        context.soundness(task).yardstick(context.tokens(task))


def _run(study: Study, run: Callable[[], StudyResult]) -> StudyResult:
    try:
        return run()
    except (LeftOut, NoYardstick) as reason:
        return StudyResult(study.name, study.claim, None, f"left out: {reason}")


def _finished(
    result: StudyResult, records: Sequence[dict[str, str | int | float]], started: float
) -> StudyResult:
    """Add where the result comes from; of several models, their records are joined."""
    joined = {
        name: value if len(records) == 1 else "; ".join(str(each[name]) for each in records)
        for name, value in records[0].items()
    }
    seconds = round(time.monotonic() - started, 1)
    return msgspec.structs.replace(
        result, provenance={**joined, "version": __version__, "seconds": seconds}
    )


def _record(context: StudyContext) -> dict[str, str | int | float]:
    subject = context.subject
    return {
        "model": subject.info.name,
        "saes": ", ".join(f"{sae.name} {sae.content_hash[:12]}" for sae in subject.saes),
        "runtime": context.track.name,
        "chat": str(subject.templated).lower(),
        "instructions": ", ".join(context.tasks),
    }
