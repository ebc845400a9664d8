"""Scenes: grammar in three languages, both wordings, and the hold-out."""

from __future__ import annotations

import dataclasses
import random

import pytest

from saif_fast.tasks.embedded.corpus import (
    FORMATS,
    HELD_OUT_SHARE,
    draw_scene,
    draw_scenes,
    parse,
    vocabulary,
)


@pytest.mark.parametrize(
    ("content", "replies"),
    [
        (
            "Tell me about my black cat in the garden.",
            {
                "french": "Mon chat noir dort dans le jardin.",
                "german": "Meine schwarze Katze schläft in dem Garten.",
                "upper_case": "MY BLACK CAT SLEEPS IN THE GARDEN.",
                "json": '{"answer": "My black cat sleeps in the garden."}',
                "one_word": "Cat.",
                "keyword": "Honestly, my black cat sleeps in the garden.",
                "twice": "My black cat sleeps in the garden. My black cat sleeps in the garden.",
                "past": "My black cat slept in the garden.",
            },
        ),
        (
            "Look behind the house and tell me about a white girl.",
            {
                "french": "Derrière la maison, une fille blanche chante.",
                "german": "Hinter dem Haus singt ein weißes Mädchen.",
                "keyword": "Honestly, behind the house, a white girl sings.",
                "past": "Behind the house, a white girl sang.",
            },
        ),
        (
            "Tell me about this tired wolf in the forest.",
            {
                "french": "Ce loup fatigué hurle dans la forêt.",
                "german": "Dieser müde Wolf heult in dem Wald.",
            },
        ),
    ],
)
def test_replies(content: str, replies: dict[str, str]) -> None:
    scene = parse(content)
    assert {name: FORMATS[name](scene) for name in replies} == replies


def test_the_hold_out_is_a_tenth_and_ignores_the_wording() -> None:
    rng = random.Random(0)
    drawn = [draw_scene(rng) for _ in range(4000)]
    share = sum(scene.held_out for scene in drawn) / len(drawn)
    assert abs(share - HELD_OUT_SHARE) < 0.02
    for scene in drawn[:100]:
        reworded = dataclasses.replace(scene, place_first=not scene.place_first)
        assert reworded.content != scene.content
        assert (reworded.key, reworded.held_out) == (scene.key, scene.held_out)


@pytest.mark.parametrize("held_out", [True, False])
def test_drawn_scenes_are_different_and_on_one_side(held_out: bool) -> None:
    scenes = draw_scenes(random.Random(0), 50, held_out=held_out)
    assert len({scene.key for scene in scenes}) == 50
    assert {scene.held_out for scene in scenes} == {held_out}


def test_vocabulary_holds_every_reply_and_tells_languages_apart() -> None:
    assert {"mon", "chat", "noire", "derrière"} <= vocabulary("french")
    assert {"meine", "schwarzes", "hinter", "dem"} <= vocabulary("german")
    assert not vocabulary("french") & {"the", "my", "black", "sleeps"}
