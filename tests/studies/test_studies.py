"""Each study on the embedded model, whose latents do what the paper says, and its rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from saif_fast.search.race import Outcome
from saif_fast.studies import STUDIES, Share, StudyContext, StudyResult
from saif_fast.studies.causal import Causal
from saif_fast.studies.context import Figure
from saif_fast.studies.protocol import OneModel
from saif_fast.studies.proximity import _names, own_words
from saif_fast.studies.result import LeftOut
from saif_fast.studies.specificity import Specificity, _specific
from saif_fast.studies.sweeps import Beta, Layers, NumberOfLatents, ahead
from saif_fast.studies.wordings import Wordings, jaccard
from saif_fast.tasks import Score, get_task

Run = Callable[[str], StudyResult]
SINGLE = [name for name, study in STUDIES.items() if isinstance(study, OneModel)]


def figure(strict: int, sound: int, n: int = 24) -> Figure:
    return Figure(Outcome(strict, strict, sound, min(strict, sound), n))


def rows(result: StudyResult) -> list[dict[str, object]]:
    assert result.table is not None
    return [dict(zip(result.table.columns, row, strict=True)) for row in result.table.rows]


@pytest.mark.parametrize("name", SINGLE)
def test_a_result_is_a_whole_table_with_a_verdict(result: Run, name: str) -> None:
    found = result(name)
    assert rows(found)
    assert found.outcome is not None and found.verdict.startswith(f"{found.outcome} on this model")
    assert found.settings["seed"] == 0 and found.settings["report"] == 12
    if found.matrix is not None:
        assert len(found.matrix.values) == len(found.matrix.rows)
        assert {len(row) for row in found.matrix.values} == {len(found.matrix.columns)}


@pytest.mark.parametrize("name", ["layer", "k", "beta", "position", "causal"])
def test_figures_have_controls_beside_them(result: Run, name: str) -> None:
    shown = {str(row["what"]) for row in rows(result(name))}
    assert {"unsteered", "prompted"} <= shown
    assert any("random" in what for what in shown)


def test_wordings_of_one_instruction_overlap_most(result: Run) -> None:
    found = result("wordings")
    last = rows(found)[-1]
    own, others = (
        [last[f"{which} instruction, {language} language"] for language in ("same", "other")]
        for which in ("same", "other")
    )
    assert min(own) > max(others) and min(own) > last["random sets"]  # type: ignore[operator, type-var]
    assert found.matrix is not None and found.matrix.rows[0] == "french en 1"
    values = found.matrix.values
    assert all(values[i][i] == 1.0 for i in range(len(values)))


def test_a_wording_is_recognised_by_other_languages(result: Run) -> None:
    recognised = rows(result("wordings"))[-1]["recognised"]
    assert isinstance(recognised, Share) and recognised.low > 1 / 3
    assert result("wordings").outcome == "reproduced"


def test_the_instruction_of_a_prompt_is_told_by_its_latents(result: Run) -> None:
    last = rows(result("signatures"))[-1]
    own, random = last["unseen wordings"], last["unseen, random latents"]
    assert isinstance(own, Share) and isinstance(random, Share)
    assert own.value > 0.8 and own.count > random.count


def test_without_its_latents_the_asked_model_obeys_less(result: Run) -> None:
    found = rows(result("causal"))
    at_all = {
        str(row["what"]): row["follow"]
        for row in found
        if (row["where"], row["k per layer"]) == ("all 2 layers", 15)
    }
    own, random = (at_all[f"prompted, without {what} latents"] for what in ("own", "random"))
    assert isinstance(own, Share) and isinstance(random, Share)
    assert own.value < random.value and random.n == 2 * own.n
    assert result("causal").outcome == "reproduced"


def test_a_set_steers_to_its_own_instruction(result: Run) -> None:
    found = result("specificity")
    assert found.outcome == "reproduced" and found.matrix is not None
    table = {
        label: dict(zip(found.matrix.columns, row, strict=True))
        for label, row in zip(found.matrix.rows, found.matrix.values, strict=True)
    }
    assert table["SAIF: french"]["french"] > 0.5 and table["SAIF: french"]["json"] == 0
    assert table["projection: json"]["json"] > 0.5 and table["unsteered"]["json"] == 0


def test_one_latent_is_not_enough_here(result: Run) -> None:
    assert "several are needed: yes" in result("k").verdict
    follow = {row["k"]: row["follow"] for row in rows(result("k")) if row["what"] == "SAIF"}
    assert str(follow[1]) == "0/12" and set(follow) == {1, 3, 5, 10, 15, 30, 60}


def test_the_last_layer_is_best_here(result: Run) -> None:
    assert result("layer").outcome == "reproduced"
    assert {row["layer"] for row in rows(result("layer"))} == {None, 1, 2}


NOTHING = figure(0, 24)


def test_too_many_hurt_where_the_largest_costs_text_or_obedience() -> None:
    def parts(found: dict[float, Figure]) -> list[bool | None]:
        return list(NumberOfLatents()._parts(found, NOTHING).values())

    flat = {1.0: figure(0, 24), 5.0: figure(20, 24), 60.0: figure(20, 24)}
    assert parts(flat) == [True, False]
    assert parts({**flat, 60.0: figure(20, 4)}) == [True, True]
    assert parts({1.0: figure(20, 24), 5.0: figure(10, 24)})[0] is False
    assert parts({1.0: figure(0, 24), 5.0: figure(1, 24), 60.0: figure(0, 0)}) == [None, None]


def test_beta_is_judged_by_its_ends() -> None:
    def parts(found: dict[float, Figure]) -> list[bool | None]:
        return list(Beta()._parts(found, NOTHING).values())

    assert parts({-1.0: figure(0, 24), 0.0: figure(20, 24), 4.0: figure(0, 0)}) == [True, True]
    assert parts({-1.0: figure(10, 24), 0.0: figure(11, 24), 4.0: figure(12, 24)}) == [None, False]
    assert parts({-1.0: figure(0, 24), 0.0: figure(2, 24), 4.0: figure(0, 0)}) == [None, None]


def test_a_layer_is_ahead_by_score_and_surely_in_something() -> None:
    assert ahead(figure(20, 24), figure(4, 24)) is True
    assert ahead(figure(13, 24), figure(12, 24)) is None
    assert ahead(figure(20, 0), figure(12, 24)) is False
    assert ahead(figure(0, 24), figure(0, 0)) is None


def test_a_set_that_makes_others_followed_is_not_specific() -> None:
    none, all_ = Share.of(0, 24), Share.of(24, 24)
    assert _specific([all_, none], [none, none], 0) is True
    assert _specific([all_, all_], [none, none], 0) is False
    assert _specific([none, none], [none, none], 0) is False


def test_overlap_is_jaccards() -> None:
    assert jaccard([1, 2, 3], [2, 3, 4]) == 0.5
    assert jaccard([], []) == 0.0


def test_an_instructions_words_are_its_own() -> None:
    words = own_words(get_task("french"))
    assert "french" in words and "answer" not in words and "in" not in words
    assert _names(" French", words) and _names("Fren", words)
    assert not _names("F", words) and not _names("frenchman", words)


@pytest.mark.parametrize("study", [Wordings(), Specificity()])
def test_a_study_that_compares_instructions_needs_two(
    context: StudyContext, study: OneModel
) -> None:
    with pytest.raises(LeftOut, match="compares instructions, and got 1"):
        study.run(replace(context, several=context.tasks))


def test_layers_need_two_saes(one_sae: StudyContext) -> None:
    with pytest.raises(LeftOut, match="SAEs of several layers, and got one, of layer 2"):
        Layers().run(one_sae)


def test_what_no_setting_makes_followed_is_not_swept(context: StudyContext) -> None:
    task = replace(context.tasks["french"], name="never", scorer=lambda *_: Score(False, False))
    for study in (NumberOfLatents(), Layers()):
        found = study.run(replace(context, tasks={"never": task}))
        assert found.outcome == "undecided"
        assert "never: none of 6 settings follows on the select contents" in found.verdict
        assert [row["what"] for row in rows(found)][-1] == "SAIF: no setting follows"


def test_what_never_follows_when_asked_says_nothing_of_causes(context: StudyContext) -> None:
    task = replace(context.tasks["french"], name="never", scorer=lambda *_: Score(False, False))
    found = Causal().run(replace(context, tasks={"never": task}))
    assert found.outcome == "undecided"
