"""Other attentions in some layers of a checkpoint: untrained, aligned, and tuned end to end.

    python experiments/checkpoint/tune.py --model=FOLDER --text=FILE --workdir=runs/tune

Replaces the attention of `--layers` (by default those that the path of `results/run.json` values
least), aligns these layers to the checkpoint's, and then tunes the whole model on the checkpoint's
predictions. Prints a JSON line for each stage: the mean NLL of plain text and of a passage that
comes again (`again`), and the KL divergence from the checkpoint, on sequences of the last fifth of
the text, which nothing was trained on. A killed program goes on with the same command."""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import dartformer as df
from dartformer.pretrained import Pretrained
from dartformer.pretrained.align import Alignment, align, untrained
from dartformer.pretrained.passages import pieces, repeated
from dartformer.pretrained.tune import Tuner, Tuning, compare, predictions, training_sequences
from dartformer.training.checkpoint import Checkpoints

LEAST = "0,1,9,10,11,13,16,19,25,29"
"""The ten layers that the path values least, by both kinds of sequences."""

TRAINED = 0.8
"""Share of the text that is trained on, from its beginning."""

ALIGNED = 16
"""Sequences that layers are aligned on."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="the folder of a checkpoint")
    parser.add_argument("--text", required=True, help="a text file")
    parser.add_argument("--workdir", required=True, help="a folder for the state of the training")
    parser.add_argument(
        "--layers", default=LEAST, help=f"numbers between commas (default: {LEAST})"
    )
    parser.add_argument(
        "--attention",
        default="window_linear(window=32)",
        help="their new attention (default: window_linear(window=32))",
    )
    parser.add_argument("--align-steps", type=int, default=30, help="of each layer (default: 30)")
    parser.add_argument("--steps", type=int, default=60, help="of the whole model (default: 60)")
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step (default: 1)")
    parser.add_argument("--rate", type=float, default=2e-5, help="the highest (default: 2e-5)")
    parser.add_argument("--adapters", type=int, default=0, help="their rank; 0: all weights")
    parser.add_argument("--length", type=int, default=256, help="tokens (default: 256)")
    parser.add_argument(
        "--held-out", type=int, default=4, help="sequences of each kind for results (default: 4)"
    )
    parser.add_argument("--every", type=int, default=20, help="steps between lines (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    return parser.parse_args()


class Spent(NamedTuple):
    """When a stage began."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Spent":
        """This moment."""
        return cls(time.perf_counter(), time.process_time())

    def since(self) -> dict[str, float]:
        """Seconds from then on."""
        return {
            "seconds": round(time.perf_counter() - self.wall, 1),
            "processor_seconds": round(time.process_time() - self.processor, 1),
        }


class Test:
    """The sequences that nothing was trained on."""

    def __init__(self, teacher: Pretrained, text: np.ndarray, options: argparse.Namespace):
        self.options = options
        self.kinds, self.teacher = {}, {}
        for kind, make in (("text", pieces), ("again", repeated)):
            self.kinds[kind] = make(text, options.length, options.held_out)
            self.teacher[kind] = predictions(teacher, self.kinds[kind])

    def say(self, name: str, model: Pretrained, **values: object) -> None:
        """Print a JSON line with the qualities of a model."""
        row: dict[str, object] = {"name": name, "attention": self.options.attention}
        for kind, sequences in self.kinds.items():
            quality = compare(self.teacher[kind], predictions(model, sequences), sequences)
            row[kind] = round(float(quality.nll.mean()), 4)
            row[f"{kind}_kl"] = round(float(quality.kl.mean()), 4)
            row[f"{kind}_each"] = quality.nll[0].round(4).tolist()
        print(json.dumps(row | values), flush=True)


def main() -> None:
    """Print the lines."""
    options = arguments()
    teacher = df.load_pretrained(options.model)
    text = np.array(teacher.tokenizer.encode(Path(options.text).read_text()).ids)
    border = int(TRAINED * len(text))
    test = Test(teacher, text[border:], options)
    sequences = training_sequences(text[:border], options.length)
    rows = list(teacher.genotype.layers)
    for layer in map(int, options.layers.split(",")):
        rows[layer] = (df.parse(options.attention),) * teacher.config.heads
    genotype = df.Genotype(tuple(rows))
    test.say("full", teacher, sequences=len(sequences))
    test.say("untrained", untrained(teacher, genotype, options.seed), layers=options.layers)
    spent = Spent.now()
    chosen = np.linspace(0, len(sequences) - 1, ALIGNED).astype(int)
    settings = Alignment(steps=options.align_steps, seed=options.seed)
    aligned = align(teacher, genotype, sequences[chosen], settings)
    fits = [(fit.layer, round(fit.before, 3), round(fit.after, 3)) for fit in aligned.fits]
    test.say("aligned", aligned.model, steps=options.align_steps, fits=fits, **spent.since())
    tuning = Tuning(options.steps, options.batch, options.rate, options.adapters, seed=options.seed)
    tuner = Tuner(teacher, aligned.model, sequences, tuning)
    tune(tuner, test, options)


def tune(tuner: Tuner, test: Test, options: argparse.Namespace) -> None:
    """Tune from the newest checkpoint on, with a line every so many steps."""
    state, done, spent, losses = tuner.begin(), 0, Spent.now(), []
    with Checkpoints(Path(options.workdir)) as saved:
        restored = saved.latest(state)
        if restored is not None:
            state, done = restored.state, restored.step
        for step in range(done, options.steps):
            state, loss = tuner.advance(state, step)
            losses.append(loss)
            if (step + 1) % options.every and step + 1 < options.steps:
                continue
            saved.save(step + 1, state, {})
            test.say(
                "tuned",
                tuner.model(state),
                step=step + 1,
                loss=round(float(np.mean(losses)), 4),
                batch=options.batch,
                rate=options.rate,
                adapters=options.adapters,
                parameters=state.trained.size,
                memory_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
                devices=str(jax.devices()[0].platform),
                **spent.since(),
            )
            losses = []


if __name__ == "__main__":
    main()
