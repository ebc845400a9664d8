"""Limits of a request in every runtime, unless ``saif_vllm.engine_args`` sets others.

``engine_args`` repeats them, because the plugin imports only the standard library. A test compares.
"""

MAX_STRENGTH = 10.0
MAX_DOSE = 64.0  # measured: bench/results/cpu/doses.md
