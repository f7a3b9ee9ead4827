"""Fit: data in memory in place of a file, with the guesses, checks and splits of a file."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from dartformer import api
from dartformer import config as configs
from dartformer.data import memory
from dartformer.data.folders import SPLITS
from dartformer.data.rows import canonical
from dartformer.errors import InputError, brief
from dartformer.fitted import FitResult, TemporaryFolder
from dartformer.machine import progress
from dartformer.machine.progress import say
from dartformer.machine.workdir import differences, jsonable, read_json, write_json
from dartformer.stages.layout import Layout
from dartformer.stages.proposal import MINUTES, Draft, Wishes, drafted
from dartformer.tasks.guesses import Columns
from dartformer.training.callbacks import Callback, calling

if TYPE_CHECKING:
    import pyarrow

ARGUMENTS = "fit.json"
"""What a workdir was made with, beside its rows."""

PREPARED = "prepared"
"""The folder of a workdir in which its data are prepared."""

FLAG = re.compile(r"--(text|label|kind|group|split|minutes|steps|candidates)(?:=([\w.]+))?")
"""A flag of `dartformer new` that is an argument here."""


def fit(
    X: object,
    y: object = None,
    *,
    workdir: str | Path | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    kind: str = "",
    text: str | Iterable[str] = (),
    label: str = "",
    group: object = "",
    split: str = "",
    candidates: str = "",
    valid: object = None,
    test: object = None,
    on_step: Callback | None = None,
    on_evaluation: Callback | None = None,
    quiet: bool = False,
    **overrides: object,
) -> FitResult:
    """Search, race, train and evaluate on data in memory, as `dartformer new` and `run` do on a file.

    Args:
      X: a table of pandas, polars, Arrow or `datasets` (a `DatasetDict` has the splits), a mapping of
        columns, or a list or array of texts, pairs of texts, lists of words, sequences `[N, T]` or
        `[N, T, D]`, or one series `[T]`.
      y: a label or a number for each row, or a list of labels for each list of words. None: X has a
        column of them, or its next values are forecast.
      workdir: the folder for all results; the same call goes on there. None: a temporary one, which
        is removed with the result, or where a callback stops.
      steps: of each training. None: as many as fit into `minutes`.
      minutes: that the run may take, 8 by default.
      kind: "classification", "regression", "labelling", "language", "forecasting" or "series"; ""
        to guess it.
      text: the column of texts or numbers, or the two columns of texts to compare.
      label: the column of labels, where X has them.
      group: the column of groups, or a group for each row: those of one are in one split.
      split: the column that says which split a row is in.
      candidates: attentions with commas between them, "cheap", "long" or "all".
      valid: rows to choose on: a table such as X, or `(X, y)`.
      test: rows to evaluate on, likewise.
      on_step: called after every step with a `Moment`; False stops, see
        `dartformer.training.callbacks`.
      on_evaluation: called after every evaluation, when its checkpoint is written.
      quiet: print no progress.
      **overrides: fields of the config: `model__layers=1`, or `**{"model.layers": 1}`.

    Raises `InputError`, a `ValueError`, for data or arguments that do not work, and `Stopped` where a
    callback stops.
    """
    _require_numbers(steps=steps, minutes=minutes)
    values = _dotted(overrides)
    texts = _as_texts(text)
    tables, columns = _tables(X, y, {"valid": valid, "test": test}, texts, label, group)
    columns = columns._replace(kind=kind, split=split)
    if minutes is None and steps is None:
        minutes = MINUTES
    wishes = Wishes(minutes, steps, candidates)
    temporary = None
    if workdir is None:
        temporary = TemporaryFolder()
        workdir = temporary.path
    layout = Layout(Path(workdir).expanduser())
    arguments = {"columns": columns._asdict(), "wishes": wishes._asdict(), "values": values}
    with in_python(layout.data), progress.quiet(quiet):
        config = _config(layout, tables, columns, values, wishes, jsonable(arguments))
        with calling(on_step, on_evaluation):
            api.run_all(config, layout.path)
    return FitResult(layout.path, classes_of(tables["train"], columns.label), temporary)


def _require_numbers(**values: object) -> None:
    """Raise `InputError` for an argument that is no number."""
    for name, value in values.items():
        if value is not None and not isinstance(value, int | float):
            raise InputError(f"{name} must be a number, got {brief(value)}.")


def _as_texts(text: str | Iterable[str]) -> tuple[str, ...]:
    """The named columns of texts; a single name is one of them."""
    if isinstance(text, str):
        return tuple(filter(None, [text]))
    return tuple(text)


def _dotted(overrides: Mapping[str, object]) -> dict[str, object]:
    """The fields of a config by their dotted names."""
    values = {}
    for name, value in overrides.items():
        values[name.replace("__", ".")] = value
    return values


def _tables(
    examples: object,
    labels: object,
    others: Mapping[str, object],
    texts: tuple[str, ...],
    label: str,
    group: object,
) -> tuple[dict[str, "pyarrow.Table"], Columns]:
    """The table of each split, and what is known of its columns."""
    given = memory.splits_in(examples)
    if given and labels is not None:
        raise InputError("y does not work with an X that has splits. Name its column with label=.")
    if given and "train" not in given:
        raise InputError(f"X has the splits {', '.join(given)} and none named train.")
    parts: dict[str, object] = dict(given) or {"train": (examples, labels)}
    for name, part in others.items():
        if part is not None:
            parts[name] = part
    rows = {}
    for name in filter(parts.__contains__, SPLITS):
        part = parts[name]
        if not isinstance(part, tuple):
            part = (part, None)
        if len(part) != 2:
            raise InputError(f"{name} must be a table or (X, y), got {len(part)} values.")
        rows[name] = memory.rows_of(*part)
    first = rows["train"]
    tables = {name: part.table for name, part in rows.items()}
    if first.label and label:
        raise InputError("label names a column of X, and y holds the labels. Use one of them.")
    if not isinstance(group, str):
        if len(tables) > 1:
            raise InputError("group must be a column where there are several splits.")
        tables["train"] = memory.with_column(first.table, "group", group, "group")
        group = "group"
    return tables, Columns(texts or first.texts, label or first.label, "", group, "")


# The config.


def _config(
    layout: Layout,
    tables: Mapping[str, "pyarrow.Table"],
    columns: Columns,
    values: Mapping[str, object],
    wishes: Wishes,
    arguments: Mapping[str, object],
) -> configs.Config:
    """The config of a workdir that was made by the same call, or else a proposed one."""
    noted = layout.data / ARGUMENTS
    if layout.config.exists():
        _require_same_call(layout, tables, arguments)
        # Not proposed again: how long a step takes was another time another number.
        return configs.from_dict(read_json(layout.config))
    path = memory.write(tables, layout.data)
    if "data.dir" not in values:
        values = {**values, "data.dir": str(layout.path / PREPARED)}
    draft = drafted(str(path), columns, values, wishes)
    for sentence in draft.contents.sentences:
        say(f"guessed: {as_argument(sentence, path)}")
    write_json(noted, arguments)
    return configs.build(_of_draft(draft))


def _require_same_call(
    layout: Layout,
    tables: Mapping[str, "pyarrow.Table"],
    arguments: Mapping[str, object],
) -> None:
    """Raise `InputError` where a workdir was made with other arguments or other rows."""
    remedy = "Choose another workdir."
    noted = layout.data / ARGUMENTS
    if not noted.exists():
        raise InputError(f"the workdir {layout.path} was not made by `fit`. {remedy}")
    changes = list(differences(read_json(noted), arguments))
    if changes:
        raise InputError(
            f"the workdir {layout.path} belongs to another call of `fit`; it differs in "
            f"{'; '.join(changes)}. {remedy}"
        )
    if not memory.is_written(tables, layout.data):
        raise InputError(f"the workdir {layout.path} was made with other rows. {remedy}")


def _of_draft(draft: Draft) -> ConfigDict:
    config = configs.defaults(draft.contents.task, draft.strategy, "recommended", draft.granularity)
    configs.override(config, draft.settings)
    return config


def classes_of(table: "pyarrow.Table", label: str) -> dict[str, object]:
    """The labels of a table as they are in it, by the names that a config has for them."""
    if label not in table.column_names:
        return {}
    classes: dict[str, object] = {}
    for value in table.column(label).to_pylist():
        names = [value]
        if isinstance(value, list):
            names = value
        for name in names:
            classes.setdefault(canonical(name), name)
    return classes


# Messages.


@contextmanager
def in_python(path: Path) -> Iterator[None]:
    """Errors about the file of a workdir and its flags, in the words of an argument."""
    try:
        yield
    except InputError as error:
        message = as_argument(str(error), path)
        if message == str(error):
            raise
        raise InputError(message) from None


def as_argument(sentence: str, path: Path) -> str:
    """A sentence of the command line in the words of `fit`."""
    for name in (str(path / memory.ROWS), str(path)):
        sentence = sentence.replace(name, "X")
    sentence = memory.in_memory(sentence)

    def argument(flag: re.Match[str]) -> str:
        # Of candidates a sentence lists several.
        if flag[2] and flag[1] != "candidates":
            return f"{flag[1]}={flag[2]!r}"
        if flag[2]:
            return f"{flag[1]}={flag[2]}"
        return flag[1]

    return FLAG.sub(argument, sentence)
