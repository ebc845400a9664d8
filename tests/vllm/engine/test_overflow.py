"""The strongest steering that is allowed changes no other request, beside it or after it."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import embedded_sets
import pytest
import torch
from embedded_sets import LAYERS, N_LAYERS
from engine_job import Job, Served, run, run_in_turn
from hf_reference import Comparison
from safetensors.torch import load_file, save_file

from saif_fast.edits import MAX_VALUE, Edit
from saif_fast.embedded import model_path, sae_path
from saif_fast.latent_set import LatentSet
from saif_fast.limits import MAX_DOSE, MAX_STRENGTH
from saif_fast.records import Latent
from saif_fast.request import check_combination, check_length
from saif_fast.sae import load_sae
from saif_kernels import largest_norm

pytestmark = pytest.mark.engine

# Few blocks, so that each is used again at once; prompts in chunks; requests thrown out.
CRAMPED = {
    "max_num_batched_tokens": 48,
    "max_num_seqs": 12,
    "num_gpu_blocks_override": 24,
    "disable_log_stats": False,
}
CHECK_KV = ("saif_check_kv", {})
WATCHED = {"worker_extension_cls": "finite_kv.FiniteKV"}
N_ROUNDS, N_ATTACKERS = 4, 14


def edits(dtype: torch.dtype) -> list[Edit]:
    """Make edits of every kind at its bounds; constants as long as the dtype holds them."""
    values = dict.fromkeys(("clamp", "at_least", "scale", "project"), MAX_VALUE)
    values["add"] = min(MAX_VALUE, largest_norm(dtype) / 4)
    return [
        Edit(kind, sign * value, gated)
        for kind, value in values.items()
        for sign in (1, -1)
        for gated in (False, True)
        if not (kind == "project" and gated)  # which is refused
    ]


def attack_sets(dtype: torch.dtype) -> dict[str, LatentSet]:
    """Make sets of every edit at its bounds, and vectors as long as a stream may be."""
    sets: dict[str, LatentSet] = {}
    for where, layer in LAYERS.items():
        sae = load_sae(sae_path(where))
        for i, edit in enumerate(edits(dtype)):
            for k in (1, 8):
                latents = [Latent(index=100 + j, edit=edit) for j in range(k)]
                sets[f"e{i}_{k}_{where}"] = LatentSet.from_sae(sae, latents, num_layers=N_LAYERS)
        for name, direction in {
            "even": torch.ones(sae.d_model),
            "one_channel": torch.eye(sae.d_model)[7],
            "random": torch.randn(sae.d_model, generator=torch.Generator().manual_seed(layer)),
        }.items():
            vector = direction / direction.norm() * largest_norm(dtype) * 0.999
            found = LatentSet.from_vector(vector, layer=layer, num_layers=N_LAYERS)
            sets[f"{name}_{where}"] = found
    return sets


class Attackers:
    """Random requests for the strongest steering by ``sets`` that an engine of ``dtype`` admits."""

    def __init__(self, seed: int, sets: Mapping[str, LatentSet], dtype: torch.dtype) -> None:
        self.rng, self.sets, self.dtype = random.Random(seed), sets, dtype
        self.prompts = embedded_sets.prompts(16)

    def draw(self) -> dict[str, Any]:
        rng = self.rng
        scope, stop = rng.choice(("all", "all", "generated")), rng.choice((None, None, 2, 9))
        asked: dict[str, Any] = {"saif": self._strongest(), "saif_scope": scope}
        if stop is not None:
            asked["saif_stop"] = stop
        if rng.random() < 0.3:
            asked["saif_decay"] = rng.choice((0.1, "1000,3", "0.5,1"))
        first, second = rng.sample(self.prompts, 2)
        prompt = [*first, *second][: rng.randint(2, 60)]
        return {"prompt": prompt, "max_tokens": rng.randint(1, 40), "extra_args": asked}

    def _strongest(self) -> str:
        while True:
            names = self.rng.sample(sorted(self.sets), self.rng.choice((1, 1, 2, 3)))
            chosen = {name: self.sets[name] for name in names}
            try:
                check_combination(chosen)
            except ValueError:
                continue
            strength = self.rng.choice((1, -1)) * MAX_STRENGTH
            while True:
                try:
                    check_length(((x, strength) for x in chosen.values()), self.dtype)
                except ValueError:
                    strength *= 0.9
                    continue
                return " + ".join(f"{name}*{strength!r}" for name in names)


def victims(requests: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Make unsteered requests of many lengths, and steered ones as anybody would send them."""
    names = ("unsteered", "unsteered_short", "unsteered_long", "add_last", "clamp_middle", "all")
    chosen = [requests[name] for name in names]
    return chosen + [{**requests["unsteered"], "max_tokens": n} for n in (1, 5, 11, 18)]


def check(served: Served, n_victims: int) -> Comparison:
    """Compare victims beside and after attackers with their first run, without any."""
    comparison = Comparison()
    alone, *later = served.batches
    assert later
    for batch in later:
        for i, (expected, got) in enumerate(zip(alone, batch[:n_victims], strict=True)):
            assert got["finish"] == "length"
            comparison.add(f"victim {i}", expected, got)
    return comparison


@pytest.mark.parametrize(
    ("mode", "dtypes"),
    [
        ("v1-eager", ["float16", "bfloat16", "float32"]),
        pytest.param("v2-eager", ["float16", "bfloat16"], marks=pytest.mark.slow),
    ],
)
def test_neighbours_and_successors_are_as_if_alone(
    mode: str,
    dtypes: list[str],
    requests: Mapping[str, dict[str, Any]],
    sets: Mapping[str, LatentSet],
    tmp_path: Path,
) -> None:
    innocent, jobs = victims(requests), []
    for seed, dtype in enumerate(dtypes):
        attackers_sets = attack_sets(getattr(torch, dtype))
        usual = {name: sets[name] for name in ("add_last", "clamp_middle", "vector_middle")}
        (tmp_path / dtype).mkdir()
        folder = embedded_sets.save_sets({**attackers_sets, **usual}, tmp_path / dtype)
        attackers = Attackers(seed, attackers_sets, getattr(torch, dtype))
        batches: list[Any] = [innocent]
        for _ in range(N_ROUNDS):
            batches.append([*innocent, *(attackers.draw() for _ in range(N_ATTACKERS))])
            batches += [CHECK_KV, innocent]
        engine = {**CRAMPED, "dtype": dtype, "enable_prefix_caching": dtype != "bfloat16"}
        capacity = {"layers": list(LAYERS.values()), "max_sets": 64, **WATCHED}
        jobs.append(Job(model_path(), batches, mode, folder, capacity, engine))
    for job, served in zip(jobs, run_in_turn(jobs, timeout=900), strict=True):
        served.check()
        assert served.preemptions > 0
        comparison = check(served, len(innocent))
        # 16-bit logits tie more often.
        comparison.check(most_excused=0 if job.engine["dtype"] == "float32" else 8)
        highest = 0.0
        for report in served.reports:
            assert report["planned"] == report["steered"] and report["nonfinite"] == 0
            highest = max(highest, *(dose["max"] for dose in report["dose"].values()))
        assert MAX_DOSE * 0.99 < highest < MAX_DOSE * 1.01


TEXT = [token for prompt in embedded_sets.prompts(4) for token in prompt]
BROKEN_TOKEN = next(token for token in range(1000, 2000) if token not in TEXT)


def break_model(folder: Path, value: float) -> Path:
    """Save the embedded model with a token whose residual stream has this value."""
    for file in model_path().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone()  # it is never generated
    embedding[BROKEN_TOKEN] = value
    save_file(tensors, weights, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder


@pytest.mark.parametrize(
    ("mode", "site", "value"),
    [
        ("v1-eager", (), torch.inf),
        pytest.param("v1-eager", ("async_on_cpu",), torch.inf, marks=pytest.mark.slow),
        # Triton's interpreter cannot sample of logits that are NaN. These are not, but the stream's
        # squares are beyond fp32.
        pytest.param("v2-eager", (), 1e25, marks=pytest.mark.slow),
    ],
    ids=["v1", "v1-async", "v2"],
)
def test_a_request_that_is_not_finite_ends_with_an_error_alone(
    mode: str,
    site: Sequence[str],
    value: float,
    tmp_path: Path,
    requests: Mapping[str, dict[str, Any]],
    set_dir: Path,
) -> None:
    innocent = victims(requests)
    broken = [
        # The prompt's last token, one of a chunk before it, and one far behind what others share.
        {
            "prompt": [*TEXT[:n], BROKEN_TOKEN, *TEXT[n : n + more]],
            "max_tokens": 20,
            "extra_args": {"saif": name, "saif_scope": scope},
        }
        for n, more, scope in ((5, 0, "generated"), (40, 20, "all"), (120, 3, "all"))
        for name in ("clamp_middle", "add_last")
    ]
    batches: list[Any] = [innocent]
    for _ in range(3):  # the prefix cache has nothing of the round before
        batches += [[*innocent, *broken], CHECK_KV, innocent]
    engine = {**CRAMPED, "async_scheduling": "async_on_cpu" in site}
    job = Job(break_model(tmp_path, value), batches, mode, set_dir, WATCHED, engine, site=site)
    served = run(job).check()
    check(served, len(innocent)).check(most_excused=0)
    for batch in served.batches[1::2]:
        for got in batch[len(innocent) :]:
            assert (got["finish"], got["tokens"]) == ("error", [])
    reports = served.reports
    ended = [report for report in reports if report["nonfinite"]]
    assert len(ended) == 3 * len(broken)
    assert all(report["planned"] == report["steered"] for report in reports if report not in ended)
    assert "the request ends with an error" in served.log
