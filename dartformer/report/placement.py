"""The page of a placement: which places of a checkpoint are kept, and what that is worth."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dartformer.config import PlacementConfig, to_dict
from dartformer.config.checkpoint import KV_BYTES
from dartformer.machine.progress import duration
from dartformer.machine.workdir import write_text
from dartformer.placement.records import (
    Placed,
    PlacementBudgetAnswer,
    PlacementResults,
    Teacher,
    TuningResults,
)
from dartformer.placement.study import PlacementFolder
from dartformer.placement.verdict import (
    against,
    believed,
    cost,
    places_of,
    plural,
    size,
    words_for,
    words_of,
)
from dartformer.pretrained.passages import AGAIN, TEXT
from dartformer.report import page, provenance
from dartformer.report.chart import (
    ACCENT,
    COMPACT,
    LEGEND,
    PALETTE,
    TOOLTIP,
    Chart,
    Choice,
    Row,
    category,
    place,
    quantity,
)
from dartformer.report.page import Cell, Fact, Link
from dartformer.results import Invocation

LINKS = {
    "config.json": "the whole config",
    "genotype.json": "layers and heads",
    "results.json": "every number",
    "scores.json": "what each place is worth to each calibration sequence",
    "exchange.json": "neighbours of the choice, as they were measured",
    "tuning.json": "the placements that were tuned, and the loss of each step",
    "evaluation.json": "the loss of each placement on each held-out sequence",
    "teacher.json": "the files of the checkpoint",
    "budget.json": "the places within another budget",
    "provenance.json": "commands, versions, devices",
}

KINDS = {AGAIN: "repeated passage", TEXT: "plain text"}
"""The kinds of sequences as the page names them, that of the larger differences first."""

DOCUMENTS = {TEXT: "documents"}
"""The only kind of an encoder."""

LIGHT = "#d5dae1"
"""The color of places that are not kept."""

LINES = {
    "by score": ACCENT,
    "at equal distances": PALETTE[1],
    "random": PALETTE[3],
    "first or last layers": PALETTE[2],
}
"""How placements of the front are chosen, with their colors."""

FULL = "full attention"

SCORE_COLUMNS = {AGAIN: "worth on the passage", TEXT: "worth on text"}
"""What the scores of a kind are called when a cell is pointed at."""

AXES = {"kv_bytes": ("MB", 1e6), "flops": ("GFLOP", 1e9), "latency_ms": ("ms", 1.0)}
"""The unit of a cost on an axis, and how much one of it is."""

HEADINGS = {AGAIN: "passage", TEXT: "text"}
"""What a kind is called in the heads of the table."""

ROLES = ("answer", "derived", "baseline", "end")
"""The placements of the table, in its order."""


class Reading(NamedTuple):
    """What a workdir holds so far.

    Attributes:
      path: of the workdir.
      config: that it was made with.
      teacher: the checkpoint; None before it is loaded.
      results: None before the placements are evaluated.
      budget: the last answer of `derive --budget`.
      invocations: the commands so far.
    """

    path: Path
    config: PlacementConfig
    teacher: Teacher | None
    results: PlacementResults | None
    budget: PlacementBudgetAnswer | None
    invocations: Sequence[Invocation]


class Line(NamedTuple):
    """A row of the table of placements, or of what tuning changed."""

    found: bool
    cells: tuple[Cell, ...]


def report(path: str | Path, *, live: bool = False) -> str:
    """Write `report.html` from what the workdir holds so far and return the page."""
    text = render(read(path), live=live)
    if not live:
        write_text(Path(path) / "report.html", text)
    return text


def read(path: str | Path) -> Reading:
    """Everything that the page shows; raises `InputError` where a file is damaged."""
    folder = PlacementFolder(path)
    return Reading(
        folder.path,
        folder.read_config(),
        folder.read(Teacher, folder.teacher),
        folder.read(PlacementResults, folder.results),
        folder.read(PlacementBudgetAnswer, folder.budget),
        provenance.read(folder.path),
    )


def figures(reading: Reading) -> dict[str, Chart]:
    """The charts, by name; empty before the placements are evaluated."""
    if reading.results is None:
        return {}
    drawn = (kept(reading.results), front(reading.results), worth(reading.results))
    return {chart.name: chart for chart in drawn}


def render(reading: Reading, *, live: bool = False) -> str:
    """The page of a workdir."""
    results, config = reading.results, reading.config
    links = []
    for file, content in LINKS.items():
        if (reading.path / file).exists():
            links.append(Link(file, content))
    verdict: Sequence[str] = ("The placements are not evaluated yet.",)
    compared: Sequence[str] = ()
    lines: Sequence[Line] = ()
    tuned: Sequence[Line] = ()
    about = ""
    belief = ""
    reasons: Sequence[str] = ()
    if results is not None:
        compared = list(against(results))
        verdict = results.verdict[: len(results.verdict) - len(compared)]
        lines = list(table(results))
        belief, reasons = believed(results), results.warnings
        if results.tuning is not None:
            tuned = list(tuning_table(results, results.tuning))
            about = tuning_sentence(results.tuning)
    return page.fill(
        "placement.html",
        title=_title(reading),
        figures=figures(reading),
        extra={},
        live=live,
        verdict=verdict,
        compared=compared,
        belief=belief,
        reasons=reasons,
        heading=_heading(results),
        columns=_columns(results),
        units=_units(results),
        note=_note(results),
        stopped=_stopped(reading),
        budget=_budget(reading),
        lines=lines,
        tuned=tuned,
        about_tuning=about,
        facts=list(facts(reading)),
        config=json.dumps(to_dict(config), indent=2),
        links=links,
    )


def _title(reading: Reading) -> str:
    name = Path(reading.config.checkpoint.folder).name
    return f"Which {places_of(reading.config.space.granularity)} of {name} keep full attention"


def _stopped(reading: Reading) -> str:
    """Why the last command stopped; empty where it did not."""
    if not reading.invocations or reading.invocations[-1].state != "stopped":
        return ""
    return f"{reading.invocations[-1].verb} stopped: {reading.invocations[-1].why}"


def _budget(reading: Reading) -> str:
    """A sentence about the last answer to another budget."""
    answer = reading.budget
    if answer is None:
        return ""
    price = f"in {size(answer.kv_bytes)} of cache at"
    if answer.cost is not None:
        words = words_for(answer.share, answer.quantity)
        price = f"at {cost(answer.cost, answer.quantity)} {words.of}"
    return (
        f"The last derive --budget keeps {int(answer.kept.sum())} of {answer.kept.size} "
        f"{places_of(answer.granularity)} {price} {answer.length:,} tokens (budget.json). It was "
        f"not evaluated."
    )


# What a decoder and an encoder are called differently.


def kinds_of(results: PlacementResults) -> dict[str, str]:
    """The kinds of sequences as the page names them."""
    if results.encodes:
        return DOCUMENTS
    return KINDS


def _place(results: PlacementResults) -> str:
    """The smallest part of a layer that has a score."""
    if results.encodes:
        return "head"
    return "KV group"


def _loss(results: PlacementResults) -> str:
    """The loss with its unit, on an axis."""
    if results.encodes:
        return "distance, 1 - cosine"
    return "loss, nats a token"


def _worth(results: PlacementResults) -> str:
    """The unit of scores."""
    if results.encodes:
        return "cosine distance"
    return "nats of KL divergence"


def _axis(results: PlacementResults) -> tuple[str, str]:
    """The unit of costs, and what is on their axis."""
    unit, _ = AXES[results.quantity or KV_BYTES]
    if results.encodes:
        return unit, f"a text of {results.length:,} tokens, {unit}"
    if results.quantity is not None:
        return unit, f"a token at {results.length:,} tokens, {unit} (measured layer by layer)"
    return unit, f"cache at {results.length:,} tokens, {unit}"


def _heading(results: PlacementResults | None) -> str:
    if results is None:
        return ""
    return f"Placements {words_of(results).same}"


def _columns(results: PlacementResults | None) -> list[str]:
    """The heads of the table."""
    if results is None:
        return []
    if results.encodes:
        return ["placement", AXES[results.quantity or KV_BYTES][0], "distance", "behind"]
    names = ["placement", "cache"]
    if results.quantity is not None:
        names[1] = AXES[results.quantity][0]
    for kind in results.kinds:
        for name in ("loss", "KL", "behind"):
            names.append(f"{name}, {HEADINGS[kind]}")
    return names


def _units(results: PlacementResults | None) -> str:
    if results is not None and results.encodes:
        return "On held-out documents, in cosine distance."
    return "On held-out sequences, in nats a token."


def _note(results: PlacementResults | None) -> str:
    measured = "The loss is the negative log-likelihood, and KL the divergence from the checkpoint."
    loss, over = "loss", "sequences"
    if results is not None and results.encodes:
        measured = "The distance of an embedding from the checkpoint's is 1 - cosine."
        loss, over = "distance", "documents"
    return (
        f'{measured} "Behind" is how much more {loss} a placement has than the answer, with the 95% '
        f"interval over the {over}, paired."
    )


# Charts.


def kept(results: PlacementResults) -> Chart:
    """Layers by KV groups, and which of them keep full attention, of one placement at a time."""
    shapes = [placed.kept.shape for placed in results.placements]
    layers, columns = max(shapes, key=lambda shape: shape[1])
    drawn = _drawn(results)
    rows: list[Row] = []
    for placed in drawn:
        grid = np.broadcast_to(placed.kept, (layers, columns))
        for layer, group in np.ndindex(layers, columns):
            state = results.cheap
            if grid[layer, group]:
                state = FULL
            worth = [_score(results, kind, layer, group) for kind in results.kinds]
            rows.append((placed.title, layer, group, state, *worth))
    tones = {"domain": [FULL, results.cheap], "range": [ACCENT, LIGHT]}
    axis = {"labelAngle": 0, "labelOverlap": True}
    y = place(_place(results), title=_place(results))
    if columns == 1:
        y["axis"] = None  # a row of whole layers needs no number
    spec = {
        "height": max(24 * columns, 40),
        "mark": {"type": "rect", "stroke": "white", "strokeWidth": 2, **TOOLTIP},
        "encoding": {
            "x": place("layer", title="layer", axis=axis),
            "y": y,
            "color": category("attention", scale=tones, legend=LEGEND),
        },
    }
    titles = [placed.title for placed in drawn]
    columns_of_scores = [SCORE_COLUMNS[kind] for kind in results.kinds]
    return Chart(
        "kept",
        "What keeps full attention",
        f"A grid of layers and {_place(results)}s: {_in_words(results.answer)}",
        spec,
        ("placement", "layer", _place(results), "attention", *columns_of_scores),
        rows,
        f"Point at a cell to see what full attention there is worth, in {_worth(results)}.",
        (Choice("placement", "placement", titles),),
    )


def _score(results: PlacementResults, kind: str, layer: int, group: int) -> float:
    """What a place is worth; that of a whole layer where layers were scored."""
    scores = results.scores[kind]
    if results.encodes:
        # Whole layers are drawn.
        scores = scores.sum(1, keepdims=True)
    return round(float(scores[layer, min(group, scores.shape[1] - 1)]), 4)


def _drawn(results: PlacementResults) -> list[Placed]:
    """The answer, then the placements with the same budget."""
    drawn = [results.answer]
    for placed in results.placements:
        if placed.role in ("derived", "baseline"):
            drawn.append(placed)
    return drawn


def _in_words(placed: Placed) -> str:
    """The kept places of each layer."""
    parts = []
    for layer, row in enumerate(placed.kept):
        groups = np.flatnonzero(row).tolist()
        if groups and placed.kept.shape[1] == 1:
            parts.append(f"layer {layer}")
        elif groups:
            parts.append(f"layer {layer} groups {', '.join(map(str, groups))}")
    return "; ".join(parts) or "nothing is kept"


def front(results: PlacementResults) -> Chart:
    """The loss over the bytes of the cache or another cost, for each way to choose the places."""
    unit, axis = _axis(results)
    kinds = kinds_of(results)
    rows: list[Row] = []
    for kind, words in kinds.items():
        for placed in results.placements:
            for line in _lines(placed):
                rows.append(_point(results, placed, kind, words, line))
    tones = {"domain": list(LINES), "range": list(LINES.values())}
    x = quantity(unit, axis, axis=COMPACT)
    if results.quantity is not None:
        # Most of such a cost is in no attention, so that all points would lie close together.
        x |= {"scale": {"zero": False}, "axis": COMPACT | {"tickCount": 8}}
    y = quantity("loss", _loss(results), scale={"zero": False})
    color = category("chosen", scale=tones, legend=LEGEND)
    shapes = {"domain": list(LINES), "range": ["circle", "square", "cross", "triangle-up"]}
    # With the same legend, Vega-Lite draws one for both.
    shape = category("chosen", scale=shapes, legend=LEGEND)
    spec = {
        "height": 320,
        "layer": [
            {
                "transform": [{"filter": {"field": "chosen", "oneOf": list(LINES)[:2]}}],
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"x": x, "y": y, "color": color},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1, **TOOLTIP},
                "encoding": {"x": x, "y": y, "color": color, "shape": shape},
            },
        ],
    }
    answer = results.answer
    parts = []
    for placed in _drawn(results):
        parts.append(f"{placed.title} {placed.loss(results.kinds[0]):.{words_of(results).digits}f}")
    title, over = "Loss against the cache", "sequences"
    if results.quantity is not None:
        title = "Loss against the time of a token"
    if results.encodes:
        title, over = "Distance against the cost", "documents"
    first = words_of(results).kinds[results.kinds[0]]
    exchanged = ""
    if results.exchange is not None and results.exchange.exchanged:
        exchanged = " Only at the budget were places exchanged; elsewhere the scores choose alone."
    return Chart(
        "front",
        title,
        f"Points, on {first}: {'; '.join(parts)}",
        spec,
        ("sequences", "placement", "chosen", unit, "loss", "low", "high"),
        rows,
        f"Each point is measured on {results.held_out} held-out {over}. The lines begin at "
        f"{results.cheap} everywhere and end at full attention everywhere. The budget is "
        f"{cost(answer.price, results.quantity)}.{exchanged}",
        (Choice("sequences", "sequences", list(kinds.values())),),
    )


def _lines(placed: Placed) -> list[str]:
    """The ways to choose that a placement is a point of."""
    if placed.role == "end":
        return ["by score", "at equal distances"]
    if placed.role == "answer" or placed.name.startswith("answer@"):
        return ["by score"]
    if placed.name.startswith("uniform"):
        return ["at equal distances"]
    if placed.name.startswith("random"):
        return ["random"]
    if placed.role == "baseline":
        return ["first or last layers"]
    return []


def _point(results: PlacementResults, placed: Placed, kind: str, words: str, line: str) -> Row:
    losses, digits = placed.quality[kind].loss, words_of(results).digits + 1
    _, scale = AXES[results.quantity or KV_BYTES]
    return (
        words,
        placed.title,
        line,
        round(placed.price / scale, 6),
        round(placed.loss(kind), digits),
        round(float(np.min(losses)), digits),
        round(float(np.max(losses)), digits),
    )


def worth(results: PlacementResults) -> Chart:
    """What full attention in each place is worth, a bar for each layer."""
    rows: list[Row] = []
    for kind, words in kinds_of(results).items():
        scores = results.scores[kind]
        for layer, group in np.ndindex(*scores.shape):
            is_kept = results.answer.kept[layer, min(group, results.answer.kept.shape[1] - 1)]
            state = "not kept"
            if is_kept:
                state = "kept"
            rows.append((words, layer, group, round(float(scores[layer, group]), 5), state))
    unit, divergence = "nats", "KL divergence"
    if results.encodes:
        unit, divergence = "distance", "cosine distance"
    tones = {"domain": ["kept", "not kept"], "range": [ACCENT, "#9aa3af"]}
    spec = {
        "height": 220,
        "mark": {"type": "bar", "stroke": "white", "strokeWidth": 1, **TOOLTIP},
        "encoding": {
            "x": place("layer", title="layer", axis={"labelAngle": 0, "labelOverlap": True}),
            "y": quantity(unit, f"worth, {_worth(results)}"),
            "color": category("state", scale=tones, legend=LEGEND),
            "order": {"field": _place(results)},
        },
    }
    return Chart(
        "worth",
        "What each layer is worth",
        "Bars: the scores of the places, stacked by layer",
        spec,
        ("sequences", "layer", _place(results), unit, "state"),
        rows,
        f"What full attention there saves, of the {divergence} from the checkpoint with "
        f"{results.cheap} everywhere. Each {_place(results)} is a part of its layer's bar.",
        (Choice("sequences", "sequences", list(kinds_of(results).values())),),
    )


# The table and the facts.


def table(results: PlacementResults) -> Iterator[Line]:
    """A row for each placement with the budget, and for both ends."""
    noise = {(gap.baseline, gap.kind): gap for gap in results.gaps}
    digits = words_of(results).digits
    rows = [placed for placed in results.placements if placed.role in ROLES]
    for placed in sorted(rows, key=lambda placed: ROLES.index(placed.role)):
        price = Cell(cost(placed.price, results.quantity), placed.price)
        cells = [Cell(placed.title, placed.title), price]
        for kind in results.kinds:
            loss = placed.loss(kind)
            cells.append(Cell(f"{loss:.{digits}f}", loss))
            if not results.encodes:
                cells.append(Cell(f"{placed.divergence(kind):.3f}", placed.divergence(kind)))
            gap = noise.get((placed.name, kind))
            cell = page.EMPTY
            if gap is not None and gap.outcome == "same":
                cell = Cell("the same", 0.0)
            elif gap is not None:
                behind = -gap.difference
                text = f"{behind:+.{digits}f} ± {gap.noise:.{digits}f}"
                cell = Cell(text, behind)
            cells.append(cell)
        yield Line(placed is results.recommended, tuple(cells))


def tuning_table(results: PlacementResults, tuning: TuningResults) -> Iterator[Line]:
    """The checkpoint, and the tuned placement before and after."""
    full = results.named["full"].quality
    rows = {
        "the checkpoint": full,
        f"{results.named[tuning.placement].title}, {results.cheap}": tuning.before,
        f"tuned, {tuning.attention}": tuning.after,
    }
    by_kind = {row.kind: row for row in tuning.gaps}
    for title, quality in rows.items():
        cells = [Cell(title, title)]
        for kind in KINDS:
            measured = quality[kind]
            cells.append(Cell(f"{measured.mean_nll:.3f}", measured.mean_nll))
            cells.append(Cell(f"{measured.mean_kl:.3f}", measured.mean_kl))
            change = page.EMPTY
            if quality is tuning.after:
                row = by_kind[kind]
                change = Cell(f"{row.difference:+.3f} ± {row.noise:.3f}", row.difference)
            cells.append(change)
        yield Line(quality is tuning.after, tuple(cells))


def tuning_sentence(tuning: TuningResults) -> str:
    """What was trained, and what raced."""
    weights = f"{tuning.parameters:,} numbers"
    if tuning.adapters:
        weights += f" of adapters of rank {tuning.adapters}"
    parts = [
        f"{plural(tuning.steps, 'step')} trained {weights}",
        f"the caches take {size(tuning.kv_bytes)}",
    ]
    if tuning.align_steps:
        parts.append(f"each layer was aligned for {plural(tuning.align_steps, 'step')} before")
    if len(tuning.entrants) > 1:
        raced = []
        for entrant in tuning.entrants:
            last = entrant.rungs[-1]
            steps = plural(last.step, "step")
            raced.append(f"{entrant.title} (KL {last.total:.3f} after {steps})")
        parts.append(f"on the calibration sequences raced {', '.join(raced)}")
    return f"{'; '.join(parts)}."


def facts(reading: Reading) -> Iterator[Fact]:
    """How the numbers came about."""
    options = reading.config.checkpoint
    commands: dict[str, None] = {}
    for run in reading.invocations:
        commands[run.command] = None
    yield Fact("command", "\n".join(list(commands)[-page.COMMANDS :]))
    if reading.teacher is not None:
        teacher = reading.teacher
        yield Fact(
            "checkpoint",
            f"{teacher.family}, {teacher.parameters:,} parameters, {teacher.layers} layers of "
            f"{teacher.heads} heads in {teacher.kv_groups} KV groups",
        )
    of_each = " of each kind"
    if reading.results is not None and reading.results.encodes:
        of_each = " documents"
    yield Fact(
        "sequences",
        f"{options.sequences}{of_each} for the scores and {options.held_out} other ones for "
        f"the results, of {options.length} tokens. The scores hold for this length.",
    )
    yield Fact("rules", f"{', '.join(options.rules)}; the path has {options.points} points")
    if reading.results is not None:
        for name, seconds in reading.results.seconds.items():
            spent = reading.results.processor_seconds[name]
            yield Fact(name, f"{duration(seconds)}, {spent:.0f} processor seconds")
    if reading.invocations:
        last = reading.invocations[-1]
        yield Fact("device", last.device)
        yield Fact("versions", ", ".join(map(" ".join, last.versions.items())))
        yield Fact("written", last.started)
