"""Maps: what the final model attends to, on a handful of examples, small enough to keep in
`attention.json`."""

import base64
from typing import Any

import jax
import numpy as np

from dartformer.machine.workdir import write_json
from dartformer.models.attention_maps import mapper
from dartformer.stages.observe import QUICK
from dartformer.stages.retrain import Model
from dartformer.stages.study import Run

EXAMPLES, LOOKED_AT = 4, 200
"""How many examples of test are kept, of how many: short ones first, each of another label while
there is one."""

TOKENS = 1024
"""Longer examples are cut to this: a definition takes O(N^2)."""

BINS, NUMBERS = 64, 400_000
"""A map has at most so many rows, longer ones being averaged, and all maps together so many
numbers."""

LETTERS = 400
"""Of an example's text that are kept."""


def maps(run: Run, model: Model) -> dict[str, Any]:
    """Look at `model` on examples of test, write `attention.json` and return what is in it.

    `examples`: each with `text`, `label`, `answer`, `tokens` (the name of each row, "12-15" where
    rows are averages) and `maps`: `scale` `[L, H]`, the largest absolute weight (0 where an
    attention has no matrix), and `data`, base64 of signed bytes `[L, H, n, n]`, queries before
    keys, in 1/127 of the scale. `layers` and `heads` are the numbers of those shown. Where rows are
    averaged a number is the weight that a query of the row puts on all keys of the column."""
    part = run.parts["test"]
    batch = part.take(np.arange(min(LOOKED_AT, len(part))))
    fixed = any(a.traits.fixed_length for heads in model.genotype.layers for a in heads)
    longest = run.model.length if fixed else TOKENS
    chosen = [] if longest > TOKENS else _choose(batch)
    look = jax.jit(
        mapper(run.model, model.genotype),
        compiler_options=QUICK if jax.default_backend() == "cpu" else None,
    )
    layers, heads, bins = _fit(
        run.model.layers, run.model.heads, max(len(chosen), 1) * run.model.inputs
    )
    examples = []
    for i in chosen:
        tokens, valid = batch["tokens"][i : i + 1], batch["valid"][i : i + 1, ..., :longest]
        tokens = tokens[:, :longest] if run.model.features else tokens[..., :longest]
        found = look(model.weights, tokens, valid)
        weights = np.asarray(found.weights[np.array(layers)][:, :, np.array(heads)])
        for d in range(run.model.inputs):
            ids, there = (a[0, d] if run.model.inputs == 2 else a[0] for a in (tokens, valid))
            examples.append(
                _example(run, ids, there, weights[:, d], bins, d)
                | _answer(run, batch["label"][i], np.asarray(found.logits)[0])
            )
    data = {
        "seed": model.seed,
        "step": model.step,
        "part": "test",
        "layers": layers,
        "heads": heads,
        "examples": examples,
    }
    write_json(run.file("attention.json"), data)
    return data


def _choose(batch: dict[str, np.ndarray]) -> list[int]:
    """Numbers of examples to show: short ones, of different labels."""
    sizes = batch["valid"].sum(-1).reshape(len(batch["label"]), -1).max(1)
    order = sorted(range(len(sizes)), key=lambda i: (sizes[i] > BINS, i))
    labels: set[Any] = set()
    chosen: list[int] = []
    for i in order:
        label = batch["label"][i].tobytes() if batch["label"].ndim == 1 else i
        if label not in labels and sizes[i] > 0 and len(chosen) < EXAMPLES:
            labels.add(label)
            chosen.append(i)
    return chosen + [i for i in order if i not in chosen and sizes[i] > 0][: EXAMPLES - len(chosen)]


def _fit(layers: int, heads: int, examples: int) -> tuple[list[int], list[int], int]:
    """Which layers and heads are shown, and rows of a map, so that all have at most `NUMBERS`
    numbers."""

    def spaced(n: int, most: int) -> list[int]:
        return sorted({round(x) for x in np.linspace(0, n - 1, min(n, most))})

    most = max(NUMBERS // (examples * 24 * 24), 1)
    shown_heads = spaced(heads, min(heads, most))
    shown_layers = spaced(layers, max(most // len(shown_heads), 1))
    maps = examples * len(shown_layers) * len(shown_heads)
    return shown_layers, shown_heads, int(min(BINS, np.sqrt(NUMBERS / maps)))


def _example(
    run: Run, ids: np.ndarray, valid: np.ndarray, weights: np.ndarray, bins: int, document: int
) -> dict[str, Any]:
    """One document's names of rows and its maps; `weights` `[L, H, N, N]` of the padded
    document."""
    cls = int(run.model.pooling == "cls")
    n = int(valid.sum())
    words = []
    if not run.model.features:
        text = run.fitted.decode(ids[:n].tolist())
        words = ["CLS"] * cls + [run.fitted.decode([int(i)]) or "?" for i in ids[:n]]
    else:
        text = f"{n} tokens of {run.model.features} numbers"
    n += cls
    weights = weights[:, :, :n, :n]
    edges = np.unique(np.linspace(0, n, min(n, bins) + 1).round().astype(int))
    if len(edges) - 1 < n:
        weights = np.add.reduceat(weights, edges[:-1], -1)
        weights = np.add.reduceat(weights, edges[:-1], -2) / np.diff(edges)[:, None]
    names = [
        words[a] if words and b == a + 1 else str(a) if b == a + 1 else f"{a}-{b - 1}"
        for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]
    known = np.isfinite(weights).all((-1, -2), keepdims=True)
    weights = np.where(known, weights, 0)
    scale = np.asarray(np.abs(weights).max((-1, -2)))
    whole = np.round(127 * weights / np.where(scale > 0, scale, 1)[..., None, None]).astype(np.int8)
    which = f" (document {document + 1})" if run.model.inputs == 2 else ""
    return {
        "text": text[:LETTERS] + ("..." if len(text) > LETTERS else "") + which,
        "tokens": names,
        "maps": {
            "scale": scale.astype(float).round(6),
            "data": base64.b64encode(whole.tobytes()).decode(),
        },
    }


def _answer(run: Run, label: np.ndarray, logits: np.ndarray) -> dict[str, str]:
    """The label and the model's answer, in words; nothing where every token has one."""
    if run.metric.name == "r2":
        value = getattr(run.fitted, "value", lambda x: x)
        return {
            "label": f"{float(value(float(label))):.4g}",
            "answer": f"{float(value(float(logits[0]))):.4g}",
        }
    if np.ndim(label):
        return {}
    return {"label": run.task.labels[int(label)], "answer": run.task.labels[int(logits.argmax())]}


def unpack(example: dict[str, Any], layers: int, heads: int) -> np.ndarray:
    """The maps `[L, H, n, n]` of an example of `attention.json`."""
    n, scale = len(example["tokens"]), np.array(example["maps"]["scale"])
    whole = np.frombuffer(base64.b64decode(example["maps"]["data"]), np.int8).reshape(
        layers, heads, n, n
    )
    return whole * scale[..., None, None] / 127
