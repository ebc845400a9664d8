"""Few combinations of many factors that hold every pair of two factors' values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any


def pairwise(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Greedy: each case is the combination that holds most of the pairs not yet held."""
    names = list(factors)
    indices = [range(len(factors[name])) for name in names]

    def pairs_of(case: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
        return {(i, case[i], j, case[j]) for i, j in combinations(range(len(names)), 2)}

    cases = list(product(*indices))
    missing = set().union(*(pairs_of(case) for case in cases))
    chosen = []
    while missing:
        best = max(cases, key=lambda case: len(pairs_of(case) & missing))
        missing -= pairs_of(best)
        chosen.append({name: factors[name][i] for name, i in zip(names, best, strict=True)})
    return chosen
