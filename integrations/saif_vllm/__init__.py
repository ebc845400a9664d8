"""SAE steering for an unmodified vLLM: ``LLM(model, **saif_vllm.engine_args("sets"))``.

Importing this package needs the standard library only: vLLM imports plugins in all its processes.
"""

from typing import Any

from saif_vllm.config import SET_DIR_VARIABLE, engine_args

__all__ = ["SET_DIR_VARIABLE", "engine_args", "report", "residuals"]


def __getattr__(name: str) -> Any:
    if name == "report":
        from saif_vllm.reporting import report

        return report
    if name == "residuals":
        from saif_vllm.identification import residuals

        return residuals
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
