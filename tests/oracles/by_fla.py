"""Oracles from flash-linear-attention: the naive functions beside its kernels, which run without a
GPU in float32."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fixture import Example, autograd, oracle, without_padding
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.retention.naive import naive_retention
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from torch.nn import functional

LONG = (3, 70, 2, 3, 6)
MIDDLE = (3, 40, 2, 3, 6)
"""More tokens than a chunk of ours has, 64 or 32."""


def by(call: str) -> dict[str, Any]:
    """What these oracles have in common."""
    return {
        "by": call,
        "packages": ("flash-linear-attention", "fla-core", "torch", "numpy"),
        "differentiate": autograd,
        "sizes": LONG,
    }


@oracle(
    "linear_causal",
    "linear",
    causal=True,
    **by("fla.ops.linear_attn.naive.naive_recurrent_linear_attn"),
)
def linear(e: Example) -> torch.Tensor:
    """Features of padded keys are zero, so the state passes over them; [B, N, H, D]."""
    phi_q, phi_k = functional.elu(e.q) + 1, (functional.elu(e.k) + 1) * e.valid[..., None, None]
    return naive_recurrent_linear_attn(phi_q, phi_k, e.v, normalize=True)[0]


def scan(run: Callable[..., torch.Tensor], causal: bool, **tokens: torch.Tensor) -> torch.Tensor:
    """A recurrence of theirs over `tokens` `[B, N, H, ...]`; unless causal, plus one from the
    right.

    From the right each token reads what those after it left, decayed, before it writes: there each
    token is run as two, the first of which reads and lets the state decay, and the second of which
    writes."""
    out = run(**tokens)
    if causal:
        return out
    reads, writes = ("q", "g"), ("k", "v", "beta")

    def two(name: str, given: torch.Tensor) -> torch.Tensor:
        nothing = torch.zeros_like(given)
        pair = (given, nothing) if name in reads else (nothing, given)
        assert name in reads + writes
        return torch.stack(pair, 2).flatten(1, 2)

    back = run(**{name: two(name, given.flip(1)) for name, given in tokens.items()})
    return out + back[:, ::2].flip(1)


PAPER = np.array([31.0, 63.0])
"""The decays of the paper are 1 - 1 / 32 and 1 - 1 / 64, that is sigmoid(log 31) and sigmoid(log
63)."""


@oracle(
    "retention_paper_causal",
    "retention",
    causal=True,
    params={"decay": np.log(PAPER)},
    **by("fla.ops.retention.naive.naive_retention"),
)
@without_padding
def retention_paper(e: Example) -> torch.Tensor:
    """Its decays are those of the paper, and no parameter. `[B, H, N, D]`."""
    return naive_retention(*(t.transpose(1, 2) for t in (e.q, e.k, e.v))).transpose(1, 2)


SIMPLE = by("fla.ops.simple_gla.naive.naive_recurrent_simple_gla") | {"sizes": (3, 70, 2, 2, 4)}


@oracle("retention", "retention", params={"decay": (2,)}, scale=1.5, **SIMPLE)
@oracle("retention_causal", "retention", causal=True, params={"decay": (2,)}, scale=1.5, **SIMPLE)
@without_padding
def retention(e: Example) -> torch.Tensor:
    """Any decay."""
    decay = functional.logsigmoid(e.params["decay"]).expand(*e.q.shape[:3])
    return scan(
        lambda **t: naive_recurrent_simple_gla(**t)[0], e.causal, q=e.q, k=e.k, v=e.v, g=decay
    )


GLA = by("fla.ops.gla.naive.naive_recurrent_gla") | {
    "params": {"down": (2, 6, 2), "up": (2, 2, 3), "bias": (2, 3)},
    "scale": 1.0,
    "sizes": MIDDLE,
}


@oracle("gated_linear", "gated_linear(rank=2, normaliser=4.0)", **GLA)
@oracle("gated_linear_causal", "gated_linear(rank=2, normaliser=4.0)", causal=True, **GLA)
@without_padding
def gated_linear(e: Example) -> torch.Tensor:
    """The gate as in fla.layers.gla, which itself needs a GPU: logsigmoid of two projections,
    divided."""
    gates = (
        torch.einsum("bne,her,hrd->bnhd", e.x, e.params["down"], e.params["up"]) + e.params["bias"]
    )
    gates = functional.logsigmoid(gates) / 4
    return scan(
        lambda g, **t: naive_recurrent_gla(gk=g, **t)[0], e.causal, q=e.q, k=e.k, v=e.v, g=gates
    )


DELTA = by("fla.ops.gated_delta_rule.naive.naive_recurrent_gated_delta_rule") | {
    "params": {"alpha": (2, 6), "beta": (2, 6), "A_log": (2,), "dt_bias": (2,)},
    "sizes": MIDDLE,
}


@oracle("gated_delta", "gated_delta", **DELTA)
@oracle("gated_delta_causal", "gated_delta", causal=True, **DELTA)
@without_padding
def gated_delta(e: Example) -> torch.Tensor:
    """Gates and the norm of q and k as in fla.layers.gated_deltanet, which itself needs a GPU."""
    dt = functional.softplus(
        torch.einsum("bne,he->bnh", e.x, e.params["alpha"]) + e.params["dt_bias"]
    )
    q, k = (t * torch.rsqrt((t * t).sum(-1, keepdim=True) + 1e-6) for t in (e.q, e.k))
    return scan(
        lambda **t: naive_recurrent_gated_delta_rule(**t)[0],
        e.causal,
        q=q,
        k=k,
        v=e.v,
        g=-e.params["A_log"].exp() * dt,
        beta=torch.einsum("bne,he->bnh", e.x, e.params["beta"]).sigmoid(),
    )


@oracle("ssd", "ssd", params={"dt": (2, 4), "dt_bias": (2,), "A_log": (2,), "D": (2,)}, **SIMPLE)
@without_padding
def ssd(e: Example) -> torch.Tensor:
    """Mamba-2's recurrence is theirs without their scale, with k times the step; then the skip."""
    dt = functional.softplus(torch.einsum("bne,he->bnh", e.x, e.params["dt"]) + e.params["dt_bias"])
    out = scan(
        lambda **t: naive_recurrent_simple_gla(scale=1.0, **t)[0],
        e.causal,
        q=e.q,
        k=e.k * dt[..., None],
        v=e.v,
        g=-e.params["A_log"].exp() * dt,
    )
    return out + e.params["D"][:, None] * e.v
