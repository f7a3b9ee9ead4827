"""Small tables of every kind: `new` refuses, or its config is one that a run prepares."""

import csv
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dartformer.cli.new import config_for_data, load_text
from dartformer.errors import InputError
from dartformer.tasks.base import parts

CHARACTERS = {
    "english": "abcdefghijklmnop  ",
    "chinese": "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下",
    "thai": "กขคงจฉชซญฎฏฐฑฒณดตถทธนบปผฝพฟภมยรลวศษสหฬอฮะาเแโ",
    "odd": "a\u200d\ud83d\ude00 \x1c\x85\u2028\0é\"';,|\t",
}
NAMES = [
    "text",
    "url",
    "label",
    "Review Text",
    "catégorie",
    "y",
    "id",
    "a\nb",
    "42",
    "'",
    '"""',
    "\\",
]
LABELS = {
    "names": ["neg", "pos"],
    "missing": ["neg", "pos", "", None],
    "numbers": [0, 1, 2],
    "mixed": [1, "1", "1.0", 0, float("nan")],
    "booleans": [True, False],
    "rare": ["a"] * 9 + ["b"] * 9 + ["c"],
    "same": ["only"],
    "lists": [["a", "b"], ["a"]],
    "odd": ["a\x1bb", "\u202e", '"""\\', "\ud800", "x" * 300],
}


@st.composite
def tables(draw):
    """The rows of a table: a text, a label, and maybe a link."""
    random = draw(st.randoms(use_true_random=False))
    names = draw(st.permutations(NAMES))
    characters = CHARACTERS[draw(st.sampled_from(sorted(CHARACTERS)))]
    kind = draw(st.sampled_from([*sorted(LABELS), "many", "quantity", "words"]))
    longest = draw(st.sampled_from([3, 30, 200]))
    repeated = draw(st.booleans())
    rows = []
    for i in range(draw(st.sampled_from([0, 1, 5, 12, 40, 120]))):
        text = "".join(random.choice(characters) for _ in range(random.randint(0, longest)))
        if kind == "many":
            label = i % 30
        elif kind == "quantity":
            label = random.random()
        elif kind == "words":
            label = " ".join("AB"[len(word) % 2] for word in text.split())
        else:
            label = random.choice(LABELS[kind])
        link = f"https://example.org/a/very/long/path/to/{i}"
        rows.append({names[0]: text, names[1]: label, names[2]: link})
        if repeated and random.random() < 0.5:
            rows.append(dict(rows[-1]))
    return rows


def write(folder, rows, jsonl):
    if jsonl:
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "a.jsonl"
    with open(folder / "a.csv", "w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "a.csv"


def check_new(folder, rows, jsonl):
    """Nothing but `InputError`, or a config whose data are prepared without an error."""
    file = write(folder, rows, jsonl)
    try:
        config = config_for_data(str(file))
    except InputError:
        return False
    loaded = load_text(config.text)
    splits = parts(loaded.task.built, str(folder), loaded.seed)
    assert loaded.data.batch_size <= min(len(splits["weights"]), len(splits["alphas"]))
    assert len(splits["train"]) == config.guess.train
    return True


SETTINGS = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "database": None,
}


@settings(max_examples=25, **SETTINGS)
@given(rows=tables(), jsonl=st.booleans())
def test_new_refuses_or_writes_a_config_that_runs(rows, jsonl, tmp_path_factory):
    check_new(tmp_path_factory.mktemp("table"), rows, jsonl)


@pytest.mark.slow
@settings(max_examples=1000, **SETTINGS)
@given(rows=tables(), jsonl=st.booleans())
def test_new_of_many_tables(rows, jsonl, tmp_path_factory):
    check_new(tmp_path_factory.mktemp("table"), rows, jsonl)
