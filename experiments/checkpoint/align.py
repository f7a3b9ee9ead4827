"""A checkpoint with other attentions in some layers: untrained, and aligned layer by layer.

    python experiments/checkpoint/align.py --model=FOLDER --text=FILE --steps=40

Replaces the attention of `--layers` (by default those that the path of `results/run.json` values
least) by each `--type`. Prints a JSON line for the checkpoint, and two for each type: the mean NLL
of plain text and of a passage that comes again (`again`), and the KL divergence from the
checkpoint, on sequences of the last fifth of the text, which nothing was trained on. `recovered` is
the share of what the untrained model loses that alignment gives back."""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax import Array
from tune import LEAST, TRAINED, Spent

import dartformer as df
from dartformer.pretrained import Pretrained
from dartformer.pretrained.align import Alignment, align, untrained
from dartformer.pretrained.passages import Sequences, pieces, repeated
from dartformer.pretrained.tune import compare, predictions, training_sequences

TYPES = ("window_linear(window=32)", "gated_delta")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="the folder of a checkpoint")
    parser.add_argument("--text", required=True, help="a text file")
    parser.add_argument(
        "--layers", default=LEAST, help=f"numbers between commas (default: {LEAST})"
    )
    parser.add_argument(
        "--type",
        action="append",
        help=f"their attention; may be repeated (default: {' and '.join(TYPES)})",
    )
    parser.add_argument("--steps", type=int, default=40, help="of each layer (default: 40)")
    parser.add_argument("--batch", type=int, default=2, help="sequences of a step (default: 2)")
    parser.add_argument(
        "--sequences", type=int, default=16, help="that are aligned on (default: 16)"
    )
    parser.add_argument("--length", type=int, default=256, help="tokens (default: 256)")
    parser.add_argument(
        "--held-out",
        type=int,
        default=8,
        help="sequences of each kind for results; 0: losses of the layers alone (default: 8)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of new parameters (default: 0)")
    return parser.parse_args()


class HeldOut(NamedTuple):
    """Sequences of one kind, and the log-probabilities that the checkpoint predicts there."""

    sequences: Sequences
    expected: list[Array]


class Figures:
    """Prints JSON lines with the figures of models on the sequences of both kinds."""

    def __init__(self, teacher: Pretrained, text: np.ndarray, length: int, count: int) -> None:
        self.kinds = {}
        if not count:
            return
        for kind, make in (("text", pieces), ("again", repeated)):
            sequences = make(text, length, count)
            self.kinds[kind] = HeldOut(sequences, predictions(teacher, sequences))

    def say(self, name: str, model: Pretrained, **values: object) -> dict[str, float]:
        """Print the line of a model, and give its NLL of each kind."""
        row: dict[str, object] = {"name": name, **values}
        losses = {}
        for kind, held_out in self.kinds.items():
            student = predictions(model, held_out.sequences)
            quality = compare(held_out.expected, student, held_out.sequences)
            losses[kind] = float(quality.nll.mean())
            row[kind] = round(losses[kind], 4)
            row[f"{kind}_kl"] = round(float(quality.kl.mean()), 4)
            row[f"{kind}_each"] = quality.nll[0].round(4).tolist()
        print(json.dumps(row), flush=True)
        return losses


def main() -> None:
    """Print the lines."""
    options = arguments()
    teacher = df.load_pretrained(options.model)
    text = np.array(teacher.tokenizer.encode(Path(options.text).read_text()).ids)
    border = int(TRAINED * len(text))
    figures = Figures(teacher, text[border:], options.length, options.held_out)
    sequences = training_sequences(text[:border], options.length)
    chosen = np.linspace(0, len(sequences) - 1, options.sequences).astype(int)
    layers = list(map(int, options.layers.split(",")))
    full = figures.say("full", teacher, layers=layers, length=options.length)
    settings = Alignment(options.steps, options.batch, seed=options.seed)
    for spec in options.type or TYPES:
        rows = list(teacher.genotype.layers)
        for layer in layers:
            rows[layer] = (df.parse(spec),) * teacher.config.heads
        genotype = df.Genotype(tuple(rows))
        before = figures.say("untrained", untrained(teacher, genotype, options.seed), type=spec)
        spent = Spent.now()
        aligned = align(teacher, genotype, sequences[chosen], settings)
        seconds = spent.since()
        fits = []
        for fit in aligned.fits:
            fits.append([fit.layer, round(fit.before, 3), round(fit.after, 3), round(fit.size, 3)])
        after = figures.say(
            "aligned",
            aligned.model,
            type=spec,
            steps=options.steps,
            batch=options.batch,
            sequences=options.sequences,
            seed=options.seed,
            layer_before_after_size=fits,
            **seconds,
        )
        recovered = {"name": "recovered", "type": spec}
        for kind in full:
            share = (before[kind] - after[kind]) / (before[kind] - full[kind])
            recovered[kind] = round(share, 3)
        if full:
            print(json.dumps(recovered), flush=True)


if __name__ == "__main__":
    main()
