"""What a request may do at most in any runtime, unless ``saif_vllm.engine_args`` says otherwise.

It repeats them, as the plugin imports nothing but the standard library; a test compares.
"""

MAX_STRENGTH = 10.0
MAX_DOSE = 64.0  # measured: bench/results/cpu/doses.md
