"""Two instructions in one request: are both obeyed as often as each alone?

``python -m tools.smollm2.combine SETS "a + b" ...`` steers with the sets of a directory, named TASK
or TASK.METHOD, and prints a table. All requests are one mixed batch of vLLM.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from saif_fast import hf
from saif_fast.cli.loading import load_tokenizer, start_runtime, task_for
from saif_fast.evaluate.intervals import wilson
from saif_fast.quality.repetition import repetition
from saif_fast.quality.yardstick import MAX_LOOP
from saif_fast.request import parse_request
from saif_fast.runtime import GenerationRequest
from saif_fast.set_dir import SetDirectory
from saif_fast.smollm2 import NAME
from saif_fast.tasks import Task, render
from saif_fast.tasks.scorers import score_all


def main(arguments: Sequence[str] | None = None) -> None:
    """Steer with each combination, and with each of its sets alone; print what is obeyed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", type=Path)
    parser.add_argument("combinations", nargs="+")
    parser.add_argument("--contents", type=int, default=100, help="report contents")
    parser.add_argument("--scope", help="saif_scope of all requests; none = the sets' own window")
    parser.add_argument("--stop", type=int, help="saif_stop of all requests")
    parser.add_argument("--decay", help="saif_decay of all requests")
    given = parser.parse_args(arguments)
    directory = SetDirectory(given.sets)
    said = {"saif_scope": given.scope, "saif_stop": given.stop, "saif_decay": given.decay}
    options = {key: value for key, value in said.items() if value is not None}
    tokenizer = load_tokenizer(NAME)

    rows: list[tuple[str, str | None, list[Task], str | None]] = []
    for combination in given.combinations:
        asked = parse_request({"saif": combination}, available=directory.names())
        assert asked is not None
        named = [name for name, _ in asked.sets]
        tasks = [task_for(NAME, name.partition(".")[0]) for name in named]
        both = " ".join(task.wordings[0].text for task in tasks)
        rows.append((f"prompted: {both}", None, tasks, both))
        rows += [(f"{name}*{w:g}", f"{name}*{w!r}", tasks, None) for name, w in asked.sets]
        rows.append((combination, combination, tasks, None))

    runtime = start_runtime("vllm", NAME, directory)
    requests = [
        GenerationRequest(
            prompt=hf.chat_texts(tokenizer, [render(content, wording)])[0],
            saif=saif,
            options={} if saif is None else options,
            max_tokens=64,
        )
        for _, saif, tasks, wording in rows
        for content in tasks[0].report[: given.contents]
    ]
    replies = iter([generation.text for generation in runtime.generate(requests)])
    runtime.close()
    print("| | first | second | both | no loop |\n|---|---|---|---|---|")
    for label, _, tasks, _ in rows:
        contents = tasks[0].report[: given.contents]
        texts = [next(replies) for _ in contents]
        answers = list(zip(contents, texts, strict=True))
        obeyed = [[score.strict for score in score_all(task.scorer, answers)] for task in tasks]
        all_of = [all(each) for each in zip(*obeyed, strict=True)]
        sound = [repetition(text).loop <= MAX_LOOP for text in texts]
        cells = (_share(each) for each in (*obeyed, all_of, sound))
        print(f"| {label} | {' | '.join(cells)} |")


def _share(held: Sequence[bool]) -> str:
    low, high = wilson(sum(held), len(held))
    return f"{sum(held)}/{len(held)} ({100 * low:.0f}-{100 * high:.0f} %)"


if __name__ == "__main__":
    main()
