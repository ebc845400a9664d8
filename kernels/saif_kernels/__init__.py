"""Tensor mathematics of SAE steering: needs torch (and, for the GPU kernels, triton), nothing else.

The steering path, which this repository's runtimes run: a hooked layer's sets lie in a
:class:`SteeringBank`, the sets and the window of each request in :class:`RequestRows`. Before a
step :func:`prepare_steps_` turns positions into one request row and one scale per token. In every
hooked layer :func:`steer_` edits the residual stream in place. After the step :func:`tally_steps_`
adds up in a :class:`Tally` what was steered, and by how much.

The encodes of a whole SAE (``saif_kernels.encode``): identification counts with
:func:`encode_moments`. :func:`encode_topk` and :func:`topk_rank` tell which latents are active
while a model is served.

Nothing in this repository calls those two, nor :func:`add_steer_rms_norm`, which is for an engine
that fuses the last layer's steering with the final norm.
"""

from saif_kernels import registration as _registration  # noqa: F401  (defines torch.ops.saif)
from saif_kernels._steer_dose import DOSE_PARTS, largest_norm
from saif_kernels._triton import compiles_in_time
from saif_kernels.add_steer_rms_norm import add_steer_rms_norm
from saif_kernels.bank import MAX_LATENTS, LatentEdits, SteeringBank
from saif_kernels.encode._tile import Sae
from saif_kernels.encode.moments import Moments, encode_moments
from saif_kernels.encode.topk import TopK, encode_topk
from saif_kernels.encode.topk_rank import topk_rank
from saif_kernels.prepare_steps import prepare_steps_
from saif_kernels.request_rows import OPEN_STOP, RequestRows, Window, copy_from_host
from saif_kernels.steer import FEW_TOKENS, steer_
from saif_kernels.tally_steps import Tally, tally_steps_

__all__ = [
    "DOSE_PARTS",
    "FEW_TOKENS",
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
    "compiles_in_time",
    "copy_from_host",
    "encode_moments",
    "encode_topk",
    "largest_norm",
    "prepare_steps_",
    "steer_",
    "tally_steps_",
    "topk_rank",
]
