from __future__ import annotations

import torch

from saif_fast.edits import Edit
from saif_fast.embedded import model_path, sae_path
from saif_fast.evaluate.methods import Candidate
from saif_fast.evaluate.record import examples_of, latents_by_method, run_of
from saif_fast.evaluate.subject import Subject
from saif_fast.evaluate.trials import Reply
from saif_fast.latent_set import Latent, LatentSet
from saif_fast.logit_bias import Unembedding
from saif_fast.sae import load_sae
from saif_fast.tasks import Score


def subject() -> Subject:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_path()).eval()
    return Subject(model, AutoTokenizer.from_pretrained(model_path()), load_sae(sae_path()))


def test_a_run_names_the_model_its_saes_and_what_it_ran_on() -> None:
    run = run_of(
        subject(), "vllm", seed=3, candidates=80, seconds=1.26, windows=["all"], rounds=[(8, 32, 1)]
    )
    assert (run.model, run.num_layers, run.d_model) == ("saif-fast/embedded", 3, 64)
    (used,) = run.saes
    assert used.layer == 2 and len(used.sae.content_hash) == 64
    assert run.versions["torch"] == torch.__version__ and run.machine.cores >= 1
    assert (run.seed, run.candidates, run.seconds, run.windows) == (3, 80, 1.3, ["all"])
    assert run.rounds[0].max_tokens == 32


def test_latents_come_with_the_tokens_that_they_promote_and_directions_are_none() -> None:
    found = subject()
    latents = [Latent(709, Edit("add", 3.5)), Latent(142, Edit("clamp", 1.0, True))]
    sets = {
        "saif": LatentSet.from_sae(found.sae, latents, num_layers=3),
        "project": LatentSet.from_direction(torch.ones(64), 1.0, layer=1, num_layers=3),
        "diff_in_means": LatentSet.from_vector(torch.ones(64), layer=1, num_layers=3),
    }
    candidates = {name: Candidate(latent_set=each) for name, each in sets.items()}
    shown = latents_by_method(
        {**candidates, "prompted": Candidate()}, Unembedding(found.model), found.tokenizer
    )
    assert list(shown) == ["saif"]
    assert [each.latent for each in shown["saif"]] == latents
    # Latent 709 rises with "Answer in French.".
    assert {" la", " le"} <= set(shown["saif"][0].promoted)


def test_examples_are_the_first_contents_that_every_method_answered() -> None:
    def replies(*contents: str) -> list[Reply]:
        return [Reply(each, each.upper(), Score(True, True), False) for each in contents]

    found = examples_of({"a": replies("1", "x", "y"), "b": replies("y", "x")}, number=1)
    assert [each.content for each in found] == ["x"]
    assert found[0].replies["b"].text == "X" and found[0].replies["b"].sound is False
