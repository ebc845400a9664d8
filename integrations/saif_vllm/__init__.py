"""SAE steering for an unmodified vLLM: ``LLM(model, **saif_vllm.engine_args("sets"))``.

Importing this package needs the standard library only: vLLM imports plugins in all its processes.
"""

from saif_vllm.config import SET_DIR_VARIABLE, engine_args

__all__ = ["SET_DIR_VARIABLE", "engine_args"]
