"""Maps: what the final model attends to, on a few examples, small enough for `attention.json`."""

import base64
from typing import NamedTuple

import jax
import numpy as np

from dartformer.data.splits import Batch
from dartformer.models.attention_maps import mapper
from dartformer.results import AttentionMaps, MapData, MapExample
from dartformer.stages.observe import quick_options
from dartformer.stages.retrain import Model
from dartformer.stages.study import Study

EXAMPLES, CONSIDERED = 4, 200
"""How many examples of test are kept, of how many: short ones first, each of another label while
there is one."""

TOKENS = 1024
"""Longer examples are cut to this: a definition takes O(N^2)."""

BINS, NUMBERS = 64, 400_000
"""A map has at most so many rows, longer ones being averaged, and all maps together so many
numbers."""

LETTERS = 400
"""Of an example's text that are kept."""


class Frame(NamedTuple):
    """Which layers and heads are shown, and how many rows a map has at most."""

    layers: list[int]
    heads: list[int]
    bins: int


def maps(study: Study, model: Model) -> AttentionMaps:
    """What `model` attends to on examples of test.

    Where rows are averaged a number is the weight that a query of the row puts on all keys of the
    column.
    """
    part, shape = study.parts["test"], study.model
    batch = part.take(np.arange(min(CONSIDERED, len(part))))
    longest = _longest(model)
    chosen = []
    if longest <= TOKENS:
        chosen = _choose(batch)
    maps_of = jax.jit(mapper(shape, model.genotype), compiler_options=quick_options())
    frame = _fit(shape.layers, shape.heads, max(len(chosen), 1) * shape.inputs)
    layers, heads = np.array(frame.layers), np.array(frame.heads)
    examples = []
    for i in chosen:
        tokens, valid = _cut(study, batch, i, longest)
        output = maps_of(model.weights, tokens, valid)
        weights = np.asarray(output.weights[layers][:, :, heads])  # [L, documents, H, N, N]
        label, answer = _answer(study, batch["label"][i], np.asarray(output.logits)[0])
        for document in range(shape.inputs):
            ids, exists = tokens[0], valid[0]
            if shape.inputs == 2:
                ids, exists = ids[document], exists[document]
            document_maps = weights[:, document]
            name, row_names, data = _example(study, ids, exists, document_maps, frame.bins)
            if shape.inputs == 2:
                name += f" (document {document + 1})"
            examples.append(MapExample(name, tuple(row_names), data, label, answer))
    return AttentionMaps(
        model.seed,
        model.step,
        "test",
        tuple(frame.layers),
        tuple(frame.heads),
        tuple(examples),
    )


def _longest(model: Model) -> int:
    """Tokens that an example is cut to; above `TOKENS` where it cannot be cut so far."""
    for heads in model.genotype.layers:
        for attention in heads:
            # Its parameters belong to positions: a shorter example would need others.
            if attention.traits.fixed_length:
                return model.shape.length
    return TOKENS


def _cut(study: Study, batch: Batch, i: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and valid of one example, as a batch, cut to the longest that is shown."""
    tokens, valid = batch["tokens"][i : i + 1], batch["valid"][i : i + 1, ..., :longest]
    if study.model.features:
        return tokens[:, :longest], valid  # [1, N, F]
    return tokens[..., :longest], valid


def _choose(batch: Batch) -> list[int]:
    """Numbers of examples to show: short ones, of different labels."""
    count = len(batch["label"])
    sizes = batch["valid"].sum(-1).reshape(count, -1).max(1)
    # Short ones first, because their rows need not be averaged. Empty ones show nothing.
    nonempty = np.flatnonzero(sizes > 0).tolist()
    order = sorted(nonempty, key=lambda i: (sizes[i] > BINS, i))
    labels: set[bytes | int] = set()
    chosen: list[int] = []
    for i in order:
        # Where every token has a label, examples count as different.
        label: bytes | int = i
        if batch["label"].ndim == 1:
            label = batch["label"][i].tobytes()
        if label not in labels and len(chosen) < EXAMPLES:
            labels.add(label)
            chosen.append(i)
    spare = [i for i in order if i not in chosen]
    return chosen + spare[: EXAMPLES - len(chosen)]


def _fit(layers: int, heads: int, examples: int) -> Frame:
    """Layers, heads and rows so that all maps together have at most `NUMBERS` numbers."""
    # Layers and heads are left out before maps get fewer than 24 rows, which show no pattern.
    most = max(NUMBERS // (examples * 24 * 24), 1)
    heads_shown = _spaced(heads, most)
    layers_shown = _spaced(layers, max(most // len(heads_shown), 1))
    count = examples * len(layers_shown) * len(heads_shown)
    return Frame(layers_shown, heads_shown, int(min(BINS, np.sqrt(NUMBERS / count))))


def _spaced(n: int, most: int) -> list[int]:
    """At most `most` of n numbers, evenly spaced."""
    positions = np.linspace(0, n - 1, min(n, most))
    return np.unique(positions.round().astype(int)).tolist()


def _example(
    study: Study, ids: np.ndarray, valid: np.ndarray, weights: np.ndarray, bins: int
) -> tuple[str, list[str], MapData]:
    """One document's text, its names of rows and its maps; `weights` `[L, H, N, N]` is padded."""
    cls = int(study.model.pooling == "cls")
    n = int(valid.sum())
    text, words = f"{n} tokens of {study.model.features} numbers", []
    if not study.model.features:
        text = study.fitted.decode(ids[:n].tolist())
        words = ["CLS"] * cls
        for token in ids[:n].tolist():
            words.append(study.fitted.decode([token]) or "?")
    if len(text) > LETTERS:
        text = text[:LETTERS] + "..."
    n += cls
    edges = np.unique(np.linspace(0, n, min(n, bins) + 1).round().astype(int))
    binned = _binned(weights[:, :, :n, :n], edges)
    return text, _row_names(words, edges), _packed(binned)


def _binned(weights: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Sums over the keys and means over the queries between the edges."""
    if len(edges) - 1 == weights.shape[-1]:
        return weights
    # With keys summed and queries averaged, a row's total stays what it was.
    weights = np.add.reduceat(weights, edges[:-1], -1)
    return np.add.reduceat(weights, edges[:-1], -2) / np.diff(edges)[:, None]


def _row_names(words: list[str], edges: np.ndarray) -> list[str]:
    names = []
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        if stop > start + 1:
            names.append(f"{start}-{stop - 1}")
        elif words:
            names.append(words[start])
        else:
            names.append(str(start))
    return names


def _packed(weights: np.ndarray) -> MapData:
    """Weights as signed bytes and their scale; 0 where a head has no matrix."""
    # The definition of an attention without a matrix answers NaN.
    finite = np.isfinite(weights).all((-1, -2), keepdims=True)
    weights = np.where(finite, weights, 0)
    scale = np.asarray(np.abs(weights).max((-1, -2)))  # [L, H]
    divisor = np.where(scale > 0, scale, 1)[..., None, None]
    quantized = np.round(127 * weights / divisor).astype(np.int8)
    data = base64.b64encode(quantized.tobytes()).decode()
    return MapData(scale.astype(float).round(6), data)


def _answer(study: Study, label: np.ndarray, logits: np.ndarray) -> tuple[str | None, str | None]:
    """The label and the model's answer, in words; None where every token has one."""
    if study.metric.regression:
        value = getattr(study.fitted, "value", lambda number: number)
        return f"{float(value(float(label))):.4g}", f"{float(value(float(logits[0]))):.4g}"
    if np.ndim(label):
        return None, None
    labels = study.task.labels
    return labels[int(label)], labels[int(logits.argmax())]


def unpack(example: MapExample, layers: int, heads: int) -> np.ndarray:
    """The maps `[L, H, n, n]` of an example of `attention.json`."""
    n = len(example.tokens)
    raw = base64.b64decode(example.maps.data)
    quantized = np.frombuffer(raw, np.int8).reshape(layers, heads, n, n)
    return quantized * example.maps.scale[..., None, None] / 127
