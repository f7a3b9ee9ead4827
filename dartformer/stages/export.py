"""Export: a folder that outsiders can use; and `load`, which runs no code from it."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dartformer import config as configs
from dartformer import cost, metric
from dartformer._version import __version__
from dartformer.checkpoint import named_leaves
from dartformer.errors import InputError
from dartformer.genotype import Genotype
from dartformer.kernels.flash import without_cudnn
from dartformer.stages.retrain import Model
from dartformer.tasks.base import Learns
from dartformer.transformer import Network, Weights, transformer
from dartformer.workdir import read_json, write_json, write_text

FORMAT = 1
PLATFORMS = ("cpu", "cuda", "tpu")
CHECKSUMS = "checksums.json"
LEARNED = "learned.json"
"""What the task learned from its training part, such as a tokenizer."""


def export(model: Model, folder: str | Path, results: dict[str, Any] | None = None) -> Path:
    """Write a trained model: genotype, weights, StableHLO, config, model card, checksums.

    Args:
      model: what `retrain` returned.
      folder: made if need be; files of an earlier export are replaced.
      results: the run's `results.json`, for the model card.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / CHECKSUMS).exists():
        raise InputError(f"{folder} holds other files: export to a new or an empty folder.")
    # Made beside it and then moved, so that there is never a part of an export under its name.
    made = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    _write(model, made, results or {})
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        made.rename(folder)
        shutil.rmtree(old)
    else:
        made.rename(folder)
    return folder


def _write(model: Model, folder: Path, results: dict[str, Any]) -> None:
    # Who loads it may have another device: the StableHLO file takes what all have, and a loaded model what there is.
    kernel = without_cudnn("auto", model.shape.tokens)
    net = transformer(dataclasses.replace(model.shape, kernel=kernel), model.genotype)
    config = configs.to_dict(model.config)
    config["model"]["kernel"] = "auto"
    save_file({name: np.asarray(leaf) for name, leaf in named_leaves(model.weights)}, folder / "weights.safetensors")
    (folder / "weights.safetensors").chmod(0o644)  # safetensors makes it private
    write_text(folder / "genotype.json", model.genotype.to_json())
    write_json(folder / "config.json", {"format": FORMAT, "dartformer": __version__, "seed": model.seed,
                                        "step": model.step, "labels": list(model.task.labels),
                                        "config": config})
    if isinstance(model.task, Learns):
        write_text(folder / LEARNED, model.task.learned)
    (folder / "model.stablehlo").write_bytes(stablehlo(net, model))
    write_text(folder / "README.md", card(model, results))
    files = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != CHECKSUMS)
    write_json(folder / CHECKSUMS, {name: _sha256(folder / name) for name in files})


def stablehlo(net: Network, model: Model) -> bytes:
    """`(tokens [b, N] int32, valid [b, N] bool) -> logits`, weights inside, any batch size, for `PLATFORMS`.

    Of two documents `[b, 2, N]`; of tokens that are numbers `[b, N, F]` float32.

    Read it with `jax.export.deserialize`; neither dartformer nor flax is needed.
    """
    weights = jax.tree.map(np.asarray, model.weights)
    (batch,) = jax_export.symbolic_shape("b")
    function = jax.jit(lambda tokens, valid: net.apply(weights, tokens, valid))
    made = jax_export.export(function, platforms=PLATFORMS)(*model.shape.blank(batch))
    return bytes(made.serialize())


@dataclass(frozen=True)
class Served:
    """A loaded model: call it with texts, or with token ids; for two documents, with pairs of either."""

    predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
    model: Model

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.model.task.labels

    def logits(self, texts: Sequence[Any]) -> np.ndarray:
        """Logits `[B, C]`, or `[B, N, C]` of a task that labels tokens, of texts or of lists of token ids.

        Where the model compares two documents, of pairs of these. Raises `InputError` for what the model cannot read.
        """
        return np.asarray(self.predict(*self.arrays(texts)))

    def arrays(self, texts: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """What the model reads: tokens and valid, `[B, N]`, or `[B, 2, N]` of pairs, or tokens `[B, N, F]`."""
        if isinstance(texts, str):
            raise InputError("give a list of texts, not one text.")
        shape = self.model.shape
        if shape.inputs == 2 and any(isinstance(pair, str) or len(pair) != 2 for pair in texts):
            raise InputError("this model compares two documents: give pairs of texts.")
        tokens, valid = (np.zeros(a.shape, a.dtype) for a in shape.blank(len(texts)))
        for i, one in enumerate(texts):
            for at, document in enumerate(one if shape.inputs == 2 else [one]):
                ids = self.model.task.encode(document) if isinstance(document, str) else self._checked(document)
                where = (i, at) if shape.inputs == 2 else (i,)
                tokens[where][:len(ids)], valid[where][:len(ids)] = ids, True
        return tokens, valid

    def __call__(self, texts: Sequence[Any]) -> list[dict[str, Any]]:
        """`[{"label", "probability"}, ...]`, one for each text; of a task that labels tokens, a list of each; where
        numbers are predicted, `[{"value"}, ...]`."""
        if not len(texts):
            return []
        tokens, valid = self.arrays(texts)
        logits = np.asarray(self.predict(tokens, valid))
        if self.model.task.traits.metric == "r2":
            return [{"value": self.model.task.value(float(row[0]))} for row in logits]  # type: ignore[attr-defined]
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        odds /= odds.sum(-1, keepdims=True)
        if odds.ndim == 3:
            return [{"label": [self.labels[i] for i in row[:n].argmax(-1)], "probability": row[:n].max(-1).tolist()}
                    for row, n in zip(odds, valid.sum(1), strict=True)]
        return [{"label": self.labels[int(row.argmax())], "probability": float(row.max())} for row in odds]

    def _checked(self, ids: Any) -> Any:
        shape = self.model.shape
        if shape.features:
            found = np.asarray(ids, np.float32)
            if found.ndim != 2 or not 0 < len(found) <= shape.length or found.shape[1] != shape.features:
                raise InputError(f"the model takes 1 to {shape.length} tokens of {shape.features} numbers, got an "
                                 f"array of shape {found.shape}.")
            return found
        if not 0 < len(ids) <= shape.length:
            raise InputError(f"the model takes 1 to {shape.length} tokens, got {len(ids)}.")
        if min(ids) < 0 or max(ids) >= shape.vocabulary:
            raise InputError(f"token ids must be at least 0 and below {shape.vocabulary}, got {list(ids)}.")
        return list(ids)


def load(folder: str | Path) -> Served:
    """Load an export after verifying its checksums; no code from it is run.

    Raises `InputError` where the folder is no export, or a file is missing, damaged or not as it was written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}.")
    if not (folder / CHECKSUMS).is_file():
        raise InputError(f"{folder} is not an exported model: it has no {CHECKSUMS}.")
    noted = read_json(folder / CHECKSUMS)
    for name in ("config.json", "genotype.json", "weights.safetensors"):
        if name not in noted:
            raise InputError(f"{folder / CHECKSUMS} is damaged: it does not list {name}.")
    for name, digest in noted.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise InputError(f"the export {folder} lacks {name}.")
        if _sha256(file) != digest:
            raise InputError(f"{file} is damaged: its checksum is not the one noted at export.")
    header = read_json(folder / "config.json")
    if header.get("format") != FORMAT:
        raise InputError(f"{folder} has export format {header.get('format')!r}, this dartformer reads {FORMAT}.")
    config = configs.from_dict(header["config"])
    task = configs.make_task(config)
    if isinstance(task, Learns):
        if LEARNED not in noted:
            raise InputError(f"{folder / CHECKSUMS} is damaged: it does not list {LEARNED}.")
        task = replace(task, learned=(folder / LEARNED).read_text(encoding="utf-8"))  # type: ignore[type-var]
    shape = configs.make_model(config, task)
    genotype = Genotype.from_json((folder / "genotype.json").read_text(encoding="utf-8"))
    net = transformer(shape, genotype)
    weights = _weights(net, folder / "weights.safetensors")
    model = Model(config, task, shape, genotype, weights, header["seed"], header["step"], {})
    apply = jax.jit(net.apply)
    return Served(lambda tokens, valid: apply(weights, tokens, valid), model)


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
            raise InputError(f"{file}: {name} has shape {arrays[name].shape}, the genotype wants {leaf.shape}.")
    return jax.tree.unflatten(jax.tree.structure(abstract), [jnp.asarray(arrays[name]) for name, _ in named])


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def described(array: jax.ShapeDtypeStruct) -> str:
    """ "`[b, N]` int32", N being the number """
    return f"`[b, {', '.join(map(str, array.shape[1:]))}]` {array.dtype}"


def card(model: Model, results: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    tokens, valid = model.shape.blank(1)
    lines = [f"# {model.config.task.name} model found by dartformer", "",
             f"Genotype: {model.genotype}.", ""]
    if "test" in results:
        shown = metric.of(results)
        lines += [f"| model | test {shown.title} | seeds |", "|---|---|---|",
                  f"| **this genotype** | {shown.text(results['test'][shown.name])} | {len(results['seeds'])} |"]
        lines += [f"| {name} | {shown.text(b['test'][shown.name])} | {len(b['test'].get('per_seed', [])) or '-'} |"
                  for name, b in results["baselines"].items()]
        lines += ["", *(f"* {sentence}." for sentence in results["verdict"]), ""]
    lines += [
        f"* Weights of seed {model.seed} after step {model.step}; {cost.parameters(model.weights):,} parameters; "
        f"at most {model.shape.length} tokens.",
        f"* Classes: {', '.join(model.task.labels[:100])}{', ...' if len(model.task.labels) > 100 else ''}.",
        "* Intended use: the task above, on text of the kind it was trained on; nothing is known of any other use.",
        "",
        f"`model.stablehlo` takes tokens {described(tokens)} and valid {described(valid)} and gives "
        f"{'numbers' if model.task.traits.metric == 'r2' else 'logits'}:", "",
        "```python",
        "import jax.export, numpy",
        'run = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))',
        f"run.call(numpy.zeros({tokens.shape}, numpy.{tokens.dtype}), numpy.ones({valid.shape}, bool))",
        "```", "",
        "Task options:", "", "```json", json.dumps(model.config.task.to_dict(), indent=2), "```", ""]
    return "\n".join(lines)
