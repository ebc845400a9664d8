from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from saif_fast.evaluate.methods import Candidate
from saif_fast.identify.activations import residual_source
from saif_fast.model_info import ModelInfo
from saif_fast.search.race import Outcome
from saif_fast.studies import StudyContext
from saif_fast.studies.context import Figure, Setting
from saif_fast.studies.reading import ReadOnce


class Counted:
    """A source that counts the positions it is asked for."""

    def __init__(self, context: StudyContext) -> None:
        self.inner = residual_source(context.subject.model)
        self.model: ModelInfo = self.inner.model
        self.read_so_far = 0

    def read(
        self, ids: Sequence[list[int]], positions: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> dict[int, Tensor]:
        self.read_so_far += sum(map(len, positions))
        return self.inner.read(ids, positions, layers)


def test_what_was_read_is_not_read_again(context: StudyContext) -> None:
    counted = Counted(context)
    source = ReadOnce(counted, [1, 2])
    ids, positions = [[5, 6, 7], [8, 9], [5, 6, 7]], [[2], [0, 1], [2]]
    first = source.read(ids, positions, [2])
    assert counted.read_so_far == 3  # the first and the third are one
    again = source.read([[8, 9], [3]], [[0, 1], [0]], [1, 2])
    assert counted.read_so_far == 4
    expected = counted.inner.read(ids, positions, [2])
    torch.testing.assert_close(first[2], expected[2])
    torch.testing.assert_close(again[2][:2], expected[2][1:3])


def setting(score: tuple[int, int], strength: float, layer: int) -> Setting:
    strict, sound = score
    return Setting(Candidate(), 0, layer, strength, Outcome(strict, strict, sound, strict, 8))


def test_a_setting_is_chosen_by_score_and_else_as_saif_would() -> None:
    better = setting((4, 4), 0.5, 1)
    assert max([setting((8, 0), 1.0, 2), better], key=lambda each: each.rank) is better
    own = setting((0, 0), 1.0, 2)
    others = [setting((0, 0), 1.0, 1), setting((0, 0), 0.5, 2), own]
    assert max(others, key=lambda each: each.rank) is own
    assert not own.works and better.works


def test_settings_are_tried_on_select_contents_and_figures_come_from_report(
    context: StudyContext,
) -> None:
    task = context.tasks["french"]
    best, *others = context.settings(task)
    assert best.outcome.n == 4 and len(others) == 5 and best.layer == 2
    figure = context.measure(task, {"own": best.candidate})["own"]
    assert [reply.content for reply in figure.replies] == list(task.report[:12])
    assert figure.follow.n == 12 and figure.follow.count > 6


def test_the_same_reply_is_generated_once(
    context: StudyContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, asked = context.tasks["french"], {"prompted": Candidate(instructed=True)}
    first = context.measure(task, asked)
    monkeypatch.setattr(
        type(context.track.runtime), "generate", lambda *_: pytest.fail("it generated again")
    )
    assert context.measure(task, asked)["prompted"].outcome == first["prompted"].outcome


def test_the_instruction_stands_before_the_content_where_it_should(context: StudyContext) -> None:
    task = context.tasks["french"]
    wording = task.wordings[0].text
    text = context._before("Tell me about it.", wording)
    assert text.index(wording) < text.index("Tell me about it.")
    pre, post = context.activations(task, "pre"), context.activations(task, "post")
    assert pre.pairs.position == "pre" and post.pairs.position == "post"
    assert not torch.equal(pre.positive[2], post.positive[2])


def test_draws_are_pooled() -> None:
    pooled = Figure.pooled([Figure(Outcome(1, 2, 3, 0, 4)), Figure(Outcome(0, 1, 4, 0, 4))])
    assert pooled.outcome == Outcome(1, 3, 7, 0, 8)
