"""Load an exported folder: a callable on texts, token ids or arrays. No code from the folder is
run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dartformer import config as configs
from dartformer.errors import InputError
from dartformer.export import checksums
from dartformer.export.write import FORMAT, LEARNED
from dartformer.machine.workdir import read_json
from dartformer.models.transformer import Network, Weights, transformer
from dartformer.space.genotype import Genotype
from dartformer.stages.retrain import Model
from dartformer.tasks.base import Learns
from dartformer.training.checkpoint import named_leaves

BATCH = 64
"""Examples computed at once: more are done in turn, fewer are filled up to the next power of
two."""


@dataclass(frozen=True)
class Served:
    """A loaded model: call it with texts, with lists of token ids, or with arrays; for two
    documents, with pairs.

    predict: (tokens, valid) -> logits, compiled for each shape.
    """

    predict: Callable[[np.ndarray, np.ndarray], Any]
    model: Model

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.model.task.labels

    def logits(self, texts: Any, valid: Any = None) -> np.ndarray:
        """Logits `[B, C]`, or `[B, N, C]` of a task that labels tokens, N being the model's length.
        Any B.

        Args:
          texts: a list of texts or of lists of token ids, where the model compares two documents of
            pairs of these; or an array of token ids `[B, N]` (`[B, 2, N]` of pairs; of tokens that
            are numbers `[B, N, F]`).
          valid: of an array, which tokens exist, bool; None if all do.

        Raises `InputError` for what the model cannot read.
        """
        return self._run(*self.arrays(texts, valid))

    def _run(self, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
        shape, parts = self.model.shape, []
        if not len(tokens):
            return np.zeros(
                (0, *((shape.length,) if shape.pooling == "none" else ()), shape.classes),
                np.float32,
            )
        for at in range(0, len(tokens), BATCH):
            some = [a[at : at + BATCH] for a in (tokens, valid)]
            count = len(some[0])
            filled = (
                1 << (count - 1).bit_length()
            )  # so that any number of examples needs a few programs
            some = [np.concatenate([a, np.repeat(a[:1], filled - count, 0)]) for a in some]
            parts.append(np.asarray(self.predict(*some))[:count])
        return np.concatenate(parts)

    def arrays(self, texts: Any, valid: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """What the model reads: tokens and valid, `[B, N]`, or `[B, 2, N]` of pairs, or tokens `[B,
        N, F]`."""
        if isinstance(texts, str):
            raise InputError("give a list of texts, not one text.")
        if valid is not None or hasattr(texts, "__array__"):
            return self._padded(np.asarray(texts), valid)
        shape = self.model.shape
        if shape.inputs == 2 and any(isinstance(pair, str) or len(pair) != 2 for pair in texts):
            raise InputError("this model compares two documents: give pairs of texts.")
        tokens, exists = (np.zeros(a.shape, a.dtype) for a in shape.blank(len(texts)))
        for i, one in enumerate(texts):
            for at, document in enumerate(one if shape.inputs == 2 else [one]):
                ids = (
                    self.model.task.encode(document)
                    if isinstance(document, str)
                    else self._checked(document)
                )
                where = (i, at) if shape.inputs == 2 else (i,)
                tokens[where][: len(ids)], exists[where][: len(ids)] = ids, True
        return tokens, exists

    def _padded(self, tokens: np.ndarray, valid: Any) -> tuple[np.ndarray, np.ndarray]:
        """Arrays, checked, with zeros up to the model's length."""
        shape = self.model.shape
        like, mask = shape.blank(len(tokens))
        exists = np.ones(tokens.shape[: mask.ndim], bool) if valid is None else np.asarray(valid)
        axis = mask.ndim - 1
        wanted = (
            *like.shape[:axis],
            tokens.shape[axis] if tokens.ndim > axis else 0,
            *like.shape[axis + 1 :],
        )
        if tokens.shape != wanted or not 0 < tokens.shape[axis] <= shape.length:
            raise InputError(
                f"the model takes arrays {list(like.shape)} or shorter, got {list(tokens.shape)}."
            )
        if exists.shape != tokens.shape[: mask.ndim] or exists.dtype != np.bool_:
            raise InputError(
                f"valid must be bool of shape {list(tokens.shape[: mask.ndim])}, got {exists.dtype} of "
                f"shape {list(exists.shape)}."
            )
        if not shape.features:
            if not np.issubdtype(tokens.dtype, np.integer):
                raise InputError(
                    f"token ids must be whole numbers, got an array of {tokens.dtype}."
                )
            inside = tokens[exists]
            if inside.size and not (inside.min() >= 0 and inside.max() < shape.vocabulary):
                raise InputError(
                    f"token ids must be at least 0 and below {shape.vocabulary}, got "
                    f"{inside.min()} to {inside.max()}."
                )
        tokens = np.where(exists[..., None] if shape.features else exists, tokens, 0)
        more = shape.length - tokens.shape[axis]
        pad = [(0, more) if a == axis else (0, 0) for a in range(tokens.ndim)]
        return np.pad(tokens, pad).astype(like.dtype), np.pad(exists, pad[: mask.ndim])

    def __call__(self, texts: Any, valid: Any = None) -> list[dict[str, Any]]:
        """`[{"label", "probability"}, ...]`, one for each text; of a task that labels tokens, a
        list of each; where numbers are predicted, `[{"value"}, ...]`. Takes what `logits` takes."""
        if not len(texts):
            return []
        tokens, valid = self.arrays(texts, valid)
        logits = self._run(tokens, valid)
        if self.model.task.traits.metric == "r2":
            return [{"value": self.model.task.value(float(row[0]))} for row in logits]  # type: ignore[attr-defined]
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        odds /= odds.sum(-1, keepdims=True)
        if odds.ndim == 3:
            return [
                {
                    "label": [self.labels[i] for i in row[:n].argmax(-1)],
                    "probability": row[:n].max(-1).tolist(),
                }
                for row, n in zip(odds, valid.sum(1), strict=True)
            ]
        return [
            {"label": self.labels[int(row.argmax())], "probability": float(row.max())}
            for row in odds
        ]

    def _checked(self, ids: Sequence[Any]) -> Any:
        shape = self.model.shape
        if shape.features:
            found = np.asarray(ids, np.float32)
            if (
                found.ndim != 2
                or not 0 < len(found) <= shape.length
                or found.shape[1] != shape.features
            ):
                raise InputError(
                    f"the model takes 1 to {shape.length} tokens of {shape.features} numbers, got an "
                    f"array of shape {found.shape}."
                )
            return found
        if not 0 < len(ids) <= shape.length:
            raise InputError(f"the model takes 1 to {shape.length} tokens, got {len(ids)}.")
        if not all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in ids):
            raise InputError(f"token ids must be whole numbers, got {list(ids)}.")
        if min(ids) < 0 or max(ids) >= shape.vocabulary:
            raise InputError(
                f"token ids must be at least 0 and below {shape.vocabulary}, got {list(ids)}."
            )
        return list(ids)


def load(folder: str | Path, device: str | None = None) -> Served:
    """Load an export after verifying its checksums; no code from it is run.

    Args:
      folder: what `export` wrote.
      device: "cpu", "gpu" or "tpu"; None for the best that JAX finds.

    Raises:
      InputError: the folder is no export, a file is missing, damaged or not as it was written, or
        there is no such device.
    """
    folder = Path(folder)
    noted = checksums.verify(folder, ("config.json", "genotype.json", "weights.safetensors"))
    header = read_json(folder / "config.json")
    if header.get("format") != FORMAT:
        raise InputError(
            f"{folder} has export format {header.get('format')!r}, this dartformer reads {FORMAT}."
        )
    config = configs.from_dict(header["config"])
    task = config.task.built
    if isinstance(task, Learns):
        if LEARNED not in noted:
            raise InputError(
                f"{folder / checksums.CHECKSUMS} is damaged: it does not list {LEARNED}."
            )
        task = replace(task, learned=(folder / LEARNED).read_text(encoding="utf-8"))  # type: ignore[type-var]
    shape = config.transformer
    genotype = Genotype.from_json((folder / "genotype.json").read_text(encoding="utf-8"))
    net = transformer(shape, genotype)
    # Where the weights lie is where the model runs.
    weights = jax.device_put(_weights(net, folder / "weights.safetensors"), _device(device))
    model = Model(config, task, shape, genotype, weights, header["seed"], header["step"], {})
    apply = jax.jit(net.apply)
    return Served(lambda tokens, valid: apply(weights, tokens, valid), model)


def _device(kind: str | None) -> Any:
    if kind is None:
        return jax.devices()[0]
    try:
        return jax.devices(kind)[0]
    except RuntimeError:
        found = sorted({d.platform for d in jax.devices()} | {"cpu"})
        raise InputError(
            f"there is no device {kind!r} here; there is {', '.join(found)}."
        ) from None


def _weights(net: Network, file: Path) -> Weights:
    abstract = jax.eval_shape(net.init, jax.random.key(0))
    try:
        arrays = load_file(file)
    except SafetensorError as error:
        raise InputError(f"{file} is damaged: {error}.") from None
    named = named_leaves(abstract)
    if {name for name, _ in named} != set(arrays):
        raise InputError(f"{file} does not hold the weights of the genotype beside it.")
    for name, leaf in named:
        if arrays[name].shape != leaf.shape:
            raise InputError(
                f"{file}: {name} has shape {arrays[name].shape}, the genotype wants {leaf.shape}."
            )
    return jax.tree.unflatten(jax.tree.structure(abstract), [arrays[name] for name, _ in named])
