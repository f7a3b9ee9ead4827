"""Reading a workdir while it may still be written: what it holds so far, for reports."""

import contextlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np

from dartformer.config import is_placement
from dartformer.config.places import task_title
from dartformer.errors import InputError
from dartformer.machine.record import Record
from dartformer.machine.workdir import UnreadableFile, read_json
from dartformer.report import provenance
from dartformer.results import (
    AttentionMaps,
    Front,
    GenotypeRecord,
    Invocation,
    Layers,
    Profile,
    Results,
    SearchRecord,
    TrainingRecord,
)
from dartformer.space.genotype import in_words
from dartformer.stages.layout import TRAINING
from dartformer.tasks import BUILT_IN
from dartformer.tasks.base import TaskTraits
from dartformer.training import metric
from dartformer.training.log import parse_line
from dartformer.training.metric import Metric

R = TypeVar("R", bound=Record)
T = TypeVar("T")

WEIGHTS = 300_000
"""How many weights of mixtures are read: of a larger search fewer steps, evenly spaced."""

POINTS, FEWEST = 24_000, 60
"""Points of all curves together, and at least of each."""

LONG = 200
"""Letters of a genotype that is spelled out, layer by layer."""

FREQUENT = 6
"""Attentions of a longer genotype that are counted."""

MIXTURE = re.compile(rb', "mixtures?": \[')

SECTIONS = {"task", "model", "space", "search", "retrain"}
"""Of every config."""

FOUND, SEARCH = "found", "search"
"""The models of the curves that are no baselines."""


def _of_type(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.60} is no {kind.__name__}")
    return value


def _all_of_type(values: Iterable[object], kind: type[T]) -> tuple[T, ...]:
    return tuple(_of_type(value, kind) for value in values)


@dataclass(frozen=True)
class Settings:
    """What a report needs of the config, as plain values: a plug-in may be missing here.

    Attributes:
      task, strategy: names.
      title: of the page: the task, or the user's file.
      granularity: "model", "layer", "kv_group" or "head".
      candidates: as they were typed.
      layers, heads: of the model.
      search_steps, retrain_steps: of each training.
      search_seeds, retrain_seeds: numbers.
      patience: of a training; 0: it takes all steps.
      generated: whether the task makes its examples.
      config: all of it, to be shown.
    """

    task: str
    title: str
    strategy: str
    granularity: str
    candidates: tuple[str, ...]
    layers: int
    heads: int
    kv_heads: int
    search_steps: int
    retrain_steps: int
    search_seeds: tuple[int, ...]
    retrain_seeds: tuple[int, ...]
    patience: int
    generated: bool
    config: dict[str, Any]

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Settings":
        """From the content of `config.json`."""
        model, space = config["model"], config["space"]
        search, retrain = config["search"], config["retrain"]
        first = config["seed"]
        return cls(
            task=_of_type(config["task"]["name"], str),
            title=task_title(config["task"]),
            strategy=_of_type(search["strategy"]["name"], str),
            granularity=_of_type(space["granularity"], str),
            candidates=_all_of_type(space["candidates"], str),
            layers=_of_type(model["layers"], int),
            heads=_of_type(model["heads"], int),
            kv_heads=_of_type(model.get("kv_heads", 0), int) or _of_type(model["heads"], int),
            search_steps=_of_type(search["steps"], int),
            retrain_steps=_of_type(retrain["steps"], int),
            search_seeds=tuple(range(first, first + search["seeds"])),
            retrain_seeds=_all_of_type(retrain["seeds"], int),
            # Files of earlier versions have none.
            patience=_of_type(retrain.get("patience", 0), int),
            generated=_is_generated(config["task"]["name"]),
            config=config,
        )

    @property
    def places(self) -> tuple[int, int]:
        """`(R, C)`: rows and columns of the architecture weights."""
        if self.granularity == "model":
            return 1, 1
        if self.granularity == "layer":
            return self.layers, 1
        if self.granularity == "kv_group":
            return self.layers, self.kv_heads
        return self.layers, self.heads


def _is_generated(name: str) -> bool:
    """Whether a task makes its examples; not known of tasks of other packages."""
    traits: TaskTraits | None = getattr(BUILT_IN.get(name), "traits", None)
    return traits is not None and traits.generated


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


class Training(NamedTuple):
    """What a log is of.

    Attributes:
      model: "search", "found" or the name of a baseline.
      seed: its number; None where one log holds several seeds.
    """

    model: str
    seed: int | None


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
    settings: Settings
    results: Results
    genotype: Layers | None
    search: SearchRecord | None
    trajectory: Trajectory | None
    curves: tuple[Curve, ...]
    profile: Profile | None
    front: Front | None
    attention: AttentionMaps | None
    invocations: tuple[Invocation, ...]

    @property
    def metric(self) -> Metric:
        """What the models are scored by."""
        return metric.find(self.results.measure)

    @property
    def candidates(self) -> tuple[str, ...]:
        """As texts: of a finished search, which spells every option out."""
        if self.search is None:
            return self.settings.candidates
        return self.search.candidates


def read(path: str | Path) -> Reading:
    """Everything that a page shows.

    Raises `InputError` where the folder is not a workdir, or a file is damaged.
    """
    path = Path(path)
    settings = settings_of(path)
    layers = None
    genotype = record(GenotypeRecord, path / "genotype.json")
    if genotype is not None:
        layers = genotype.layers
    # Before evaluation all results are missing, which is what an empty record says.
    results = record(Results, path / "results.json") or Results(task=settings.task)
    search = record(SearchRecord, path / "search/alphas.json")
    logs = _logs(path)
    curves: list[Curve] = []
    for log in logs:
        curves += _curves(log, _training_of(log, path, layers))
    # The page holds every point, so many curves leave fewer points to each.
    most = max(POINTS // max(len(curves), 1), FEWEST)
    thinned_curves = [_thinned_curve(curve, most) for curve in curves]
    return Reading(
        path=path,
        settings=settings,
        results=results,
        genotype=layers,
        search=search,
        trajectory=_trajectory(path, settings, logs),
        curves=tuple(thinned_curves),
        profile=record(Profile, path / "profile.json"),
        front=record(Front, path / "pareto.json"),
        attention=record(AttentionMaps, path / "attention.json"),
        invocations=provenance.read(path),
    )


def settings_of(path: Path) -> Settings:
    """The settings of a workdir; raises `InputError` where the folder is none."""
    file = path / "config.json"
    if not os.path.lexists(file):
        raise InputError(f"{path} is not a workdir: it has no config.json.")
    config = read_json(file)
    if is_placement(config):
        raise InputError(
            f"{path} is the workdir of a checkpoint, where nothing is trained. Use `dartformer report "
            f"{path}`."
        )
    # Many programs write a config.json, an export of this one among them.
    if not isinstance(config, dict) or not config.keys() >= SECTIONS:
        raise InputError(f"{path} is not a workdir: dartformer did not write its config.json.")
    try:
        return Settings.of(config)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is damaged: {error}. Run `dartformer run` with the config it was made with."
        ) from None


def record(kind: type[R], file: Path) -> R | None:
    """The record in a file, if there is one."""
    # A link to nowhere, or a folder, is no missing file.
    if not os.path.lexists(file):
        return None
    return kind.from_dict(read_json(file), str(file))


def _logs(path: Path) -> list[Path]:
    """The logs of a workdir, search first."""
    logs: list[Path] = []
    for pattern in (
        # No `**`, which would also search checkpoints while a run renames them.
        "search/metrics.jsonl",
        "search/*/metrics.jsonl",
        "trainings/*/*/metrics.jsonl",
    ):
        # A folder can be renamed between two looks at it.
        with contextlib.suppress(OSError):
            logs += sorted(path.glob(pattern))
    return logs


def _training_of(log: Path, path: Path, genotype: Layers | None) -> Training:
    """What a log of the workdir `path` is of, where `genotype` was found."""
    folder = log.parent
    seed = None  # several seeds in one log
    digits = folder.name.removeprefix("seed")
    if digits.isdecimal():
        seed = int(digits)
    if folder.relative_to(path).parts[0] == "search":
        return Training(SEARCH, seed)
    training = record(TrainingRecord, folder.parent / TRAINING)
    if training is None:
        return Training(folder.parent.name, seed)
    # Under whatever name it was trained first, such as that of a baseline.
    if training.genotype.layers == genotype:
        return Training(FOUND, seed)
    # An earlier derivation's genotype was called "found" as well.
    if training.name == FOUND:
        return Training(in_words(training.genotype.layers), seed)
    return Training(training.name, seed)


def heads(file: Path) -> Iterator[tuple[dict[str, Any], int | None]]:
    """The lines of a `metrics.jsonl`, with the place in the file of those that hold a mixture.

    Of a line with a mixture only what stands before the first list is read. Numbers stand before
    lists there. Leaving lists unread makes a search of thousands of heads quick to read.
    """
    with _opened(file) as handle:
        start = 0
        for line in handle:
            if not line.endswith(b"\n"):
                return  # being written, or cut short by a crash
            head, place = line, None
            if MIXTURE.search(line) is not None:
                numbers, _, _ = line.partition(b": [")
                numbers, _, _ = numbers.rpartition(b", ")
                head, place = numbers + b"}", start
            start += len(line)
            parsed = parse_line(head)
            # A damaged line costs its own points only.
            if parsed is not None:
                yield parsed, place


def _opened(file: Path) -> BinaryIO:
    try:
        return open(file, "rb")
    except OSError as error:
        raise UnreadableFile(f"cannot read {file}: {error.strerror}.") from None


def _curves(file: Path, training: Training) -> Iterator[Curve]:
    """A curve for each number in a log."""
    logged: dict[str, list[tuple[int, float]]] = {}
    for line, _ in heads(file):
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                logged.setdefault(name, []).append((line["step"], value))
    for name, points in logged.items():
        yield Curve(training.model, training.seed, name, tuple(points), len(points))


def _thinned_curve(curve: Curve, most: int) -> Curve:
    points = thinned(curve.points, most)
    return Curve(curve.model, curve.seed, curve.field, points, curve.logged)


def thinned(points: Sequence[tuple[int, float]], most: int) -> tuple[tuple[int, float], ...]:
    """About `most` of the points.

    They are the first, the last, and the lowest and highest of equal stretches between.
    """
    if len(points) <= most:
        return tuple(points)
    # Not every so many points: that would leave out the spikes, which are what to look for.
    keep = {0, len(points) - 1}
    values = np.array(points, np.float64)[:, 1]
    edges = np.linspace(0, len(points), max(most // 2, 1) + 1).astype(int)
    for start, end in itertools.pairwise(edges):
        stretch = values[start:end]
        keep.add(int(start + stretch.argmin()))
        keep.add(int(start + stretch.argmax()))
    return tuple(points[i] for i in sorted(keep))


def _trajectory(path: Path, settings: Settings, logs: Sequence[Path]) -> Trajectory | None:
    """The mixtures that a search logged, at evenly spaced steps."""
    rows, columns = settings.places
    # A search of many heads and candidates is read at fewer steps, yet never at fewer than 12.
    size = rows * columns * len(settings.candidates) * len(settings.search_seeds)
    most = int(np.clip(WEIGHTS // size, 12, 400))
    weights: list[np.ndarray] = []  # for each seed [T, rows, columns, K]
    seeds: list[int] = []
    steps: list[int] = []
    logged = 0
    for log in logs:
        if log.relative_to(path).parts[0] != "search":
            continue
        lines = []
        for line, start in heads(log):
            if start is not None:
                lines.append((line["step"], start))
        if not lines:
            continue
        count = min(len(lines), most)  # the first and the last among them
        numbers = np.unique(np.linspace(0, len(lines) - 1, count).round().astype(int))
        chosen = [lines[number] for number in numbers]
        log_steps, mixtures = _mixtures(log, chosen, settings)
        # The seeds of a trajectory share its steps: those of the first log.
        if not weights:
            logged, steps = len(lines), log_steps
        elif log_steps != steps:
            break  # a seed that is not as far as the first yet
        if mixtures is None:
            continue
        # Of places that share alphas, the first.
        row_step, column_step = settings.layers // rows, settings.heads // columns
        weights += list(mixtures[:, :, ::row_step, ::column_step])
        seeds += _seeds_of(log, settings, len(mixtures))
    if not weights:
        return None
    return Trajectory(tuple(seeds), tuple(steps), np.stack(weights), logged)


def _mixtures(
    log: Path, lines: Sequence[tuple[int, int]], settings: Settings
) -> tuple[list[int], np.ndarray | None]:
    """The steps, and `[S, T, L, H, K]`: the mixtures in lines of these steps, at these places."""
    shape = (settings.layers, settings.heads, len(settings.candidates))
    steps: list[int] = []
    mixtures: list[np.ndarray] = []
    with _opened(log) as handle:
        for step, start in lines:
            handle.seek(start)
            # What follows the numbers is parsed only here, and a damaged line is left out.
            line = parse_line(handle.readline()) or {}
            # A log of several seeds has a mixture for each of them.
            seeds = line.get("mixtures") or [line.get("mixture")]
            try:
                mixture = np.array(seeds, np.float32)
            except (TypeError, ValueError):
                continue
            if mixture.shape[1:] == shape and (not mixtures or len(mixture) == len(mixtures[0])):
                steps.append(step)
                mixtures.append(mixture)
    if not mixtures:
        return steps, None
    return steps, np.stack(mixtures, 1)


def _seeds_of(log: Path, settings: Settings, count: int) -> Sequence[int]:
    """The seeds of a log: of the folder's name, or the first `count` of the search."""
    seed = log.parent.name.removeprefix("seed")
    if seed.isdigit():
        return [int(seed)]
    first = settings.search_seeds[0]
    return range(first, first + count)


def describe(layers: Sequence[Sequence[str]]) -> str:
    """A genotype in short; counts where that is long."""
    text = in_words(layers)
    if len(text) <= LONG:
        return text
    counts: Counter[str] = Counter()
    for heads in layers:
        counts.update(heads)
    parts = [f"{attention} in {count}" for attention, count in counts.most_common(FREQUENT)]
    listed = ", ".join(parts)
    if len(counts) > FREQUENT:
        listed += "..."
    size = f"{len(layers)} layers of {len(layers[0])} heads"
    return f"a mixed genotype of {size} ({listed})"
