"""Tables: search spaces that were trained whole, to judge searches and races by looking up.

A table holds every genotype of a space over several seeds: its valid score after each ninth of the
steps, its test score, its seconds, and the noise between any two models, so that a race is replayed as
it would have run. `experiments/tables/` makes them, after NAS-Bench-201 (arXiv 2001.00326).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dartformer.errors import InputError, unknown
from dartformer.results import Look
from dartformer.space.genotype import Genotype, parse_candidates
from dartformer.space.search_space import SearchSpace
from dartformer.stages.bracket import Entrant
from dartformer.statistics import mean
from dartformer.training.metric import Metric, find

CHECKED_IN = Path(__file__).resolve().parent.parent / "experiments" / "tables" / "tables.npz"
"""The tables of the repository; an installed package has none."""

HEADER = "header"
"""The array that holds what is no number, as JSON."""

ARRAYS = ("valid", "valid_loss", "test", "test_loss", "seconds", "noise")


@dataclass(frozen=True)
class Provenance:
    """Where a table comes from.

    Attributes:
      dartformer, jax, python: versions.
      cpu: the processor.
      date: of the first training, as YYYY-MM-DD.
      compile_seconds: processor seconds of compiling the program that trained all models.
      valid_examples, test_examples: how many were scored.
    """

    dartformer: str
    jax: str
    python: str
    cpu: str
    date: str
    compile_seconds: float
    valid_examples: int
    test_examples: int


@dataclass(frozen=True, eq=False)
class Table:
    """M models of a space, each trained with S seeds and looked at after R numbers of steps.

    Attributes:
      name: of the table.
      config: of all trainings, as `config.to_dict` gives it.
      space: the search space of the config.
      metric: the score, "accuracy" or "bits_per_character".
      genotypes: M of them.
      steps: the R numbers of steps; the last is the whole training.
      seeds: the S seeds.
      valid: `[M, S, R]` float32, scores of the valid part.
      valid_loss: `[M, S, R]` float32.
      test: `[M, S]` float32, scores of the test part after the whole training.
      test_loss: `[M, S]` float32.
      seconds: `[M, S]` float32, processor seconds of each training, without compiling.
      noise: `[S, R, M (M - 1) / 2]` float16: for each pair of models, the half-width of the 95%
        interval of the difference of their valid scores, paired over the examples. Pairs are in the
        order of `np.triu_indices(M, 1)`.
      provenance: where it comes from.
    """

    name: str
    config: Mapping[str, object]
    space: SearchSpace
    metric: str
    genotypes: tuple[Genotype, ...]
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    valid: np.ndarray
    valid_loss: np.ndarray
    test: np.ndarray
    test_loss: np.ndarray
    seconds: np.ndarray
    noise: np.ndarray
    provenance: Provenance

    def __post_init__(self) -> None:
        models, seeds, looks = len(self.genotypes), len(self.seeds), len(self.steps)
        curve, end = (models, seeds, looks), (models, seeds)
        pairs = models * (models - 1) // 2
        shapes = {
            "valid": curve,
            "valid_loss": curve,
            "test": end,
            "test_loss": end,
            "seconds": end,
            "noise": (seeds, looks, pairs),
        }
        for name, shape in shapes.items():
            shape_of_array = getattr(self, name).shape
            if shape_of_array != shape:
                raise InputError(
                    f"{name} of the table {self.name} has the shape {shape_of_array}, not {shape}."
                )

    @cached_property
    def scale(self) -> Metric:
        """The metric, which says what is better."""
        return find(self.metric)

    @cached_property
    def _numbers(self) -> dict[Genotype, int]:
        numbers = {}
        for number, genotype in enumerate(self.genotypes):
            numbers[genotype] = number
        return numbers

    def number(self, genotype: Genotype) -> int:
        """Which of the M models a genotype is; raises `InputError` for one of another space."""
        if genotype not in self._numbers:
            raise InputError(f"{genotype} is not in the table {self.name}.")
        return self._numbers[genotype]

    def look(self, step: int) -> int:
        """Which of the R looks was taken after `step` steps; raises `InputError` where none was."""
        if step not in self.steps:
            raise InputError(
                f"the table {self.name} has no scores after {step} steps, only after "
                f"{', '.join(map(str, self.steps))}."
            )
        return self.steps.index(step)

    def noise_of(self, a: int, b: int, seed: int, look: int) -> float:
        """The noise between models `a` and `b` at one look of one seed, by number."""
        if a == b:
            return 0.0
        first, second = sorted((a, b))
        models = len(self.genotypes)
        # Before row `first` of the upper triangle stand the rows above it, each one shorter.
        before = first * models - first * (first + 1) // 2
        return float(self.noise[seed, look, before + second - first - 1])

    def tied(self, a: int, b: int, seed: int, look: int) -> bool:
        """Whether two models differ on valid by no more than the noise of its examples."""
        gap = float(self.valid[a, seed, look]) - float(self.valid[b, seed, look])
        return abs(gap) <= self.noise_of(a, b, seed, look)

    @cached_property
    def shares(self) -> np.ndarray:
        """`[M]`: the part of each model's training in training all of them with one seed.

        Of its seconds the least over the seeds count, which other work on the machine disturbed least.
        """
        seconds = self.seconds.min(1).astype(np.float64)
        return seconds / seconds.sum()

    @cached_property
    def test_means(self) -> np.ndarray:
        """`[M]`: mean test score over the seeds."""
        return self.test.mean(1, dtype=np.float64)

    @cached_property
    def best(self) -> int:
        """The model with the best mean test score."""
        return int(self._merits().argmax())

    def regret(self, genotype: Genotype) -> float:
        """How far a genotype's mean test score is behind the best one.

        In points of accuracy, or in hundredths of a bit per character.
        """
        merits = self._merits()
        return float(100 * (merits[self.best] - merits[self.number(genotype)]))

    def _merits(self) -> np.ndarray:
        """`[M]`: the mean test scores with the sign that makes larger better."""
        if self.scale.higher:
            return self.test_means
        return -self.test_means


@dataclass(frozen=True)
class TableLook(Look):
    """A look that knows which model of the table it was at; of an unknown one -1."""

    model: int = -1


class Replay:
    """A table as what a race runs on (`dartformer.stages.bracket.Track`): nothing is trained.

    Attributes:
      reached: how many steps each model was trained with the first seed, by number.
      finished: the models that were trained to the end over all seeds, by number.

    Args:
      table: of the trainings.
      seed: which of the table's seeds is the first one of the race.
    """

    def __init__(self, table: Table, seed: int = 0):
        self.table, self.seed = table, seed
        self.reached: dict[int, int] = {}
        self.finished: set[int] = set()

    def prepare(self, entrants: Sequence[Entrant], step: int | None = None) -> None:
        """See `Track`; all is trained."""

    def look(self, entrant: Entrant, step: int) -> TableLook:
        """See `Track`."""
        model, look = self.table.number(entrant.genotype), self.table.look(step)
        self.reached[model] = max(step, self.reached.get(model, 0))
        score = float(self.table.valid[model, self.seed, look])
        loss = float(self.table.valid_loss[model, self.seed, look])
        if not math.isfinite(score):
            return TableLook(step, None, loss=loss, model=model)
        return TableLook(step, score, loss=loss, model=model)

    def merit(self, look: Look) -> float:
        """See `Track`; an undefined score is the worst."""
        if look.score is None:
            return -math.inf
        return self.table.scale.objective({self.table.metric: look.score})

    def tied(self, ours: Look, theirs: Look) -> bool:
        """See `Track`."""
        assert isinstance(ours, TableLook)
        assert isinstance(theirs, TableLook)
        look = self.table.look(ours.step)
        return self.table.tied(ours.model, theirs.model, self.seed, look)

    def final_merit(self, entrant: Entrant) -> float:
        """See `Track`."""
        model = self.table.number(entrant.genotype)
        self.finished.add(model)
        self.reached[model] = self.table.steps[-1]
        merits = []
        for score in self.table.valid[model, :, -1].tolist():
            merits.append(self.table.scale.objective({self.table.metric: score}))
        return mean(merits)

    def affordable(self, genotype: Genotype) -> bool:
        """See `Track`; a table has no budget."""
        return True


def load_table(name: str, file: str | Path = CHECKED_IN) -> Table:
    """A table of the repository, or of another file that `write_tables` wrote.

    Raises `InputError` for a file that is missing or damaged, and for an unknown name.
    """
    file = Path(file)
    arrays = _arrays(file)
    names = []
    for key in arrays:
        if key.endswith(f"/{HEADER}"):
            names.append(key.removesuffix(f"/{HEADER}"))
    if name not in names:
        raise unknown(f"table in {file}", name, names)
    try:
        return _table(name, arrays)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(file, error) from error


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a file by name."""
    if not file.is_file():
        raise InputError(
            f"there are no tables at {file}. Use a checkout of the repository, or set `file` to a "
            f"copy of its experiments/tables/tables.npz."
        )
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except Exception as error:  # damaged bytes raise whatever zipfile and NumPy meet first
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} is damaged, or holds no tables: {error!r}. Download it again.")


def _table(name: str, arrays: Mapping[str, np.ndarray]) -> Table:
    """One table of the arrays of a file."""
    header = json.loads(str(arrays[f"{name}/{HEADER}"]))
    genotypes = []
    for layers in header["genotypes"]:
        genotypes.append(Genotype.from_dict({"format": 1, "layers": layers}))
    numbers = {}
    for key in ARRAYS:
        numbers[key] = arrays[f"{name}/{key}"]
    return Table(
        name=name,
        config=header["config"],
        space=space_of(header["config"]),
        metric=header["metric"],
        genotypes=tuple(genotypes),
        steps=tuple(header["steps"]),
        seeds=tuple(header["seeds"]),
        provenance=Provenance(**header["provenance"]),
        **numbers,
    )


def space_of(config: Mapping[str, Any]) -> SearchSpace:
    """The search space of a config's plain data."""
    space, model = config["space"], config["model"]
    candidates = parse_candidates(space["candidates"])
    return SearchSpace(
        candidates,
        model["layers"],
        model["heads"],
        space["granularity"],
        model.get("kv_heads", 0),
    )


def write_tables(file: str | Path, tables: Sequence[Table]) -> None:
    """Write tables into one compressed file, in place of what was there."""
    arrays = {}
    for table in tables:
        header = {
            "config": table.config,
            "metric": table.metric,
            "genotypes": [genotype.texts() for genotype in table.genotypes],
            "steps": table.steps,
            "seeds": table.seeds,
            "provenance": vars(table.provenance),
        }
        arrays[f"{table.name}/{HEADER}"] = np.array(json.dumps(header))
        for key in ARRAYS:
            arrays[f"{table.name}/{key}"] = getattr(table, key)
    np.savez_compressed(file, allow_pickle=False, **arrays)
