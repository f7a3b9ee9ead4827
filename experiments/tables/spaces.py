"""The search spaces that are trained whole, each as a config by the name of its table."""

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

import dartformer

LINEAR_TIME = ("local(window=8)", "linear", "retention", "gated_delta", "conv", "ssd")
"""The types of the two-layer tables: all cost time linear in the length."""

BOTH_WAYS = (
    "full",
    "fourier",
    "local(window=8)",
    "linear",
    "longformer(window=8)",
    "conv",
    "linformer(rank=16)",
    "identity",
    "uniform",
)
"""The types of the tables whose tasks are not causal."""

NINTHS = 9
"""Looks at a training, evenly spaced, on which rungs are replayed."""


def _sizes(config: ConfigDict, layers: int, heads: int, head_dim: int, width: int) -> None:
    """Set the sizes of the Transformer; the feed-forward layer is twice as wide as the model."""
    config.model.layers = layers
    config.model.heads = heads
    config.model.head_dim = head_dim
    config.model.model_dim = width
    config.model.mlp_dim = 2 * width


def _training(config: ConfigDict, steps: int, batch_size: int, rate: float) -> None:
    """Set the training, and a search that is as long and learns as fast."""
    config.data.batch_size = batch_size
    config.retrain.steps = config.search.steps = steps
    config.retrain.seeds = (0, 1, 2)
    config.retrain.program = "shared"
    config.retrain.optimizer.learning_rate = rate
    config.search.weights.learning_rate = rate


def mqar_2(data: Path) -> ConfigDict:
    """Multi-query recall without a stem, two layers, 36 models."""
    config = dartformer.defaults(task="recall")
    config.task.length = 32
    config.task.pairs = 4
    config.task.keys = 32
    _sizes(config, layers=2, heads=4, head_dim=16, width=64)
    _training(config, steps=405, batch_size=32, rate=0.005)
    config.space.candidates = LINEAR_TIME
    config.space.granularity = "layer"
    return config


def shakespeare_2(data: Path) -> ConfigDict:
    """Characters of tinyshakespeare, two layers, 36 models."""
    config = _shakespeare(data)
    _sizes(config, layers=2, heads=2, head_dim=16, width=32)
    _training(config, steps=270, batch_size=16, rate=0.005)
    config.space.candidates = LINEAR_TIME
    config.space.granularity = "layer"
    return config


def compositional_2(data: Path) -> ConfigDict:
    """Recall by two keys together, two layers, 36 models."""
    config = dartformer.defaults(task="compositional_recall")
    config.task.length = 36
    config.task.grid = 2
    config.task.keys = 16
    _sizes(config, layers=2, heads=2, head_dim=32, width=64)
    _training(config, steps=405, batch_size=16, rate=0.005)
    config.model.positions = "none"
    config.space.candidates = LINEAR_TIME
    config.space.granularity = "layer"
    return config


def mqar_4(data: Path) -> ConfigDict:
    """Multi-query recall without a stem, four layers, 81 models."""
    config = dartformer.defaults(task="recall")
    config.task.length = 32
    config.task.pairs = 4
    config.task.keys = 32
    _sizes(config, layers=4, heads=2, head_dim=16, width=32)
    _training(config, steps=405, batch_size=32, rate=0.01)
    config.space.candidates = ("linear", "gated_delta", "conv")
    config.space.granularity = "layer"
    return config


# One attention everywhere.


def listops(data: Path) -> ConfigDict:
    """ListOps read from a CLS token, the nine types of DARTFormer."""
    config = dartformer.defaults(task="listops")
    config.task.max_depth = 3
    config.task.max_args = 4
    config.task.min_length = 8
    config.task.max_length = 64
    config.task.train = 10_000
    config.task.valid = 1_000
    config.task.test = 2_000
    _sizes(config, layers=1, heads=4, head_dim=8, width=32)
    _training(config, steps=360, batch_size=16, rate=0.003)
    config.model.pooling = "cls"
    config.space.candidates = (
        "bigbird(block=4, randoms=1)",
        "linear",
        "linformer(rank=16)",
        "block(size=16)",
        "longformer(window=8)",
        "performer(features=16, kernel='relu')",
        "sparse(stride=16, summary=2)",
        "reformer(buckets=4, hashes=1, chunk=8)",
        "synthesizer(mode='factorised', rank=8)",
    )
    config.space.granularity = "model"
    return config


def planted_recall_short(data: Path) -> ConfigDict:
    """The planted recall in so few steps that `full` finds it late."""
    config = planted_recall(data)
    config.retrain.steps = config.search.steps = 270
    return config


def planted_recall(data: Path) -> ConfigDict:
    """The planted recall, eleven types."""
    config = dartformer.defaults(task="planted")
    config.task.kind = "recall"
    _sizes(config, layers=1, heads=2, head_dim=16, width=32)
    _training(config, steps=450, batch_size=16, rate=0.005)
    config.model.stem = "bigram"
    config.space.candidates = (
        "full",
        "local(window=4)",
        "strided(stride=8)",
        "linear",
        "linformer(rank=8)",
        "performer(features=16, kernel='relu')",
        "retention",
        "gated_delta",
        "fourier",
        "uniform",
        "identity",
    )
    config.space.granularity = "model"
    return config


def mqar(data: Path) -> ConfigDict:
    """Multi-query recall with a bigram stem, one layer, nine types."""
    config = dartformer.defaults(task="recall")
    config.task.length = 32
    config.task.pairs = 4
    config.task.keys = 32
    _sizes(config, layers=1, heads=4, head_dim=16, width=64)
    _training(config, steps=270, batch_size=32, rate=0.01)
    config.model.stem = "bigram"
    config.space.candidates = ("full", "cosformer", *LINEAR_TIME, "uniform")
    config.space.granularity = "model"
    return config


def shakespeare(data: Path) -> ConfigDict:
    """Characters of tinyshakespeare, nine types."""
    config = _shakespeare(data)
    _sizes(config, layers=1, heads=2, head_dim=16, width=32)
    _training(config, steps=270, batch_size=16, rate=0.005)
    config.space.candidates = ("full", "cosformer", *LINEAR_TIME, "uniform")
    config.space.granularity = "model"
    return config


def image(data: Path) -> ConfigDict:
    """Grey CIFAR-10 in patches of 4 x 4 pixels, nine types."""
    config = dartformer.defaults(task="image")
    config.task.path = str(data / "cifar10_gray")
    config.task.patch = 4
    config.task.valid_fraction = 0.02
    _sizes(config, layers=1, heads=2, head_dim=16, width=32)
    _training(config, steps=360, batch_size=16, rate=0.005)
    config.space.candidates = BOTH_WAYS
    config.space.granularity = "model"
    return config


def imdb(data: Path) -> ConfigDict:
    """The first and last words of IMDb reviews, nine types."""
    config = dartformer.defaults(task="imdb_tokens")
    config.task.path = str(data / "imdb")
    config.task.length = 128
    config.task.crop = "ends"
    config.task.valid_fraction = 0.04
    _sizes(config, layers=1, heads=2, head_dim=16, width=32)
    _training(config, steps=270, batch_size=16, rate=0.01)
    config.data.eval_batch_size = 100
    config.model.dropout = 0.3
    config.space.candidates = BOTH_WAYS
    config.space.granularity = "model"
    return config


def _shakespeare(data: Path) -> ConfigDict:
    """The task of tinyshakespeare in windows of 64 characters."""
    config = dartformer.defaults(task="language")
    config.task.path = str(data / "tinyshakespeare.txt.xz")
    config.task.length = 64
    config.task.vocabulary_size = 96
    config.task.valid_fraction = 0.02
    return config


SPACES: dict[str, Callable[[Path], ConfigDict]] = {
    "mqar_2": mqar_2,
    "shakespeare_2": shakespeare_2,
    "compositional_2": compositional_2,
    "mqar_4": mqar_4,
    "listops": listops,
    "planted_recall": planted_recall,
    "planted_recall_short": planted_recall_short,
    "mqar": mqar,
    "shakespeare": shakespeare,
    "image": image,
    "imdb": imdb,
}
"""data folder -> config, by the name of the table."""
