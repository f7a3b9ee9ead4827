"""Data in memory, as Arrow tables that the readers of files read: lists, NumPy, pandas, polars,
Arrow, and `datasets`.

Arrow keeps the types of values, so that a label 1 stays a whole number and a missing value stays
missing. What Arrow has and no file of text has becomes what a table of text would hold: categories
become their names, and times become texts.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dartformer.data.folders import SPLITS, split_of
from dartformer.errors import InputError, brief

if TYPE_CHECKING:
    import pyarrow

ROWS = "rows.arrow"
"""The file of rows that have no splits."""

ROW = re.compile(rf"(?:{re.escape(ROWS)}|\bdata)(?: (train|valid|test))?, row (\d+)")
"""How the readers of files name a row of a table that `write` wrote."""

LISTED_TYPES = 4
"""Types that an error lists."""

FEATURES = b"huggingface"
"""The key under which `datasets` notes the names of classes in a schema."""


class Names(NamedTuple):
    """The columns of examples that have no names of their own.

    Attributes:
      text: of texts, or of lists of words.
      text2: of the second texts of pairs.
      numbers: of sequences of numbers.
      label: of labels.
      time: of the steps of a single series.
    """

    text: str = "text"
    text2: str = "text2"
    numbers: str = "x"
    label: str = "label"
    time: str = "time"


NAMES = Names()


class Rows(NamedTuple):
    """Examples as a table.

    Attributes:
      table: a row for each example, or for each step of a long table.
      texts: the columns that hold texts for certain: those of X where it has no names.
      label: the column of y; "" without y.
    """

    table: "pyarrow.Table"
    texts: tuple[str, ...] = ()
    label: str = ""


def rows_of(examples: object, labels: object = None, names: Names = NAMES) -> Rows:
    """Examples X and labels y as a table; `InputError` says in one line what is wrong.

    Args:
      examples: a table of pandas, polars, Arrow or `datasets`, a mapping of columns, a list of
        dictionaries, or a list or array of texts, pairs of texts, lists of words, or numbers.
      labels: one for each row, a list of them for words; None where X has them or there are none.
      names: the columns of examples without names.
    """
    if isinstance(labels, str):
        raise InputError(f"y must hold a label for each row, got the text {brief(labels)}.")
    table = _table(examples)
    texts: tuple[str, ...] = ()
    if table is None:
        table, texts = _unnamed(examples, labels, names)
    table = _readable(table)
    if labels is None:
        return Rows(table, texts)
    if names.text in texts and _is_list(table.schema.field(names.text).type):
        labels = _lists(labels)
    label = _free(str(getattr(labels, "name", None) or names.label), table.column_names)
    return Rows(with_column(table, label, labels, "y"), texts, label)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_list(kind) or types.is_large_list(kind))


def _lists(labels: object) -> object:
    """Labels of words as lists, which may be the rows of an array."""
    if getattr(labels, "ndim", 1) == 2:
        return np.asarray(labels).tolist()
    return labels


def with_column(
    table: "pyarrow.Table", name: str, values: object, argument: str
) -> "pyarrow.Table":
    """A table with another column, which has a value for each row; `argument` names it in errors."""
    column = _column(_flat(values, argument), argument)
    if len(column) != len(table):
        raise InputError(
            f"X has {len(table):,} rows and {argument} has {len(column):,}. Each row needs one."
        )
    return _readable(table.append_column(name, column))


def splits_in(examples: object) -> dict[str, object]:
    """The tables of a mapping from splits, such as a `DatasetDict`, by our names of the splits.

    Empty for anything else: a mapping of columns has lists in it."""
    if not isinstance(examples, Mapping):
        return {}
    splits = {}
    for name, table in examples.items():
        if split_of(str(name)) not in SPLITS or not _is_table(table):
            return {}
        splits[split_of(str(name))] = table
    return splits


def write(tables: Mapping[str, "pyarrow.Table"], folder: Path) -> Path:
    """Write the table of each split into a folder; returns the path that the readers take.

    A file that holds the same rows already is left alone, so that they are not prepared again."""
    folder.mkdir(parents=True, exist_ok=True)
    files = _files(tables, folder)
    for file in folder.glob("*.arrow"):
        if file not in files:
            file.unlink()
    for file, table in files.items():
        content = _bytes(table)
        if not file.exists() or file.read_bytes() != content:
            file.write_bytes(content)
    if len(files) == 1:
        return folder / ROWS
    return folder


def is_written(tables: Mapping[str, "pyarrow.Table"], folder: Path) -> bool:
    """Whether a folder holds these tables and no others."""
    files = _files(tables, folder)
    if set(folder.glob("*.arrow")) != set(files):
        return False
    return all(file.read_bytes() == _bytes(table) for file, table in files.items())


def in_memory(message: str) -> str:
    """A message of the readers of files, about X: its rows are counted from 0."""

    def row(place: re.Match[str]) -> str:
        part = "X"
        if place[1] and not place[0].startswith(ROWS):
            part = place[1]
        return f"row {int(place[2]) - 1} of {part}"

    return ROW.sub(row, message).replace(ROWS, "X")


def _files(tables: Mapping[str, "pyarrow.Table"], folder: Path) -> dict[Path, "pyarrow.Table"]:
    if len(tables) == 1:
        return {folder / ROWS: next(iter(tables.values()))}
    return {folder / f"{split}.arrow": table for split, table in tables.items()}


def _bytes(table: "pyarrow.Table") -> bytes:
    """A table as an Arrow file."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


# Tables.


def _package(value: object) -> str:
    """The package that a value's type is from."""
    return type(value).__module__.partition(".")[0]


def _is_table(value: object) -> bool:
    """Whether a value has columns with names."""
    return isinstance(value, Mapping) or hasattr(value, "column_names") or hasattr(value, "columns")


def _table(examples: object) -> "pyarrow.Table | None":
    """A table of another library, or of Python; None where columns have no names."""
    import pyarrow

    package: str = _package(examples)
    if isinstance(examples, pyarrow.Table):
        return examples
    if isinstance(examples, pyarrow.RecordBatch):
        return pyarrow.Table.from_batches([examples])
    frame: Any = examples
    if package == "datasets" and hasattr(examples, "with_format"):
        return _of_dataset(frame)
    if package == "pandas" and hasattr(examples, "columns"):
        return _of_pandas(frame)
    if package == "polars" and type(examples).__name__ == "LazyFrame":
        frame = frame.collect()
    if package == "polars" and hasattr(frame, "columns"):
        return frame.to_arrow()
    if isinstance(examples, Mapping):
        return _of_columns(examples)
    if isinstance(examples, list) and examples and isinstance(examples[0], Mapping):
        return _of_columns(_columns_of(examples))
    return None


def _of_dataset(dataset: Any) -> "pyarrow.Table":
    # By rows and not by its files: a dataset may be a selection in another order.
    table = dataset.with_format("arrow")[:]
    metadata = dataset.features.arrow_schema.metadata or {}
    return table.replace_schema_metadata(metadata)


def _of_pandas(frame: Any) -> "pyarrow.Table":
    index = frame.index
    if type(index).__name__ in ("DatetimeIndex", "PeriodIndex"):
        # Times are data; row numbers and names of rows are not.
        frame = frame.reset_index(names=index.name or NAMES.time)
    columns = {}
    for i, name in enumerate(frame.columns):
        if str(name) in columns:
            raise InputError(f"X has two columns named {str(name)!r}.")
        columns[str(name)] = frame.iloc[:, i]
    return _of_columns(columns)


def _columns_of(records: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Columns of rows, any of which may lack some."""
    names: dict[str, None] = {}
    for record in records:
        if not isinstance(record, Mapping):
            raise InputError(f"X holds dictionaries and {brief(record)}. Use dictionaries alone.")
        names.update(dict.fromkeys(map(str, record)))
    columns: dict[str, list[object]] = {}
    for name in names:
        columns[name] = [record.get(name) for record in records]
    return columns


def _of_columns(columns: Mapping[Any, object]) -> "pyarrow.Table":
    import pyarrow

    arrays = {}
    for name, values in columns.items():
        arrays[str(name)] = _column(values, f"the column {str(name)!r}")
    lengths = {name: len(column) for name, column in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise InputError(f"X has columns of different lengths: {listed}.")
    return pyarrow.table(arrays)


# Examples without names.


def _unnamed(
    examples: object, labels: object, names: Names
) -> tuple["pyarrow.Table", tuple[str, ...]]:
    """A table of a list or an array, and its columns of texts."""
    is_one = isinstance(examples, (str, bytes)) or getattr(examples, "shape", None) == ()
    if is_one or not isinstance(examples, Iterable):
        raise InputError(f"X must hold an example for each row, got {brief(examples)}.")
    if hasattr(examples, "toarray"):
        raise InputError("X is sparse, and a sequence is not. Use X.toarray().")
    values = _listed(examples, "X")
    if isinstance(values, np.ndarray):
        return _of_columns(_of_array(values, labels, names)), ()
    present = [value for value in values if value is not None]
    if not present:
        raise InputError("X has no rows.")
    if all(isinstance(value, str) for value in present):
        return _of_columns({names.text: values}), (names.text,)
    if _are_texts(present[0]):
        return _of_lists_of_texts(values, labels, names)
    if all(isinstance(value, (int, float, np.number)) for value in present):
        return _of_columns(_of_array(np.array(values, np.float64), labels, names)), ()
    return _of_columns({names.numbers: values}), ()


def _of_array(array: np.ndarray, labels: object, names: Names) -> dict[str, object]:
    """A sequence in each row of an array; a single series where it has one axis."""
    if not len(array):
        raise InputError("X has no rows.")
    if array.ndim > 1:
        _require_sequences(array)
        return {names.numbers: array}
    if labels is not None:
        raise InputError(
            f"X has shape [{len(array)}], a number for each label, and a model reads sequences. "
            f"Reshape your data to [rows, steps]."
        )
    return {names.time: np.arange(len(array)), names.numbers: array}


def _require_sequences(array: np.ndarray) -> None:
    """Raise `InputError` for rows of one number, or a row whose numbers are all missing."""
    flat = array.reshape(len(array), -1)
    if flat.shape[1] < 2:
        raise InputError(
            f"X has shape {list(array.shape)}, and a model reads sequences of at least two numbers."
        )
    if array.dtype.kind != "f":
        return
    missing = np.flatnonzero(~np.isfinite(flat).any(1))
    if len(missing):
        raise InputError(f"row {missing[0]} of X holds no number. Leave it out.")


def _of_lists_of_texts(
    values: Sequence[Any], labels: object, names: Names
) -> tuple["pyarrow.Table", tuple[str, ...]]:
    """Pairs of texts; words where each has a label, or where they are not two."""
    for i, value in enumerate(values):
        if value is not None and not _are_texts(value):
            raise InputError(f"row {i} of X is {brief(value)}, and the first row holds texts.")
    pairs = all(value is not None and len(value) == 2 for value in values)
    if not pairs or _has_lists(labels):
        return _of_columns({names.text: values}), (names.text,)
    first = [value[0] for value in values]
    second = [value[1] for value in values]
    return _of_columns({names.text: first, names.text2: second}), (names.text, names.text2)


def _are_texts(value: object) -> bool:
    """Whether a value is a list of texts, of which some may be missing."""
    if not isinstance(value, (list, tuple)):
        return False
    texts = sum(isinstance(item, str) for item in value)
    return texts > 0 and texts + value.count(None) == len(value)


def _has_lists(labels: object) -> bool:
    """Whether labels are lists, one for each row."""
    if labels is None or not isinstance(labels, Iterable):
        return False
    first = next(iter(labels), None)
    return isinstance(first, (list, tuple, np.ndarray))


def _flat(values: object, argument: str) -> object:
    """Labels of one axis; `InputError` for several a row. Lists of labels stay."""
    shape: tuple[int, ...] = getattr(values, "shape", ())
    if len(shape) == 2 and shape[1] == 1:
        return np.asarray(values)[:, 0]
    if len(shape) > 1:
        raise InputError(
            f"{argument} has shape {list(shape)}, and a model predicts one label for a row. Use one "
            f"column of it."
        )
    return values


# Columns.


def _listed(values: object, where: str) -> "np.ndarray | list[Any]":
    """Values as an array of numbers, or as a list of whatever else they are."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InputError(f"{where} must hold a value for each row, got {brief(values)}.")
    if hasattr(values, "to_pylist"):
        return list(values.to_pylist())  # of Arrow
    if _package(values) == "polars":
        return list(values.to_list())  # type: ignore[attr-defined]
    if not hasattr(values, "__array__"):
        return list(values)
    array = np.asarray(values)
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind == "M":
        return list(array.astype("datetime64[us]").tolist())
    if array.dtype.kind not in "OUST":
        raise InputError(
            f"{where} has dtype {array.dtype}, which no model reads. Use numbers or texts."
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    return list(array.tolist())


def _column(values: object, where: str) -> "pyarrow.Array":
    """A column of Arrow; `InputError` for values of several types."""
    import pyarrow

    if isinstance(values, (pyarrow.Array, pyarrow.ChunkedArray)):
        return values
    plain = _listed(values, where)
    if isinstance(plain, np.ndarray):
        return _numbers(plain)
    plain = list(map(_plain, plain))
    for missing in (False, True):
        try:
            # At first NaN is a number. Beside texts it stands for a missing one.
            return pyarrow.array(plain, from_pandas=missing)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
            continue
        except pyarrow.ArrowNotImplementedError:
            break
    raise InputError(
        f"{where} holds values of several types or of a type that no model reads "
        f"({_types(plain)}). Convert all to numbers, such as with astype(float), or all to texts."
    )


def _plain(value: object) -> object:
    """A value without NumPy: a list of an array, a text of a time."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return list(map(_plain, value))
    if hasattr(value, "isoformat"):
        # Of pandas, a time that is missing differs from itself.
        if value != value:
            return None
        return str(value)
    return value


def _types(values: Iterable[object]) -> str:
    """The names of the types of values, or of what lists hold."""
    names: dict[str, None] = {}
    for value in values:
        items = [value]
        if isinstance(value, list):
            items = value
        for item in items:
            if item is not None:
                names[type(item).__name__] = None
    listed = list(names)
    if len(listed) > LISTED_TYPES:
        return f"{', '.join(listed[:LISTED_TYPES])}, ..."
    return ", ".join(listed)


def _numbers(array: np.ndarray) -> "pyarrow.Array":
    """An array `[N, ...]` as a column of numbers, or of lists of them."""
    import pyarrow

    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float64)  # which Arrow's other kinds of floats become in Python
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    column = pyarrow.array(array.reshape(-1))
    for width in array.shape[:0:-1]:
        if not width:
            raise InputError(f"an array of shape {list(array.shape)} has empty rows.")
        column = pyarrow.FixedSizeListArray.from_arrays(column, width)
    return column


def _readable(table: "pyarrow.Table") -> "pyarrow.Table":
    """A table whose columns hold what a file of text could hold: see the module."""
    import pyarrow
    from pyarrow import types

    for i, field in enumerate(table.schema):
        column = table.column(i)
        if types.is_dictionary(field.type):
            column = pyarrow.array(column.to_pylist(), field.type.value_type)
        elif types.is_temporal(field.type) and not types.is_duration(field.type):
            times = []
            for value in column.to_pylist():
                if value is not None:
                    value = str(value)
                times.append(value)
            column = pyarrow.array(times, pyarrow.string())
        elif types.is_decimal(field.type):
            column = column.cast(pyarrow.float64())
        else:
            continue
        table = table.set_column(i, field.name, column)
    # Notes of other libraries would be other bytes for the same rows.
    metadata = table.schema.metadata or {}
    kept = {}
    if FEATURES in metadata:
        kept[FEATURES] = json.dumps(json.loads(metadata[FEATURES]), sort_keys=True)
    return table.replace_schema_metadata(kept)


def _free(name: str, names: Sequence[str]) -> str:
    """The name, with a mark where a column has it."""
    while name in names:
        name = f"{name}_"
    return name
