from __future__ import annotations

import msgspec
import pytest
from made_up import TriedCandidate, row, task

from saif_fast.report.figures import colour_of, heat_maps, obedience_and_quality
from saif_fast.report.page import own


def candidate(
    layer: int, strength: float, strict: int, n: int = 8, round: int = 1, **more: int
) -> TriedCandidate:
    parameters = {"layer": layer, "strength": strength, **more}
    return TriedCandidate("saif", parameters, round, strict, strict, n, strict, n)


def test_a_cell_is_the_candidate_that_went_furthest_then_the_best() -> None:
    tried = [
        candidate(20, 2.0, 6),
        candidate(9, 10.0, 2),
        candidate(20, 2.0, 20, n=40, round=2, k=3),
        candidate(20, 2.0, 10, n=40, round=2, k=5),
        candidate(9, 2.0, 0),
    ]
    found = msgspec.structs.replace(task(), tried=tried)
    ((method, figure),) = heat_maps("french", found)
    trace = figure.data[0]
    assert method == "saif" and figure.name == "french-score-saif"
    # Numbers are in their order, not in that of their texts.
    assert (trace["x"], trace["y"]) == (["2", "10"], ["9", "20"])
    assert trace["z"] == [[0.0, pytest.approx(0.4)], [pytest.approx(2 / 3, abs=1e-3), None]]
    assert trace["text"] == [["", ""], [".67", ""]]
    assert "20 of 40 follow" in trace["customdata"][1][0] and "k: 3" in trace["customdata"][1][0]
    assert trace["zmax"] == pytest.approx(6 / 7, abs=1e-3)  # of all that was tried


def test_a_method_without_layers_has_a_map_of_what_it_varies_and_one_without_axes_none() -> None:
    bias = {"tokens": 16, "largest_bias": 9.369}
    tried = [
        TriedCandidate("logit_bias", bias, 1, 1, 1, 8, 1, 8),
        TriedCandidate("prompted", {}, 1, 1, 1, 8, 1, 8),
    ]
    ((method, figure),) = heat_maps("x", msgspec.structs.replace(task(), tried=tried))
    assert method == "logit_bias"
    assert figure.layout["xaxis"]["ticktext"] == ["9.4"]
    assert figure.layout["yaxis"]["title"]["text"] == "tokens"


def test_obedience_and_quality_have_their_wilson_intervals() -> None:
    figure = obedience_and_quality("french", task())
    assert figure is not None
    (point,) = [trace for trace in figure.data if trace.get("name") == "project"]
    assert (point["x"], point["y"]) == ([0.71], [0.6])
    up, down = point["error_y"]["array"][0], point["error_y"]["arrayminus"][0]
    assert (0.6 - down, 0.6 + up) == pytest.approx((0.5020, 0.6906), abs=1e-4)
    small = [trace for trace in figure.data if trace.get("marker", {}).get("size") == 5]
    assert small and all("select contents" in text for each in small for text in each["customdata"])


def test_without_quality_there_is_no_plane() -> None:
    plain = msgspec.structs.replace(task(), rows={"saif": row(5), "prompted": row(9)})
    assert obedience_and_quality("french", plain) is None


@pytest.mark.parametrize("method", ["saif", "saif_middle", "logit_bias_full", "another", "<x>"])
def test_every_method_has_a_colour_of_the_style_sheet(method: str) -> None:
    assert f"{colour_of(method)[0]}:" in own("page.css")


def test_the_dark_theme_has_all_colours_of_the_light_one() -> None:
    light, dark = own("page.css").split("@media (prefers-color-scheme: dark)")[:2]
    names = {word.rstrip(":") for word in light.split() if word.startswith("--")}
    assert len(names) > 15
    assert all(f"{name}:" in dark.split("* {")[0] for name in names)
