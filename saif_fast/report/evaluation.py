"""The sections of a results document: a verdict, figures and tables per task, and the origin."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from saif_fast.evaluate.document import Example, ResultsDocument, Run, ShownReply, TaskResults
from saif_fast.names import set_name
from saif_fast.report.figures import heat_maps, obedience_and_quality
from saif_fast.report.markup import Html, joined, tag
from saif_fast.report.page import Figure, Section
from saif_fast.report.tables import latents_list, method_name, method_style, results_table
from saif_fast.report.verdict import Verdict, judge, named, success

_SPLITS = {
    "report": "contents that no search has seen",
    "select": "contents, those that the candidates were chosen on",
}
_SOUND = (
    " It is sound if it is fluent, on the topic and does not repeat itself. The score is the "
    "harmonic mean of both shares."
)


def title_of(document: ResultsDocument) -> str:
    """Return the page's title."""
    return f"Instruction following of {document.run.model}"


def lead_of(document: ResultsDocument) -> Html:
    """Return what stands below the title: how much there is, and where it ran."""
    run = document.run
    where = f"{run.runtime} on {run.machine.gpu or run.machine.cpu}, {run.date[:10]}"
    saes = f"{len(run.saes)} SAE{'s' * (len(run.saes) != 1)}"
    tasks = f"{len(document.tasks)} task{'s' * (len(document.tasks) != 1)}"
    return tag("p", f"{tasks}, {saes}, {where}. Intervals are Wilson's, 95\u00a0%.", class_="faint")


def sections_of(document: ResultsDocument) -> list[Section]:
    """Make the sections: one per task, and the origin of the results.

    Examples:
        >>> make_page(title_of(document), lead_of(document), sections_of(document))
    """
    tasks = [_task(name, task) for name, task in document.tasks.items()]
    return [*tasks, Section("origin", "Where this comes from", _origin(document.run))]


def _task(name: str, task: TaskResults) -> Section:
    verdict = judge(task)
    plane = obedience_and_quality(name, task)
    maps = heat_maps(name, task)
    n = max((row.n for row in task.rows.values()), default=0)
    body = joined(
        tag("p", f"“{task.instruction}”"),
        _verdict(verdict),
        tag("h3", "Results"),
        _note(
            f"{n} {_SPLITS[task.contents]}, replies of {task.max_tokens} tokens at most. A reply "
            f"follows if it does all that was asked.{'' if plane is None else _SOUND}"
        ),
        results_table(task.rows, verdict.best),
        "" if plane is None else _plane(plane, task),
        _maps(maps, task) if maps else "",
        _latents(task) if task.latents else "",
        _examples(task, verdict.best) if task.examples else "",
    )
    figures = [*([] if plane is None else [plane]), *(figure for _, figure in maps)]
    summary = joined(tag("strong", verdict.headline), _success(task, verdict.best))
    return Section(f"task-{set_name(name)}", name, body, figures, summary, verdict.kind)


def _success(task: TaskResults, method: str | None) -> Html:
    if method is None:
        return Html()
    row = task.rows[method]
    what = "follow" if row.both is None else "follow and are sound"
    told = f"{named(method, row)}: {row.count(success(row))}/{row.n} {what}"
    return tag("span", told, class_="faint")


def _note(text: str) -> Html:
    return tag("p", text, class_="faint")


def _verdict(verdict: Verdict) -> Html:
    return tag(
        "div",
        tag("strong", verdict.headline),
        [tag("p", _unbroken(sentence)) for sentence in verdict.sentences],
        class_=f"verdict {verdict.kind}",
    )


def _unbroken(sentence: str) -> list[str]:
    """Keep what is in brackets, an interval, on one line."""
    parts = re.split(r"(\([^)]*\))", sentence)
    return [tag("span", p, class_="nowrap") if p.startswith("(") else p for p in parts]


def _plane(figure: Figure, task: TaskResults) -> Html:
    tried = (
        " Small points are the candidates of the search's last round, on the select contents."
        if task.tried
        else ""
    )
    return joined(
        tag("h3", "Obedience against quality"),
        _note(f"Each method's best, with intervals; up and to the right is better.{tried}"),
        tag("div", [tag("span", method_name(m)) for m in task.rows], class_="legend"),
        tag("div", figure.element(), class_="square"),
    )


def _maps(maps: Sequence[tuple[str, Figure]], task: TaskResults) -> Html:
    most = max(each.n for each in task.tried)
    least = min(each.n for each in task.tried)
    top = maps[0][1].data[0]["zmax"]
    scale = tag("div", "score 0", tag("i"), f"{top:.2f}", class_="scale")
    fewer = "" if least == most else f" A number: tried on {most} contents; the others on {least}."
    return joined(
        tag("h3", "Score by layer and strength"),
        _note(
            "A cell is the best of the candidates there, whatever else was varied, on the select "
            f"contents. The best of many is flattered by chance.{fewer} Empty: not tried."
        ),
        scale,
        tag(
            "div",
            [tag("div", tag("h4", method_name(method)), f.element()) for method, f in maps],
            class_="maps",
        ),
    )


def _latents(task: TaskResults) -> Html:
    shown = [
        tag(
            "details",
            tag(
                "summary",
                method_name(method),
                f": {len(latents)} latent{'s' * (len(latents) != 1)} at layer "
                + ", ".join(str(layer) for layer in sorted({each.layer for each in latents})),
            ),
            latents_list(latents),
            open="" if i == 0 else None,
        )
        for i, (method, latents) in enumerate(task.latents.items())
    ]
    return joined(
        tag("h3", "Latents and the tokens they promote"),
        _note(
            "The tokens whose logits the latent's decoder row raises most, when the row goes "
            "through the last norm and the unembedding. Consistency: share of pairs in which the "
            "latent is higher with the instruction."
        ),
        shown,
    )


def _examples(task: TaskResults, best: str | None) -> Html:
    first = dict.fromkeys(["unsteered", "prompted", *([] if best is None else [best])])
    return joined(
        tag("h3", "Examples"),
        _note("The first contents, not chosen."),
        [_example(example, list(first)) for example in task.examples],
    )


def _example(example: Example, first: Sequence[str]) -> Html:
    shown = [method for method in first if method in example.replies]
    others = [method for method in example.replies if method not in first]
    more = tag(
        "details",
        tag("summary", f"{len(others)} more method{'s' * (len(others) != 1)}"),
        _replies(example, others),
    )
    return tag(
        "div",
        tag("h4", example.content, dir="auto"),
        _replies(example, shown),
        more if others else "",
        class_="example",
    )


def _replies(example: Example, methods: Iterable[str]) -> Html:
    cards = [
        tag(
            "div",
            tag("h4", method, _marks(example.replies[method])),
            _text(example.replies[method].text.strip()),
            class_="reply",
            style=method_style(method),
        )
        for method in methods
    ]
    return tag("div", cards, class_="replies")


def _text(text: str) -> Html:
    if not text:
        return tag("blockquote", "empty", class_="empty")
    return tag("blockquote", text, dir="auto")


def _marks(reply: ShownReply) -> list[Html]:
    kind, told = ("even", "follows in part") if reply.loose else ("bad", "does not follow")
    if reply.strict:
        kind, told = "good", "follows"
    marks = [tag("span", told, class_=f"mark {kind}")]
    if reply.sound is not None:
        sound = ("good", "sound") if reply.sound else ("bad", "not sound")
        marks.append(tag("span", sound[1], class_=f"mark {sound[0]}"))
    return marks


def _origin(run: Run) -> Html:
    rounds = "; ".join(
        f"{each.contents} contents of {each.max_tokens} tokens"
        + (f", after which the best {each.keep} and each method's best went on" if more else "")
        for each, more in zip(run.rounds, [*run.rounds[1:], None], strict=True)
    )
    facts = {
        "model": f"{run.model}, {run.num_layers} layers of width {run.d_model}",
        "prompts": "with the chat template" if run.chat else "without a chat template",
        "runtime": run.runtime,
        "machine": f"{run.machine.cpu}, {run.machine.cores} cores, {run.machine.gpu or 'no GPU'}",
        "date": run.date,
        "took": f"{run.seconds:,.0f} s",
        "seed": str(run.seed),
        "candidates": f"{run.candidates} per method, and up to half as many around the best"
        if run.rounds
        else f"{run.candidates} per method",
        "windows": ", ".join(run.windows),
        "rounds": rounds,
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }
    listed = [(tag("dt", name), tag("dd", fact)) for name, fact in facts.items() if fact]
    saes = [
        tag(
            "li",
            f"layer {each.layer}: {each.sae.name}, {each.sae.architecture}, "
            f"{each.sae.d_sae} latents, {each.sae.hook_name}, content hash ",
            tag("code", each.sae.content_hash),
        )
        for each in run.saes
    ]
    return joined(tag("dl", listed), tag("h3", "SAEs"), tag("ul", saes))
