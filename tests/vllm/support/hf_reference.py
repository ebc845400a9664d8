"""Reference runs by Hugging Face, and how two runs may differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from saif_fast.latent_set import LatentSet
from saif_transformers import steer

NEAR_TIE = 1e-3  # a gap of logprobs that another order of summation may turn over, in fp32


def generate(
    model: Any,
    sets: Mapping[str, LatentSet],
    request: Mapping[str, Any],
    allowed: Sequence[int] | None = None,
) -> dict[str, list[Any]]:
    """Generate one request alone, greedily: tokens, their logprobs, gaps to the second best.

    Args:
        allowed: the tokens that may be generated, which logprobs are over; None: all.
    """
    ids = torch.tensor([request["prompt"]])
    with steer(model, sets, request["extra_args"]), torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=request["max_tokens"],
            prefix_allowed_tokens_fn=None if allowed is None else lambda *_: list(allowed),
            output_scores=True,
            return_dict_in_generate=True,
        )
    tokens = output.sequences[0, ids.shape[1] :]
    logprobs = torch.stack(output.scores, dim=1)[0].log_softmax(-1)
    best = logprobs.topk(2).values
    return {
        "tokens": tokens.tolist(),
        "gaps": (best[:, 0] - best[:, 1]).tolist(),
        "logprobs": logprobs.gather(1, tokens[:, None])[:, 0].tolist(),
    }


def prompt_logprobs(
    model: Any, sets: Mapping[str, LatentSet], request: Mapping[str, Any]
) -> list[float]:
    """Return the logprob of each prompt token but the first, given those before it."""
    ids = torch.tensor([request["prompt"]])
    with steer(model, sets, request["extra_args"]), torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0].tolist()


@dataclass
class Comparison:
    """Runs compared token by token; near ties are excused, counted, and printed at the end.

    A divergence is excused where the top two logprobs of the expected run, at the first differing
    token, are less than NEAR_TIE apart. The expected run is steered like the one it is compared
    with and has seen the same tokens up to there, so its gap is the one that another order of
    summation turns over; an unsteered run's gap would say nothing about it. The gap of the run
    under test is never read: a fault that moves its logits could excuse itself. What follows the
    first differing token cannot be compared.

    Attributes:
        checked: the comparisons of this test; see conftest.py.
        compared: runs.
        excused: their names.
        wrong: a sentence each.
    """

    checked: ClassVar[list[Comparison]] = []
    compared: int = 0
    excused: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, name: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
        self.compared += 1
        want, have = expected["tokens"], got["tokens"]
        if want == have:
            return
        differing = [i for i, (a, b) in enumerate(zip(want, have, strict=False)) if a != b]
        if differing and expected["gaps"][differing[0]] < NEAR_TIE:
            self.excused.append(name)
        else:
            self.wrong.append(f"{name}: expected {want}, got {have}")

    def check(self, most_excused: int = 1) -> None:
        self.checked.append(self)
        assert not self.wrong, "\n".join(self.wrong)
        assert len(self.excused) <= most_excused, f"excused: {self.excused}"
        assert self.compared > 0
