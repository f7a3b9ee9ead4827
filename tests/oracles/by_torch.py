"""Oracles that torch itself has."""

import torch
from fixture import Example, autograd, oracle
from torch.nn import functional

BY = {"packages": ("torch", "numpy"), "differentiate": autograd}
SDPA = "torch.nn.functional.scaled_dot_product_attention"


@oracle("full", "full", by=SDPA, **BY)
@oracle("full_causal", "full", causal=True, by=SDPA, **BY)
def full(e: Example) -> torch.Tensor:
    """A padded query sees itself, lest its row be NaN; its output is dropped."""
    length = e.q.shape[1]
    allowed = e.valid[:, None, None, :]
    if e.causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool).tril()
    allowed = allowed | torch.eye(length, dtype=torch.bool)
    q, k, v = (t.transpose(1, 2) for t in (e.q, e.k, e.v))
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed).transpose(1, 2)
