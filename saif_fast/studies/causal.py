"""The causal study: without the instruction's latents, does the asked model still obey?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from saif_fast.edits import Edit
from saif_fast.evaluate.methods import Candidate
from saif_fast.identify import LatentStatistics
from saif_fast.latent_set import LatentSet, SiteTensors
from saif_fast.records import Latent, Provenance
from saif_fast.studies.context import StudyContext
from saif_fast.studies.result import (
    Cell,
    LeftOut,
    StudyResult,
    Table,
    both_hold,
    larger,
    outcome_of,
)
from saif_fast.version import __version__

LARGE = 60  # latents per layer of the larger ablation; an engine takes 64 live ones
_ALL = {"saif_scope": "all"}  # the prompt's tokens too, the instruction's among them


class Causal:
    """Obedience of the asked model without the instruction's latents, or without random ones."""

    name = "causal"
    about = "obedience when asked, without the instruction's latents or without random ones"
    reads_only = False
    claim = "The instruction's latents cause obedience: without them the asked model obeys less."

    def run(self, context: StudyContext) -> StudyResult:
        """See :class:`~saif_fast.studies.protocol.OneModel`.

        Latents are clamped to 0 at every token, at the highest layer that has an SAE and at all of
        them at once. Random latents are drawn from those that are active on the instructed prompts,
        as many per layer. The claim is judged at the highest layer with k latents: it holds for an
        instruction whose obedience is surely below that of the asked model, and below that of the
        random ablation. The larger ablations are shown, because they break the text of some models.
        """
        ranges = list(range(len(context.subject.saes)))
        places = {f"layer {context.subject.saes[context.last].layer}": [context.last]}
        if len(ranges) > 1:
            places[f"all {len(ranges)} layers"] = ranges
        sizes = list(dict.fromkeys((context.budget.k, LARGE)))
        rows: list[list[Cell]] = []
        parts: list[bool | None] = []
        told = []
        for name, task in context.tasks.items():
            found = {
                i: context.statistics(task, i)
                for i in ranges
                if context.statistics(task, i).sae.can_edit_live
            }
            plan: dict[str, list[Candidate]] = {
                "unsteered": [Candidate()],
                "prompted": [Candidate(instructed=True)],
            }
            tried = []
            for where, saes in places.items():
                used = {i: found[i] for i in saes if i in found and found[i].ranking()}
                if not used:
                    continue
                for k in sizes:
                    first = {i: each.ranking()[:k] for i, each in used.items()}
                    plan[f"own {where} {k}"] = [_ablated(first, used)]
                    plan[f"random {where} {k}"] = [
                        _ablated(_drawn(used, k, context.budget.seed + draw), used)
                        for draw in range(context.budget.draws)
                    ]
                    tried.append((where, k))
            if not tried:
                raise LeftOut(
                    "it clamps latents, which none of the SAEs allows or of which none rises"
                )
            figures = context.measure(task, plan)
            for what in ("unsteered", "prompted"):
                figure = figures[what]
                rows.append([name, what, None, None, figure.follow, figure.sound, figure.both])
            asked = figures["prompted"].follow
            verdicts = []
            for where, k in tried:
                own, random = (figures[f"{what} {where} {k}"] for what in ("own", "random"))
                for what, figure in (("own latents", own), ("random latents", random)):
                    shares: list[Cell] = [figure.follow, figure.sound, figure.both]
                    rows.append([name, f"prompted, without {what}", where, k, *shares])
                holds = both_hold(larger(asked, own.follow), larger(random.follow, own.follow))
                verdicts.append(holds)  # the first is that of k latents at the highest layer
                told.append(
                    f"{name}, {k} latents at {where}: {own.follow} without them, "
                    f"{random.follow} without random ones, {asked} with all"
                )
            parts.append(verdicts[0] if asked.count else None)
        outcome = outcome_of(parts)
        return StudyResult(
            study=self.name,
            claim=self.claim,
            outcome=outcome,
            verdict=f"{outcome} on this model: {'; '.join(told)}",
            table=Table(
                ["instruction", "what", "where", "k per layer", "follow", "sound", "both"], rows
            ),
            settings={**context.fixed, "edit": "clamp:0", "scope": "all"},
        )


def _ablated(
    latents: Mapping[int, Sequence[int]], statistics: Mapping[int, LatentStatistics]
) -> Candidate:
    """Make a candidate that clamps latents to 0 at every token of an instructed request."""
    sites: list[SiteTensors] = []
    for i, chosen in latents.items():
        found = statistics[i]
        layers = found.activations.num_layers
        sites += LatentSet.from_sae(
            found.sae,
            [Latent(index=index, edit=Edit("clamp", 0.0)) for index in chosen],
            num_layers=layers,
        ).sites
    ablation = LatentSet(
        tuple(sorted(sites, key=lambda each: each.site.layer)),
        found.sae.d_model,
        layers,
        Provenance(method="ablation", version=__version__),
    )
    return Candidate(latent_set=ablation, options=_ALL, instructed=True)


def _drawn(statistics: Mapping[int, LatentStatistics], k: int, seed: int) -> dict[int, list[int]]:
    """Draw k latents per SAE of those that are active on instructed prompts and not its first k."""
    drawn = {}
    for i, found in statistics.items():
        own = found.ranking()[:k]
        active = found.measured.mean > 0
        active[own] = False
        pool = active.nonzero().squeeze(1)
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
        drawn[i] = sorted(pool[order[: len(own)]].tolist())
    return drawn
