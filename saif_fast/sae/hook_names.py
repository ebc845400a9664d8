"""Hook names of SAEs, and the block whose output each of them means."""

from __future__ import annotations

import re

# TransformerLens' names. Its bridge calls the same two places hook_in and hook_out.
_LENS = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|in|out)")
# Hugging Face's module paths of decoder blocks. Only those of the text model: a vision tower or an
# encoder numbers its blocks from 0 as well.
_HF = re.compile(
    r"(?:(?:model|language_model|transformer|gpt_neox)\.)*(?:layers|h)\.(\d+)(\.input)?"
)


def residual_layer(hook_name: str) -> int:
    """Return the block whose output (``hook_resid_post``) a hook reads; -1 is the embedding.

    ``hook_resid_pre`` of block N is the output of block N - 1.

    Raises:
        ValueError: the hook is not on the residual stream between blocks.
    """
    if match := _LENS.fullmatch(hook_name):
        return int(match[1]) - (match[2] in ("resid_pre", "in"))
    if match := _HF.fullmatch(hook_name.removesuffix(".output")):
        return int(match[1]) - (match[2] is not None)
    raise ValueError(
        f"hook_name: expected the residual stream (blocks.N.hook_resid_post, "
        f"blocks.N.hook_resid_pre or model.layers.N), got {hook_name!r}"
    )
