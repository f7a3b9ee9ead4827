"""Figures, each as a matplotlib figure: for the report, for notebooks, for papers."""

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dartformer.attention import Attention, Inputs, Shape, to_text
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.training import metric

# Okabe and Ito's palette: told apart with every common colour blindness, and in print; its
# black, unseen on a dark page, is a violet, and three of Tol's follow.
PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#999999",
    "#7A4FB5",
    "#882255",
    "#44AA99",
    "#DDCC77",
)
GREY = "#6b7280"

matplotlib.rcParams["svg.hashsalt"] = "dartformer"  # the same figure gives the same file


def colour(index: int) -> str:
    """The colour of candidate number `index`."""
    return PALETTE[index % len(PALETTE)]


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY)
    return figure, axes


def genotype(found: Genotype, candidates: Sequence[str] | None = None) -> Figure:
    """Layers by heads, coloured by attention, with a legend."""
    return drawing([[to_text(a) for a in heads] for heads in found.layers], candidates)


def drawing(texts: Sequence[Sequence[str]], candidates: Sequence[str] | None = None) -> Figure:
    """`genotype` of attentions that are given as texts."""
    rows, columns = len(texts), len(texts[0])
    names = list(dict.fromkeys([*(candidates or ()), *(t for row in texts for t in row)]))
    cell = min(0.5, 12 / max(rows, columns))
    figure, axes = _figure(1.4 + 1.1 * cell * columns + 2.2, 1.0 + cell * rows)
    for l, row in enumerate(texts):
        for h, text in enumerate(row):
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (h + 0.04, l + 0.04), 0.92, 0.92, color=colour(names.index(text))
                )
            )
    axes.set(xlim=(0, columns), ylim=(rows, 0), xlabel="head", ylabel="layer", aspect="equal")
    for set_ticks, n in ((axes.set_xticks, columns), (axes.set_yticks, rows)):
        every = np.arange(0, n, max(1, n // 24))
        set_ticks(every + 0.5, [str(i) for i in every])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    used = [n for n in names if any(n in row for row in texts)]
    axes.legend(
        [matplotlib.patches.Patch(color=colour(names.index(n))) for n in used],
        used,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
    )
    return figure


def trajectories(history: Sequence[dict[str, Any]], space: SearchSpace) -> Figure:
    """Mixture weights over the steps of a seed's `history`; see `weights`."""
    rows, columns, _ = space.alphas_shape
    lines = [line for line in history if "mixture" in line]
    values = np.array([line["mixture"] for line in lines]).reshape(len(lines), *space.mixture_shape)
    return weights(
        [line["step"] for line in lines],
        values[None, :, :rows, :columns],
        [to_text(a) for a in space.candidates],
        space.granularity,
    )


def weights(
    steps: Sequence[int], values: np.ndarray, candidates: Sequence[str], granularity: str = "head"
) -> Figure:
    """Mixture weights `[S, T, 1 or L, 1 or H, K]` over steps `[T]`, a panel for each of up to 24
    places."""
    seeds, _, rows, columns, _ = values.shape
    shown = [(l, h) for l in range(rows) for h in range(columns)][:24]
    wide = min(len(shown), 4)
    tall = -(-len(shown) // wide)
    figure = Figure(figsize=(1.2 + 2.4 * wide + 1.6, 0.6 + 1.9 * tall), layout="constrained")
    grid = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, (l, h) in zip(grid.flat, shown, strict=False):
        for k, name in enumerate(candidates):
            for s in range(seeds):
                axes.plot(
                    steps,
                    values[s, :, l, h, k],
                    color=colour(k),
                    linewidth=1.4,
                    alpha=1 / seeds**0.5,
                    label=name if s == 0 else None,
                )
        axes.set_title(_row_name(granularity, l, h), fontsize=9)
        axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=GREY)
    figure.supxlabel("search step", fontsize=9)
    figure.supylabel("weight in the mixture", fontsize=9)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    return figure


def _row_name(granularity: str, layer: int, head: int) -> str:
    if granularity == "model":
        return "all layers"
    return f"layer {layer}" if granularity == "layer" else f"layer {layer}, head {head}"


def curves(models: Mapping[str, Sequence[Sequence[tuple[int, float]]]], label: str) -> Figure:
    """Something over steps: a colour for each model by name, a line of (step, value) for each of
    its seeds."""
    figure, axes = _figure(7, 3)
    for i, (name, seeds) in enumerate(models.items()):
        for number, points in enumerate(seeds):
            axes.plot(
                *zip(*points, strict=True),
                color=colour(i),
                linewidth=1,
                label=None if number else name,
            )
    axes.set(xlabel="step", ylabel=label)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def comparison(results: dict[str, Any]) -> Figure:
    """The metric on test of the found model and of every baseline: a dot for each seed, a bar for
    the mean."""
    shown = metric.of(results)
    rows = [("found", results["test"])] + [(n, b["test"]) for n, b in results["baselines"].items()]
    figure, axes = _figure(7, 0.7 + 0.34 * len(rows))
    for i, (name, test) in enumerate(rows):
        tone = PALETTE[0] if name == "found" else "#c3c9d1"
        axes.barh(i, shown.number(test[shown.name]), color=tone, height=0.65)
        axes.plot(
            [shown.number(a) for a in test.get("per_seed", [])],
            [i] * len(test.get("per_seed", [])),
            "o",
            color="#1f2937",
            markersize=3.5,
        )
        right = max([test[shown.name], *test.get("per_seed", [])])
        axes.annotate(
            shown.text(test[shown.name]).removesuffix("%"),
            (shown.number(right), i - 0.05),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=GREY,
            ha="left",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.7},
        )
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set(
        ylim=(len(rows) - 0.4, -0.6), xlabel=f"test {shown.title}{', %' if shown.percent else ''}"
    )
    return figure


def cost(
    models: Sequence[tuple[str, float, float]],
    measure: str,
    shown: metric.Metric,
    front: Sequence[int],
) -> Figure:
    """Score over cost of `models` (name, cost, score), with the Pareto front, numbers of models by
    rising cost."""
    figure, axes = _figure(6, 3.6)
    line = [(models[i][1], shown.number(models[i][2])) for i in front]
    axes.step(
        *zip(*line, strict=True), where="post", color=PALETTE[5], linestyle="--", linewidth=1.2
    )
    for name, x, score in models:
        found = name.startswith("found")
        axes.plot(
            x, shown.number(score), "D" if found else "o", color=PALETTE[0] if found else GREY
        )
        axes.annotate(
            name.removeprefix("homogeneous."),
            (x, shown.number(score)),
            (0, -12 if found else 5),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=PALETTE[0] if found else GREY,
        )
    axes.margins(0.15)
    axes.set(xlabel=measure, ylabel=f"test {shown.title}{', %' if shown.percent else ''}")
    return figure


def layers(models: Sequence[Mapping[str, Any]], field: str, label: str) -> Figure:
    """A cost of each layer, a step line for each model: `models` are rows of `profile.json`."""
    figure, axes = _figure(7, 3)
    for i, model in enumerate(models):
        axes.plot(
            [one[field] for one in model["layers"]],
            color=colour(i),
            label=model["name"],
            marker="o",
            markersize=3,
            drawstyle="steps-mid",
        )
    axes.set(xlabel="layer", ylabel=label, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def maps(
    weights: np.ndarray, tokens: Sequence[str], layers: Sequence[int], heads: Sequence[int]
) -> Figure:
    """Attention maps `[L, H, n, n]` on one example, at most 48: queries downward, keys to the
    right."""
    tall, wide = min(len(layers), 6), min(len(heads), 8)
    figure = Figure(figsize=(0.6 + 1.7 * wide, 0.4 + 1.85 * tall), layout="constrained")
    grid = figure.subplots(tall, wide, squeeze=False)
    for l in range(tall):
        for h in range(wide):
            axes, matrix = grid[l, h], weights[l, h]
            top, signed = max(np.abs(matrix).max(), 1e-12), matrix.min() < 0
            axes.imshow(
                matrix,
                cmap="PuOr" if signed else "Blues",
                vmin=-top if signed else 0,
                vmax=top,
                interpolation="nearest",
            )
            axes.set_title(f"layer {layers[l]}, head {heads[h]}", fontsize=7)
            few = len(tokens) <= 16
            axes.set_xticks(
                range(len(tokens)) if few else [], tokens if few else [], fontsize=4.5, rotation=90
            )
            axes.set_yticks(range(len(tokens)) if few else [], tokens if few else [], fontsize=4.5)
            axes.tick_params(length=0, pad=1, colors=GREY)
            axes.spines[:].set_color("#d1d5db")
    return figure


def growth(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Time and memory over length, on logarithmic axes, a line for each attention, named where it
    ends.

    Args:
      rows: each with "spec", "lengths", "ms" and "temp_mib", as
        `experiments/benchmarks/attention.py` prints them.
    """
    figure = Figure(figsize=(11, 3.2 + 0.13 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, field, label in zip(
        panels, ("ms", "temp_mib"), ("forward and backward, ms", "kept meanwhile, MiB"), strict=True
    ):
        ends = []
        for i, row in enumerate(rows):
            points = [(n, v) for n, v in zip(row["lengths"], row[field], strict=True) if v > 0]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour(i),
                    linewidth=1.3,
                    marker="o",
                    markersize=2.5,
                    linestyle=("-", "--", ":")[i // len(PALETTE) % 3],
                )
                ends.append((points[-1], row["spec"], colour(i)))
        axes.set(xscale="log", yscale="log", xlabel="length N", ylabel=label)
        ticks = sorted({n for row in rows for n in row["lengths"]})
        axes.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=7)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=GREY)
        _name_ends(axes, ends)
    return figure


def profile(data: Mapping[str, Any]) -> Figure:
    """What `dartformer profile` found: over lengths, on logarithmic axes, where several were asked
    for; else bars."""
    fields = [
        (
            "latency, ms",
            lambda r: r.get("latency_seconds") and 1e3 * r["latency_seconds"]["median"],
        ),
        ("MFLOP executed", lambda r: r.get("flops") and r["flops"] / 1e6),
        ("state when decoding, KiB", lambda r: r["state_bytes"] / 2**10),
    ]
    rows = data.get("sweep") or data["models"]
    fields = [(label, get) for label, get in fields if any(get(r) for r in rows)]
    names = list(dict.fromkeys(r["name"] for r in rows))
    sweep = len({r["length"] for r in rows}) > 1
    figure = Figure(
        figsize=(3.6 * len(fields) + 2, 3.2 if sweep else 1.2 + 0.3 * len(names)),
        layout="constrained",
    )
    panels = figure.subplots(1, len(fields), squeeze=False, sharey=not sweep)[0]
    for axes, (label, get) in zip(panels, fields, strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=GREY)
        for i, name in enumerate(names):
            points = [(r["length"], get(r)) for r in rows if r["name"] == name and get(r)]
            if sweep and points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=colour(i),
                    marker="o",
                    markersize=3,
                    label=name,
                )
            elif points:
                axes.barh(i, points[0][1], color=colour(i))
        if sweep:
            axes.set(xscale="log", yscale="log", xlabel="length", ylabel=label)
        else:
            axes.set_yticks(range(len(names)), names, fontsize=7)
            axes.set(xlabel=label, ylim=(len(names) - 0.5, -0.5))
    if sweep:
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            frameon=False,
            fontsize=7,
            loc="outside right upper",
        )
    figure.suptitle(
        f"{data['device']}; batch {data['batch']}, {data['phase']}", fontsize=8, color=GREY
    )
    return figure


FAR = 1.3
"""A budget beyond this many times the dearest genotype is told and not drawn: it would press all
points together."""


def pareto(data: Mapping[str, Any]) -> Figure:
    """Accuracy with inherited weights against cost, from `pareto.json` (points) or what `derive
    --budget` returns."""
    points, share = data.get("points") or data["front"], data["metric"]
    figure, axes = _figure(7, 4)
    best = [p for p in points if p["front"]]
    axes.step(
        [p["cost"] for p in best],
        [p[share] for p in best],
        where="post",
        color=PALETTE[0],
        linewidth=1.2,
    )
    kinds = {
        "chosen": (PALETTE[5], "D", 7, lambda p: p["chosen"]),
        "front": (PALETTE[0], "o", 4, lambda p: p["front"] and not p["chosen"]),
        "others": (GREY, "o", 4, lambda p: not p["front"] and not p["chosen"]),
    }
    for label, (tone, marker, size, belongs) in kinds.items():
        some = [p for p in points if belongs(p)]
        axes.plot(
            [p["cost"] for p in some],
            [p[share] for p in some],
            marker,
            color=tone,
            markersize=size,
            label=label,
        )
    for p in points:
        if p["name"]:
            axes.annotate(
                p["name"],
                (p["cost"], p[share]),
                (5, -10),
                textcoords="offset points",
                fontsize=7,
                color=GREY,
            )
    limit, dearest = data.get("budget", {}).get(data["quantity"]), max(p["cost"] for p in points)
    if limit and limit < FAR * dearest:
        axes.axvline(limit, color=PALETTE[5], linewidth=0.8, linestyle="--", label="budget")
    elif limit:
        axes.plot(
            [],
            [],
            color=PALETTE[5],
            linewidth=0.8,
            linestyle="--",
            label=f"budget: {limit:.4g}, to the right",
        )
    axes.margins(x=0.12)
    axes.legend(frameon=False, fontsize=7, loc="upper left")  # a front rises to the right
    axes.set(xlabel=data["quantity"], ylabel=f"{share} on valid, inherited weights")
    return figure


def save(figure: Figure, file: str) -> None:
    """Write a figure as its ending says; raises `InputError` for one that matplotlib does not
    know."""
    try:
        figure.savefig(file)
    except (ValueError, OSError) as error:
        raise InputError(f"cannot draw to {file}: {error}.") from None


def _name_ends(axes: Any, ends: list[tuple[tuple[float, float], str, str]]) -> None:
    """Write the name of each line to the right of the axes, near the height at which it ends, none
    over another."""
    low, high = np.log(axes.get_ylim())
    ends = sorted(ends, key=lambda end: end[0][1])
    gap = 1 / max(len(ends), 36)
    places: list[float] = []
    for (_, y), _, _ in ends:
        place = float((np.log(y) - low) / (high - low))
        places.append(max(place, places[-1] + gap) if places else place)
    for i, place in enumerate(places):  # those that were pushed above the axes push back
        places[i] = min(place, 1 - gap * (len(places) - 1 - i))
    for (end, name, tone), place in zip(ends, places, strict=True):
        axes.annotate(
            name if len(name) < 36 else name.split("(")[0] + "(...)",
            end,
            (1.1, place),
            textcoords="axes fraction",
            va="center",
            fontsize=6.5,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": tone,
                "linewidth": 0.7,
                "relpos": (0, 0.5),
                "shrinkB": 1,
            },
        )


def matrices(
    attentions: Sequence[Attention],
    text: str = "abacabad eebbccdd abacabad",
    *,
    causal: bool = False,
    seed: int = 0,
) -> Figure:
    """What each attention's outputs take from which tokens, on one small input: queries downward,
    keys to the right.

    Each letter of `text` is a random vector, which is query, key and input alike but for a little
    noise: letters attend to their like, as far as an attention lets them. Parameters are those of
    `init`. Drawn are the weights; of a type that has none, how much each output changes with the
    value and the input of each token, by its definition."""
    keys = iter(jax.random.split(jax.random.key(seed), 9))
    n, width = len(text), 16
    shape = Shape(length=n, heads=1, head_dim=width, model_dim=width)
    letters = jax.random.normal(next(keys), (128, width))[
        np.frombuffer(text.encode("ascii"), np.uint8)
    ]
    q, k, x = (1.1 * letters + 0.2 * jax.random.normal(next(keys), (n, width)) for _ in range(3))
    inputs = Inputs(
        q[None, :, None],
        k[None, :, None],
        jax.random.normal(next(keys), (1, n, 1, width)),
        x[None],
        head_keys=jax.random.split(next(keys), 1),
    )
    init_key = next(keys)
    wide = min(len(attentions), 5)
    tall = -(-len(attentions) // wide)
    figure = Figure(figsize=(0.4 + 2.1 * wide, 2.35 * tall), layout="constrained")
    grid = figure.subplots(tall, wide, squeeze=False)
    for axes in grid.flat[len(attentions) :]:
        axes.set_visible(False)
    for axes, attention in zip(grid.flat, attentions, strict=False):
        matrix = _matrix(
            attention,
            attention.init(init_key, shape),
            inputs,
            causal=causal or not attention.traits.bidirectional,
        )
        top, signed = np.abs(matrix).max(), matrix.min() < 0
        axes.imshow(
            matrix,
            cmap="PuOr" if signed else "Blues",
            vmin=-top if signed else 0,
            vmax=top,
            interpolation="nearest",
        )
        axes.set_title(
            textwrap.fill(to_text(attention).replace("(", "( ", 1), 34).replace("( ", "("),
            fontsize=6.5,
        )
        axes.set_xticks(range(n), text, fontsize=5)
        axes.set_yticks(range(n), text, fontsize=5)
        axes.tick_params(length=0, pad=1, colors=GREY)
        axes.spines[:].set_color("#d1d5db")
    return figure


def _matrix(attention: Attention, params: Any, inputs: Inputs, *, causal: bool) -> np.ndarray:
    """`[N, N]` of the first head: its weights, or the size of the derivatives of its definition by
    v and x."""
    found = attention.weights(params, inputs, causal=causal)
    if found is not None:
        return np.asarray(found[0, 0])
    reference: Any = attention.reference  # type: ignore[attr-defined]

    def output(v: jax.Array, x: jax.Array) -> jax.Array:
        return reference(params, dataclasses.replace(inputs, v=v, x=x), causal=causal)[0, :, 0]

    by_v, by_x = jax.jacobian(output, (0, 1))(inputs.v, inputs.x)
    parts = jnp.sum(by_v[:, :, 0, :, 0] ** 2, (1, 3)), jnp.sum(by_x[:, :, 0] ** 2, (1, 3))
    return np.asarray(jnp.sqrt(parts[0] + parts[1]))
