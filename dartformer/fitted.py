"""What `fit` returns: the found model, which predicts and scores, and all results of the run."""

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dartformer import config as configs
from dartformer.config import Config
from dartformer.data import memory
from dartformer.data.answers import Answers, Labels
from dartformer.data.rows import Labels as Reader
from dartformer.errors import InputError, brief
from dartformer.export.checksums import CHECKSUMS
from dartformer.export.load import Served, load
from dartformer.export.predict import fault_of
from dartformer.machine.frames import frame
from dartformer.machine.workdir import read_json
from dartformer.report import notebook, reading
from dartformer.report import page as report_stage
from dartformer.results import Results
from dartformer.space.genotype import Genotype
from dartformer.stages.layout import Layout
from dartformer.tasks.base import ReadsTables
from dartformer.training import metric

KEPT = ("config.json", "results.json", "genotype.json", "export/*")
"""Files that a copy of a result takes along; logs and checkpoints stay."""


class Documents(NamedTuple):
    """The rows of X as the model reads them.

    Attributes:
      documents: what a loaded model takes.
      where: names each row.
    """

    documents: list[Any]
    where: list[str]


class TemporaryFolder:
    """A folder that goes with its last owner, without the warning of `TemporaryDirectory`."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="dartformer-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class FitResult:
    """The result of `fit`, or of any run that is finished: `FitResult("runs/demo")`.

    Attributes:
      workdir: the folder of the run, in which everything is.
    """

    def __init__(
        self,
        workdir: str | Path,
        classes: Mapping[str, object] = MappingProxyType({}),
        temporary: TemporaryFolder | None = None,
    ):
        self.workdir = Path(workdir)
        self._classes = classes
        # Removed with this object.
        self._temporary = temporary

    # A copy, as `pickle` and `joblib` make it, has its model and scores in a folder of its own.

    def __getstate__(self) -> dict[str, Any]:
        files = {}
        for name in KEPT:
            for file in sorted(self.workdir.glob(name)):
                files[str(file.relative_to(self.workdir))] = file.read_bytes()
        return {"files": files, "classes": dict(self._classes)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        temporary = TemporaryFolder()
        for name, content in state["files"].items():
            file = temporary.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        self.__init__(temporary.path, state["classes"], temporary)  # type: ignore[misc]

    # What the run found.

    @cached_property
    def results(self) -> Results:
        """`results.json`: every score, comparison and verdict."""
        results = Layout(self.workdir).read(Results, self.workdir / "results.json")
        if results is None:
            raise InputError(f"there are no results in {self.workdir}.")
        return results

    @cached_property
    def config(self) -> Config:
        """The config of the run."""
        return configs.from_dict(read_json(self.workdir / "config.json"))

    @cached_property
    def genotype(self) -> Genotype:
        """The attention of each head of each layer."""
        assert self.results.genotype is not None
        return Genotype.from_dict(self.results.genotype.to_dict())

    @cached_property
    def model(self) -> Served:
        """The trained model, as `dartformer.load` returns it."""
        return load(self.workdir / "export")

    @property
    def classes(self) -> list[object]:
        """The classes, in the order of `predict_proba`, as they are in y; empty for numbers."""
        if self._predicts_numbers:
            return []
        return [self._classes.get(name, name) for name in self.model.labels]

    def report(self) -> Path:
        """The page of the run, `report.html`, which is written again."""
        report_stage.report(self.workdir)
        return self.workdir / "report.html"

    def save(self, folder: str | Path) -> Path:
        """Copy the trained model to a new folder, which `dartformer.load` and `predict` read."""
        target = Path(folder).expanduser()
        if target.exists() and not target.is_dir():
            raise InputError(f"{target} must be a folder, but a file stands there.")
        if target.exists() and any(target.iterdir()) and not (target / CHECKSUMS).exists():
            raise InputError(f"{target} holds other files. Choose an empty or a new folder.")
        shutil.copytree(self.workdir / "export", target, dirs_exist_ok=True)
        return target

    # Predictions.

    @property
    def _predicts_numbers(self) -> bool:
        return self.model.model.task.traits.metric == "r2"

    def predict(self, X: object) -> Any:
        """The label of each row, as in y; numbers for a regression or a forecast.

        `[N]`, or of lists of words a list of labels for each."""
        documents = self._documents(X)
        if self._predicts_numbers:
            return self._numbers(documents)
        classes = np.array(self.classes)
        if self.model.model.shape.labels_tokens:
            predicted = []
            for probabilities in self._of_words(documents):
                predicted.append(classes[probabilities.argmax(-1)].tolist())
            return predicted
        return classes[self._probabilities(documents).argmax(-1)]

    def predict_proba(self, X: object) -> Any:
        """The probability of each of `classes`: `[N, C]`, or of lists of words a list of `[n, C]`."""
        if self._predicts_numbers:
            raise InputError("predict_proba does not work with numbers. Use predict.")
        documents = self._documents(X)
        if self.model.model.shape.labels_tokens:
            return self._of_words(documents)
        return self._probabilities(documents)

    def score(self, X: object, y: object = None) -> float:
        """The score of the predictions by the metric that decided the run.

        Without y the labels are those in X. Raises `InputError` for a label that training did not
        have."""
        measure = metric.find(self.results.measure)
        if measure.name == "bits_per_character":
            raise InputError("score does not work with a language. Its scores are in `results`.")
        rows = memory.rows_of(X, y, self._names)
        documents = self._of_table(rows.table)
        if rows.label:
            values = rows.table.column(rows.label).to_pylist()
        else:
            values = self._labels_in(rows.table)
        if self.model.model.shape.labels_tokens:
            return self._score_of_words(documents, values, measure)
        kind, names, outputs = "classification", self.model.labels, self._probabilities
        if self._predicts_numbers:
            kind, names, outputs = "regression", (), self._numbers
        reader = Reader(kind, names)
        numbers = [self._label(reader, value, i) for i, value in enumerate(values)]
        if len(numbers) != len(documents.where):
            raise InputError(
                f"X has {len(documents.where):,} examples and y has {len(numbers):,}. Each needs one."
            )
        labels = Labels(np.array(numbers), np.arange(len(numbers)), len(numbers))
        return measure.of_answers(Answers(outputs(documents), labels))

    def _labels_in(self, table: Any) -> list[Any]:
        """The labels of the examples in a table, read as those of a file."""
        task: Any = self._task_of(table)
        with tempfile.TemporaryDirectory(prefix="dartformer-") as folder:
            path = memory.write({"rows": table}, Path(folder))
            # Its rows are all there is, and none is in a split.
            own = {"path": str(path), "valid": "", "test": "", "split": "", "group": ""}
            known = {field.name for field in fields(task)}
            options = {name: value for name, value in own.items() if name in known}
            try:
                rows = replace(task, **options).sources(None)["train"].rows()
                return [row.label for row in rows]
            except InputError as error:
                raise InputError(memory.in_memory(str(error))) from None

    def _score_of_words(
        self, documents: Documents, values: Sequence[object], measure: metric.Metric
    ) -> float:
        reader = Reader("labelling", self.model.labels)
        outputs, numbers, rows = [], [], []
        for i, probabilities in enumerate(self._of_words(documents)):
            labels = self._label(reader, values[i], i)
            # The model reads the first words of a long text.
            count = len(probabilities)
            if len(labels) < count:
                raise InputError(
                    f"row {i} of y has {len(labels)} labels, and X has {count} words there."
                )
            outputs.append(probabilities)
            numbers += labels[:count]
            rows += [i] * count
        right = Labels(np.array(numbers), np.array(rows), len(values))
        measure = replace(measure, names=tuple(self.model.labels))
        return measure.of_answers(Answers(np.concatenate(outputs), right))

    def _label(self, reader: Reader, value: object, i: int) -> Any:
        """A label of y as the model has it."""
        try:
            return reader.read(value)
        except ValueError as error:
            if reader.kind == "regression":
                raise InputError(f"row {i} of y: {error}.") from None
            listed = ", ".join(reader.numbers)
            raise InputError(
                f"row {i} of y has the label {brief(value)}, which training did not have. Its "
                f"classes are {listed}."
            ) from None

    @property
    def _names(self) -> memory.Names:
        """The names that the columns of examples without names had in training."""
        task: Any = self.model.model.task
        values = getattr(task, "values", ()) or (getattr(task, "pixels", ""),)
        return memory.Names(
            text=getattr(task, "text", "") or memory.NAMES.text,
            text2=getattr(task, "text2", "") or memory.NAMES.text2,
            numbers=values[0] or memory.NAMES.numbers,
            time=getattr(task, "time", "") or memory.NAMES.time,
        )

    def _documents(self, X: object) -> Documents:
        return self._of_table(memory.rows_of(X, None, self._names).table)

    def _of_table(self, table: Any) -> Documents:
        """The rows of a table, read as those of a file; `InputError` names one that cannot be read."""
        task = self._task_of(table)
        listed = Documents([], [])
        with tempfile.TemporaryDirectory(prefix="dartformer-") as folder:
            path = memory.write({"rows": table}, Path(folder))
            try:
                for number, row in enumerate(task.unlabelled(path)):
                    listed.documents.append(row.document)
                    listed.where.append(f"row {number} of X")
            except InputError as error:
                raise InputError(memory.in_memory(str(error))) from None
        return listed

    def _task_of(self, table: Any) -> ReadsTables:
        """The task of the model, as it reads a table."""
        task: Any = self.model.model.task
        if not isinstance(task, ReadsTables) or getattr(task, "kind", "") == "language":
            raise InputError(
                "this model continues texts. Use dartformer.generate with `model` instead."
            )
        sentence = getattr(task, "sentence", "")
        if not sentence or sentence in table.column_names:
            return task
        # Lists of words need no column that says which sentence they are of.
        options: Any = task
        options = replace(options, sentence="")
        return options

    def _logits(self, documents: Documents) -> np.ndarray:
        try:
            return self.model.logits(documents.documents)
        except InputError:
            # Which one it is, the model does not say of many.
            for document, where in zip(*documents, strict=True):
                fault = fault_of(self.model, document)
                if fault:
                    raise InputError(f"{where}: {fault}") from None
            raise

    def _probabilities(self, documents: Documents) -> np.ndarray:
        """`[N, C]`, or `[N, n, C]` where every token has a label."""
        logits = self._logits(documents).astype(np.float64)
        # Less the largest, which changes no probability and keeps `exp` from overflowing.
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))

    def _of_words(self, documents: Documents) -> list[np.ndarray]:
        """`[n, C]` of each row, without padding."""
        probabilities = self._probabilities(documents)
        _, exists = self.model.arrays(documents.documents)
        rows = []
        for row, count in zip(probabilities, exists.sum(1), strict=True):
            rows.append(row[:count])
        return rows

    def _numbers(self, documents: Documents) -> np.ndarray:
        """`[N]` in the unit of y."""
        self._logits(documents)  # raises, with the row
        answers: Any = self.model(documents.documents)
        return np.array([answer["value"] for answer in answers])

    # Tables.

    def table(self) -> Any:
        """The score on test of every model and rule, and what each costs.

        A DataFrame where pandas is installed, and a list of dictionaries elsewhere."""
        return frame(notebook.table(self.results))

    def history(self) -> Any:
        """Every line of the logs: what each training measured at each step. See `table`."""
        lines: list[dict[str, object]] = []
        for curve in reading.read(self.workdir).curves:
            names = {"model": curve.model, "seed": curve.seed, "measure": curve.field}
            for step, value in curve.points:
                lines.append({**names, "step": step, "value": value})
        return frame(lines)

    def _repr_html_(self) -> str:
        return notebook.html(self.results)

    def __repr__(self) -> str:
        return notebook.text(self.results)
