"""The settings of the two papers, at their size and at one for a CPU core: DARTFormer (Brown et al.
2022, arXiv 2210.00641) and Wide Attention (2210.00640) train Long Range Arena's tasks with its
eleven types of attention.

The published settings are those of the first author's public code (a port of Long Range Arena):
optimiser, schedule, widths, lengths, options of the attentions. Which types each paper has was
inferred in part."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import dartformer
from dartformer import config as configs

TASKS = ("listops", "imdb_tokens", "imdb_bytes", "matching")

TYPES: dict[str, dict[str, str]] = {
    "published": {
        "Transformer": "full",
        "BigBird": "bigbird(block=64, randoms=3)",
        "Linear": "linear",
        "Linformer": "linformer(rank=16)",
        "Local": "block(size=50)",
        "Longformer": "longformer(window=256)",
        "Performer": "performer(features=256, kernel='relu')",
        "Sinkhorn": "sinkhorn(block=20)",
        "Sparse": "sparse(stride=50, summary=10)",
        "Reformer": "reformer(buckets=10, hashes=1, chunk=10)",
        "Synthesizer": "synthesizer(mode='factorised', rank=32)",
    },
    "cpu": {
        "Transformer": "full",
        "BigBird": "bigbird(block=4, randoms=1)",
        "Linear": "linear",
        "Linformer": "linformer(rank=16)",
        "Local": "block(size=16)",
        "Longformer": "longformer(window=8)",
        "Performer": "performer(features=16, kernel='relu')",
        "Sinkhorn": "sinkhorn(block=16)",
        "Sparse": "sparse(stride=16, summary=2)",
        "Reformer": "reformer(buckets=4, hashes=1, chunk=8)",
        "Synthesizer": "synthesizer(mode='factorised', rank=8)",
    },
}
"""The eleven. Options differ from Long Range Arena's where those were mistakes: Local's blocks are
contiguous, Sparse sees both ways, Longformer's first token is global."""

WIDE = tuple(name for name in TYPES["cpu"] if name != "Reformer")
"""The ten of Wide Attention: Reformer there has no width of its own."""

DARTFORMER = tuple(name for name in TYPES["cpu"] if name not in ("Transformer", "Sinkhorn"))
"""The nine of DARTFormer."""

DEEP: dict[str, dict[str, tuple[int, int]]] = {
    "published": {
        "listops": (6, 8),
        "imdb_bytes": (6, 8),
        "imdb_tokens": (6, 8),
        "matching": (4, 4),
    },
    "cpu": dict.fromkeys(TASKS, (4, 4)),
}
"""Layers and heads of Wide Attention's deepest shape; the others have as many heads in all."""

PUBLISHED: dict[str, Any] = {
    "model.head_dim": 64,
    "model.model_dim": 512,
    "model.mlp_dim": 2048,
    "model.positions": "sinusoidal",
    "model.pooling": "cls",
    "model.classifier": "mlp",
    "model.pair": "concat",
    "model.dropout": 0.1,
    "model.attention_dropout": 0.1,
    "model.branch_norm": False,
    "data.batch_size": 32,
    "data.eval_batch_size": 32,
    "retrain.seeds": (0, 1, 2),
    "retrain.select": "best",
    "retrain.optimizer.name": "adamw",
    "retrain.optimizer.learning_rate": 0.05,
    "retrain.optimizer.schedule": "rsqrt",
    "retrain.optimizer.b1": 0.9,
    "retrain.optimizer.b2": 0.98,
    "retrain.optimizer.eps": 1e-9,
    "retrain.optimizer.weight_decay": 0.1,
    "retrain.optimizer.clip": 0.0,
    "log.every": 100,
    "log.eval_every": 200,
    "log.checkpoint_every": 1000,
}

CPU_STEPS = {"listops": 300, "imdb_tokens": 250, "imdb_bytes": 400, "matching": 400}
"""Of a training at CPU size."""

STEPS = {
    "listops": (10_001, 1_000),
    "imdb_bytes": (30_001, 8_000),
    "imdb_tokens": (30_001, 8_000),
    "matching": (10_001, 8_000),
}
"""Steps, and of these warm-up; those of imdb_tokens are taken from imdb_bytes."""

CPU: dict[str, Any] = {
    **PUBLISHED,
    "model.head_dim": 8,
    "model.model_dim": 32,
    "model.mlp_dim": 128,
    "model.dropout": 0.0,
    "model.attention_dropout": 0.0,
    "data.batch_size": 16,
    "data.eval_batch_size": 200,
    "retrain.select": "last",
    "retrain.optimizer.learning_rate": 0.003,
    "retrain.optimizer.schedule": "cosine",
    "retrain.optimizer.warmup": 0.1,
    "retrain.optimizer.clip": 1.0,
    "retrain.optimizer.weight_decay": 0.01,
}

OF_TASK: dict[str, dict[str, dict[str, Any]]] = {
    "published": {
        "listops": {},
        "imdb_bytes": {"task.length": 1000},
        "imdb_tokens": {"task.length": 1000, "task.vocabulary_size": 16_000},
        "matching": {
            "task.length": 4000,
            "model.head_dim": 32,
            "model.model_dim": 128,
            "model.mlp_dim": 512,
        },
    },
    "cpu": {
        "listops": {
            "task.max_depth": 3,
            "task.max_args": 4,
            "task.min_length": 8,
            "task.max_length": 64,
            "task.train": 10_000,
            "task.valid": 1_000,
            "task.test": 2_000,
        },
        "imdb_tokens": {"task.length": 64, "task.vocabulary_size": 2_000},
        # At CLS, or as the first bytes, or as bytes of two papers, both stay at chance for as long
        # as there is time.
        "imdb_bytes": {
            "task.length": 128,
            "task.crop": "ends",
            "model.stem": "bigram",
            "model.pooling": "mean",
            "data.batch_size": 32,
            "retrain.optimizer.learning_rate": 0.01,
        },
        "matching": {
            "task.length": 32,
            "task.tokens": "words",
            "task.vocabulary_size": 4_000,
            "model.model_dim": 64,
            "model.positions": "none",
            "model.pooling": "mean",
            "model.pair": "interaction",
            "data.batch_size": 32,
            "retrain.optimizer.learning_rate": 0.006,
            "retrain.optimizer.weight_decay": 0.1,
        },
    },
}


def config(
    task: str,
    size: str,
    shape: tuple[int, int],
    steps: int = 0,
    data: dict[str, Any] | None = None,
    strategy: str = "darts",
) -> ConfigDict:
    """The config of one model; its search's weights are optimised as it is.

    Args:
      task: one of `TASKS`.
      size: "published" or "cpu".
      shape: layers and heads.
      steps: of training; 0 for those of the size.
      data: further fields: where the data are.
      strategy: of a search, if there is one.
    """
    made = dartformer.defaults(task, strategy)
    published, warmup = STEPS[task]
    steps = steps or (published if size == "published" else CPU_STEPS[task])
    values: dict[str, Any] = {
        **(PUBLISHED if size == "published" else CPU),
        **OF_TASK[size][task],
        "model.layers": shape[0],
        "model.heads": shape[1],
        "retrain.steps": steps,
    }
    if size == "published":
        values["retrain.optimizer.warmup"] = warmup / published
    values.update(
        {
            name.replace("retrain.optimizer", "search.weights"): value
            for name, value in values.items()
            if name.startswith("retrain.optimizer")
        }
    )
    configs.override(made, {**values, "search.steps": steps, **(data or {})})
    return made


def shapes(task: str, size: str) -> list[tuple[int, int]]:
    """Shapes of a task with as many heads in all, the deepest first."""
    layers, heads = DEEP[size][task]
    return [(n, layers * heads // n) for n in range(layers, 0, -1) if layers % n == 0]


def data_of(task: str, imdb: str, matching: str, data_dir: str) -> dict[str, Any]:
    """The fields that say where a task's data are; texts may be empty."""
    path = matching if task == "matching" else imdb if task.startswith("imdb") else ""
    return ({"task.path": path} if path else {}) | ({"data.dir": data_dir} if data_dir else {})


def parser(about: str | None, tasks: Sequence[str]) -> argparse.ArgumentParser:
    """What both experiments can be told on the command line."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--size", choices=("cpu", "published"), default="cpu")
    made.add_argument("--tasks", default=",".join(tasks))
    made.add_argument("--imdb", default="", help="see search_spaces/imdb_bytes_small.py")
    made.add_argument("--matching", default="", help="see search_spaces/matching_small.py")
    made.add_argument("--data-dir", default="", help="where data are prepared")
    made.add_argument(
        "--steps",
        type=int,
        default=0,
        help="of every training and search, instead of its own number",
    )
    made.add_argument("--results", type=Path, help="file of JSON lines")
    made.add_argument(
        "--summary",
        action="store_true",
        help="print the tables of what is there, and train nothing",
    )
    return made
