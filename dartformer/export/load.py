"""Load an exported folder: a callable on texts, token ids or arrays. It runs no code of it."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict, cast, runtime_checkable

import jax
import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open

from dartformer import config as configs
from dartformer.errors import InputError
from dartformer.export import batching, checksums, inputs
from dartformer.export.write import FORMAT, LEARNED
from dartformer.machine.record import Plain, Record, kind
from dartformer.machine.workdir import UnreadableFile, read_json, read_text
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import Network, Weights, transformer
from dartformer.space.genotype import Genotype
from dartformer.stages.profile import read_genotype
from dartformer.stages.retrain import Model
from dartformer.tasks.base import Learns, Task
from dartformer.training.checkpoint import named_leaves


class Label(TypedDict):
    """The label of a text and its probability; on request those of the most probable labels."""

    label: str
    probability: float
    probabilities: NotRequired[dict[str, float]]


class Labels(TypedDict):
    """The labels of the tokens of a text and their probabilities."""

    label: list[str]
    probability: list[float]
    probabilities: NotRequired[list[dict[str, float]]]


class Value(TypedDict):
    """The number that is predicted for a text."""

    value: float


Answer = Label | Labels | Value


class Regression(Protocol):
    """A task that predicts numbers."""

    def value(self, output: float) -> float:
        """The number in its own unit."""


@runtime_checkable
class Forecast(Protocol):
    """A task that predicts numbers from the numbers before them."""

    def value_after(self, output: float, tokens: np.ndarray) -> float:
        """The number in its own unit, after tokens `[n, F]`."""


@dataclass(frozen=True)
class Served:
    """A loaded model: call it with texts, lists of token ids, or arrays (of two documents: pairs).

    Attributes:
      predict: (tokens, valid) -> logits, compiled for each shape.
      model: what was loaded.
    """

    predict: Callable[[np.ndarray, np.ndarray], jax.Array]
    model: Model

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.model.task.labels

    def logits(self, texts: inputs.Texts, valid: ArrayLike | None = None) -> np.ndarray:
        """Logits `[B, C]`, or `[B, N, C]` of a task that labels tokens, N being the model's length.

        Of tokens they are 0 where no example of the same batch has one.

        Args:
          texts: a list of texts or of lists of token ids, or pairs of these where the model
            compares two documents; or an array of token ids `[B, N]` (`[B, 2, N]` of pairs; of
            tokens that are numbers `[B, N, F]`). Any B.
          valid: for an array, which tokens exist, bool; None if all do.

        Raises `InputError` for what the model cannot read.
        """
        tokens, exists = self.arrays(texts, valid)
        # At least one window, which gives the shape where there is no example.
        parts = [self._run(tokens[:0], exists[:0])]
        for window in self._windows(len(tokens)):
            parts.append(self._run(tokens[window], exists[window]))
        return np.concatenate(parts)

    def arrays(self, texts: inputs.Texts, valid: ArrayLike | None = None) -> inputs.Arrays:
        """What the model reads: tokens and valid, padded to its length."""
        return inputs.arrays(self.model.task, self.model.shape, texts, valid)

    def _windows(self, count: int) -> Iterator[slice]:
        """Which of `count` examples are computed and answered together."""
        rows = batching.window_rows(self.model.shape)
        for start in range(0, count, rows):
            yield slice(start, start + rows)

    def _run(self, tokens: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Logits of a window of examples."""
        model = self.model
        any_length = takes_any_length(model.genotype)
        return batching.logits(self.predict, model.shape, tokens, valid, any_length=any_length)

    def __call__(
        self, texts: inputs.Texts, valid: ArrayLike | None = None, *, top: int = 0
    ) -> Sequence[Answer]:
        """`[{"label", "probability"}, ...]`, one for each text; takes what `logits` takes.

        Both are lists where a task labels tokens. Where numbers are predicted, `[{"value"}, ...]`.
        With `top` above 0 an answer also has "probabilities", those of as many labels, the most
        probable first.
        """
        texts = inputs.listed(texts)
        if valid is not None or isinstance(texts, np.ndarray):
            tokens, exists = self.arrays(texts, valid)
            answers: list[Answer] = []
            for window in self._windows(len(tokens)):
                answers += self._answers(tokens[window], exists[window], top)
            return answers
        # One window after another: all arrays together may take much more memory than the texts.
        answers = []
        for window in self._windows(len(texts)):
            answers += self._answers(*self.arrays(texts[window]), top)
        return answers

    def _answers(self, tokens: np.ndarray, exists: np.ndarray, top: int) -> Sequence[Answer]:
        """The answers for a window of examples."""
        logits = self._run(tokens, exists)
        if self.model.task.traits.metric == "r2":
            return list(map(self._number, logits, tokens))
        # Less the largest, which changes no probability and keeps `exp` from overflowing.
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities /= probabilities.sum(-1, keepdims=True)
        if probabilities.ndim == 2:
            return self._labels(probabilities, top)
        counts = exists.sum(1)
        answers = []
        for row, count in zip(probabilities, counts, strict=True):
            answers.append(self._labels_of_tokens(row[:count], top))
        return answers

    def _number(self, outputs: np.ndarray, tokens: np.ndarray) -> Value:
        """The answer for one text, of `[1]`."""
        task = self.model.task
        # A forecast is a change from the tokens that it is made from.
        if isinstance(task, Forecast):
            return {"value": task.value_after(float(outputs[0]), tokens)}
        return {"value": cast(Regression, task).value(float(outputs[0]))}

    def _labels(self, probabilities: np.ndarray, top: int) -> Sequence[Label]:
        """The answers for texts, of `[B, C]`."""
        names = self.labels
        best, largest = probabilities.argmax(-1), probabilities.max(-1)
        answers: list[Label] = []
        for i, probability in zip(best.tolist(), largest.tolist(), strict=True):
            answers.append({"label": names[i], "probability": probability})
        if top:
            for answer, row in zip(answers, probabilities, strict=True):
                answer["probabilities"] = self._most_probable(row, top)
        return answers

    def _labels_of_tokens(self, probabilities: np.ndarray, top: int) -> Labels:
        """The answers for the tokens of one text, of `[n, C]`."""
        labels = [self.labels[best] for best in probabilities.argmax(-1)]
        answer: Labels = {"label": labels, "probability": probabilities.max(-1).tolist()}
        if top:
            answer["probabilities"] = [self._most_probable(row, top) for row in probabilities]
        return answer

    def _most_probable(self, probabilities: np.ndarray, top: int) -> dict[str, float]:
        """The `top` most probable labels of `[C]`, in order; equal ones in that of the classes."""
        order = np.argsort(-probabilities, kind="stable")[:top]
        return {self.labels[i]: float(probabilities[i]) for i in order.tolist()}


def load(folder: str | Path, device: str | None = None) -> Served:
    """Load an export after verifying its checksums; no code from it is run.

    Args:
      folder: what `export` wrote.
      device: "cpu", "gpu" or "tpu"; None for the best that JAX finds.

    Raises:
      InputError: the folder is not an export, a file is missing, damaged or changed, or there is no
        such device.
    """
    folder = Path(folder)
    noted = checksums.verify(folder, ("config.json", "genotype.json", "weights.safetensors"))
    header = read_header(folder)
    config = configs.from_dict(header.config)
    task = _task(config.task.built, folder, noted)
    shape = config.transformer
    genotype = _genotype(shape, folder / "genotype.json")
    weights_file = folder / "weights.safetensors"
    # Before the network is built, which takes long where a damaged config claims many layers.
    _require_blocks(weights_file, shape.layers)
    net = transformer(shape, genotype)
    # The model runs where its weights are.
    weights = jax.device_put(_weights(net, weights_file), device_of(device))
    model = Model(config, task, shape, genotype, weights, header.seed, header.step, {})
    apply = jax.jit(net.apply)
    return Served(lambda tokens, valid: apply(weights, tokens, valid), model)


def takes_any_length(genotype: Genotype) -> bool:
    """Whether a model takes arrays shorter than its length: no parameters belong to one length."""
    attentions = itertools.chain.from_iterable(genotype.layers)
    return not any(attention.traits.fixed_length for attention in attentions)


@dataclass(frozen=True)
class Header(Record):
    """`config.json` of an export, as far as a reader needs it.

    Attributes:
      config: of the run.
      seed: of the exported weights.
      step: of the exported weights.
      identity: what the training belongs to; missing in exports of version 0.1.0.
    """

    config: dict[str, Plain]
    seed: int
    step: int
    identity: dict[str, str] | None = None


def read_header(folder: Path) -> Header:
    """The `config.json` of an export; `InputError` where this version cannot read it."""
    file = folder / "config.json"
    data = read_json(file)
    if not isinstance(data, dict):
        raise InputError(f"{file} must be an object, not {kind(data)}.")
    if data.get("format") != FORMAT:
        version = data.get("dartformer", "another version")
        raise InputError(
            f"{folder} has export format {data.get('format')!r:.60}, written by dartformer "
            f"{version!s:.60}. This dartformer reads format {FORMAT} (config.json)."
        )
    return Header.from_dict(data, str(file))


def _genotype(shape: TransformerConfig, file: Path) -> Genotype:
    genotype = read_genotype(file)
    if (len(genotype.layers), genotype.heads) != (shape.layers, shape.heads):
        raise InputError(
            f"{file} has {len(genotype.layers)} layers of {genotype.heads} heads, and config.json "
            f"{shape.layers} of {shape.heads}."
        )
    return genotype


def _task(task: Task, folder: Path, noted: dict[str, str]) -> Task:
    """The task with what it learned from its training part."""
    if not isinstance(task, Learns):
        return task
    if LEARNED not in noted:
        table = folder / checksums.CHECKSUMS
        raise InputError(f"{table} is damaged: it does not list {LEARNED}.")
    learned = read_text(folder / LEARNED)
    return replace(task, learned=learned)  # type: ignore[type-var]


def device_of(kind: str | None) -> jax.Device:
    """A device of that kind."""
    if kind is None:
        return jax.devices()[0]
    try:
        return jax.devices(kind)[0]
    except RuntimeError:
        # JAX always has a CPU, which it does not list beside a better device.
        present = sorted({device.platform for device in jax.devices()} | {"cpu"})
        raise InputError(
            f"there is no device {kind!r} here; there is {', '.join(present)}."
        ) from None


def _weights(net: Network, file: Path) -> Weights:
    """The weights in a file, which must be those of the network."""
    # Shapes alone: nothing is drawn at random to be replaced at once.
    abstract = jax.eval_shape(net.init, jax.random.key(0))
    leaves = dict(named_leaves(abstract))
    with _opened(file) as saved:
        if leaves.keys() != set(saved.keys()):
            raise InputError(f"{file} does not hold the weights of the genotype beside it.")
        # `leaves` is in the order of the tree, the file is not.
        ordered = [_array(saved, file, name, leaf) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(abstract), ordered)


def _array(saved: Any, file: Path, name: str, leaf: jax.Array) -> np.ndarray:
    # The shape before the numbers, which a damaged header may claim to be many.
    shape = tuple(saved.get_slice(name).get_shape())
    if shape != leaf.shape:
        raise InputError(f"{file}: {name} has shape {shape}, but the genotype needs {leaf.shape}.")
    array: np.ndarray = saved.get_tensor(name)
    if array.dtype != leaf.dtype:
        raise InputError(f"{file}: {name} is {array.dtype}, but the genotype needs {leaf.dtype}.")
    return array


def _require_blocks(file: Path, layers: int) -> None:
    """Raise `InputError` where a file does not hold weights of so many layers."""
    blocks = set()
    with _opened(file) as saved:
        for name in saved.keys():  # noqa: SIM118 - it is no dict
            prefix, _, rest = name.partition("/")
            if prefix == "blocks":
                blocks.add(rest.partition("/")[0])
    if len(blocks) != layers:
        raise InputError(f"{file} holds weights of {len(blocks)} layers, and config.json {layers}.")


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A file of weights; `InputError` for whatever its header holds."""
    try:
        with safe_open(file, framework="numpy") as saved:
            yield saved
    except InputError:
        raise
    except OSError as error:
        raise UnreadableFile(f"cannot read {file}: {error.strerror or error}.") from None
    # A type of numbers that NumPy lacks is a KeyError, and so on.
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is damaged: {error}.") from None
