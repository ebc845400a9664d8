from __future__ import annotations

from collections import Counter

import pytest
from random_model import tiny_model, tiny_sae, tiny_tokenizer

from saif_fast.evaluate.subject import Subject
from saif_fast.latent_set import LatentSet
from saif_fast.runtime import GenerationRequest
from saif_fast.search.tryout import Tryout, Verdict, best_layer, try_out
from saif_fast.tasks import Score

CONTENTS = [f"w{i} w{i + 1}" for i in range(4)]
TEXTS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("after", "follow", "sound", "verdict"),
    [
        (["A", "B", "C", "D"], (0, 4), (4, 4), Verdict.FOLLOWS),
        (["A", "B", "C", "D"], (0, 4), (4, 2), Verdict.FOLLOWS),
        (["A", "A", "A", "A"], (0, 4), (4, 1), Verdict.BREAKS),
        (["A", "b", "c", "d"], (0, 1), (4, 4), Verdict.FOLLOWS),
        (["x", "b", "c", "d"], (0, 0), (4, 4), Verdict.NOTHING),
        (["x", "y", "c", "d"], (0, 0), (4, 4), Verdict.CHANGES),
        (["x", "y", "z", "d"], None, (4, 4), Verdict.CHANGES),
        (TEXTS, None, (4, 4), Verdict.NOTHING),
        (["x", "y", "z", "d"], (2, 1), (4, 4), Verdict.CHANGES),
    ],
)
def test_the_verdict(
    after: list[str], follow: tuple[int, int] | None, sound: tuple[int, int], verdict: Verdict
) -> None:
    assert Tryout(CONTENTS, TEXTS, after, follow, sound).verdict is verdict


def subject() -> Subject:
    return Subject(tiny_model(), tiny_tokenizer(), tiny_sae())


def towards(token: int, strength: float, layer: int = 2) -> LatentSet:
    """A set that raises one token's logit, since the model's head reads the last layer."""
    model = tiny_model()
    return LatentSet.from_vector(
        model.get_output_embeddings().weight[token].detach() * strength, layer=layer, num_layers=3
    )


def test_a_set_is_tried_on_the_contents_without_and_with_it() -> None:
    def says(content: str, reply: str) -> Score:
        return Score(reply.split() == ["w7"] * len(reply.split()) != [], False)

    tried = try_out(towards(11, 200.0), subject(), CONTENTS, scorer=says)
    assert len(tried.before) == len(tried.after) == 4
    assert set(" ".join(tried.after).split()) == {"w7"}
    assert tried.follow == (0, 4)
    # A random model repeats itself, so nothing says whether that is worse than before.
    assert tried.sound is None and tried.verdict is Verdict.FOLLOWS


def test_a_weak_set_changes_nothing() -> None:
    tried = try_out(towards(11, 1e-4), subject(), CONTENTS)
    assert tried.before == tried.after and tried.verdict is Verdict.NOTHING


def test_the_layer_whose_set_makes_the_asked_for_reply_likely_is_chosen() -> None:
    found = subject()
    prompts = [(found.prompter(f"{c} w30", None), found.prompter(c, None)) for c in CONTENTS]
    replies = found.open({}).generate([GenerationRequest(prompt=asked) for asked, _ in prompts])
    wanted = Counter(token for reply in replies for token in reply.token_ids).most_common(1)[0][0]
    others = [token for token in (4, 5) if token != wanted]
    sets = [*(towards(token, 50.0) for token in others), towards(wanted, 1.0)]
    assert best_layer(sets, found, prompts) == len(others)
