"""The model card of an export: what it is, how good, at what cost, for what, and how to use it."""

import json
from collections.abc import Sequence
from typing import Any

import jax

from dartformer import cost
from dartformer.stages.retrain import Model
from dartformer.training import metric

PIPELINES = {
    "image": "image-classification",
    "pathfinder": "image-classification",
    "language": "text-generation",
}
"""Tasks of the Hugging Face hub for ours; other texts are classified, by the text or by the
token."""


def card(
    model: Model, results: dict[str, Any], formats: Sequence[str] = (), *, any_length: bool = False
) -> str:
    """The model card, in Markdown with the hub's front matter.

    Args:
      model: the exported one.
      results: the run's `results.json`, or empty where the model was not evaluated.
      formats: what else is in the folder.
      any_length: whether `model.stablehlo` takes shorter inputs too.
    """
    name, shape = model.config.task.name, model.shape
    labels = model.task.labels
    lines = [
        *front_matter(model, results),
        f"# {name} model found by dartformer",
        "",
        f"A Transformer whose attention was searched for, by layer and head. Genotype: {model.genotype}.",
        "",
        "## Results",
        "",
    ]
    if "test" in results:
        shown = metric.of(results)
        seeds = results["seeds"]
        lines += [
            f"On {results['test']['examples']} test examples; mean over seeds {', '.join(map(str, seeds))}, "
            f"{results['steps']} training steps each. This folder holds seed {model.seed} after step "
            f"{model.step}, which is best on valid.",
            "",
            f"| model | test {shown.title} | seeds |",
            "|---|---|---|",
            f"| **this genotype** | {shown.text(results['test'][shown.name])} | {len(seeds)} |",
        ]
        order = sorted(results["baselines"].items(), key=lambda item: item[0] != "majority")
        lines += [
            f"| {'majority class' if other == 'majority' else other} | {shown.text(b['test'][shown.name])} | "
            f"{len(b['test'].get('per_seed', [])) or '-'} |"
            for other, b in order
        ]
        lines += ["", *(f"* {sentence}." for sentence in results["verdict"]), ""]
    else:
        lines += [
            f"Not evaluated on test. Seed {model.seed} after step {model.step}; on valid: "
            + ", ".join(f"{k} {v:.4g}" for k, v in model.valid.items() if k != "step")
            + ".",
            "",
        ]
    seconds = sum(v for k, v in results.get("seconds", {}).items() if not k.endswith(".compile"))
    lines += [
        "## Cost",
        "",
        f"{cost.parameters(model.weights):,} parameters; {cost.flops(shape, model.genotype):.3g} FLOPs for an example "
        f"of {shape.length} tokens."
        + (f" Search, training and baselines took {seconds:.0f} s." if seconds else ""),
        "",
        "## Data and training",
        "",
        f"Task `{name}`: {type(model.task).traits.summary}. All of the config is in `config.json`; of the task:",
        "",
        "```json",
        json.dumps(model.config.task.to_dict(), indent=2),
        "```",
        "",
        f"Classes: {', '.join(labels[:100])}{', ...' if len(labels) > 100 else ''}.",
        "",
        "## Intended use and limits",
        "",
        "For the task above, on inputs of the kind it was trained on; nothing is known of any other use. It takes at "
        f"most {shape.length} tokens. Probabilities are the softmax of logits and were not calibrated, and it was "
        "tested for accuracy alone: not for fairness, robustness or adversarial inputs.",
        "",
        "## How to use it",
        "",
        *_use(model, formats, any_length),
    ]
    return "\n".join(lines)


def _use(model: Model, formats: Sequence[str], any_length: bool) -> list[str]:
    tokens, valid = model.shape.blank(1)
    found = "numbers" if model.task.traits.metric == "r2" else "logits"
    shorter = "; or fewer of them, N being any length up to that" if any_length else ""
    lines = [
        "`dartformer.load(folder)` reads texts. Without dartformer: `model.stablehlo`, for CPU, CUDA and TPU, "
        f"takes tokens {described(tokens)} and valid {described(valid)}{shorter}, and gives {found}:",
        "",
        "```python",
        "import jax.export, numpy",
        'run = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))',
        f"run.call(numpy.zeros({tokens.shape}, numpy.{tokens.dtype}), numpy.ones({valid.shape}, bool))",
        "```",
        "",
    ]
    code = {
        "onnx": [
            "import onnxruntime, numpy",
            'run = onnxruntime.InferenceSession("model.onnx")',
            f'run.run(None, {{"tokens": numpy.zeros({tokens.shape}, numpy.{tokens.dtype}), '
            f'"valid": numpy.ones({valid.shape}, bool)}})',
        ],
        "tensorflow": [
            "import tensorflow as tf",
            'run = tf.saved_model.load("saved_model").signatures["serving_default"]',
            f'run(tokens=tf.zeros({tokens.shape}, "{tokens.dtype}"), valid=tf.ones({valid.shape}, "bool"))',
        ],
        "torch": [
            "import torch, model_torch",
            'model = model_torch.load(".")',
            f"model(torch.zeros({tokens.shape}, dtype=torch.{tokens.dtype}), torch.ones({valid.shape}, "
            f"dtype=torch.bool))",
        ],
    }
    for name in formats:
        lines += ["```python", *code[name], "```", ""]
    return lines


def described(array: jax.ShapeDtypeStruct) -> str:
    """ "`[b, N]` int32", N being the number"""
    return f"`[b, {', '.join(map(str, array.shape[1:]))}]` {array.dtype}"


def front_matter(model: Model, results: dict[str, Any]) -> list[str]:
    """The YAML that the Hugging Face hub reads: library, tags, task, and the test result. Values
    are JSON, which is YAML."""
    name = model.config.task.name
    pipeline = PIPELINES.get(
        name, "token-classification" if model.task.traits.per_token else "text-classification"
    )
    if model.task.traits.metric == "bits_per_character":
        pipeline = "text-generation"
    lines = [
        "---",
        "library_name: dartformer",
        f"pipeline_tag: {pipeline}",
        f"tags: {json.dumps(['dartformer', 'jax', 'neural-architecture-search', 'attention', name])}",
    ]
    if "test" in results:
        shown = metric.of(results)
        entry = [
            {
                "name": f"dartformer-{name}",
                "results": [
                    {
                        "task": {"type": pipeline},
                        "dataset": {"name": name, "type": name},
                        "metrics": [
                            {
                                "type": shown.name,
                                "name": f"test {shown.title}",
                                "value": results["test"][shown.name],
                            }
                        ],
                    }
                ],
            }
        ]
        lines.append(f"model-index: {json.dumps(entry)}")
    return [*lines, "---", ""]
