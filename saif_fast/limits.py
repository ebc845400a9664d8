"""What a request may do at most, unless a runtime is told otherwise. Needs nothing to import."""

MAX_STRENGTH = 10.0
MAX_DOSE = 64.0
