"""A SparseAutoencoder is what the full-encode ops of saif_kernels take."""

from __future__ import annotations

import torch

from saif_fast.embedded import sae_path
from saif_fast.sae import load_sae
from saif_kernels import Sae, encode_moments, encode_topk, topk_rank


def test_the_ops_take_it_and_agree_with_its_encode() -> None:
    sae = load_sae(sae_path("middle"))
    taken: Sae = sae
    x = 3 * torch.randn(20, sae.d_model, generator=torch.Generator().manual_seed(0))
    a = sae.encode(x)
    values, indices = encode_topk(x, taken, 4)
    torch.testing.assert_close(values, a.topk(4, dim=1).values)
    torch.testing.assert_close(a.gather(1, indices.long().clamp(min=0)), values)
    moments = encode_moments(x, taken)
    torch.testing.assert_close(moments.n_active, (a > 0).sum(0))
    torch.testing.assert_close(moments.sum, a.double().sum(0))
    pre = x @ sae.W_enc + sae.b_enc
    ranks = topk_rank(x, taken, torch.tensor([0, 5]))
    torch.testing.assert_close(ranks[:, 0].long(), (pre > pre[:, :1]).sum(1))
