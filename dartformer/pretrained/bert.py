"""BERT and RoBERTa: encoders whose outputs are the last hidden states.

Devlin et al. 2018, arXiv:1810.04805; Liu et al. 2019, arXiv:1907.11692."""

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
    attentions,
    of_layers,
)

EMBEDDINGS = (
    Tensor("embed/embedding", "embeddings.word_embeddings.weight"),
    Tensor("positions", "embeddings.position_embeddings.weight"),
    Tensor("types", "embeddings.token_type_embeddings.weight"),
    Tensor("embed_norm/scale", "embeddings.LayerNorm.weight"),
    Tensor("embed_norm/bias", "embeddings.LayerNorm.bias"),
)

LAYER = (
    Tensor("mixer/projections/0/q", "encoder.layer.{l}.attention.self.query.weight", HEADS),
    Tensor("mixer/projections/0/k", "encoder.layer.{l}.attention.self.key.weight", HEADS),
    Tensor("mixer/projections/0/v", "encoder.layer.{l}.attention.self.value.weight", HEADS),
    Tensor("mixer/projections/0/q_bias", "encoder.layer.{l}.attention.self.query.bias", HEAD_BIAS),
    Tensor("mixer/projections/0/k_bias", "encoder.layer.{l}.attention.self.key.bias", HEAD_BIAS),
    Tensor("mixer/projections/0/v_bias", "encoder.layer.{l}.attention.self.value.bias", HEAD_BIAS),
    Tensor("mixer/projections/0/o", "encoder.layer.{l}.attention.output.dense.weight", OUTPUT),
    Tensor("out_bias", "encoder.layer.{l}.attention.output.dense.bias"),
    Tensor("norm_mixer/scale", "encoder.layer.{l}.attention.output.LayerNorm.weight"),
    Tensor("norm_mixer/bias", "encoder.layer.{l}.attention.output.LayerNorm.bias"),
    Tensor("up/kernel", "encoder.layer.{l}.intermediate.dense.weight", LINEAR),
    Tensor("up/bias", "encoder.layer.{l}.intermediate.dense.bias"),
    Tensor("down/kernel", "encoder.layer.{l}.output.dense.weight", LINEAR),
    Tensor("down/bias", "encoder.layer.{l}.output.dense.bias"),
    Tensor("norm_mlp/scale", "encoder.layer.{l}.output.LayerNorm.weight"),
    Tensor("norm_mlp/bias", "encoder.layer.{l}.output.LayerNorm.bias"),
)


def tensors(config: TransformerConfig) -> list[Tensor]:
    """The table of an encoder."""
    return [*EMBEDDINGS, *of_layers(config.layers, LAYER)]


def bert(settings: Settings, dtype: str) -> Architecture:
    """The encoder of a `BertConfig`."""
    return _encoder(settings, dtype, 0)


def roberta(settings: Settings, dtype: str) -> Architecture:
    """The encoder of a `RobertaConfig`, whose first token has the row after that of padding."""
    return _encoder(settings, dtype, settings.count("pad_token_id", 1, least=0) + 1)


def _encoder(settings: Settings, dtype: str, offset: int) -> Architecture:
    for name in ("is_decoder", "add_cross_attention"):
        settings.require(name, False, "the family is read as an encoder")
    kind = settings.text("position_embedding_type", "absolute")
    if kind != "absolute":
        raise settings.refuse("position_embedding_type", kind, "positions are 'absolute' here")
    layers, heads = settings.count("num_hidden_layers"), settings.count("num_attention_heads")
    width = settings.count("hidden_size")
    config = TransformerConfig(
        vocabulary=settings.count("vocab_size"),
        # Without a head the outputs are vectors of the model width.
        classes=width,
        classifier="none",
        pooling="none",
        length=settings.count("max_position_embeddings") - offset,
        layers=layers,
        heads=heads,
        head_dim=width // heads,
        model_dim=width,
        mlp_dim=settings.count("intermediate_size"),
        position_offset=offset,
        token_types=settings.count("type_vocab_size", 2),
        norm_eps=settings.number("layer_norm_eps", 1e-12),
        norm_place="after",
        embed_norm=True,
        qkv_bias=True,
        out_bias=True,
        activation=settings.activation("hidden_act", "gelu"),
        branch_norm=False,
        dtype=dtype,
    )
    return Architecture(config, attentions(settings, layers, heads, ()))


IGNORED = ("pooler.*", "embeddings.position_ids", "cls.*", "lm_head.*", "classifier.*")
"""Heads of other tasks, and a buffer."""

BERT = Family("BERT", bert, tensors, ("", "bert."), IGNORED)

ROBERTA = Family("RoBERTa", roberta, tensors, ("", "roberta."), IGNORED)
