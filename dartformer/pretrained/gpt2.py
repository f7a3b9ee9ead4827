"""GPT-2: a decoder with learned positions, whose linear layers store `[in, out]`.

Radford et al. 2019, "Language models are unsupervised multitask learners"."""

import numpy as np

from dartformer.models.sizes import TransformerConfig
from dartformer.pretrained.base import (
    Architecture,
    Axes,
    Family,
    Layout,
    Settings,
    Tensor,
    attentions,
    of_layers,
)


def _joint_heads(part: int) -> Layout:
    """Queries (0), keys (1) or values (2) of `[E, 3 H D]`."""

    def shape(ours: Axes) -> Axes:
        e, h, d = ours
        return e, 3 * h * d

    def convert(x: np.ndarray, ours: Axes) -> np.ndarray:
        e, h, d = ours
        return x.reshape(e, 3, h, d)[:, part]

    return Layout(shape, convert)


def _joint_bias(part: int) -> Layout:
    """Their biases, of `[3 H D]`."""

    def shape(ours: Axes) -> Axes:
        h, d = ours
        return (3 * h * d,)

    def convert(x: np.ndarray, ours: Axes) -> np.ndarray:
        return x.reshape(3, *ours)[part]

    return Layout(shape, convert)


def _output_shape(ours: Axes) -> Axes:
    h, d, e = ours
    return h * d, e


OUTPUT = Layout(_output_shape, lambda x, ours: x.reshape(ours))
"""The output projection, `[H D, E]` to `[H, D, E]`."""

LAYER = (
    Tensor("norm_mixer/scale", "h.{l}.ln_1.weight"),
    Tensor("norm_mixer/bias", "h.{l}.ln_1.bias"),
    Tensor("mixer/projections/0/q", "h.{l}.attn.c_attn.weight", _joint_heads(0)),
    Tensor("mixer/projections/0/k", "h.{l}.attn.c_attn.weight", _joint_heads(1)),
    Tensor("mixer/projections/0/v", "h.{l}.attn.c_attn.weight", _joint_heads(2)),
    Tensor("mixer/projections/0/q_bias", "h.{l}.attn.c_attn.bias", _joint_bias(0)),
    Tensor("mixer/projections/0/k_bias", "h.{l}.attn.c_attn.bias", _joint_bias(1)),
    Tensor("mixer/projections/0/v_bias", "h.{l}.attn.c_attn.bias", _joint_bias(2)),
    Tensor("mixer/projections/0/o", "h.{l}.attn.c_proj.weight", OUTPUT),
    Tensor("out_bias", "h.{l}.attn.c_proj.bias"),
    Tensor("norm_mlp/scale", "h.{l}.ln_2.weight"),
    Tensor("norm_mlp/bias", "h.{l}.ln_2.bias"),
    Tensor("up/kernel", "h.{l}.mlp.c_fc.weight"),
    Tensor("up/bias", "h.{l}.mlp.c_fc.bias"),
    Tensor("down/kernel", "h.{l}.mlp.c_proj.weight"),
    Tensor("down/bias", "h.{l}.mlp.c_proj.bias"),
)


def tensors(config: TransformerConfig) -> list[Tensor]:
    """The table of a decoder."""
    return [
        Tensor("embed/embedding", "wte.weight"),
        Tensor("positions", "wpe.weight"),
        *of_layers(config.layers, LAYER),
        Tensor("norm/scale", "ln_f.weight"),
        Tensor("norm/bias", "ln_f.bias"),
    ]


def architecture(settings: Settings, dtype: str) -> Architecture:
    """The decoder of a `GPT2Config`."""
    settings.require("scale_attn_weights", True, "scores are divided by the root of the head width")
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        settings.require(name, False, "dartformer has no such attention")
    settings.require("tie_word_embeddings", True, "the head of the family is the embeddings' table")
    layers, heads = settings.count("n_layer"), settings.count("n_head")
    width, vocabulary = settings.count("n_embd"), settings.count("vocab_size")
    config = TransformerConfig(
        vocabulary=vocabulary,
        classes=vocabulary,
        pooling="none",
        causal=True,
        length=settings.count("n_positions"),
        layers=layers,
        heads=heads,
        head_dim=width // heads,
        model_dim=width,
        mlp_dim=settings.count("n_inner", 4 * width),
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        out_bias=True,
        head_bias=False,
        tie_embeddings=True,
        activation=settings.activation("activation_function", "gelu_new"),
        branch_norm=False,
        dtype=dtype,
    )
    return Architecture(config, attentions(settings, layers, heads, ()))


GPT2 = Family(
    "GPT-2",
    architecture,
    tensors,
    ("", "transformer."),
    # Masks that were stored with the weights; and the table of the tied head.
    ("h.*.attn.bias", "h.*.attn.masked_bias", "lm_head.weight"),
)
