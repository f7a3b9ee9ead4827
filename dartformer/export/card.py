"""The model card of an export: what it is, how good, at what cost, for what, and how to use it."""

import html
import json
import re
from collections.abc import Iterator, Sequence

import jax

from dartformer import config as configs
from dartformer import cost
from dartformer.errors import shortened
from dartformer.export.formats import FORMATS
from dartformer.machine.printable import one_line
from dartformer.models.decode import can_generate
from dartformer.results import ModelScores, Results, finite
from dartformer.stages.retrain import Model
from dartformer.training import metric

PIPELINES = {
    "image": "image-classification",
    "pathfinder": "image-classification",
    "language": "text-generation",
}
"""Tasks of the Hugging Face hub for ours. Other tasks classify texts or their tokens."""

SIGNS = re.compile(
    r"[\\`*\[\]|~$]"
    r"|^[-+=#]|(?<=^\d)[.)]"  # headings and lists
    r"|:(?=//)|(?<=www)\."  # addresses, of which it would make links
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # within a word an underscore begins nothing
)
"""What means something in Markdown."""

LABELS = 100
"""Classes whose names are listed."""

LIMITS = (
    "For the task above, on inputs like those it was trained on. Other uses have not been tested. "
    "It takes at most {length} tokens. Probabilities are the softmax of the logits and were not "
    "calibrated. It was tested for accuracy only, not for fairness, robustness or adversarial "
    "inputs."
)


def card(
    model: Model,
    results: Results | None = None,
    formats: Sequence[str] = (),
    *,
    any_length: bool = False,
) -> str:
    """The model card, in Markdown with the hub's front matter.

    Args:
      model: the exported one.
      results: of the run, if the model was evaluated.
      formats: what else is in the folder.
      any_length: whether `model.stablehlo` takes shorter inputs too.
    """
    results = results or Results(task=model.config.task.name)
    title = configs.task_title(model.config.task.to_dict())
    name, genotype = markdown(title), markdown(str(model.genotype))
    lines = [
        *front_matter(model, results),
        f"# {name} model found by dartformer",
        "",
        f"A Transformer whose attention was searched by layer and head. Genotype: {genotype}.",
        "",
        "## Results",
        "",
        *_scores(model, results),
        "## Cost",
        "",
        _cost(model, results),
        "",
        "## Data and training",
        "",
        *_data(model),
        "## Intended use and limits",
        "",
        LIMITS.format(length=model.shape.length),
        "",
        "## How to use it",
        "",
        *_use(model, formats, any_length),
    ]
    return "\n".join(lines)


def _scores(model: Model, results: Results) -> Iterator[str]:
    """The table of models on test, or the score on valid where test was not read."""
    if results.test is None:
        scores = []
        for name, value in model.valid.items():
            if name != "step" and finite(value):
                scores.append(f"{name} {value:.4g}")
        yield (
            f"Not evaluated on test. Seed {model.seed} after step {model.step}, on valid: "
            f"{', '.join(scores)}."
        )
        yield ""
        return
    measure = metric.find(results.measure)
    seeds = results.seeds or ()
    listed = ", ".join(map(str, seeds))
    yield (
        f"On {results.test.examples} test examples; mean over seeds {listed}, {results.steps} "
        f"training steps each. This folder holds seed {model.seed} after step {model.step}, the "
        f"best on valid."
    )
    yield ""
    if results.conclusion is not None:
        for sentence in results.conclusion.sentences:
            yield markdown(sentence)
        yield ""
    yield f"| model | test {measure.title} | seeds |"
    yield "|---|---|---|"
    yield f"| **this genotype** | {measure.text(results.test.mean)} | {len(seeds)} |"
    baselines = results.baselines or {}
    for name in sorted(baselines, key=_majority_first):
        baseline = baselines[name]
        count = "-"  # a rule, which trains nothing, has no seeds
        if isinstance(baseline, ModelScores):
            count = str(len(baseline.test.per_seed))
        title = markdown(name)
        if name == "majority":
            title = "majority class"
        yield f"| {title} | {measure.text(baseline.test.mean)} | {count} |"
    yield ""
    for sentence in results.verdict or ():
        yield f"* {markdown(sentence.removesuffix('.'))}."
    yield ""


def _majority_first(name: str) -> bool:
    """A key to sort names of baselines: False sorts before True."""
    return name != "majority"


def _cost(model: Model, results: Results) -> str:
    """Parameters, operations, and how long the run took."""
    parameters = cost.parameters(model.weights)
    flops = cost.flops(model.shape, model.genotype)
    text = (
        f"{parameters:,} parameters; {flops:.3g} FLOPs for an example of {model.shape.length} "
        f"tokens."
    )
    seconds = results.training_seconds
    if seconds:
        text += f" Search, training and baselines took {seconds:.0f} s."
    return text


def _data(model: Model) -> Iterator[str]:
    """What the model was trained on."""
    labels = model.task.labels
    # A language model has a class for each token of its vocabulary.
    listed = [markdown(shortened(label)) for label in labels[:LABELS]]
    if len(labels) > LABELS:
        listed.append("...")
    task = configs.without_places(model.config.task.to_dict())
    summary = type(model.task).traits.summary.removesuffix(".")
    yield f"Task `{model.config.task.name}`: {summary}."
    yield "`config.json` holds the config without the folders of the data. Of the task:"
    yield ""
    yield "```json"
    yield json.dumps(task, indent=2).replace("<", "\\u003c")  # so that no text of it is HTML
    yield "```"
    yield ""
    yield f"Classes: {', '.join(listed)}."
    yield ""


def _continue(model: Model) -> Iterator[str]:
    """How to run the decode programs."""
    n = model.shape.length
    yield (
        "`dartformer generate FOLDER --prompt TEXT` continues a text. Without dartformer: "
        "`prompt.stablehlo` reads a text into a cache, and `step.stablehlo` one more token of each "
        "row. Both give the logits after the last token, and take the weights by name:"
    )
    yield ""
    yield "```python"
    yield "import jax.export, numpy"
    yield "from safetensors.numpy import load_file"
    yield 'weights = load_file("weights.safetensors")'
    yield 'prompt = jax.export.deserialize(bytearray(open("prompt.stablehlo", "rb").read()))'
    yield 'step = jax.export.deserialize(bytearray(open("step.stablehlo", "rb").read()))'
    yield f"tokens = numpy.ones((1, {n}), numpy.int32)  # padded to this length with 0"
    yield f"valid = numpy.arange({n})[None] < 3  # the first three are the text"
    yield "logits, cache = prompt.call(weights, tokens, valid)"
    yield "token = numpy.argmax(logits, 1).astype(numpy.int32)"
    yield "logits, cache = step.call(weights, token, numpy.ones(1, bool), cache)"
    yield "```"
    yield ""


def _use(model: Model, formats: Sequence[str], any_length: bool) -> Iterator[str]:
    """How to run each file."""
    tokens, valid = model.shape.blank(1)
    outputs = "logits"
    if model.task.traits.metric == "r2":
        outputs = "numbers"
    shorter = ""
    if any_length:
        shorter = ", or fewer of them, N being any length up to that"
    yield (
        "`dartformer.load(folder)` reads texts. Without dartformer: `model.stablehlo`, for CPU, "
        f"CUDA and TPU, takes tokens {described(tokens)} and valid {described(valid)}{shorter}, "
        f"and returns {outputs}:"
    )
    yield ""
    yield "```python"
    yield "import jax.export, numpy"
    yield 'run = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))'
    yield (
        f"run.call(numpy.zeros({tokens.shape}, numpy.{tokens.dtype}), "
        f"numpy.ones({valid.shape}, bool))"
    )
    yield "```"
    yield ""
    if can_generate(model.shape, model.genotype):
        yield from _continue(model)
    for name in formats:
        written = FORMATS[name]
        lines = written.usage(tokens, valid)
        if lines:
            yield "```python"
            yield from lines
            yield "```"
        else:
            yield f"It also holds {written.summary}."
        yield ""


def markdown(text: str) -> str:
    """A text from elsewhere, such as a label, that Markdown and HTML show as it is."""
    return html.escape(SIGNS.sub(r"\\\g<0>", one_line(text)), quote=False)


def described(array: jax.ShapeDtypeStruct) -> str:
    """ "`[b, N]` int32", N being the number"""
    # The batch is b, whatever it is in this array.
    sizes = ", ".join(map(str, array.shape[1:]))
    return f"`[b, {sizes}]` {array.dtype}"


def pipeline(model: Model) -> str:
    """The hub's name for what the model does."""
    traits = model.task.traits
    if traits.metric == "bits_per_character":
        return "text-generation"
    default = "text-classification"
    if traits.per_token:
        default = "token-classification"
    return PIPELINES.get(model.config.task.name, default)


def front_matter(model: Model, results: Results) -> Iterator[str]:
    """The YAML that the hub reads: library, tags, task and test result. Values are JSON."""
    # JSON is YAML, and it quotes whatever must be quoted.
    title = configs.task_title(model.config.task.to_dict())
    name = model.config.task.name
    tags = ["dartformer", "jax", "neural-architecture-search", "attention", name]
    yield "---"
    yield "library_name: dartformer"
    yield f"pipeline_tag: {pipeline(model)}"
    yield f"tags: {json.dumps(tags)}"
    # YAML has no score that is undefined.
    if results.test is not None and finite(results.test.mean):
        measure = metric.find(results.measure)
        score = {
            "type": measure.name,
            "name": f"test {measure.title}",
            "value": results.test.mean,
        }
        result = {
            "task": {"type": pipeline(model)},
            "dataset": {"name": title, "type": name},
            "metrics": [score],
        }
        entry = {"name": f"dartformer-{title}", "results": [result]}
        yield f"model-index: {json.dumps([entry])}"
    yield "---"
    yield ""
