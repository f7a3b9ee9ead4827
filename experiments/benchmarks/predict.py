"""Short rows through an exported model of a greater length: batches of like lengths, beside the one
padded length in batches of 64 that was there before.

    python experiments/benchmarks/predict.py > experiments/benchmarks/results/predict_cpu2.jsonl

Prints one JSON line for each model and way in: rows a processor second both ways, their ratio, and
the largest difference of a probability. Texts are made here, 6 to 14 words each; weights are those
of a seed, since what they are costs nothing. Both ways take turns, and the quickest round counts:
their processor seconds depend less on what else the machine does than their wall seconds. Compiling
stands apart, as `first_call_seconds`, of processors too."""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from measure import machine, say

import dartformer as df
from dartformer import config as configs
from dartformer.data import tokens as tokenizers
from dartformer.export.load import Label, Served
from dartformer.export.predict import stream
from dartformer.export.write import export
from dartformer.models.transformer import transformer
from dartformer.stages.retrain import Model

WORDS = [f"w{i}" for i in range(2000)]
CANDIDATES = ("full", "local(window=16)")
SIZES = ((32, 128), (64, 256))
"""Width and length of a model of two layers of four heads."""

SHARE = 10
"""The old way answers so many times fewer rows, which takes as long."""


def texts(rows: int, seed: int) -> list[str]:
    """Texts of 6 to 14 words."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(6, 15))) for _ in range(rows)]


def exported(width: int, length: int, folder: Path) -> Served:
    """A model of texts with fresh weights, exported and loaded again."""
    rows = folder / "rows.csv"
    rows.write_text("text,label\na b,a\nc d,b\n")
    values = {
        "task.path": str(rows),
        "task.label_names": ("a", "b"),
        "task.tokens": "words",
        "task.length": length,
        "space.candidates": CANDIDATES,
        "model.layers": 2,
        "model.heads": 4,
        "model.head_dim": width // 4,
        "model.model_dim": width,
        "model.mlp_dim": 2 * width,
    }
    draft = df.defaults("files")
    configs.override(draft, values)
    config = configs.build(draft)
    tokenizer = tokenizers.train("words", texts(2000, 1), 8000)
    untrained: Any = config.task.built
    task = dataclasses.replace(untrained, learned=json.dumps(tokenizer.state()))
    genotype = df.Genotype(tuple((df.parse(candidate),) * 4 for candidate in CANDIDATES))
    weights = transformer(config.transformer, genotype).init(jax.random.key(0))
    scores = {"accuracy": 0.5}
    model = Model(config, task, config.transformer, genotype, weights, 0, 1, scores)
    return df.load(export(model, folder / "model"), device="cpu")


def before(served: Served, documents: Sequence[str]) -> list[Label]:
    """Each document checked by itself, then 64 at a time, padded to the model's length."""
    for document in documents:
        served.arrays([document])
    answers: list[Label] = []
    for start in range(0, len(documents), 64):
        chunk = documents[start : start + 64]
        tokens = np.zeros((64, served.model.shape.length), np.int32)
        valid = np.zeros(tokens.shape, bool)
        for i, document in enumerate(chunk):
            ids = served.model.task.encode(document)
            tokens[i, : len(ids)], valid[i, : len(ids)] = ids, True
        logits = np.asarray(served.predict(tokens, valid))[: len(chunk)]
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        for row in exponentials / exponentials.sum(-1, keepdims=True):
            best = int(row.argmax())
            answers.append({"label": served.labels[best], "probability": float(row[best])})
    return answers


def seconds(function: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    started = time.process_time()
    function()
    return time.process_time() - started


def compared(served: Served, documents: Sequence[str], rounds: int) -> None:
    """One line for calls, and one for a stream of JSON lines."""
    lines = [json.dumps({"text": document}) for document in documents]
    ways: dict[str, Callable[[], object]] = {
        "call": lambda: served(documents),
        "stream": lambda: list(stream(served, lines)),
    }
    few = documents[: len(documents) // SHARE]
    few_lines = lines[: len(few)]
    old_ways: dict[str, Callable[[], object]] = {
        "call": lambda: before(served, few),
        "stream": lambda: before(served, [json.loads(line)["text"] for line in few_lines]),
    }
    expected = before(served, few)
    differences = []
    for old, new in zip(expected, served(few), strict=True):
        assert old["label"] == new["label"], (old, new)
        differences.append(abs(old["probability"] - new["probability"]))
    shape = served.model.shape
    for name, way in ways.items():
        first = seconds(way)
        old_way, new_way = [], []
        for _ in range(rounds):
            old_way.append(seconds(old_ways[name]))
            new_way.append(seconds(way))
        old_rate, new_rate = len(few) / min(old_way), len(documents) / min(new_way)
        say(
            name=f"predict {name}",
            width=shape.model_dim,
            length=shape.length,
            rows=len(documents),
            rows_a_second_before=old_rate,
            rows_a_second=new_rate,
            ratio=new_rate / old_rate,
            first_call_seconds=first,
            largest_difference=max(differences),
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=20_000)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    machine()
    documents = texts(given.rows, 0)
    for width, length in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            compared(exported(width, length, Path(folder)), documents, given.rounds)


if __name__ == "__main__":
    main()
