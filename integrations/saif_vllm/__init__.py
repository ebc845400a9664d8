"""SAE steering for an unmodified vLLM: ``LLM(model, **saif_vllm.engine_args("sets"))``.

A request has six types in turn, each made by one module for others to read::

    SteeringRequest   the names of sets          saif_fast.request -> parsing
    Parsed            the sets on offer          parsing           -> frontend, core.admission
    Steered           content hashes             core.admission    -> core
    Admitted          the core's record          core.admission    -> core
    Placed            the hashes' slots, too     core.admission    -> worker
    BatchRequest      the worker's record        worker.patches    -> worker.batch

Importing this package needs the standard library only: vLLM imports plugins in all its processes.
"""

from typing import TYPE_CHECKING, Any

from saif_vllm.arguments import engine_args

if TYPE_CHECKING:
    from saif_vllm.engine_residuals import residuals
    from saif_vllm.frontend.validation import SteeringRequestError
    from saif_vllm.reporting import RequestReport, report, report_async

__all__ = [
    "RequestReport",
    "SteeringRequestError",
    "engine_args",
    "report",
    "report_async",
    "residuals",
]


def __getattr__(name: str) -> Any:
    if name in ("RequestReport", "report", "report_async"):
        from saif_vllm import reporting

        return getattr(reporting, name)
    if name == "SteeringRequestError":
        from saif_vllm.frontend.validation import SteeringRequestError

        return SteeringRequestError
    if name == "residuals":
        from saif_vllm.engine_residuals import residuals

        return residuals
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
