"""Probes: what does each causal attention do on small tasks that each need one ability?

    python experiments/benchmarks/probes.py --workdir=runs/probes
    python experiments/benchmarks/probes.py --workdir=runs/probes --stretch=context_recall >> lengths.jsonl
    python experiments/benchmarks/probes.py --workdir=runs/probes --lines > suite.jsonl
    python experiments/benchmarks/probes.py --draw=suite.jsonl,lengths.jsonl

The first command trains every causal type on every probe, as one layer whose stem shows each token
the one before it, so that models differ in the attention alone. Stop it and run it again, or with
`--seeds=2`: what is trained is not trained again. The second tests the models of one probe at up to
eight times their length, a line for each type. The third prints the probes that are done, one line
for each of them and for each type. The last writes the results of docs/probes.md and its picture.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measure import machine, say

import dartformer
from dartformer import config as configs
from dartformer.config import Config
from dartformer.errors import InputError
from dartformer.report.figure import alone
from dartformer.report.probes import MEAN, by_state
from dartformer.space.genotype import Genotype
from dartformer.stages import probe as suite
from dartformer.stages.layout import Workdir
from dartformer.stages.lengths import evaluate_at_lengths, require_any_length
from dartformer.stages.probe import Probed
from dartformer.stages.retrain import best, retrain
from dartformer.statistics import mean

SUITE = (
    "context_recall",
    "noisy_recall",
    "fuzzy_recall",
    "selective_copying",
    "memorization",
    "compression",
    "updated_recall",
    "compositional_recall",
    "parity",
)

TYPES = (
    "full",
    "linear",
    "gated_delta",
    "conv",
    "local(window=8)",
    "ssd",
    "retention",
    "gated_linear",
    "identity",
    "uniform",
    "differential",
    "performer(features=32)",
    "cosformer",
    "strided(stride=4)",
    "block(size=8)",
    "sink(window=8, sinks=1)",
    "sparse(stride=8)",
    "longformer(window=8)",
    "bigbird(block=4)",
    "reformer(buckets=4, chunk=8)",
    "synthesizer",
    "window_linear(window=8)",
)
"""Every causal type once, with windows and blocks of a quarter of the probes' 32 tokens."""

PAGE = Path(__file__).resolve().parents[2] / "docs/probes.md"

BEGIN, END = "<!-- results: made by experiments/benchmarks/probes.py -->\n", "<!-- end -->\n"

FACTORS = (1, 2, 4, 8)
"""Multiples of the length of training."""


def config_of(seeds: int, steps: int) -> Config:
    """One layer that sees the token before, and no positions: it can read any length."""
    config = dartformer.defaults("parity")
    config.model.layers = 1
    config.model.heads = 2
    config.model.head_dim = 16
    config.model.model_dim = 32
    config.model.mlp_dim = 64
    config.model.stem = "bigram"
    config.model.positions = "none"
    config.data.batch_size = 32
    config.space.candidates = TYPES
    config.space.granularity = "model"
    config.retrain.seeds = tuple(range(seeds))
    config.retrain.steps = steps
    config.retrain.optimizer.learning_rate = 0.01
    config.retrain.program = "own"  # of a supernet of so many types takes longer to compile
    config.log.every = steps
    config.log.eval_every = steps
    config.log.checkpoint_every = steps
    return configs.build(config)


def genotypes_of(config: Config, types: Sequence[str]) -> dict[str, Genotype]:
    """Each type everywhere, by its text here."""
    layers, heads = config.model.layers, config.model.heads
    named = {}
    for text in types:
        named[text] = Genotype.homogeneous(dartformer.parse(text), layers, heads)
    return named


def lines(probed: Probed) -> None:
    """A line for the suite, one for each probe, and one for each type, the best first."""
    whole = probed.to_dict()
    tasks, models = whole.pop("tasks"), whole.pop("models")
    say(name="suite", suite=whole)
    for task in tasks:
        say(name="task", task=task)
    for model in models:
        say(name="model", model=model)


def stretch(config: Config, folder: Path, types: Sequence[str], probe: str) -> None:
    """A line for each type with its accuracy at more lengths, or why it has none."""
    rate = config.retrain.optimizer.learning_rate
    setting = suite.config_of(config, probe, "small", rate)
    study = suite.Programs("small").study(setting)
    with Workdir(folder / probe / f"rate{rate!r}", setting) as workdir:
        for text, genotype in genotypes_of(config, types).items():
            try:
                require_any_length(study.model, genotype)
            except InputError as error:
                say(name="length", probe=probe, model=text, refused=str(error))
                continue
            model = best(retrain(study, workdir, genotype, f"{probe} {text}"))
            lengths = [factor * study.model.length for factor in FACTORS]
            accuracies = {}
            for length, scores in evaluate_at_lengths(model, lengths).items():
                accuracies[str(length)] = scores["accuracy"]
            say(name="length", probe=probe, model=text, at_lengths=accuracies)


# The page.


def read(files: Sequence[Path]) -> tuple[Probed, list[dict[str, Any]]]:
    """The suite that lines tell of, and the lines of lengths."""
    whole: dict[str, Any] = {}
    lengths = []
    for file in files:
        for text in file.read_text().splitlines():
            line = json.loads(text)
            if line["name"] == "suite":
                whole = {**line["suite"], "tasks": [], "models": []}
            elif line["name"] == "length":
                lengths.append(line)
            elif line["name"] in ("task", "model"):
                whole[f"{line['name']}s"].append(line[line["name"]])
    return Probed.from_dict(whole, str(files[0])), lengths


def scores_table(probed: Probed) -> str:
    """Accuracies in per cent, with the rules and chance, in Markdown."""
    names = [task.probe.replace("_", " ") for task in probed.tasks]
    rows = [["attention", "score", *names, "state, bytes"]]
    rows.append(["---"] + ["--:"] * (len(names) + 2))
    for model in probed.models:
        cells = [percent(score.test) for score in model.probes]
        state = f"{model.state_bytes:,.0f}"
        rows.append([f"`{model.name}`", f"**{percent(model.score)}**", *cells, state])
    rules = [task.rules[task.best_rule] for task in probed.tasks]
    chances = [task.chance for task in probed.tasks]
    for name, accuracies in {"best simple rule": rules, "chance": chances}.items():
        cells = [percent(accuracy) for accuracy in accuracies]
        rows.append([f"*{name}*", percent(mean(accuracies)), *cells, ""])
    return markdown(rows)


def lengths_table(stretched: Sequence[dict[str, Any]]) -> str:
    """Accuracies in per cent by length, in Markdown."""
    lengths = stretched[0]["at_lengths"]
    rows = [["attention", *(f"{length} tokens" for length in lengths)]]
    rows.append(["---"] + ["--:"] * len(lengths))
    for line in stretched:
        cells = [percent(accuracy) for accuracy in line["at_lengths"].values()]
        rows.append([f"`{line['model']}`", *cells])
    return markdown(rows)


def percent(share: float) -> str:
    return f"{100 * share:.0f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


RESULTS = """
## Every causal attention

![mean accuracy over the probes against bytes of state](probes.png)

Test accuracy in per cent; the score is the mean. Compare each column with its last two rows. The
picture has the score against the state.

{scores}
{lengths}### Settings and limits

* One layer of width 32 with two heads of 16, no positions, and `model.stem = "bigram"`: each
  token also sees the token before it. So a single layer can look for what followed a key, and
  models differ in the attention alone.
* {steps} steps of 32 examples of 32 tokens (`compression`: 16), learning rate {rate:g}, seeds
  {seeds}. One rate: a type that needs another rate or more steps is judged too low, and
  differences of a few points mean nothing.
* Windows, blocks and strides are an eighth to a quarter of the length, so that types with them
  see a part of an example. At their own defaults most of them would see all 32 tokens and be
  `full`.
* `identity` reads no other token. What it scores, the stem and the feed-forward layer score.
  `memorization` needs no more than that here.
* MAD itself trains two layers of width 128 for 20,000 steps, takes the best of six rates and
  decays, and averages over harder settings. Its scores cannot be compared with these. `dartformer
  new --task=NAME --size=published` has its settings.

Commands: `experiments/benchmarks/probes.py`. Lines:
`experiments/benchmarks/results/probes_cpu1.jsonl`.
"""

LONGER = """### Longer than in training

`{probe}`, trained at {length} tokens. Everything but the length is as in training. Types whose
parameters belong to a length are left out.

{table}
"""


def results(probed: Probed, measured: Sequence[dict[str, Any]]) -> str:
    """The part of the page that has numbers, in Markdown."""
    lengths = ""
    stretched = [line for line in measured if "at_lengths" in line]
    if stretched:
        first = stretched[0]
        table = lengths_table(stretched)
        trained = next(iter(first["at_lengths"]))
        lengths = LONGER.format(probe=first["probe"], length=trained, table=table)
    return RESULTS.format(
        scores=scores_table(probed),
        lengths=lengths,
        steps=probed.steps,
        rate=probed.rates[0],
        seeds=", ".join(map(str, probed.seeds)),
    )


def put(text: str, part: str) -> str:
    """A page with new results between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + part + END + rest.split(END, 1)[1]


def draw(files: Sequence[Path]) -> None:
    """The results in docs/probes.md, and its picture."""
    probed, measured = read(files)
    PAGE.write_text(put(PAGE.read_text(), results(probed, measured)))
    figure = alone(by_state(probed), {"probe": MEAN}, width=640)
    figure.save(PAGE.with_suffix(".png"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--types", default=";".join(TYPES), help="separated by semicolons")
    parser.add_argument("--probes", default=",".join(SUITE))
    parser.add_argument("--stretch", default="", metavar="PROBE")
    parser.add_argument("--lines", action="store_true", help="print what is done; train nothing")
    parser.add_argument("--draw", default="", metavar="FILES", help="separated by commas")
    arguments = parser.parse_args()
    setting = config_of(arguments.seeds, arguments.steps)
    types = arguments.types.split(";")
    folder = arguments.workdir
    if arguments.draw:
        draw([Path(name) for name in arguments.draw.split(",")])
    elif arguments.lines:
        machine()
        lines(Probed.from_dict(json.loads((folder / suite.FILE).read_text()), suite.FILE))
    elif arguments.stretch:
        stretch(setting, folder, types, arguments.stretch)
    else:
        names = arguments.probes.split(",")
        suite.probe(setting, folder, genotypes_of(setting, types), probes=names)
