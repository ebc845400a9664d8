"""Tensor mathematics of SAE steering: needs torch (and, for the GPU kernels, triton), nothing else.

A hooked layer's sets live in a :class:`SteeringBank`, what each request asks for in a
:class:`RequestRows`; :func:`prepare_steps` turns positions into one row id and one scale per
token, and :func:`steer_` edits the residual stream in place.
"""

from saif_kernels import registration as _registration  # noqa: F401  (defines torch.ops.saif)
from saif_kernels.add_steer_rms_norm import add_steer_rms_norm
from saif_kernels.bank import MAX_LATENTS, LatentEdits, SteeringBank
from saif_kernels.rows import OPEN_STOP, RequestRows, Window
from saif_kernels.steer import steer_
from saif_kernels.steps import prepare_steps

__all__ = [
    "MAX_LATENTS",
    "OPEN_STOP",
    "LatentEdits",
    "RequestRows",
    "SteeringBank",
    "Window",
    "add_steer_rms_norm",
    "prepare_steps",
    "steer_",
]
