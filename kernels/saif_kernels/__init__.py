"""Tensor mathematics of SAE steering: needs torch (and, for the GPU kernels, triton), nothing else.

A hooked layer's sets live in a :class:`SteeringBank`, what each request asks for in a
:class:`RequestRows`; :func:`prepare_steps` turns positions into one row id and one scale per
token, and :func:`steer_` edits the residual stream in place. :func:`tally_steps` adds up in a
:class:`Tally` what was steered, and by how much.

Beside what this repository's runtimes call, there is a library for others, which nothing here calls
yet: :func:`add_steer_rms_norm` for an engine that fuses the last layer's steering with the final
norm; :func:`encode_topk` and :func:`topk_rank` for those who watch which latents are active while a
model is served; :func:`encode_moments` for those who identify latents over many tokens.
"""

from saif_kernels import registration as _registration  # noqa: F401  (defines torch.ops.saif)
from saif_kernels._steer_dose import DOSE_PARTS, largest_norm
from saif_kernels.add_steer_rms_norm import add_steer_rms_norm
from saif_kernels.bank import MAX_LATENTS, LatentEdits, SteeringBank
from saif_kernels.encode import Sae
from saif_kernels.encode_moments import Moments, encode_moments
from saif_kernels.encode_topk import TopK, encode_topk
from saif_kernels.rows import OPEN_STOP, RequestRows, Window
from saif_kernels.steer import steer_
from saif_kernels.steps import prepare_steps
from saif_kernels.tally import Tally, tally_steps
from saif_kernels.topk_rank import topk_rank

__all__ = [
    "DOSE_PARTS",
    "MAX_LATENTS",
    "OPEN_STOP",
    "LatentEdits",
    "Moments",
    "RequestRows",
    "Sae",
    "SteeringBank",
    "Tally",
    "TopK",
    "Window",
    "add_steer_rms_norm",
    "encode_moments",
    "encode_topk",
    "largest_norm",
    "prepare_steps",
    "steer_",
    "tally_steps",
    "topk_rank",
]
