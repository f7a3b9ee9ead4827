"""Reading: what a workdir holds so far, read beside whoever is writing it, for reports and
comparisons."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dartformer.errors import InputError
from dartformer.machine.workdir import read_json
from dartformer.report import provenance
from dartformer.space.genotype import in_words

WEIGHTS = 300_000
"""How many weights of mixtures are read: of a larger search fewer steps, evenly spaced."""

POINTS, FEWEST = 24_000, 60
"""Points of all curves together, and at least of each."""

LONG = 200
"""Letters of a genotype that is spelled out, layer by layer."""

MIXTURE = re.compile(rb', "mixtures?": \[')


@dataclass(frozen=True)
class Trajectory:
    """Weights of a search's mixtures over its steps.

    Attributes:
      seeds: whose they are.
      steps: `[T]`, of `logged` that were logged.
      weights: `[S, T, 1 or L, 1 or H, K]`.
      logged: number of steps at which they were logged.
    """

    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    weights: np.ndarray
    logged: int


@dataclass(frozen=True)
class Curve:
    """One number of one training over its steps; `logged` points, of which these are kept."""

    model: str
    seed: int | None
    field: str
    points: tuple[tuple[int, float], ...]
    logged: int


@dataclass(frozen=True)
class Reading:
    """A workdir: the content of its files, None or empty where there is none yet."""

    path: Path
    config: dict[str, Any]
    results: dict[str, Any]
    genotype: list[list[str]] | None
    searched: dict[str, Any] | None
    trajectory: Trajectory | None
    curves: tuple[Curve, ...]
    profile: dict[str, Any] | None
    pareto: dict[str, Any] | None
    attention: dict[str, Any] | None
    runs: list[dict[str, Any]]

    @property
    def candidates(self) -> list[str]:
        """As texts: of the search where it is finished, which spells every option out."""
        return list(
            self.searched["candidates"] if self.searched else self.config["space"]["candidates"]
        )

    @property
    def places(self) -> tuple[int, int]:
        """`(1 or L, 1 or H)`: rows and columns of the alphas."""
        granularity, model = self.config["space"]["granularity"], self.config["model"]
        return (
            1 if granularity == "model" else model["layers"],
            model["heads"] if granularity == "head" else 1,
        )


def read(path: str | Path) -> Reading:
    """Everything that a page shows; raises `InputError` where the folder is no workdir, or a file
    is damaged."""
    path = Path(path)
    config = config_of(path)

    def maybe(name: str) -> Any:
        return read_json(path / name) if (path / name).is_file() else None

    genotype = maybe("genotype.json")
    results = maybe("results.json") or {"task": config["task"]["name"]}
    logs = (
        sorted(path.glob("search/**/metrics.jsonl"))
        + sorted(path.glob("retrain/*/metrics.jsonl"))
        + sorted(path.glob("baselines/*/*/metrics.jsonl"))
    )
    searched = maybe("search/alphas.json")
    candidates = (searched or config["space"])["candidates"]
    names = {
        _folder_of(name): name
        for name in [*(f"homogeneous.{c}" for c in candidates), *results.get("baselines", {})]
    }
    curves: list[Curve] = []
    for log in logs:
        curves += _curves(log, _model_of(log.parent.relative_to(path), names))
    most = max(POINTS // max(len(curves), 1), FEWEST)
    return Reading(
        path,
        config,
        results,
        genotype["layers"] if genotype else None,
        searched,
        _trajectory(
            path, config, [log for log in logs if log.relative_to(path).parts[0] == "search"]
        ),
        tuple(Curve(c.model, c.seed, c.field, thinned(c.points, most), c.logged) for c in curves),
        maybe("profile.json"),
        maybe("pareto.json"),
        maybe("attention.json"),
        provenance.read(path),
    )


def config_of(path: Path) -> dict[str, Any]:
    """The config of a workdir, plain; raises `InputError` where the folder is none."""
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is no workdir: it has no config.json.")
    config = read_json(path / "config.json")
    if (
        not isinstance(config, dict)
        or not {"task", "model", "space", "search", "retrain"} <= config.keys()
    ):
        raise InputError(f"{path} is no workdir: its config.json is not dartformer's.")
    return config


def _folder_of(name: str) -> str:
    from dartformer.stages.retrain import baseline_folder

    return baseline_folder(name)


def _model_of(folder: Path, names: dict[str, str]) -> tuple[str, int | None]:
    """("found", 0) for `retrain/seed0`, and so on."""
    seed = int(folder.name.removeprefix("seed")) if folder.name.startswith("seed") else None
    if folder.parts[0] == "search":
        return "search", seed
    if folder.parts[0] == "retrain":
        return "found", seed
    return names.get("/".join(folder.parts[:2]), folder.parts[1]), seed


def heads(file: Path) -> Iterator[tuple[dict[str, Any], int | None]]:
    """The lines of a `metrics.jsonl`; of those with a mixture only what stands before the first
    list, and their place.

    Numbers stand before lists there. Leaving lists unread makes a search of thousands of places
    quick to look at."""
    with open(file, "rb") as handle:
        place = 0
        for line in handle:
            if not line.endswith(b"\n"):
                return  # being written, or cut short by a crash
            mixed = MIXTURE.search(line)
            try:
                if mixed is None:
                    yield json.loads(line), None
                else:
                    head = line[: line.index(b": [")]
                    yield json.loads(head[: head.rindex(b", ")] + b"}"), place
            except json.JSONDecodeError:
                return
            place += len(line)


def _curves(file: Path, who: tuple[str, int | None]) -> Iterator[Curve]:
    found: dict[str, list[tuple[int, float]]] = {}
    for line, _ in heads(file):
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                found.setdefault(name, []).append((line["step"], value))
    for name, points in found.items():
        yield Curve(*who, name, tuple(points), len(points))


def thinned(points: Sequence[tuple[int, float]], most: int) -> tuple[tuple[int, float], ...]:
    """About `most` of the points: the first, the last, and the lowest and highest of equal
    stretches between."""
    if len(points) <= most:
        return tuple(points)
    keep = {0, len(points) - 1}
    values = np.array([v for _, v in points], np.float64)
    edges = np.linspace(0, len(points), max(most // 2, 1) + 1).astype(int)
    for a, b in itertools.pairwise(edges):
        keep |= {int(a + values[a:b].argmin()), int(a + values[a:b].argmax())}
    return tuple(points[i] for i in sorted(keep))


def _trajectory(path: Path, config: dict[str, Any], logs: list[Path]) -> Trajectory | None:
    model, granularity = config["model"], config["space"]["granularity"]
    rows, columns = (
        1 if granularity == "model" else model["layers"],
        model["heads"] if granularity == "head" else 1,
    )
    size = rows * columns * len(config["space"]["candidates"]) * config["search"]["seeds"]
    most = int(np.clip(WEIGHTS // size, 12, 400))
    each: list[np.ndarray] = []
    seeds: list[int] = []
    steps: list[int] = []
    logged = 0
    for log in logs:
        lines = [(line["step"], place) for line, place in heads(log) if place is not None]
        if not lines:
            continue
        if not each:
            logged = len(lines)
        chosen = np.unique(
            np.linspace(0, len(lines) - 1, min(len(lines), most)).round().astype(int)
        )
        values = []
        with open(log, "rb") as handle:
            for i in chosen:
                handle.seek(lines[i][1] or 0)
                line = json.loads(handle.readline())
                values.append(
                    np.array(
                        line["mixtures"] if "mixtures" in line else [line["mixture"]], np.float32
                    )[:, :rows, :columns]
                )
        own = [lines[i][0] for i in chosen]
        if each and own != steps:
            break  # a seed that is not as far as the first yet
        steps = own
        each += list(np.stack(values, 1))
        seed = log.parent.name.removeprefix("seed")
        seeds += (
            [int(seed)]
            if seed.isdigit()
            else [config["seed"] + i for i in range(values[0].shape[0])]
        )
    return Trajectory(tuple(seeds), tuple(steps), np.stack(each), logged) if each else None


def describe(layers: list[list[str]]) -> str:
    """A genotype in short; counts where that is long."""
    text = in_words(layers)
    if len(text) <= LONG:
        return text
    heads = Counter(a for row in layers for a in row)
    return (
        f"a mixed genotype of {len(layers)} layers of {len(layers[0])} heads ("
        + ", ".join(f"{a} in {n}" for a, n in heads.most_common(6))
        + ("..." if len(heads) > 6 else "")
        + ")"
    )
