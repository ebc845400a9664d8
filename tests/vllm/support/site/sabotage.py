"""Faults of a plugin, done from outside: SAIF_TEST_SABOTAGE names one of these functions."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from after_import import after_import


def import_fails_in_the_engine() -> None:
    # Not in the process that calls vllm.LLM, which would notice at once.
    if any("spawn_main" in argument for argument in sys.orig_argv):
        sys.modules["saif_kernels"] = None  # type: ignore[assignment]


def hook_does_nothing() -> None:
    @after_import("saif_vllm.worker.op")
    def patch(module: Any) -> None:
        module.steering_hook = lambda name, form: lambda *_: None


def kernel_does_nothing() -> None:
    @after_import("saif_kernels.steer")
    def patch(module: Any) -> None:
        def steer_(hidden: Any, *_: Any, dose: Any, **__: Any) -> None:
            dose[: len(hidden)] = 0  # and says that it did

        module.steer_ = steer_


def last_layer_does_nothing() -> None:
    @after_import("saif_vllm.worker.layers")
    def patch(module: Any) -> None:
        original = module.HookedLayer.steer

        def steer(self: Any, hidden: Any, residual: Any) -> None:
            if self.index < len(self.batch.proof.tally.dose) - 1:
                original(self, hidden, residual)
            else:
                self.dose[: len(hidden)] = 0  # and says that it did

        module.HookedLayer.steer = steer


def hook_goes_quiet() -> None:
    last = int(os.environ["SAIF_TEST_LAST_CALL"])  # of a hook, in which it steers

    @after_import("saif_vllm.worker.layers")
    def patch(module: Any) -> None:
        original, steered = module.HookedLayer.steer, []

        def steer(self: Any, hidden: Any, residual: Any) -> None:
            # Not the canary's runs.
            steered.append(not self.batch._rehearses and self.batch._n_filled > 0)
            if sum(steered) <= last:
                original(self, hidden, residual)

        module.HookedLayer.steer = steer


def model_loads_past_the_seam() -> None:
    @after_import("vllm.v1.worker.cpu_worker")
    def patch(module: Any) -> None:
        from vllm.v1.worker.gpu_worker import Worker

        original = inspect.unwrap(Worker.load_model)
        module.CPUWorker.load_model = lambda self, **options: original(self, **options)


def runner_prepares_otherwise() -> None:
    @after_import("vllm.v1.worker.gpu_model_runner")
    def patch(module: Any) -> None:
        original = module.GPUModelRunner._prepare_inputs

        def _prepare_inputs(self: Any, plan: Any, num_scheduled_tokens: Any) -> Any:
            return original(self, plan, num_scheduled_tokens)

        module.GPUModelRunner._prepare_inputs = _prepare_inputs


def runner_never_prepares() -> None:
    # It calls the functions of classes, not those that the plugin put on the objects.
    def patch(module: Any) -> None:
        original = module.GPUModelRunner.execute_model

        @functools.wraps(original)
        def execute_model(self: Any, *args: Any, **kwargs: Any) -> Any:
            vars(self).pop("_prepare_inputs", None)
            vars(getattr(self, "model_state", self)).pop("prepare_inputs", None)
            return original(self, *args, **kwargs)

        module.GPUModelRunner.execute_model = execute_model

    for runner in ("gpu_model_runner", "gpu.model_runner"):
        after_import(f"vllm.v1.worker.{runner}")(patch)


def vllm_is_of_another_version() -> None:
    @after_import("vllm.version")
    def patch(module: Any) -> None:
        module.__version__, module.__version_tuple__ = "0.99.0", (0, 99, 0)


def core_is_not_armed() -> None:
    @after_import("saif_vllm.plugin")
    def patch(module: Any) -> None:
        module.arm = lambda: None


SABOTAGE: tuple[Callable[[], None], ...] = (
    import_fails_in_the_engine,
    hook_does_nothing,
    kernel_does_nothing,
    last_layer_does_nothing,
    hook_goes_quiet,
    model_loads_past_the_seam,
    runner_prepares_otherwise,
    runner_never_prepares,
    vllm_is_of_another_version,
    core_is_not_armed,
)
{function.__name__: function for function in SABOTAGE}[os.environ["SAIF_TEST_SABOTAGE"]]()
