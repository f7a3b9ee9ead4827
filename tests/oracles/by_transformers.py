"""Oracles from transformers. Projections that would make q, k and v from x are replaced by what
gives ours."""

from typing import Any

import numpy as np
import torch
from fixture import Example, autograd, oracle, without_padding
from give import Give
from torch import nn
from transformers import BigBirdConfig, DiffLlamaConfig, FNetConfig, LongformerConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention
from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule


def by(call: str) -> dict[str, Any]:
    """What these oracles have in common."""
    return {
        "by": f"transformers' {call}",
        "packages": ("transformers", "torch", "numpy"),
        "differentiate": autograd,
    }


class Project(nn.Module):
    """A linear projection of every head, by a weight `[H, E, D]` of ours."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., E]` to `[..., H D]`."""
        return torch.einsum("...e,hed->...hd", x, self.weight).flatten(-2)


@oracle(
    "longformer",
    "longformer(window=4, globals=2)",
    sizes=(3, 72, 2, 2, 4),
    scale=0.5,
    params={f"W_{n}": (2, 4, 2) for n in "qkv"},
    **by("LongformerSelfAttention"),
)
def longformer(e: Example) -> torch.Tensor:
    """Its window counts both sides. Its mask is 0 for a local token, -10000 for padding, 10000 for
    a global one.

    In float32: its softmax is, and the lowest number of float64 would be infinite there.
    """
    batch, length, heads, width = e.q.shape
    config = LongformerConfig(
        hidden_size=heads * width,
        num_attention_heads=heads,
        attention_window=[8],
        num_hidden_layers=1,
        attention_probs_dropout_prob=0.0,
    )
    module = LongformerSelfAttention(config, 0).eval()
    for name, given in (("query", e.q), ("key", e.k), ("value", e.v)):
        setattr(module, name, Give(given.flatten(2).transpose(0, 1).float()))
        setattr(module, f"{name}_global", Project(e.params[f"W_{name[0]}"].float()))
    mask = torch.zeros(batch, length)
    mask[:, :2] = 10000.0
    mask = torch.where(e.valid, mask, -10000.0)
    out = module(
        e.x.float(),
        attention_mask=mask,
        is_index_masked=mask < 0,
        is_index_global_attn=mask > 0,
        is_global_attn=True,
    )[0]
    return out.reshape(batch, length, heads, width)


GRAPH = np.array(
    [[[3, 5], [4, 5], [1, 5], [1, 2], [3, 2]], [[5, 4], [5, 4], [5, 1], [2, 1], [1, 2]]]
)
"""Of 2 heads: the random blocks of the inner 5 of 7 blocks."""


@oracle(
    "bigbird",
    "bigbird(block=4, randoms=2, globals=1)",
    sizes=(3, 28, 2, 4, 8),
    invalid=[(), (26, 27), (0, 9, 10)],
    given={"random_blocks": np.pad(GRAPH, ((0, 0), (1, 1), (0, 0)), constant_values=-1)[None]},
    **by("BigBirdBlockSparseAttention, in training mode"),
)
def bigbird(e: Example) -> torch.Tensor:
    """In evaluation it takes block 0 for every random one, and counts it as often.

    Its last block is that of the padded length, ours that of the last valid token; so no block is
    padding here."""
    batch, length, heads, width = e.q.shape
    config = BigBirdConfig(
        hidden_size=heads * width,
        num_attention_heads=heads,
        block_size=4,
        num_random_blocks=2,
        max_position_embeddings=4096,
        attention_type="block_sparse",
        attention_probs_dropout_prob=0.0,
    )
    module = BigBirdBlockSparseAttention(config, seed=0).train()
    module._bigbird_block_rand_mask_with_head = lambda **_: list(
        e.given["random_blocks"][0, :, 1:-1]
    )
    for name, given in (("query", e.q), ("key", e.k), ("value", e.v)):
        setattr(module, name, Give(given.flatten(2)))
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
        e.valid.double(), 4
    )
    out = module(
        e.x,
        band_mask=band,
        from_mask=rows,
        to_mask=columns,
        from_blocked_mask=blocked,
        to_blocked_mask=blocked,
    )[0]
    return out.reshape(batch, length, heads, width)


DIFFERENTIAL = by("DiffLlamaAttention, without its norm") | {
    "params": {f"lambda_{n}": (2, 2) for n in ("q1", "k1", "q2", "k2")}
}


@oracle("differential", "differential(lambda_init=0.7)", **DIFFERENTIAL)
@oracle("differential_causal", "differential(lambda_init=0.7)", causal=True, **DIFFERENTIAL)
def differential(e: Example) -> torch.Tensor:
    """One module for each head, since its lambdas are of all heads. Its pair of heads are the two
    halves of q and k.

    The norm of its output and the factor behind that are no part of ours.
    """
    batch, length, heads, width = e.q.shape
    half, outputs = width // 2, []
    config = DiffLlamaConfig(
        hidden_size=width,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=half,
        attn_implementation="eager",
    )
    allowed = e.valid[:, None, None, :]
    if e.causal:
        allowed = allowed & torch.ones(length, length, dtype=torch.bool).tril()
    allowed = allowed | torch.eye(length, dtype=torch.bool)
    mask = torch.where(allowed, 0.0, -torch.inf).double()
    still = torch.ones(batch, length, half).double(), torch.zeros(batch, length, half).double()
    for h in range(heads):
        module = DiffLlamaAttention(config, 0).double()
        module.q_proj, module.k_proj, module.v_proj = (Give(t[:, :, h]) for t in (e.q, e.k, e.v))
        module.o_proj = module.groupnorm = nn.Identity()
        module.lambda_init = 0.7
        for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
            delattr(module, name)
            setattr(module, name, e.params[name][h])
        outputs.append(module(e.x, still, mask)[0] / (1 - 0.7))
    return torch.stack(outputs, 2)


@oracle("fourier", "fourier", **by("FNetBasicFourierTransform"))
@without_padding
def fourier(e: Example) -> torch.Tensor:
    """Of the values of one head; scaled to be unitary, as ours is."""
    transform = FNetBasicFourierTransform(FNetConfig(use_tpu_fourier_optimizations=False))
    return torch.stack([transform(e.v[:, :, h])[0] for h in range(e.v.shape[2])], 2) / (
        e.v[0, :, 0].numel() ** 0.5
    )


@oracle(
    "ssd_causal",
    "ssd",
    causal=True,
    params={"dt": (2, 4), "dt_bias": (2,), "A_log": (2,), "D": (2,)},
    sizes=(3, 70, 2, 2, 4),
    **by("mamba2_chunk_scan, the scan of Mamba2Mixer"),
)
@without_padding
def ssd(e: Example) -> torch.Tensor:
    """q, k, v are its C, B and hidden states, with as many groups as heads."""
    dt = torch.einsum("bne,he->bnh", e.x, e.params["dt"])
    return mamba2_chunk_scan(
        e.v,
        dt,
        -e.params["A_log"].exp(),
        e.k,
        e.q,
        chunk_size=16,
        D=e.params["D"],
        dt_bias=e.params["dt_bias"],
        dt_softplus=True,
    )


@oracle(
    "gated_delta_chunk_causal",
    "gated_delta",
    causal=True,
    sizes=(3, 24, 2, 4, 8),
    params={"alpha": (2, 8), "beta": (2, 8), "A_log": (2,), "dt_bias": (2,)},
    **by("torch_chunk_gated_delta_rule, the scan of Qwen3Next's gated DeltaNet"),
)
@without_padding
def gated_delta(e: Example) -> torch.Tensor:
    """It normalises q and k itself."""
    dt = nn.functional.softplus(
        torch.einsum("bne,he->bnh", e.x, e.params["alpha"]) + e.params["dt_bias"]
    )
    return torch_chunk_gated_delta_rule(
        e.q,
        e.k,
        e.v,
        g=-e.params["A_log"].exp() * dt,
        use_qk_l2norm_in_kernel=True,
        beta=torch.einsum("bne,he->bnh", e.x, e.params["beta"]).sigmoid(),
    )[0]
