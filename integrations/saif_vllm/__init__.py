"""SAE steering for an unmodified vLLM: ``LLM(model, **saif_vllm.engine_args("sets"))``.

Importing this package needs the standard library only: vLLM imports plugins in all its processes.
"""

from typing import Any

from saif_vllm.config import engine_args

__all__ = ["engine_args", "report", "report_async", "residuals"]


def __getattr__(name: str) -> Any:
    if name in ("report", "report_async"):
        from saif_vllm import reporting

        return getattr(reporting, name)
    if name == "residuals":
        from saif_vllm.identification import residuals

        return residuals
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
