"""Oracles from the packages local-attention, linformer, performer-pytorch, nystrom-attention, sinkhorn-transformer."""

from typing import Any

import torch
from fixture import Example, autograd, oracle
from linformer import LinformerSelfAttention
from local_attention import LocalAttention
from performer_pytorch import performer_pytorch
from torch import nn


def by(package: str, call: str) -> dict[str, Any]:
    """What the oracles of one package have in common."""
    return {"by": call, "packages": (package, "torch", "numpy"), "differentiate": autograd}


class Give(nn.Module):
    """Stands in for a projection of a module: gives what the projection would have made, whatever its input."""

    def __init__(self, made: torch.Tensor) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`made`."""
        return self.made


LOCAL = by("local-attention", "local_attention.LocalAttention(exact_windowsize=True)") | {"sizes": (3, 70, 2, 2, 4)}


@oracle("local", "local(window=4)", **LOCAL)
@oracle("local_causal", "local(window=4)", causal=True, **LOCAL)
def local(e: Example) -> torch.Tensor:
    """Its window_size is a block size; with one block each way and exact_windowsize, the window is |i - j| <= 4."""
    module = LocalAttention(4, causal=e.causal, autopad=True, exact_windowsize=True, use_rotary_pos_emb=False)
    return module(*(t.transpose(1, 2) for t in (e.q, e.k, e.v)), mask=e.valid).transpose(1, 2)


@oracle("linformer", "linformer(rank=5)", params={"E": (2, 5, 25), "F": (2, 5, 25)},
        **by("linformer", "linformer.LinformerSelfAttention, one for each head"))
def linformer(e: Example) -> torch.Tensor:
    """Built for 25 tokens and given 22. It knows no mask: padded keys and values are set to zero before it."""
    batch, length, heads, width = e.q.shape
    outputs = []
    for h in range(heads):
        module = LinformerSelfAttention(width, 25, k=5, heads=1).double()
        module.to_q = Give(e.q[:, :, h])
        module.to_k, module.to_v = (Give(t[:, :, h] * e.valid[..., None]) for t in (e.k, e.v))
        module.to_out = nn.Identity()
        del module.proj_k, module.proj_v
        module.proj_k, module.proj_v = e.params["E"][h].T, e.params["F"][h].T
        outputs.append(module(torch.zeros(batch, length, width)))
    return torch.stack(outputs, 2)


@oracle("linear", "linear", **by("performer-pytorch", "performer_pytorch.linear_attention of elu + 1"))
def linear(e: Example) -> torch.Tensor:
    """Features of padded keys are zero."""
    q, k, v = (t.transpose(1, 2) for t in (e.q, e.k, e.v))
    phi_q, phi_k = (nn.functional.elu(t) + 1 for t in (q, k))
    return performer_pytorch.linear_attention(phi_q, phi_k * e.valid[:, None, :, None], v).transpose(1, 2)
