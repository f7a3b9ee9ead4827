"""The sizes and choices of a Transformer, and which of them work together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dartformer.attention.base import Shape
from dartformer.errors import InputError, seed_problem, unknown
from dartformer.fields import check_types
from dartformer.kernels.flash import KERNELS, choose
from dartformer.kernels.target import Target

STEMS = ("none", "bigram")
POSITIONS = ("learned", "sinusoidal", "rotary", "alibi", "none")
POOLING = ("mean", "cls", "last", "none", "decode")
CLASSIFIERS = ("linear", "mlp", "none")
NORMS = ("layer", "rms")
NORM_PLACES = ("before", "after")
ACTIVATIONS = ("gelu_tanh", "gelu", "silu", "relu")
OUTPUT_GATES = ("none", "sigmoid", "silu")
PAIRS = ("interaction", "concat")
DTYPES = ("float32", "bfloat16", "float64")
CHOICES = {
    "stem": STEMS,
    "positions": POSITIONS,
    "pooling": POOLING,
    "classifier": CLASSIFIERS,
    "pair": PAIRS,
    "dtype": DTYPES,
    "kernel": KERNELS,
    "norm": NORMS,
    "norm_place": NORM_PLACES,
    "activation": ACTIVATIONS,
    "output_gate": OUTPUT_GATES,
}
"""The values that the named choices of `TransformerOptions` take."""

NEEDS = (
    ("rope_theta", "positions", "rotary"),
    ("nope_layers", "positions", "rotary"),
    ("position_offset", "positions", "learned"),
    ("qk_norm_shared", "qk_norm", True),
)
"""Options that have an effect only where another one has some value."""

BLOCK = (
    "norm",
    "norm_eps",
    "norm_place",
    "embed_norm",
    "qkv_bias",
    "out_bias",
    "mlp_bias",
    "head_bias",
    "activation",
    "gated_mlp",
    "rope_theta",
    "nope_layers",
    "qk_norm_shared",
    "position_offset",
    "token_types",
    "tie_embeddings",
    "output_gate",
    "short_conv",
    "logits_chunk",
)
"""The options of the block that came later: older workdirs and tables were made with their defaults."""

MOST_LAYERS = 1000
"""The deepest Transformer that was published has 1,000 layers (DeepNet, arXiv:2203.00555). A model
without search traces and compiles each of its layers, which takes minutes for so many."""

MOST_HEADS = 1024
"""Heads of a layer. Where each head can have an attention of its own, each is traced."""

MOST_CONVOLVED = 64
"""Tokens of a short convolution, which adds up so many shifted copies."""

MOST_LOGITS = 2**26
"""Bytes of the logits that a loss computes at once. A batch that needs more is slower to read from
memory than to compute in parts."""

Dimension = Any
"""A number, or a symbolic dimension of `jax.export`."""


def require_dtype(dtype: str) -> None:
    """Raise `InputError` for float64 where JAX would silently make float32 of it."""
    if dtype == "float64" and jax.dtypes.canonicalize_dtype("float64") != jnp.float64:
        raise InputError(
            "model.dtype='float64' does not work here, because JAX has 64-bit numbers switched "
            "off. Set the environment variable JAX_ENABLE_X64=1, or use model.dtype='float32'."
        )


def _require_count(name: str, value: object, least: int) -> None:
    """Raise `InputError` unless a field is a whole number of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise InputError(f"model.{name} must be a whole number of at least {least}, got {value!r}.")


@dataclass(frozen=True, kw_only=True)
class TransformerOptions:
    """What a user chooses of a Transformer: the section `model` of a config.

    Attributes:
      layers: number of layers, L.
      heads: heads of queries in each layer, H.
      head_dim: width of a head, D; heads * head_dim need not be model_dim.
      model_dim: width of the residual stream, E.
      mlp_dim: hidden width of the feed-forward layers.
      kv_heads: heads of keys and values, each shared by heads / kv_heads neighbouring heads of
        queries (Ainslie et al. 2023, arXiv:2305.13245); it must divide heads. 0: as many as heads.
      stem: what else a token's embedding holds: "none", or "bigram", a learned row for the token
        before it, so that a single layer of attention can find what follows a given token.
      positions: added to the embeddings, "learned" or "sinusoidal"; inside the attentions, where
        these can take them, "rotary" (see `rotate`) or "alibi" (see `alibi_slopes`); or "none".
      qk_norm: RMS norm of every query and key, with a learned gain for each head and number (Henry
        et al. 2020, arXiv:2010.04245; in this form Gemma Team 2025, arXiv:2503.19786), before
        positions.
      pooling: over valid tokens: "mean", "cls" (a learned token put in front), "last" (for causal
        models), "none" (an answer for every token), or "decode" (an answer for every token, read
        from the last one and a sinusoidal position by the classifier "mlp").
      classifier: "linear", or "mlp" (one hidden ReLU layer of mlp_dim, as in Long Range Arena; for
        two documents a second one of half the width).
      pair: what the classifier sees of two documents u and v: "interaction", [u, v, u*v, u-v] (as
        published for natural-language inference), or "concat", [u, v].
      dropout: rate on embeddings and on both residual branches, in training.
      attention_dropout: rate inside the attentions, in training; what it drops is the attention's
        `Traits.dropout`.
      branch_norm: parameter-free RMS norm of every attention's output, per token and head (see
        `supernet`).
      dtype: of activations and of what is multiplied with them. "bfloat16" is mixed precision:
        parameters, their gradients, the optimizer's moments, alphas, the statistics of norms,
        softmax, the states of recurrences, logits and losses stay float32, so that no loss needs
        to be scaled. "float64" makes all of these float64.
      kernel: how softmax over all tokens is computed: "auto", the first that can of "cudnn" (on a
        GPU), "splash" (on a TPU), "chunked" (no array of N x N) and "dense"; or one of these by
        name. Only "auto" lets recurrences take their kernels on a TPU.
      scan: a supernet of at least so many layers runs them as one loop, which compiles one layer in
        place of all; 0: never.
      norm: "layer", or "rms" (Zhang and Sennrich 2019, arXiv:1910.07467), which subtracts no mean and
        has no bias.
      norm_eps: what is added to the variance, or to the mean square, in these norms and in that of
        queries and keys.
      norm_place: "before" attention and feed-forward, and once at the end; or "after" each residual
        sum, as in BERT.
      embed_norm: a norm of the sum of all embeddings.
      qkv_bias: biases of queries, keys and values.
      out_bias: a bias behind the output projection of the heads.
      mlp_bias: biases of the feed-forward layers.
      head_bias: a bias of the classifier's last layer.
      activation: of the feed-forward layers: "gelu_tanh" (as in GPT-2), "gelu" (with erf, as in BERT),
        "silu" or "relu".
      gated_mlp: multiply the hidden numbers by a linear gate (Shazeer 2020, arXiv:2002.05202): with
        "silu" it is SwiGLU.
      rope_theta: base of the wavelengths of rotary positions.
      nope_layers: numbers of the layers without rotary positions, beginning at 0 (Yang et al. 2025,
        arXiv:2501.18795).
      qk_norm_shared: one gain of the q/k norm for all heads, as in Qwen3.
      position_offset: rows of the learned positions before that of the first token; 2 in RoBERTa.
      token_types: rows of learned token types; every token has the first one.
      tie_embeddings: the classifier's matrix is the table of embeddings.
      output_gate: multiply the heads' outputs by "sigmoid" or "silu" of a projection of the layer's
        input, as around GLA and gated DeltaNet.
      short_conv: tokens that a causal convolution of queries, keys and values reads, the token itself
        among them; 4 around gated DeltaNet and Mamba-2; 0 for none.
      logits_chunk: tokens whose logits a loss computes at once; 0 for all, or for as many as fit in
        64 MiB.
    """

    layers: int = 2
    heads: int = 4
    head_dim: int = 16
    model_dim: int = 64
    mlp_dim: int = 128
    kv_heads: int = 0
    stem: str = "none"
    positions: str = "learned"
    qk_norm: bool = False
    pooling: str = "mean"
    classifier: str = "linear"
    pair: str = "interaction"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    branch_norm: bool = True
    dtype: str = "float32"
    kernel: str = "auto"
    scan: int = 3
    norm: str = "layer"
    norm_eps: float = 1e-6
    norm_place: str = "before"
    embed_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = True
    head_bias: bool = True
    activation: str = "gelu_tanh"
    gated_mlp: bool = False
    rope_theta: float = 10_000.0
    nope_layers: tuple[int, ...] = ()
    qk_norm_shared: bool = False
    position_offset: int = 0
    token_types: int = 0
    tie_embeddings: bool = False
    output_gate: str = "none"
    short_conv: int = 0
    logits_chunk: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("layers", "heads", "head_dim", "model_dim", "mlp_dim"):
            _require_count(name, getattr(self, name), 1)
        for name, most in (("layers", MOST_LAYERS), ("heads", MOST_HEADS)):
            if getattr(self, name) > most:
                value = getattr(self, name)
                raise InputError(f"model.{name} must be at most {most}, got {value}.")
        for name, choices in CHOICES.items():
            choice = getattr(self, name)
            if choice not in choices:
                raise unknown(f"model.{name}", choice, choices)
        _require_count("scan", self.scan, 0)
        for name in ("dropout", "attention_dropout"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise InputError(f"model.{name} must be at least 0 and below 1, got {rate!r}.")
        kv_heads = self.kv_heads or self.heads
        if not isinstance(kv_heads, int) or kv_heads < 0 or self.heads % kv_heads:
            raise InputError(
                f"model.kv_heads must divide model.heads = {self.heads}, or be 0 for as many; "
                f"got {self.kv_heads!r}."
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise InputError(
                f"model.positions='rotary' turns pairs of numbers: model.head_dim must be even, "
                f"got {self.head_dim}."
            )
        self._check_block()

    def _check_block(self) -> None:
        """Raise `InputError` for options of the blocks that are out of range or have no effect."""
        for name in ("position_offset", "token_types", "short_conv", "logits_chunk"):
            _require_count(name, getattr(self, name), 0)
        if not 0 < self.norm_eps < 1:
            raise InputError(f"model.norm_eps must be between 0 and 1, got {self.norm_eps!r}.")
        if not 1 < self.rope_theta < math.inf:
            raise InputError(f"model.rope_theta must be above 1, got {self.rope_theta!r}.")
        if self.short_conv == 1 or self.short_conv > MOST_CONVOLVED:
            raise InputError(
                f"model.short_conv must be from 2 to {MOST_CONVOLVED}, or 0 for none, got "
                f"{self.short_conv}."
            )
        for layer in self.nope_layers:
            if not 0 <= layer < self.layers:
                raise InputError(
                    f"model.nope_layers must be numbers from 0 to {self.layers - 1}, got {layer}."
                )
        for name, needs, value in NEEDS:
            option = getattr(self, name)
            if option != getattr(TransformerOptions, name) and getattr(self, needs) != value:
                raise InputError(
                    f"model.{name}={option!r} has no effect without model.{needs}={value!r}. Set "
                    f"that, or leave model.{name} at its default."
                )


def without_defaults(options: Mapping[str, object]) -> dict[str, object]:
    """The options of a model without those of `BLOCK` that have their default.

    For fingerprints and tables: what was written before an option existed had its default.
    """
    kept = {}
    for name, value in options.items():
        plain = value
        if isinstance(value, list):  # a tuple, as JSON has it
            plain = tuple(value)
        if name not in BLOCK or plain != getattr(TransformerOptions, name):
            kept[name] = value
    return kept


@dataclass(frozen=True)
class TransformerConfig(TransformerOptions):
    """Sizes and choices of a Transformer, whatever its attentions.

    Attributes:
      vocabulary: token ids, 0 among them, which is padding.
      classes: labels.
      length: the longest input in tokens.
      causal: no token sees a later one.
      seed: of fixed randomness inside attentions (random graphs, features, rotations).
      inputs: documents of an example: 1, or 2, which one encoder reads one by one.
      features: numbers of a token, `[B, N, F]`, where tokens are not ids; 0 where they are.
      target: the device that programs are made for; None for that of this process.
    """

    vocabulary: int
    classes: int
    length: int
    causal: bool = False
    seed: int = 0
    inputs: int = 1
    features: int = 0
    target: Target | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocabulary", "classes", "length"):
            _require_count(name, getattr(self, name), 1)
        problem = seed_problem(self.seed)
        if problem:
            raise InputError(f"seed {problem}")
        # Raises where the kernel that is named cannot compute this shape.
        self.kernel_of_order(1)
        if self.causal and self.pooling in ("mean", "cls"):
            raise InputError(
                f"model.pooling={self.pooling!r} does not work with a causal task. Use 'last' or "
                f"'none'."
            )
        if self.inputs not in (1, 2):
            raise InputError(f"a model reads 1 or 2 documents, got {self.inputs!r}.")
        if self.inputs == 2 and self.labels_tokens:
            raise InputError(
                f"model.pooling={self.pooling!r} does not work with two documents because it "
                f"labels tokens. Use 'mean', 'cls' or 'last'."
            )
        if self.pooling == "decode" and self.classifier != "mlp":
            raise InputError(
                f"model.pooling='decode' does not work with model.classifier={self.classifier!r}, "
                f"because a position must choose among what the last token holds. Use 'mlp'."
            )
        if self.features and self.stem != "none":
            raise InputError(
                f"model.stem={self.stem!r} needs tokens that are ids, and this task's tokens are "
                f"numbers. Use 'none'."
            )
        if self.tie_embeddings:
            self._check_tied()
        if self.classifier == "none" and self.classes != self.pooled:
            raise InputError(
                f"model.classifier='none' gives vectors of {self.pooled} numbers, and the task has "
                f"{self.classes} classes. Use 'linear'."
            )
        if self.logits_chunk and not self.labels_tokens:
            raise InputError(
                f"model.logits_chunk={self.logits_chunk} has no effect without a label for each "
                f"token. Use 0."
            )

    def _check_tied(self) -> None:
        """Raise `InputError` where the table of embeddings cannot be the classifier's matrix."""
        reason = ""
        if self.features:
            reason = "the task's tokens are numbers and have no embeddings"
        elif self.classes != self.vocabulary:
            reason = (
                f"the task has {self.classes} classes and a vocabulary of {self.vocabulary} tokens"
            )
        elif self.classifier != "linear":
            reason = f"the classifier is {self.classifier!r} and not 'linear'"
        elif self.inputs == 2:
            reason = "the classifier reads two documents"
        if reason:
            raise InputError(
                f"model.tie_embeddings=True does not work here, because {reason}. Use False."
            )

    @property
    def labels_tokens(self) -> bool:
        """Whether there is an answer for every token."""
        return self.pooling in ("none", "decode")

    @property
    def pooled(self) -> int:
        """Width of what the classifier reads of an example."""
        if self.inputs == 1:
            return self.model_dim
        vectors = 2  # u and v
        if self.pair == "interaction":
            vectors = 4  # and u v, u - v
        return vectors * self.model_dim

    @property
    def tokens(self) -> int:
        """The longest sequence inside the network: `length`, and one more for a CLS token."""
        return self.length + (self.pooling == "cls")

    @property
    def sharing(self) -> int:
        """How many heads of queries share one of keys and values."""
        return self.heads // (self.kv_heads or self.heads)

    def logits_size(self, batch: int, length: int) -> int:
        """How many of `length` tokens a loss computes the logits of at once; 0: of all."""
        if not self.labels_tokens:
            return 0
        size = self.logits_chunk
        if not size:
            # Logits are float32 at least.
            itemsize = max(4, np.dtype(jnp.dtype(self.dtype)).itemsize)
            size = max(1, MOST_LOGITS // (itemsize * batch * self.classes))
        if size >= length:
            return 0
        # As even as possible, since the last part is filled up.
        parts = -(-length // size)
        return -(-length // parts)

    def kernel_of_order(self, order: int) -> str:
        """The kernel that full attention takes here, where it is differentiated `order` times.

        Raises:
          InputError: `kernel` does not work here.
        """
        return choose(
            self.kernel,
            jnp.dtype(self.dtype),
            self.head_dim,
            self.tokens,
            slopes=self.positions == "alibi",
            dropout=self.attention_dropout,
            order=order,
            target=self.target,
        )

    def blank(
        self, batch: Dimension, length: Dimension | None = None
    ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shapes of tokens `[B, N]`, `[B, 2, N]` or `[B, N, F]`, and of `valid`, without F."""
        if length is None:
            length = self.length
        shape: tuple[Dimension, ...] = (batch, length)
        if self.inputs == 2:
            shape = (batch, 2, length)
        valid = jax.ShapeDtypeStruct(shape, jnp.bool_)
        if self.features:
            return jax.ShapeDtypeStruct((*shape, self.features), jnp.float32), valid
        return jax.ShapeDtypeStruct(shape, jnp.int32), valid

    def attention_shape(
        self,
        heads: int | None = None,
        *,
        kv_heads: int = 0,
        batch: int = 1,
        length: int | None = None,
    ) -> Shape:
        """The `Shape` of an attention over `heads` of the heads, with `kv_heads` of keys and values."""
        if length is None:
            length = self.tokens
        return Shape(
            length=length,
            heads=heads or self.heads,
            kv_heads=kv_heads,
            head_dim=self.head_dim,
            model_dim=self.model_dim,
            batch=batch,
            itemsize=np.dtype(jnp.dtype(self.dtype)).itemsize,
        )
