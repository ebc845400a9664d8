"""From positions to one request row and one scale a token, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from saif_kernels.rows import RequestRows


def prepare_steps(
    token_row: Tensor,
    token_scale: Tensor,
    query_start_loc: Tensor,
    request_row: Tensor,
    positions: Tensor,
    rows: RequestRows,
) -> None:
    """Fill ``token_row`` and ``token_scale`` for one step.

    Semantics: token t of request r (``query_start_loc[r] <= t < query_start_loc[r + 1]``) gets row
    ``request_row[r]`` and the scale of :class:`Window` at ``positions[t]``; every other token,
    padding included, and every token whose scale is 0, gets row -1 and scale 0.

    Everything is derived on the device from what the model itself reads: host copies of token
    counts are upper bounds under asynchronous scheduling and speculation. No value leaves the
    device.

    Args:
        token_row: [T] int32, written.
        token_scale: [T] fp32, written.
        query_start_loc: [n + 1] int32, first token of each request; non-decreasing.
        request_row: [n] int32, row of each request in ``rows``; -1 = unsteered.
        positions: [>= T] integer, position of each token in its request, in tokens.
        rows: the request table.
    """
    n_tokens = token_row.shape[0]
    n_requests = request_row.shape[0]
    if n_requests == 0:
        token_row.fill_(-1)
        token_scale.zero_()
        return
    token = torch.arange(n_tokens, dtype=query_start_loc.dtype, device=token_row.device)
    # right=True counts the starts at or before t; minus one is the request. Tokens past the last
    # end get n.
    request = torch.searchsorted(query_start_loc, token, right=True) - 1
    inside = (request >= 0) & (request < n_requests)
    row = torch.where(inside, request_row[request.clamp(0, n_requests - 1)], -1)
    steered = row >= 0
    row_index = row.clamp(min=0).long()

    generated = positions[:n_tokens].long() - (rows.prompt_len[row_index].long() - 1)
    start, stop = rows.start[row_index], rows.stop[row_index]
    elapsed = (generated - start).clamp(min=0).float()
    decay = (1.0 + rows.omega[row_index] * elapsed).pow(-rows.power[row_index])
    in_window = (generated >= start) & (generated < stop)
    scale = torch.where(generated < 0, rows.prompt[row_index].float(), in_window.float() * decay)
    token_scale.copy_(torch.where(steered, scale, 0.0))
    token_row.copy_(torch.where(token_scale != 0, row, -1))
