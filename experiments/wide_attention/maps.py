"""What the heads of one wide layer look at, on real IMDb reviews.

    python experiments/wide_attention/maps.py --imdb=FOLDER_OR_ARCHIVE \\
        --plot=experiments/wide_attention/results/maps.png

Trains the CPU-size wide model (1 layer, 16 heads, `full`, words) and draws some test reviews: the
weights with which CLS, whose row alone reaches the answer, looks at each word in each head; and
above them the words, coloured by what the answer loses when the word is hidden (blue: it spoke for
positive, red: for negative), the six that CLS looks at most in bold. Prints, as JSON, how well the
two agree: Kendall's tau of attention and size of the effect, over 100 reviews. """

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
import arena
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from trial import provenance, sample, trained

from dartformer import attention
from dartformer import config as configs
from dartformer.data.batches import examine
from dartformer.models.attention_maps import mapper
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.stages.study import Study
from dartformer.statistics import kendall_tau


def effects(
    run: Study, genotype: Genotype, weights: Any, batch: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each review its margin, the logit of positive minus that of negative `[B]`; what each word
    adds `[B, N]`."""
    net = transformer(run.model, genotype)

    @jax.jit
    def margin(valid: Any) -> Any:
        logits = net.apply(weights, batch["tokens"], valid)
        return logits[:, 1] - logits[:, 0]

    whole = np.asarray(margin(batch["valid"]))
    n = batch["tokens"].shape[1]
    without = [
        np.asarray(margin(jnp.asarray(batch["valid"]) & (jnp.arange(n) != i))) for i in range(n)
    ]
    return whole, whole[:, None] - np.stack(without, 1)


def draw(file: Path, reviews: list[dict[str, Any]]) -> None:
    """A panel of words over a panel of heads for each review."""
    figure = Figure(figsize=(13, 2.9 * len(reviews)), layout="constrained")
    axes = figure.subplots(
        2 * len(reviews), 1, height_ratios=[0.6, 1.1] * len(reviews), squeeze=False
    )[:, 0]
    for r, review in enumerate(reviews):
        text, heads, words = axes[2 * r], axes[2 * r + 1], review["words"]
        scale = max(abs(review["effect"]).max(), 1e-9)
        bold = set(np.argsort(-review["attention"].mean(0))[:6].tolist())
        text.set(xlim=(0, 130), ylim=(2.8, -0.8))
        text.axis("off")
        x, y = 0.0, 0
        for i, word in enumerate(words):
            width = len(word) + 1.2
            if x + width > 130:
                x, y = 0.0, y + 1
            share = float(review["effect"][i] / scale)
            text.text(
                x,
                y,
                word,
                family="monospace",
                fontsize=9,
                weight="bold" if i in bold else "normal",
                bbox={
                    "facecolor": (0, 0.35, 0.7) if share > 0 else (0.8, 0.25, 0),
                    "alpha": 0.65 * abs(share),
                    "edgecolor": "none",
                    "pad": 1.5,
                },
            )
            x += width
        text.set_title(review["title"], fontsize=10, loc="left")
        shown = heads.imshow(review["attention"], aspect="auto", cmap="Greys", vmin=0)
        heads.set_xticks(range(len(words)), words, rotation=90, fontsize=6)
        heads.set_ylabel("head")
        figure.colorbar(shown, ax=heads, pad=0.01, label="CLS looks at")
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imdb", default="", help="see search_spaces/imdb_tokens_small.py")
    parser.add_argument("--data-dir", default="", help="where data are prepared")
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--plot", type=Path, required=True)
    arguments = parser.parse_args()
    data = arena.data_of("imdb_tokens", arguments.imdb, "", arguments.data_dir)
    config = arena.config("imdb_tokens", "cpu", (1, 16), arguments.steps, data)
    configs.override(config, {"retrain.seeds": (0,)})
    genotype = Genotype.homogeneous(attention.parse("full"), 1, 16)
    run = Study(config)
    found, kept = trained(run, genotype, together=False, test_examples=2_000, keep=True)
    batch = next(iter(examine(sample(run.parts["test"], 100, seed=1), 100)))
    margin, effect = effects(run, genotype, kept[0], batch)
    seen = np.asarray(
        mapper(run.model, genotype)(kept[0], batch["tokens"], batch["valid"]).weights
    )[0, :, :, 0, 1:]
    taus, reviews = [], []
    right = (margin > 0) == (batch["label"] == 1)
    for b in range(len(margin)):
        n = int(batch["valid"][b].sum())
        taus.append(kendall_tau(seen[b, :, :n].mean(0).tolist(), abs(effect[b, :n]).tolist()))
    order = np.argsort(-abs(margin)).tolist()
    chosen = [
        next(b for b in order if right[b] and batch["label"][b] == 1),
        next(b for b in order if right[b] and batch["label"][b] == 0),
        next(b for b in order if not right[b]),
    ]
    for b in chosen:
        n = int(batch["valid"][b].sum())
        words = [run.fitted.decode([int(t)]).strip() or "?" for t in batch["tokens"][b, :n]]
        truth, said = (
            ("negative", "positive")[int(one)] for one in (batch["label"][b], margin[b] > 0)
        )
        reviews.append(
            {
                "words": [w.replace("$", r"\$") for w in words],
                "effect": effect[b, :n],
                "attention": seen[b, :, :n],
                "title": f"{truth}, answered {said} (margin {margin[b]:+.2f})",
            }
        )
    draw(arguments.plot, reviews)
    print(
        json.dumps(
            {
                "test": found["test"],
                "steps": found["steps"],
                "reviews": len(taus),
                "tau_of_attention_and_effect": float(np.nanmean(taus)),
                "tau_above_0": float(np.mean(np.array(taus) > 0)),
                **provenance(),
            }
        )
    )


if __name__ == "__main__":
    main()
