"""Rows in memory: every way to give them is the same table, and types survive it."""

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartformer.data import memory
from dartformer.data.records import read
from dartformer.errors import InputError

COLUMNS = {"review": ["good", "bad", "fine"], "stars": [5, 1, 4], "share": [0.5, 1.5, 2.5]}


def records(table, tmp_path):
    return list(read(memory.write({"train": table}, tmp_path / "data")))


EXPECTED = [
    {"review": "good", "stars": 5, "share": 0.5},
    {"review": "bad", "stars": 1, "share": 1.5},
    {"review": "fine", "stars": 4, "share": 2.5},
]


def of_pandas():
    return pytest.importorskip("pandas").DataFrame(COLUMNS)


def of_polars():
    return pytest.importorskip("polars").DataFrame(COLUMNS)


def of_datasets():
    return pytest.importorskip("datasets").Dataset.from_dict(COLUMNS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: COLUMNS,
        lambda: EXPECTED,
        lambda: pyarrow.table(COLUMNS),
        lambda: pyarrow.table(COLUMNS).to_batches()[0],
        lambda: {name: np.array(values) for name, values in COLUMNS.items()},
        of_pandas,
        lambda: of_pandas().set_index(np.array([7, 8, 9])),
        of_polars,
        lambda: of_polars().lazy(),
        of_datasets,
        lambda: of_datasets().select([2, 0, 1]).select([1, 2, 0]),
    ],
)
def test_every_table_has_the_same_rows(make, tmp_path):
    """As a file of them would: whole numbers stay whole, and nothing is added."""
    read_rows = records(memory.rows_of(make()).table, tmp_path)
    assert read_rows == EXPECTED
    assert [type(value) for value in read_rows[0].values()] == [str, int, float]


CELLS = st.one_of(
    st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.none() | st.floats(allow_nan=False), min_size=1),
    st.lists(st.none() | st.booleans(), min_size=1),
    st.lists(st.none() | st.text(st.characters(codec="utf-8")), min_size=1),
    st.lists(st.lists(st.floats(allow_nan=False, width=32)), min_size=1),
)


@settings(max_examples=100, deadline=None)
@given(values=CELLS)
def test_values_keep_their_types(values, tmp_path_factory):
    """Of one column, through the file that the stages read."""
    table = memory.rows_of({"x": values}).table
    back = [row["x"] for row in records(table, tmp_path_factory.mktemp("rows"))]
    assert back == values
    assert list(map(type, back)) == list(map(type, values))


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "uint16", ">i4", "bool"]
)
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
def test_arrays_keep_their_shape_and_values(dtype, shape, tmp_path):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    table = memory.rows_of(array).table
    back = np.array([row["x"] for row in records(table, tmp_path)])
    np.testing.assert_array_equal(back, array)


def test_what_is_no_text_in_a_file_becomes_one(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"kind": pandas.Categorical(["b", "a"]), "when": pandas.to_datetime(["2024-01-31", None])}
    )
    rows = records(memory.rows_of(frame).table, tmp_path)
    assert rows == [
        {"kind": "b", "when": "2024-01-31 00:00:00"},
        {"kind": "a", "when": None},
    ]
    times = pandas.DataFrame({"x": [1.0]}, index=pandas.to_datetime(["2024-01-31"]))
    assert records(memory.rows_of(times).table, tmp_path) == [
        {"time": "2024-01-31 00:00:00", "x": 1.0}
    ]


def test_names_of_classes_come_from_a_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    rows = records(memory.rows_of(dataset).table, tmp_path)
    assert [row["label"] for row in rows] == ["yes", "no"]
    splits = memory.splits_in(datasets.DatasetDict({"train": dataset, "validation": dataset}))
    assert set(splits) == {"train", "valid"}


def test_examples_without_names():
    def names(examples, labels=None):
        rows = memory.rows_of(examples, labels)
        return rows.table.column_names, rows.texts, rows.label

    assert names(["a", "b"]) == (["text"], ("text",), "")
    assert names(np.array(["a", "b"]), [1, 2]) == (["text", "label"], ("text",), "label")
    assert names([("a", "b"), ("c", "d")]) == (["text", "text2"], ("text", "text2"), "")
    # Two words with a label each are no pair of texts.
    words, labels = [["a", "b"], ["c", "d"]], [["X", "Y"], ["Y", "X"]]
    assert names(words, labels) == (["text", "label"], ("text",), "label")
    assert names(words, np.array(labels)) == (["text", "label"], ("text",), "label")
    assert names([("a", "b"), (None, "c")])[1] == ("text", "text2")
    assert names(np.zeros((2, 5)), np.zeros((2, 1))) == (["x", "label"], (), "label")
    assert names([[1, 2], [3.5]]) == (["x"], (), "")
    assert names([np.zeros((3, 2)), np.zeros((4, 2))]) == (["x"], (), "")
    assert names([1, 2, 3.5]) == (["time", "x"], (), "")
    # A column of X that has the name of y is another column.
    assert names({"label": ["a"], "text": ["b"]}, [1])[2] == "label_"


def test_labels_of_a_series_have_its_name():
    pandas = pytest.importorskip("pandas")
    series = pandas.Series([0, 1], name="mood", index=[5, 3])
    assert memory.rows_of(["a", "b"], series).label == "mood"


@pytest.mark.parametrize(
    ("examples", "labels", "message"),
    [
        (["a", "b"], [1], "X has 2 rows and y has 1"),
        ({"a": [1, 2], "b": [1]}, None, "different lengths: a 2, b 1"),
        (np.array([1, "a", None], object), None, r"several types .*\(int, str\)"),
        (np.array([[1, "a"]], object), None, r"several types .*\(int, str\)"),
        (["a", 1], None, r"several types .*\(str, int\)"),
        (["a", "b"], [1, "x"], r"y holds values of several types .*\(int, str\)"),
        (np.zeros((2, 3), complex), None, "dtype complex128"),
        (np.zeros((2, 3)), np.zeros((2, 2)), r"y has shape \[2, 2\]"),
        (np.zeros(4), [1, 2, 3, 4], r"X has shape \[4\]"),
        (np.array([[1.0, 2], [np.nan, np.nan]]), [0, 1], "row 1 of X holds no number"),
        (np.zeros((3, 1)), [1, 2, 3], r"X has shape \[3, 1\]"),
        (np.zeros((3, 0)), None, r"shape \[3, 0\]"),
        (np.array(3), None, "X must hold an example for each row"),
        (np.zeros((0, 3)), None, "X has no rows"),
        ([], None, "X has no rows"),
        ("a text", None, "X must hold an example for each row"),
        (7, None, "X must hold an example for each row"),
        (["a", "b"], "label", "y must hold a label for each row"),
        ([["a", "b"], "c"], None, "row 1 of X is 'c'"),
        ([{"a": 1}, 3], None, "X holds dictionaries and 3"),
        ({"a": [object()]}, None, "the column 'a' holds values"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(examples, labels, message):
    with pytest.raises(InputError, match=message) as caught:
        memory.rows_of(examples, labels)
    assert "\n" not in str(caught.value)


def test_a_sparse_matrix_is_refused():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(InputError, match="sparse"):
        memory.rows_of(sparse.eye_array(3, format="csr"))


def test_the_same_rows_are_written_once(tmp_path):
    """So that they are not prepared again; other rows replace them."""
    table = memory.rows_of(COLUMNS).table
    path = memory.write({"train": table}, tmp_path)
    before = path.stat().st_mtime_ns
    assert memory.is_written({"train": table}, tmp_path)
    memory.write({"train": memory.rows_of(COLUMNS).table}, tmp_path)
    assert path.stat().st_mtime_ns == before
    both = {"train": table, "test": table}
    assert not memory.is_written(both, tmp_path)
    assert memory.write(both, tmp_path) == tmp_path
    assert sorted(file.name for file in tmp_path.iterdir()) == ["test.arrow", "train.arrow"]
