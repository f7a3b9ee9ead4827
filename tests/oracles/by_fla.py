"""Oracles from flash-linear-attention: the naive functions beside its kernels, which run without a GPU in float32."""

from typing import Any

import torch
from fixture import Example, autograd, oracle
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from torch.nn import functional

LONG = (3, 70, 2, 3, 6)
"""More tokens than a chunk of ours has."""


def by(call: str) -> dict[str, Any]:
    """What these oracles have in common."""
    return {"by": call, "packages": ("flash-linear-attention", "fla-core", "torch", "numpy"), "differentiate": autograd,
            "sizes": LONG}


@oracle("linear_causal", "linear", causal=True, **by("fla.ops.linear_attn.naive.naive_recurrent_linear_attn"))
def linear(e: Example) -> torch.Tensor:
    """Features of padded keys are zero, so the state passes over them; [B, N, H, D]."""
    phi_q, phi_k = functional.elu(e.q) + 1, (functional.elu(e.k) + 1) * e.valid[..., None, None]
    return naive_recurrent_linear_attn(phi_q, phi_k, e.v, normalize=True)[0]
