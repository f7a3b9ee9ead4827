"""Which layers and KV groups of a checkpoint keep full attention, without training, and how well.

    python experiments/checkpoint/placement.py --model=FOLDER --keep=8
    python experiments/checkpoint/placement.py --model=FOLDER --keep=8 --rules --text=FILE

FOLDER is a decoder with full attention and a tokenizer, as Hugging Face writes it. Prints one JSON
line for each placement of so many layers, or of as many KV groups as they have: the mean NLL of
plain text, of a passage that comes again (`again`), and of words that follow other words a second
time (`recall`), and the KL divergence from the checkpoint, on sequences that no score was made
with. In the last line are the NLLs of the passage and the seconds of the whole program. Places that
are not kept have `--cheap`."""

import argparse
import json
import re
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dartformer as df
from dartformer.pretrained import Pretrained
from dartformer.pretrained.passages import Sequences, pieces, repeated
from dartformer.pretrained.placement import PathScores, Placement, top, uniform

DOCS = Path(__file__).parents[2] / "docs"
PROSE = 150
"""Characters from which on a paragraph is prose."""

RANDOM = 3
"""Placements of layers that are drawn."""

LETTERS = 4
"""Of a word of the recall at least, so that tokens which are parts of words are rare."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="the folder of a checkpoint")
    parser.add_argument("--keep", type=int, default=8, help="layers that stay full (default: 8)")
    parser.add_argument("--text", help="a text file (default: prose of the documentation)")
    parser.add_argument("--length", type=int, default=256, help="tokens (default: 256)")
    parser.add_argument(
        "--cheap",
        default="sink(window=32, sinks=4)",
        help="what the other places have (default: sink(window=32, sinks=4))",
    )
    parser.add_argument("--points", type=int, default=8, help="of the path (default: 8)")
    parser.add_argument(
        "--calibrate", type=int, default=2, help="sequences of each kind for scores (default: 2)"
    )
    parser.add_argument(
        "--held-out", type=int, default=4, help="sequences of each kind for results (default: 4)"
    )
    parser.add_argument("--rules", action="store_true", help="also score by swap and restore")
    parser.add_argument("--seed", type=int, default=0, help="of random placements (default: 0)")
    return parser.parse_args()


def say(**values: Any) -> None:
    """Print one JSON line, with numbers to five digits."""
    row = {}
    for key, value in values.items():
        if isinstance(value, float):
            value = float(f"{value:.5g}")
        row[key] = value
    print(json.dumps(row), flush=True)


def text_of(file: str | None) -> str:
    """The text of a file, or the prose of the documentation, without tables, lists and code."""
    if file:
        return Path(file).read_text()
    paragraphs = []
    for page in sorted(DOCS.glob("*.md")):
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for paragraph in text.split("\n\n"):
            if len(paragraph) > PROSE and paragraph.lstrip()[:1].isalpha():
                paragraphs.append(paragraph.strip())
    return "\n\n".join(paragraphs)


def words_of(model: Pretrained, tokens: np.ndarray) -> np.ndarray:
    """The tokens of a text that are words with a space before them, each one time."""
    words = []
    for token in np.unique(tokens):
        text = model.texts.decode([token])
        if text.startswith(" ") and text[1:].isalpha() and len(text) > LETTERS:
            words.append(token)
    return np.array(words)


def recall(model: Pretrained, tokens: np.ndarray, length: int, count: int, seed: int) -> Sequences:
    """Pairs of words, and the same pairs in another order, whose second words are scored.

    "apple river. stone cloud. ... stone cloud. apple river." No word stands in two pairs.
    """
    rng, words = np.random.default_rng(seed), words_of(model, tokens)
    (stop,) = model.texts.prompt(".")
    pairs = min(length // 6, len(words) // 2)  # three tokens each, and twice
    rows = []
    for _ in range(count):
        drawn = rng.permutation(words)[: 2 * pairs].reshape(pairs, 2)
        sentences = np.concatenate([drawn, np.full((pairs, 1), stop)], axis=1)
        again = rng.permutation(sentences)
        rows.append(np.concatenate([sentences, again]).ravel())
    first = 3 * pairs + 1
    return Sequences(np.array(rows), np.arange(first, 6 * pairs, 3))


class Kinds:
    """Sequences of both kinds that score: plain text, and a passage that comes again."""

    def __init__(self, text: np.ndarray, length: int, calibrate: int, held_out: int):
        count = calibrate + held_out
        self.calibration: dict[str, Sequences] = {}
        self.held_out: dict[str, Sequences] = {}
        for name, make in (("text", pieces), ("again", repeated)):
            sequences = make(text, length, count)
            self.calibration[name] = sequences.take(0, calibrate)
            self.held_out[name] = sequences.take(calibrate, count)


def both(scores: Mapping[str, np.ndarray], totals: Mapping[str, float]) -> np.ndarray:
    """The scores of both kinds, each as a share of what all cheap places lose."""
    return scores["text"] / totals["text"] + scores["again"] / totals["again"]


def path_scores(placement: Placement, kinds: Kinds, points: int) -> dict[str, PathScores]:
    """Scores of both kinds, and a line for each."""
    scores = {}
    for name, sequences in kinds.calibration.items():
        processor, wall = time.process_time(), time.perf_counter()
        scores[name] = placement.path(sequences, points)
        say(
            name="path",
            kind=name,
            points=points,
            path_sum=float(scores[name].groups.sum()),
            total=scores[name].total,
            groups=np.round(scores[name].groups, 5).tolist(),
            seconds=time.perf_counter() - wall,
            processor_seconds=time.process_time() - processor,
        )
    return scores


def by_path(scores: Mapping[str, PathScores], prefix: str, keep: int) -> dict[str, np.ndarray]:
    """The layers and groups with the highest scores, by both kinds."""
    groups, totals = {}, {}
    for name, found in scores.items():
        groups[name], totals[name] = found.groups, found.total
    shares = both(groups, totals)
    columns = shares.shape[1]
    return {
        f"{prefix}layers": top(shares.sum(1, keepdims=True), keep),
        f"{prefix}groups": top(shares, keep * columns),
    }


def by_hand(layers: int, columns: int, keep: int, seed: int) -> dict[str, np.ndarray]:
    """Placements that read no checkpoint."""
    rank, rng = np.arange(layers)[:, None], np.random.default_rng(seed)
    placements = {
        "full": np.ones((layers, 1), bool),
        "none": np.zeros((layers, 1), bool),
        "uniform": uniform(layers, keep),
        "first": rank < keep,
        "last": rank >= layers - keep,
    }
    for draw in range(RANDOM):
        placements[f"random_{draw}"] = top(rng.random((layers, 1)), keep)
    placements["random_groups"] = top(rng.random((layers, columns)), keep * columns)
    return placements


def by_rules(placement: Placement, kinds: Kinds, keep: int) -> dict[str, np.ndarray]:
    """The layers by what a swap loses, and by what a restored layer wins."""
    placements = {}
    for rule in ("swap", "restore"):
        scores, totals = {}, {}
        for name, sequences in kinds.calibration.items():
            processor, wall = time.process_time(), time.perf_counter()
            scores[name] = getattr(placement, rule)(sequences)
            totals[name] = float(scores[name].sum())
            say(
                name=rule,
                kind=name,
                layers=np.round(scores[name][:, 0], 5).tolist(),
                sum=totals[name],
                seconds=time.perf_counter() - wall,
                processor_seconds=time.process_time() - processor,
            )
        placements[f"{rule}_text"] = top(scores["text"], keep)
        placements[f"{rule}_again"] = top(scores["again"], keep)
        placements[rule] = top(both(scores, totals), keep)
    return placements


def evaluate(
    placement: Placement, placements: Mapping[str, np.ndarray], kinds: Kinds
) -> dict[str, float]:
    """The NLL of the passage by name of the placement, and a line for each."""
    # Several scores often choose the same places, which are evaluated one time.
    different: dict[bytes, np.ndarray] = {}
    for kept in placements.values():
        different.setdefault(placement.mixture(kept).tobytes(), kept)
    qualities = {}
    for kind, sequences in kinds.held_out.items():
        qualities[kind] = placement.evaluate(list(different.values()), sequences)
    text, again, words = qualities["text"], qualities["again"], qualities["recall"]
    passages = {}
    for name, kept in placements.items():
        row = list(different).index(placement.mixture(kept).tobytes())
        passages[name] = float(again.nll[row].mean())
        places = np.flatnonzero(kept).tolist()
        if kept.shape[1] > 1:
            places = np.argwhere(kept).tolist()
        say(
            name="placement",
            placement=name,
            text=float(text.nll[row].mean()),
            text_kl=float(text.kl[row].mean()),
            again=passages[name],
            again_each=again.nll[row].astype(float).round(4).tolist(),
            again_kl=float(again.kl[row].mean()),
            recall=float(words.nll[row].mean()),
            kept=places,
        )
    return passages


def peak() -> int:
    """Bytes of memory that the process had at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    options, wall, before = arguments(), time.perf_counter(), peak()
    model = df.load_pretrained(options.model)
    tokens = np.array(model.tokenizer.encode(text_of(options.text)).ids)
    placement = Placement(model, df.parse(options.cheap))
    layers, columns, _ = placement.space.alphas_shape
    kinds = Kinds(tokens, options.length, options.calibrate, options.held_out)
    kinds.held_out["recall"] = recall(model, tokens, options.length, options.held_out, options.seed)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model.weights))
    settings = {key: value for key, value in vars(options).items() if key not in ("model", "text")}
    say(name="settings", layers=layers, kv_groups=columns, tokens=len(tokens), **settings)

    placements = by_hand(layers, columns, options.keep, options.seed)
    middle = path_scores(placement, kinds, 1)
    placements |= by_path(middle, "midpoint_", options.keep)
    scores = path_scores(placement, kinds, options.points)
    placements |= by_path(scores, "", options.keep)
    for name, found in scores.items():
        placements[f"layers_by_{name}"] = top(found.layers, options.keep)
    say(name="memory", peak_over_weights=(peak() - before) / weights)
    if options.rules:
        placements |= by_rules(placement, kinds, options.keep)
    again = evaluate(placement, placements, kinds)
    # The best of several draws is no placement that anyone has without an evaluation.
    say(name="passage", keep=options.keep, **again, seconds=time.perf_counter() - wall)


if __name__ == "__main__":
    main()
