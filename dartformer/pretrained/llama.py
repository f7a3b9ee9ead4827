"""Llama and its heirs: RMS norms before, rotary positions, gated MLPs, grouped keys and values.

Touvron et al. 2023, arXiv:2302.13971. SmolLM2 is a Llama; Qwen2 (arXiv:2407.10671) has biases of
queries, keys and values; Qwen3 (arXiv:2505.09388) norms them; Ministral has sliding windows in some
layers, and SmolLM3 no rotary positions in some."""

from collections.abc import Sequence

from dartformer.models.sizes import TransformerConfig
from dartformer.pretrained.base import (
    HEAD_BIAS,
    HEADS,
    LINEAR,
    OUTPUT,
    Architecture,
    Family,
    Settings,
    Tensor,
    Windowed,
    attentions,
    of_layers,
)

LAYER = (
    Tensor("norm_mixer/scale", "layers.{l}.input_layernorm.weight"),
    Tensor("mixer/projections/0/q", "layers.{l}.self_attn.q_proj.weight", HEADS),
    Tensor("mixer/projections/0/k", "layers.{l}.self_attn.k_proj.weight", HEADS),
    Tensor("mixer/projections/0/v", "layers.{l}.self_attn.v_proj.weight", HEADS),
    Tensor("mixer/projections/0/o", "layers.{l}.self_attn.o_proj.weight", OUTPUT),
    Tensor("norm_mlp/scale", "layers.{l}.post_attention_layernorm.weight"),
    Tensor("gate/kernel", "layers.{l}.mlp.gate_proj.weight", LINEAR),
    Tensor("up/kernel", "layers.{l}.mlp.up_proj.weight", LINEAR),
    Tensor("down/kernel", "layers.{l}.mlp.down_proj.weight", LINEAR),
)

QKV_BIASES = (
    Tensor("mixer/projections/0/q_bias", "layers.{l}.self_attn.q_proj.bias", HEAD_BIAS),
    Tensor("mixer/projections/0/k_bias", "layers.{l}.self_attn.k_proj.bias", HEAD_BIAS),
    Tensor("mixer/projections/0/v_bias", "layers.{l}.self_attn.v_proj.bias", HEAD_BIAS),
)

OUT_BIAS = (Tensor("out_bias", "layers.{l}.self_attn.o_proj.bias"),)

MLP_BIASES = (
    Tensor("gate/bias", "layers.{l}.mlp.gate_proj.bias"),
    Tensor("up/bias", "layers.{l}.mlp.up_proj.bias"),
    Tensor("down/bias", "layers.{l}.mlp.down_proj.bias"),
)

QK_NORMS = (
    Tensor("mixer/projections/0/q_norm", "layers.{l}.self_attn.q_norm.weight"),
    Tensor("mixer/projections/0/k_norm", "layers.{l}.self_attn.k_norm.weight"),
)


def tensors(config: TransformerConfig) -> list[Tensor]:
    """The table of a decoder."""
    layer = [*LAYER]
    if config.qkv_bias:
        layer += QKV_BIASES
    if config.out_bias:
        layer += OUT_BIAS
    if config.mlp_bias:
        layer += MLP_BIASES
    if config.qk_norm:
        layer += QK_NORMS
    table = [
        Tensor("embed/embedding", "embed_tokens.weight"),
        *of_layers(config.layers, layer),
        Tensor("norm/scale", "norm.weight"),
    ]
    if not config.tie_embeddings:
        table.append(Tensor("head/kernel", "lm_head.weight", LINEAR))
    return table


def llama(settings: Settings, dtype: str) -> Architecture:
    """The decoder of a `LlamaConfig`."""
    bias = settings.flag("attention_bias", False)
    return _decoder(settings, dtype, qkv_bias=bias, out_bias=bias)


def qwen2(settings: Settings, dtype: str) -> Architecture:
    """The decoder of a `Qwen2Config`."""
    return _decoder(settings, dtype, qkv_bias=True, kinds=_kinds_of_qwen(settings))


def qwen3(settings: Settings, dtype: str) -> Architecture:
    """The decoder of a `Qwen3Config`, whose heads have a width of 128 where it says none."""
    bias = settings.flag("attention_bias", False)
    kinds = _kinds_of_qwen(settings)
    return _decoder(
        settings, dtype, width=128, qkv_bias=bias, out_bias=bias, qk_norm=True, kinds=kinds
    )


def ministral(settings: Settings, dtype: str) -> Architecture:
    """The decoder of a `MinistralConfig`."""
    layers = settings.count("num_hidden_layers")
    settings.count("head_dim")  # it has no default
    kinds = settings.items("layer_types", layers)
    if not kinds and settings.values.get("sliding_window") is not None:
        kinds = ["sliding_attention"] * layers
    return _decoder(settings, dtype, kinds=kinds)


def smollm3(settings: Settings, dtype: str) -> Architecture:
    """The decoder of a `SmolLM3Config`."""
    layers = settings.count("num_hidden_layers")
    rotary = settings.items("no_rope_layers", layers)
    every = settings.count("no_rope_layer_interval", 4)
    nope = []
    for layer in range(layers):
        # The name says the opposite: 1 is a layer with rotary positions.
        has_rotary: object = (layer + 1) % every != 0
        if rotary:
            has_rotary = rotary[layer]
        if not has_rotary:
            nope.append(layer)
    kinds = settings.items("layer_types", layers)
    if not kinds and settings.flag("use_sliding_window", False):
        raise settings.refuse(
            "use_sliding_window", True, "layer_types does not say which layers have a window"
        )
    bias = settings.flag("attention_bias", False)
    return _decoder(
        settings,
        dtype,
        theta=2_000_000.0,
        qkv_bias=bias,
        out_bias=bias,
        tied=True,
        nope=tuple(nope),
        kinds=kinds,
    )


def _kinds_of_qwen(settings: Settings) -> Sequence[object]:
    """`layer_types`, or the layers from `max_window_layers` on, where windows are switched on."""
    layers = settings.count("num_hidden_layers")
    kinds = settings.items("layer_types", layers)
    if kinds or not settings.flag("use_sliding_window", False):
        return kinds
    full = min(layers, settings.count("max_window_layers", 28))
    return ["full_attention"] * full + ["sliding_attention"] * (layers - full)


def _decoder(
    settings: Settings,
    dtype: str,
    *,
    width: int = 0,
    theta: float = 10_000.0,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: bool = False,
    tied: bool = False,
    nope: tuple[int, ...] = (),
    kinds: Sequence[object] = (),
) -> Architecture:
    """A decoder; `width` is that of a head where the config says none, 0 for an even share."""
    layers, heads = settings.count("num_hidden_layers"), settings.count("num_attention_heads")
    model_dim, vocabulary = settings.count("hidden_size"), settings.count("vocab_size")
    config = TransformerConfig(
        vocabulary=vocabulary,
        classes=vocabulary,
        pooling="none",
        causal=True,
        length=settings.count("max_position_embeddings", 2048),
        layers=layers,
        heads=heads,
        kv_heads=settings.count("num_key_value_heads", heads),
        head_dim=settings.count("head_dim", width or model_dim // heads),
        model_dim=model_dim,
        mlp_dim=settings.count("intermediate_size"),
        positions="rotary",
        rope_theta=settings.theta(theta),
        nope_layers=nope,
        norm="rms",
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        mlp_bias=settings.flag("mlp_bias", False),
        head_bias=False,
        qk_norm=qk_norm,
        qk_norm_shared=qk_norm,
        tie_embeddings=settings.flag("tie_word_embeddings", tied),
        activation=settings.activation("hidden_act", "silu"),
        gated_mlp=True,
        branch_norm=False,
        dtype=dtype,
    )
    return Architecture(config, attentions(settings, layers, heads, kinds))


SLIDING = {"use_sliding_window": True}
"""What switches windows on in Qwen and SmolLM3."""


def _windowed_llama(config: TransformerConfig) -> Windowed:
    """Llama has no windows, and others are Llamas with them: only SmolLM3 has all its biases, too."""
    options = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads // config.sharing,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        # As transformers has it from version 5 on, and as it was before.
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
    }
    defaults = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    if not (config.qkv_bias or config.mlp_bias):
        return Windowed("ministral", "Ministral", options, defaults)
    # 1 is a layer with rotary positions.
    rotary = [1] * config.layers
    biased = {**options, **SLIDING, "no_rope_layers": rotary}
    return Windowed("smollm3", "SmolLM3", biased, defaults)


def _windowed_qwen2(config: TransformerConfig) -> Windowed:
    return Windowed("qwen2", "Qwen2", SLIDING)


def _windowed_qwen3(config: TransformerConfig) -> Windowed:
    return Windowed("qwen3", "Qwen3", SLIDING)


def _windowed_ministral(config: TransformerConfig) -> Windowed:
    return Windowed("ministral", "Ministral", {})


def _windowed_smollm3(config: TransformerConfig) -> Windowed:
    return Windowed("smollm3", "SmolLM3", SLIDING)


PREFIXES = ("", "model.")

# Wavelengths that were stored with the weights.
IGNORED = ("layers.*.self_attn.rotary_emb.inv_freq",)

LLAMA = Family("Llama, SmolLM2", llama, tensors, PREFIXES, IGNORED, _windowed_llama)
QWEN2 = Family("Qwen2", qwen2, tensors, PREFIXES, IGNORED, _windowed_qwen2)
QWEN3 = Family("Qwen3", qwen3, tensors, PREFIXES, IGNORED, _windowed_qwen3)
MINISTRAL = Family("Ministral", ministral, tensors, PREFIXES, IGNORED, _windowed_ministral)
SMOLLM3 = Family("SmolLM3", smollm3, tensors, PREFIXES, IGNORED, _windowed_smollm3)
