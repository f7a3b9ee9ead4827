"""Which layers of an encoder keep full attention, against every placement that there is.

    python experiments/checkpoint/encoder.py --model=FOLDER --text=FILE

FILE has a document on each line. The layers are scored on some documents by the path gradient, by
swap and by restore. Then all 2^L placements are measured on other ones: the mean cosine distance of
their embeddings from the checkpoint's. Each line of the output is a JSON object. For each count of
full layers one has the distance of each choice with its rank among all placements of that count,
and the last one has the seconds of a forward pass. Places that are not kept have `--cheap`."""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

import dartformer as df
from dartformer.placement.study import Limit
from dartformer.pretrained.passages import Documents, documents
from dartformer.pretrained.placement import Placement, top, uniform

REPEATS = 10
"""Forward passes that are timed, of which the quickest counts."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="the folder of an encoder")
    parser.add_argument("--text", required=True, help="a text file with a document on each line")
    parser.add_argument("--length", type=int, default=128, help="tokens (default: 128)")
    parser.add_argument("--cheap", default="local(window=8)", help="(default: local(window=8))")
    parser.add_argument("--points", type=int, default=8, help="of the path (default: 8)")
    parser.add_argument("--calibrate", type=int, default=16, help="documents (default: 16)")
    parser.add_argument("--held-out", type=int, default=32, help="documents (default: 32)")
    parser.add_argument(
        "--timed", type=int, default=512, help="tokens that are timed (default: 512)"
    )
    return parser.parse_args()


def say(**values: Any) -> None:
    """Print one JSON line, with numbers to five digits."""
    row = {}
    for key, value in values.items():
        if isinstance(value, float):
            value = float(f"{value:.5g}")
        row[key] = value
    print(json.dumps(row), flush=True)


def scores_of(placement: Placement, calibration: Documents, points: int) -> dict[str, np.ndarray]:
    """Scores `[L, 1]` of each rule, and a line for each."""
    scores = {}
    for rule in ("path", "midpoint", "swap", "restore"):
        processor = time.process_time()
        total = math.nan
        if rule in ("path", "midpoint"):
            path = placement.path(calibration, {"path": points, "midpoint": 1}[rule])
            scores[rule], total = path.layers, path.total
        else:
            scores[rule] = getattr(placement, rule)(calibration)
        line = {"sum": float(scores[rule].sum()), "layers": scores[rule][:, 0].round(5).tolist()}
        if not math.isnan(total):
            line["total"] = total
        say(name=rule, **line, processor_seconds=time.process_time() - processor)
    return scores


def by_name(scores: Mapping[str, np.ndarray], layers: int, keep: int) -> Iterator[tuple[str, int]]:
    """Each choice of so many layers, as the number of its placement."""
    rank = np.arange(layers)[:, None]
    for rule, values in scores.items():
        yield rule, number_of(top(values, keep))
    yield "uniform", number_of(uniform(layers, keep))
    yield "first", number_of(rank < keep)
    yield "last", number_of(rank >= layers - keep)


def number_of(kept: np.ndarray) -> int:
    """A placement as bits."""
    return int(np.sum(kept[:, 0] << np.arange(len(kept))))


def placement_of(number: int, layers: int) -> np.ndarray:
    """`[L, 1]`: the bits of a number."""
    return ((number >> np.arange(layers)) & 1).astype(bool)[:, None]


def milliseconds(placement: Placement, kept: np.ndarray, tokens: np.ndarray) -> float:
    """Processor time of a forward pass of one text by the placement's own model."""
    genotype = placement.genotype(kept)
    model = df.transformer(placement.model.config, genotype)
    apply = jax.jit(model.apply)
    valid = np.ones(tokens.shape, bool)
    spent = []
    for _ in range(REPEATS + 1):
        before = time.process_time()
        apply(placement.model.weights, tokens, valid).block_until_ready()
        spent.append(time.process_time() - before)
    return 1000 * min(spent)


def main() -> None:
    options = arguments()
    model = df.load_pretrained(options.model)
    placement = Placement(model, df.parse(options.cheap))
    layers, places = model.config.layers, placement.places
    split = documents(
        model.described, options.text, options.length, options.calibrate, options.held_out
    )
    lengths = [*split.calibration.lengths, *split.held_out.lengths]
    settings = {key: value for key, value in vars(options).items() if key not in ("model", "text")}
    say(name="settings", layers=layers, shortest=min(lengths), **settings)
    scores = scores_of(placement, split.calibration, options.points)

    numbers = range(2**layers)
    processor = time.process_time()
    all_of_them = [placement_of(number, layers) for number in numbers]
    distances = placement.divergence(all_of_them, split.held_out)  # [2^L, B]
    means = distances.mean(1)
    say(
        name="exhaustive",
        distances=[float(f"{mean:.5g}") for mean in means],
        processor_seconds=time.process_time() - processor,
    )
    flops = Limit(math.inf, options.timed, "flops")
    for keep in range(layers + 1):
        same = np.array([number for number in numbers if number.bit_count() == keep])
        ranked = same[np.argsort(means[same])]
        choices = {}
        for name, number in by_name(scores, layers, keep):
            choices[name] = {
                "layers": np.flatnonzero(placement_of(number, layers)).tolist(),
                "distance": round(float(means[number]), 5),
                "rank": int(np.flatnonzero(ranked == number)[0]) + 1,
            }
        best = int(ranked[0])
        difference = distances[number_of(top(scores["path"], keep))] - distances[best]
        say(
            name="keep",
            keep=keep,
            placements=len(same),
            best=np.flatnonzero(placement_of(best, layers)).tolist(),
            best_distance=float(means[best]),
            mean=float(means[same].mean()),
            worst=float(means[same].max()),
            path_behind_best=float(difference.mean()),
            gflop=flops.cost_of(placement_of(best, layers), places) / 1e9,
            choices=choices,
        )
    tokens = np.resize(split.held_out.tokens[:1], (1, options.timed))
    timed = {}
    for keep in (layers, layers // 2, layers // 3, 0):
        kept = top(scores["path"], keep)
        timed[str(keep)] = round(milliseconds(placement, kept, tokens), 2)
    say(name="processor_milliseconds", length=options.timed, **timed)


if __name__ == "__main__":
    main()
