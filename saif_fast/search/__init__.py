"""Search for sets that make a model follow, tried as they would be served: through a runtime."""

from saif_fast.search.compare import best_of_methods, compare, measure
from saif_fast.search.find import search
from saif_fast.search.race import ROUNDS, Outcome, Round, Standing, Track

__all__ = [
    "ROUNDS",
    "Outcome",
    "Round",
    "Standing",
    "Track",
    "best_of_methods",
    "compare",
    "measure",
    "search",
]
