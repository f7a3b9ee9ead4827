"""Presets, and the defaults that come with a strategy."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dartformer import strategies
from dartformer.attention import parse
from dartformer.attention.base import POSITIONS
from dartformer.config.sections import ALPHAS
from dartformer.training.optimizer import Optimizer

SECOND_OPINION = "masked_drop(fine_tune=0)"
"""The second opinion beside the architecture weights by default: the loss that rises without a
candidate (arXiv 2108.04392)."""

RECOMMENDED: dict[str, dict[str, Any]] = {
    # What finds planted answers most reliably (experiments/benchmarks/README.md): a slower rate of
    # the architecture weights, which a quick learner does not carry away, and the loss without a
    # candidate where they are undecided between some.
    "darts": {
        "search.alphas.learning_rate": 0.05,
        "derive.rule": "masked_drop(fine_tune=0, equals='weight')",
        "derive.second_opinion": "argmax",
    },
}
"""What the recommended preset changes of a strategy's own defaults."""

BIASES: dict[str, object] = {
    "model.qkv_bias": True,
    "model.out_bias": True,
    "model.mlp_bias": True,
}

NO_BIASES: dict[str, object] = {
    "model.qkv_bias": False,
    "model.out_bias": False,
    "model.mlp_bias": False,
    "model.head_bias": False,
}

# Radford et al. 2019.
GPT2: dict[str, object] = {
    **BIASES,
    "model.head_bias": False,
    "model.norm_eps": 1e-5,
    "model.activation": "gelu_tanh",
    "model.positions": "learned",
}

# Devlin et al. 2018, arXiv:1810.04805.
BERT: dict[str, object] = {
    **BIASES,
    "model.norm_eps": 1e-12,
    "model.norm_place": "after",
    "model.embed_norm": True,
    "model.activation": "gelu",
    "model.positions": "learned",
    "model.token_types": 2,
}

# Touvron et al. 2023, arXiv:2302.13971.
LLAMA: dict[str, object] = {
    **NO_BIASES,
    "model.norm": "rms",
    "model.norm_eps": 1e-5,
    "model.activation": "silu",
    "model.gated_mlp": True,
    "model.positions": "rotary",
}

# Yang et al. 2025, arXiv:2505.09388.
QWEN3: dict[str, object] = {
    **LLAMA,
    "model.norm_eps": 1e-6,
    "model.rope_theta": 1_000_000.0,
    "model.qk_norm": True,
    "model.qk_norm_shared": True,
}

PRESETS: dict[str, dict[str, object]] = {
    # Shared projections, normalised branches, weights alone for a third of the search, then a fast
    # Adam on the architecture weights; and `RECOMMENDED`.
    "recommended": {},
    # The settings of the DARTS paper and code (arXiv 1806.09055, cnn/train_search.py).
    "published": {
        "search.strategy.hypergradient": "second",
        "search.strategy.warmup": 0.0,
        "search.weights.name": "sgd",
        "search.weights.learning_rate": 0.025,
        "search.weights.final": 0.04,
        "search.weights.warmup": 0.0,
        "search.weights.momentum": 0.9,
        "search.weights.weight_decay": 3e-4,
        "search.weights.clip": 5.0,
        "search.alphas.name": "adam",
        "search.alphas.learning_rate": 3e-4,
        "search.alphas.schedule": "constant",
        "search.alphas.b1": 0.5,
        "search.alphas.b2": 0.999,
        "search.alphas.weight_decay": 1e-3,
        "search.alphas.clip": 0.0,
        "derive.rule": "argmax",
        "derive.second_opinion": SECOND_OPINION,
    },
    # The blocks of well-known models. Sizes stay those of the config, and so does the norm of the
    # branches, because a mixture needs it.
    "gpt2": GPT2,
    "bert": BERT,
    "llama": LLAMA,
    "qwen3": QWEN3,
}
"""What each preset changes of the defaults. All but "published" keep the recommended search."""


MODELS = ("gpt2", "bert", "llama", "qwen3")
"""The presets that are blocks of well-known models."""


def with_positions(candidates: Iterable[str], positions: str) -> tuple[str, ...]:
    """The candidates that work with the positions of a preset."""
    fitting = []
    for text in candidates:
        traits = parse(text).traits
        inside = positions in POSITIONS and traits.reads & {"q", "k"}
        if not inside or positions in traits.positions:
            fitting.append(text)
    return tuple(fitting)


@dataclass(frozen=True)
class StrategyDefaults:
    """The fields whose defaults come with a strategy.

    Attributes:
      options: `search.strategy`, its name among them.
      projections: `search.projections`.
      alphas: `search.alphas`.
      rule: `derive.rule`.
      second_opinion: `derive.second_opinion`.
    """

    options: Mapping[str, object]
    projections: str
    alphas: Optimizer
    rule: str
    second_opinion: str


def strategy_defaults(name: str) -> StrategyDefaults:
    """What a strategy brings to a config; raises `InputError` for a name that does not exist."""
    traits = strategies.make(name, {}).traits
    recommended = RECOMMENDED.get(name, {})
    rate = recommended.get("search.alphas.learning_rate", ALPHAS.learning_rate)
    opinion = ""
    if "masked_drop" in traits.derivations[1:]:
        opinion = SECOND_OPINION
    return StrategyDefaults(
        options={"name": name, **field_defaults(strategies.find(name))},
        projections=traits.projections,
        alphas=dataclasses.replace(ALPHAS, learning_rate=rate),
        rule=recommended.get("derive.rule", traits.derivations[0]),
        second_opinion=recommended.get("derive.second_opinion", opinion),
    )


def field_defaults(cls: type) -> dict[str, Any]:
    """The fields of a dataclass that have a default, with it."""
    defaults = {}
    for field in dataclasses.fields(cls):
        # A section or a list has a factory in place of a default.
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
    return defaults
