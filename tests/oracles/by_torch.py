"""Oracles that torch itself has."""

import functools

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


@oracle("full_alibi", "full", slopes=(0.5, 0.0625), by=f"{SDPA} with a bias", **BY)
def full_alibi(e: Example) -> torch.Tensor:
    """Press et al. 2022: -slope |i - j| is added to the scaled scores."""
    i = torch.arange(e.q.shape[1])
    bias = -torch.tensor(e.slopes)[:, None, None] * abs(i[:, None] - i)
    allowed = e.valid[:, None, None, :] | torch.eye(len(i), dtype=torch.bool)
    q, k, v = (t.transpose(1, 2) for t in (e.q, e.k, e.v))
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.where(allowed, bias, -torch.inf)
    ).transpose(1, 2)


FEATURES = {"exp": torch.exp, "softmax": lambda x: x.softmax(-1)}
KERNEL = "Katharopoulos et al. 2020, equation 4, as a dense matrix in torch"


def linear(feature: str, e: Example) -> torch.Tensor:
    """phi(q_i) . phi(k_j) over its sum."""
    weights = (
        torch.einsum("bnhd,bkhd->bhnk", *map(FEATURES[feature], (e.q, e.k)))
        * e.valid[:, None, None, :]
    )
    if e.causal:
        weights = weights.tril()
    weights = weights / torch.where(e.valid[:, None, :, None], weights.sum(-1, keepdim=True), 1.0)
    return torch.einsum("bhnk,bkhd->bnhd", weights, e.v)


for name in FEATURES:
    for mode, causal in (("", False), ("_causal", True)):
        oracle(f"linear_{name}{mode}", f"linear(feature={name!r})", causal=causal, by=KERNEL, **BY)(
            functools.partial(linear, name)
        )


PARALLEL = f"{SDPA}, and the quotient of its positive features"


@oracle("parallel", "parallel(members=(full, linear), shares=(3.0, 1.0))", by=PARALLEL, **BY)
@oracle(
    "parallel_causal",
    "parallel(members=(full, linear), shares=(3.0, 1.0))",
    causal=True,
    by=PARALLEL,
    **BY,
)
def parallel(e: Example) -> torch.Tensor:
    """Three quarters of one and a quarter of the other."""
    phi_q, phi_k = functional.elu(e.q) + 1, (functional.elu(e.k) + 1) * e.valid[..., None, None]
    weights = torch.einsum("bnhd,bkhd->bhnk", phi_q, phi_k)
    if e.causal:
        weights = weights.tril()
    total = weights.sum(-1, keepdim=True)
    linear = torch.einsum("bhnk,bkhd->bnhd", weights / torch.where(total == 0, 1.0, total), e.v)
    return 0.75 * full(e) + 0.25 * linear


CONV = "torch.nn.functional.conv1d"


@oracle("conv", "conv(width=5)", params={"kernel": (2, 5, 4)}, by=CONV, **BY)
@oracle("conv_even", "conv(width=4)", params={"kernel": (2, 4, 4)}, by=CONV, **BY)
@oracle("conv_causal", "conv(width=5)", causal=True, params={"kernel": (2, 5, 4)}, by=CONV, **BY)
def conv(e: Example) -> torch.Tensor:
    """Padded tokens are zero; of an even width one more tap before than after."""
    heads, width, channels = e.params["kernel"].shape
    before = width - 1 if e.causal else width // 2
    v = (e.v * e.valid[..., None, None]).flatten(2).transpose(1, 2)
    weight = e.params["kernel"].transpose(1, 2).reshape(heads * channels, 1, width)
    out = functional.conv1d(
        functional.pad(v, (before, width - 1 - before)), weight, groups=heads * channels
    )
    return out.transpose(1, 2).reshape(e.v.shape)
