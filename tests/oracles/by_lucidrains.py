"""Oracles from the packages local-attention, linformer, performer-pytorch, nystrom-attention,
sinkhorn-transformer."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fixture import Example, autograd, oracle, without_padding
from give import Give
from linformer import LinformerSelfAttention
from local_attention import LocalAttention
from nystrom_attention import NystromAttention
from performer_pytorch import performer_pytorch
from reformer_pytorch import LSHAttention
from sinkhorn_transformer import sinkhorn_transformer
from torch import nn


def by(package: str, call: str) -> dict[str, Any]:
    """What the oracles of one package have in common."""
    return {"by": call, "packages": (package, "torch", "numpy"), "differentiate": autograd}


LOCAL = by("local-attention", "local_attention.LocalAttention(exact_windowsize=True)") | {
    "sizes": (3, 70, 2, 2, 4)
}


@oracle("local", "local(window=4)", **LOCAL)
@oracle("local_causal", "local(window=4)", causal=True, **LOCAL)
def local(e: Example) -> torch.Tensor:
    """Its window_size is a block size; with one block each way and exact_windowsize, the window is
    |i - j| <= 4."""
    module = LocalAttention(
        4, causal=e.causal, autopad=True, exact_windowsize=True, use_rotary_pos_emb=False
    )
    return module(*(t.transpose(1, 2) for t in (e.q, e.k, e.v)), mask=e.valid).transpose(1, 2)


@oracle("local_alibi_causal", "local(window=4)", causal=True, slopes=(0.5, 0.0625), **LOCAL)
def local_alibi(e: Example) -> torch.Tensor:
    """Its bias is of each query of a block on the block before and its own."""
    i, j = torch.arange(4)[:, None] + 4, torch.arange(8)
    module = LocalAttention(
        4, causal=True, autopad=True, exact_windowsize=True, use_rotary_pos_emb=False
    )
    bias = -torch.tensor(e.slopes)[:, None, None] * abs(i - j)
    return module(
        *(t.transpose(1, 2) for t in (e.q, e.k, e.v)), mask=e.valid, attn_bias=bias
    ).transpose(1, 2)


@oracle(
    "linformer",
    "linformer(rank=5)",
    params={"E": (2, 5, 25), "F": (2, 5, 25)},
    **by("linformer", "linformer.LinformerSelfAttention, one for each head"),
)
@oracle(
    "linformer_kv",
    "linformer(rank=5, sharing='kv')",
    params={"E": (2, 5, 25)},
    **by("linformer", "linformer.LinformerSelfAttention, one for each head"),
)
def linformer(e: Example) -> torch.Tensor:
    """Built for 25 tokens and given 22. It knows no mask: padded keys and values are set to zero
    before it."""
    batch, length, heads, width = e.q.shape
    outputs = []
    for h in range(heads):
        module = LinformerSelfAttention(width, 25, k=5, heads=1).double()
        module.to_q = Give(e.q[:, :, h])
        module.to_k, module.to_v = (Give(t[:, :, h] * e.valid[..., None]) for t in (e.k, e.v))
        module.to_out = nn.Identity()
        del module.proj_k, module.proj_v
        module.proj_k, module.proj_v = (e.params.get(name, e.params["E"])[h].T for name in "EF")
        outputs.append(module(torch.zeros(batch, length, width)))
    return torch.stack(outputs, 2)


@oracle(
    "linear", "linear", **by("performer-pytorch", "performer_pytorch.linear_attention of elu + 1")
)
def linear(e: Example) -> torch.Tensor:
    """Features of padded keys are zero."""
    q, k, v = (t.transpose(1, 2) for t in (e.q, e.k, e.v))
    phi_q, phi_k = (nn.functional.elu(t) + 1 for t in (q, k))
    return performer_pytorch.linear_attention(
        phi_q, phi_k * e.valid[:, None, :, None], v
    ).transpose(1, 2)


PERFORMER = by(
    "performer-pytorch", "performer_pytorch.softmax_kernel with eps=0, and its linear attention"
) | {"given": {"projections": np.random.default_rng(6).standard_normal((2, 6, 4))}}


@oracle("performer", "performer(features=6)", **PERFORMER)
@oracle("performer_causal", "performer(features=6)", causal=True, **PERFORMER)
@without_padding
def performer(e: Example) -> torch.Tensor:
    """With an epsilon its causal form errs by much more than that."""
    return favor(
        e,
        lambda t, w, is_query: performer_pytorch.softmax_kernel(
            t, projection_matrix=w, is_query=is_query, eps=0.0
        ),
    )


@oracle(
    "performer_relu",
    "performer(features=6, kernel='relu')",
    **PERFORMER | {"by": "performer_pytorch.generalized_kernel, and its linear attention"},
)
@without_padding
def performer_relu(e: Example) -> torch.Tensor:
    """Its kernel_epsilon is 0.001."""
    return favor(
        e, lambda t, w, is_query: performer_pytorch.generalized_kernel(t, projection_matrix=w)
    )


def favor(e: Example, phi: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Their linear attention of features `phi`, with a matrix for each head, where theirs is of
    all."""
    outputs = []
    for h in range(e.q.shape[2]):
        q, k, v = (t[:, None, :, h] for t in (e.q, e.k, e.v))
        w = torch.tensor(e.given["projections"][h])
        phi_q, phi_k = phi(q, w, is_query=True), phi(k, w, is_query=False)
        out = (
            performer_pytorch.causal_linear_attention_noncuda(phi_q, phi_k, v, eps=0.0)
            if e.causal
            else performer_pytorch.linear_attention(phi_q, phi_k, v)
        )
        outputs.append(out[:, 0])
    return torch.stack(outputs, 2)


BLOCK = by("local-attention", "local_attention.LocalAttention(look_backward=0, look_forward=0)")


@oracle("block", "block(size=5)", **BLOCK)
@oracle("block_causal", "block(size=5)", causal=True, **BLOCK)
def block(e: Example) -> torch.Tensor:
    """22 tokens: the last block is short."""
    module = LocalAttention(
        5, causal=e.causal, look_backward=0, look_forward=0, autopad=True, use_rotary_pos_emb=False
    )
    return module(*(t.transpose(1, 2) for t in (e.q, e.k, e.v)), mask=e.valid).transpose(1, 2)


@oracle(
    "nystrom",
    "nystrom(landmarks=4)",
    sizes=(3, 24, 2, 4, 8),
    invalid=[(), tuple(range(16, 24)), (0, 1, 12, 13)],
    **by("nystrom-attention", "nystrom_attention.NystromAttention(residual=False)"),
)
@without_padding
def nystrom(e: Example) -> torch.Tensor:
    """Multiples of 4 valid tokens: it would pad others. Each head apart: it takes the largest sum
    of all matrices."""
    heads, width, outputs = *e.q.shape[2:], []
    for h in range(heads):
        module = NystromAttention(
            width, dim_head=width, heads=1, num_landmarks=4, residual=False
        ).double()
        module.to_qkv = Give(torch.cat([t[:, :, h] for t in (e.q, e.k, e.v)], -1))
        module.to_out = nn.Identity()
        outputs.append(module(e.x))
    return torch.stack(outputs, 2)


@oracle(
    "sinkhorn",
    "sinkhorn(block=4, iterations=5, temperature=0.7)",
    params={"W": (2, 8, 7)},
    scale=0.2,
    sizes=(2, 24, 2, 4, 8),
    invalid=[(), tuple(range(16, 24))],
    **by(
        "sinkhorn-transformer", "sinkhorn_transformer.sinkhorn_sorting_operator and reorder_buckets"
    ),
)
@without_padding
def sinkhorn(e: Example) -> torch.Tensor:
    """Built for 7 blocks, and given 6 and 4. Its pure functions only: the module adds noise even in
    evaluation, and gives sorted keys for sorted values."""
    outputs = []
    for h in range(e.q.shape[2]):
        q, k, v = (
            sinkhorn_transformer.bucket(e.q.shape[1] // 4, t[:, :, h]) for t in (e.q, e.k, e.v)
        )
        sums = torch.cat([q.sum(2), k.sum(2)], -1)
        order = sinkhorn_transformer.sinkhorn_sorting_operator(
            sums @ e.params["W"][h, :, : q.shape[1]] / 0.7, 5
        )
        keys, values = (
            torch.cat([sinkhorn_transformer.reorder_buckets(t, order), t], 2) for t in (k, v)
        )
        outputs.append(
            sinkhorn_transformer.unbucket(
                nn.functional.scaled_dot_product_attention(q, keys, values)
            )
        )
    return torch.stack(outputs, 2)


class Rotated(LSHAttention):
    """Hashes by rotations that are given, `[hashes, D, buckets / 2]`."""

    rotations: torch.Tensor

    def hash_vectors(self, n_buckets: int, vecs: torch.Tensor, **_: Any) -> torch.Tensor:
        """As the original, but for where the rotations and the number of buckets come from."""
        rotated = torch.einsum("btd,hdr->bhtr", vecs, self.rotations)
        buckets = torch.cat([rotated, -rotated], -1).argmax(-1)
        count = 2 * self.rotations.shape[-1]
        return (buckets + count * torch.arange(self.n_hashes)[None, :, None]).flatten(1)


REFORMER = by("reformer-pytorch", "reformer_pytorch.LSHAttention(attend_across_buckets=False)") | {
    "sizes": (3, 24, 2, 4, 8),
    "invalid": [(), tuple(range(16, 24)), (0, 1, 2, 11, 12, 17, 18, 20)],
    "given": {"rotations": np.random.default_rng(5).standard_normal((2, 2, 4, 2))},
}


@oracle("reformer", "reformer(buckets=4, hashes=2, chunk=4)", **REFORMER)
@without_padding
def reformer(e: Example) -> torch.Tensor:
    """Numbers of valid tokens are multiples of two chunks, as it needs."""
    outputs = []
    for h in range(e.q.shape[2]):
        module = Rotated(bucket_size=4, n_hashes=2, attend_across_buckets=False).eval()
        module.rotations = torch.tensor(e.given["rotations"][h])
        outputs.append(module(e.q[:, :, h], e.v[:, :, h])[0])
    return torch.stack(outputs, 2)


@oracle(
    "reformer_short",
    "reformer(buckets=4, hashes=2, chunk=8)",
    sizes=(2, 16, 2, 4, 8),
    padding=False,
    **by("reformer-pytorch", "reformer_pytorch.LSHAttention(attend_across_buckets=True)"),
)
def reformer_short(e: Example) -> torch.Tensor:
    """Two chunks hold everything: attention over all tokens, whatever their buckets."""
    module = LSHAttention(bucket_size=8, n_hashes=1).eval()
    return torch.stack([module(e.q[:, :, h], e.v[:, :, h])[0] for h in range(e.q.shape[2])], 2)
