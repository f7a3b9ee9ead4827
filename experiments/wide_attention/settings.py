"""What the Wide Attention paper (Brown et al. 2022, arXiv 2210.00640) trains, at its size and at one for a CPU core.

The published settings are those of the first author's public code (a port of Long Range Arena): optimiser, schedule,
widths, lengths, options of the attentions. Which ten types
and which middle shapes the paper has was inferred, not read.
"""

from typing import Any

from ml_collections import ConfigDict

import dartformer
from dartformer import config as configs

TASKS = ("listops", "imdb_tokens", "imdb_bytes", "matching")

TYPES: dict[str, dict[str, str]] = {
    "published": {
        "Transformer": "full", "BigBird": "bigbird(block=64, randoms=3)", "Linear": "linear",
        "Linformer": "linformer(rank=16)", "Local": "block(size=50)", "Longformer": "longformer(window=256)",
        "Performer": "performer(features=256, kernel='relu')", "Sinkhorn": "sinkhorn(block=20)",
        "Sparse": "sparse(stride=50, summary=10)", "Synthesizer": "synthesizer(mode='factorised', rank=32)"},
    "cpu": {
        "Transformer": "full", "BigBird": "bigbird(block=4, randoms=1)", "Linear": "linear",
        "Linformer": "linformer(rank=16)", "Local": "block(size=16)", "Longformer": "longformer(window=8)",
        "Performer": "performer(features=16, kernel='relu')", "Sinkhorn": "sinkhorn(block=16)",
        "Sparse": "sparse(stride=16, summary=2)", "Synthesizer": "synthesizer(mode='factorised', rank=8)"}}
"""The ten: Long Range Arena's eleven less Reformer, which there has no width of its own."""

DEEP: dict[str, dict[str, tuple[int, int]]] = {
    "published": {"listops": (6, 8), "imdb_bytes": (6, 8), "imdb_tokens": (6, 8), "matching": (4, 4)},
    "cpu": dict.fromkeys(TASKS, (4, 4))}
"""Layers and heads of the deepest shape; the others have as many heads in all."""

PUBLISHED: dict[str, Any] = {
    "model.head_dim": 64, "model.model_dim": 512, "model.mlp_dim": 2048, "model.positions": "sinusoidal",
    "model.pooling": "cls", "model.classifier": "mlp", "model.pair": "concat", "model.dropout": 0.1,
    "model.attention_dropout": 0.1, "model.branch_norm": False,
    "data.batch_size": 32, "data.eval_batch_size": 32,
    "retrain.seeds": (0, 1, 2), "retrain.select": "best",
    "retrain.optimizer.name": "adamw", "retrain.optimizer.learning_rate": 0.05, "retrain.optimizer.schedule": "rsqrt",
    "retrain.optimizer.b1": 0.9, "retrain.optimizer.b2": 0.98, "retrain.optimizer.eps": 1e-9,
    "retrain.optimizer.weight_decay": 0.1, "retrain.optimizer.clip": 0.0,
    "log.every": 100, "log.eval_every": 200, "log.checkpoint_every": 1000}

STEPS = {"listops": (10_001, 1_000), "imdb_bytes": (30_001, 8_000), "imdb_tokens": (30_001, 8_000),
         "matching": (10_001, 8_000)}
"""Steps, and of these warm-up; those of imdb_tokens are taken from imdb_bytes."""

CPU: dict[str, Any] = {
    **PUBLISHED, "model.head_dim": 8, "model.model_dim": 32, "model.mlp_dim": 128, "model.dropout": 0.0,
    "model.attention_dropout": 0.0, "data.batch_size": 16, "data.eval_batch_size": 200, "retrain.select": "last",
    "retrain.optimizer.learning_rate": 0.003, "retrain.optimizer.schedule": "cosine",
    "retrain.optimizer.warmup": 0.1, "retrain.optimizer.clip": 1.0, "retrain.optimizer.weight_decay": 0.01}

OF_TASK: dict[str, dict[str, dict[str, Any]]] = {
    "published": {
        "listops": {}, "imdb_bytes": {"task.length": 1000},
        "imdb_tokens": {"task.length": 1000, "task.vocabulary_size": 16_000},
        "matching": {"task.length": 4000, "model.head_dim": 32, "model.model_dim": 128, "model.mlp_dim": 512}},
    "cpu": {
        "listops": {"task.max_depth": 3, "task.max_args": 4, "task.min_length": 8, "task.max_length": 64,
                    "task.train": 10_000, "task.valid": 1_000, "task.test": 2_000},
        "imdb_bytes": {"task.length": 128}, "imdb_tokens": {"task.length": 64, "task.vocabulary_size": 2_000},
        "matching": {"task.length": 128, "data.batch_size": 8}}}


def config(task: str, size: str, shape: tuple[int, int], steps: int = 0,
           data: dict[str, Any] | None = None) -> ConfigDict:
    """The config of one cell of the table.

    Args:
      task: one of `TASKS`.
      size: "published" or "cpu".
      shape: layers and heads.
      steps: of training; 0 for those published.
      data: further fields: where the data are.
    """
    made = dartformer.defaults(task)
    published, warmup = STEPS[task]
    steps = steps or published
    values: dict[str, Any] = {
        **(PUBLISHED if size == "published" else CPU), **OF_TASK[size][task], "model.layers": shape[0],
        "model.heads": shape[1], "retrain.steps": steps}
    if size == "published":
        values["retrain.optimizer.warmup"] = warmup / published
    configs.override(made, {**values, **(data or {})})
    return made


def shapes(task: str, size: str) -> list[tuple[int, int]]:
    """Shapes of a task with as many heads in all, the deepest first."""
    layers, heads = DEEP[size][task]
    return [(n, layers * heads // n) for n in range(layers, 0, -1) if layers % n == 0]
