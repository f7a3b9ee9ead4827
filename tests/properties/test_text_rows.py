"""Texts of every kind: one reading for training and prediction, and no row in two parts."""

import io
import json
import unicodedata
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from dartformer.cli.predict import _json_line
from dartformer.data.lines import decoded
from dartformer.data.records import read
from dartformer.data.rows import Row
from dartformer.data.sources import pack
from dartformer.data.tokens import restored, words
from dartformer.errors import InputError
from dartformer.export.predict import stream
from dartformer.tasks.base import parts
from dartformer.tasks.files import Files
from dartformer.tasks.preparation import Preparation, Source

FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

LENGTH = 12
COLOURS = ("red", "green", "blue", "black", "white")
BODY = [f"{a} {b} {c}" for a in COLOURS for b in COLOURS for c in COLOURS][:60]

ODD_WORDS = (
    "[PAD]",
    "[UNK]",
    "x[UNK]y",
    "caf\u00e9",
    "\u0130zmir",
    "\u03c3\u03c2",
    "\u200b",
    "\ufb01n",
)
SPACES = (" ", "  ", "\t", "\u00a0", "\u2003", "\x1c", "\x1f", "\x85", "\u2028", "\r\n")

TWINS = {
    "itself": lambda text: text,
    "upper case": str.upper,
    "a space at its end": lambda text: text + " ",
    "a line end": lambda text: text + "\r\n",
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "beyond the crop": lambda text: (text + " red" * LENGTH)[: 4 * LENGTH] + " green",
    "a rare word": lambda text: f"{text} w{len(text)}q",
}


@st.composite
def texts(draw):
    """Rows that are nearly the same, among rows that are not."""
    odd = []
    for _ in range(draw(st.integers(1, 8))):
        chosen = draw(st.lists(st.sampled_from(ODD_WORDS + COLOURS), min_size=1, max_size=5))
        space = draw(st.sampled_from(SPACES))
        odd.append(space.join(chosen))
    twins = []
    for text in odd + BODY[:10]:
        for name in draw(st.lists(st.sampled_from(sorted(TWINS)), max_size=6)):
            twins.append(TWINS[name](text))
    return draw(st.permutations(BODY + odd + twins))


def task_of(tokens, **options):
    return Files(path="x", tokens=tokens, length=LENGTH, label_names=("0", "1"), **options)


def prepared(task, rows):
    """The examples of each split, the task with what it learned, and the facts."""
    source = Source(lambda: iter(rows), "x")
    notes = {}
    refused = ""
    try:
        splits = Preparation(task, {"train": source}).run(notes)
        examples = {part: list(stream) for part, stream in splits.items()}
    except InputError as error:
        refused = str(error)
    if refused:
        assert "no rows are left" in refused or "of the class" in refused
        reject()
    fitted = type(task)(**{**vars(task), "learned": json.dumps(notes["learned"])})
    return examples, fitted, notes["splits"]


def ids_of(examples):
    return [tuple(example["tokens"].tolist()) for example in examples]


@dataclass(frozen=True)
class Loaded:
    """A task of examples in memory."""

    examples: dict

    def load(self, data_dir=None):
        splits = {}
        for part, rows in self.examples.items():
            splits[part] = pack(rows, len(rows), LENGTH, np.uint16)
        return splits


@pytest.mark.parametrize("tokens", ["bytes", "characters", "words", "bpe"])
@FEW
@given(rows=texts())
def test_what_the_model_reads_of_a_row_is_in_one_part(tokens, rows):
    task = task_of(tokens, vocabulary_size=0 if tokens == "bytes" else 300)
    labelled = [Row((text,), str(i % 2), f"row {i}") for i, text in enumerate(rows)]
    examples, fitted, facts = prepared(task, labelled)
    by_part = {part: ids_of(rows) for part, rows in examples.items()}
    assert not set(by_part["train"]) & {*by_part["valid"], *by_part["test"]}
    unknown = tokens != "bytes"
    known = {ids for ids in by_part["valid"] if not (unknown and 1 in ids)}
    assert not known & set(by_part["test"])
    # Prediction reads the same, with what is kept of the tokenizer; padding is in no text.
    read_for_prediction = {tuple(fitted.encode(text)) for text in rows if text.strip()}
    for part, ids in by_part.items():
        assert set(ids) <= read_for_prediction
        assert not any(0 in row for row in ids)
        share = 0.0
        if unknown:
            share = np.mean([i == 1 for row in ids for i in row])
        assert facts[part]["unknown share"] == pytest.approx(share, abs=1e-4)
    assert restored(json.loads(fitted.learned)).state() == fitted.tokenizer.state()
    halves = parts(Loaded(examples))
    taken = []
    for name in ("weights", "alphas"):
        batch = halves[name].take(np.arange(len(halves[name])))
        taken.append({row.tobytes() for row in batch["tokens"]})
    assert not taken[0] & taken[1]


@FEW
@given(rows=texts())
def test_every_word_keeps_its_label(rows):
    """The label of a word says whether it has an "e"."""
    labelled = []
    for i, text in enumerate(rows):
        labels = " ".join(str(int("e" in word)) for word in words(text))
        labelled.append(Row((text,), labels, f"row {i}"))
    task = task_of("words", kind="labelling", on_bad_label="drop")
    examples, fitted, facts = prepared(task, labelled)
    names = fitted.tokenizer.names()
    assert "bad label" not in facts["train"]["left out or odd"]
    for example in [*examples["train"], *examples["valid"], *examples["test"]]:
        assert len(example["tokens"]) == len(example["label"])
        for i, label in zip(example["tokens"], example["label"], strict=True):
            if i > 1:
                assert label == int("e" in names[i])


class Echo:
    """A served model of texts, without a model."""

    model = SimpleNamespace(shape=SimpleNamespace(inputs=1))

    def arrays(self, documents):
        for document in documents:
            if not isinstance(document, str):
                raise InputError(f"give a text, got {document!r}.")

    def __call__(self, documents, top=0):
        return [{"label": text, "probability": 1.0} for text in documents]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.sampled_from(["label", "error", "line", "probability", "id"]), JSON)
ODD_LINES = (
    b"[" * 20_000,
    b'{"a": ' * 500 + b"1" + b"}" * 500,
    b'{"text": "x", "id": ' + b"9" * 5000 + b"}",
    b'{"text": "\\ud83d"}',
    b'{"text": "caf\xe9"}',
    b'{"text": "a\xe2\x80\xa8b"}',
    b'{"text": "a\0b"}',
    b"\xef\xbb\xbf",
    b"\r",
    b"NaN",
    b'{"text": "' + b"x" * 10_000,
)


def object_line(fields, text):
    return json.dumps({**fields, "text": text}).encode()


LINES = st.lists(
    st.builds(object_line, FIELDS, st.text())
    | st.sampled_from(ODD_LINES)
    | st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")),
    max_size=12,
)


@FEW
@given(lines=LINES, mark=st.booleans(), end=st.sampled_from([b"\n", b"\r\n"]))
def test_every_json_line_has_one_reply_and_keeps_its_fields(lines, mark, end):
    data = b"\xef\xbb\xbf" * mark + end.join(lines)
    replies = list(stream(Echo(), decoded(io.BytesIO(data)), batch=3))
    read_lines = [line for line in decoded(io.BytesIO(data)) if line.strip()]
    assert len(replies) == len(read_lines)
    for line, reply in zip(read_lines, replies, strict=True):
        printed = json.loads(_json_line(reply.record))
        if reply.failed:
            assert any(name.endswith("error") for name in printed)
            continue
        fields = json.loads(line)
        if isinstance(fields, str):
            fields = {"text": fields}
        assert json.dumps({name: reply.record[name] for name in fields}) == json.dumps(fields)


@FEW
@given(rows=st.lists(st.text(max_size=8), min_size=1, max_size=12))
def test_training_and_prediction_read_the_same_texts(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    data = b"\xef\xbb\xbf" + b"\r\n".join(object_line({}, text) for text in rows)
    path.write_bytes(data)
    trained = [record["text"] for record in read(path)]
    replies = stream(Echo(), decoded(io.BytesIO(data)))
    assert trained == [reply.record["label"] for reply in replies] == rows
