"""A stranger's export loads or is refused in one line, whatever its files hold, and quickly."""

import json
import shutil
import struct
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dartformer as df
from dartformer.errors import InputError
from dartformer.export import checksums

SECONDS = 10
"""Of the processor: far more than a refusal takes, and far less than building what is claimed."""

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, 2**31, 2**63, 10**30, -(2**40), 3000, 1e308, 0.5]),
    st.text(max_size=5),
    st.sampled_from(["full", "full(", "cls", "float64", "F64", "/etc/passwd", "listops"]),
    st.just([]),
    st.just({}),
    st.just([[["full"]]]),
)
QUICK = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def export(whole_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("tampered") / "export"
    shutil.copytree(whole_run[0] / "export", path)
    return path


def places(data, prefix=()):
    """The paths of all values within plain data."""
    yield prefix
    if isinstance(data, dict):
        for key, value in data.items():
            yield from places(value, (*prefix, key))
    elif isinstance(data, list):
        for number, value in enumerate(data[:3]):
            yield from places(value, (*prefix, number))


def replaced(data, place, value):
    if not place:
        return value
    copy = data.copy()
    copy[place[0]] = replaced(data[place[0]], place[1:], value)
    return copy


def loads_or_refuses(folder):
    """What it is refused for; None where it was loaded and answers."""
    started = time.process_time()
    refused = None
    try:
        df.load(folder)
    except InputError as error:
        refused = str(error)
    assert time.process_time() - started < SECONDS
    assert "\n" not in (refused or "")
    return refused


@pytest.fixture
def tampered(export):
    """Writes a file of the export anew with its checksum, and puts it back in the end."""
    before = {}

    def write(name, content):
        before.setdefault(name, (export / name).read_bytes())
        (export / name).write_bytes(content)
        checksums.note(export)
        return loads_or_refuses(export)

    yield write
    for name, content in before.items():
        (export / name).write_bytes(content)
    checksums.note(export)


@pytest.mark.parametrize("name", ["config.json", "genotype.json", "checksums.json"])
def test_values_of_json_files(export, tampered, name):
    data = json.loads((export / name).read_text())
    paths = st.sampled_from(list(places(data)))

    @QUICK
    @given(paths, VALUES)
    def check(place, value):
        text = json.dumps(replaced(data, place, value)).encode()
        if name == checksums.CHECKSUMS:
            whole = (export / name).read_bytes()
            (export / name).write_bytes(text)
            loads_or_refuses(export)
            (export / name).write_bytes(whole)
        else:
            tampered(name, text)

    check()


@pytest.mark.parametrize("name", ["config.json", "genotype.json", "weights.safetensors"])
def test_other_content(tampered, name):
    for content in (
        b"",
        b"[]",
        b"null",
        b"3",
        b"[" * 100_000,
        b"[" * 1000 + b"]" * 1000,
        b'{"format": 1}',
        b"\xff\xfe",
        b"1" * 5000,
    ):
        refused = tampered(name, content)
        assert refused is not None
        assert name in refused


def test_headers_of_weights(export, tampered):
    content = (export / "weights.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, numbers = json.loads(content[8 : 8 + size]), content[8 + size :]
    paths = st.sampled_from([place for place in places(header) if place])

    def packed(data, claimed=None):
        text = json.dumps(data).encode()
        return struct.pack("<Q", claimed or len(text)) + text + numbers

    @QUICK
    @given(paths, VALUES | st.sampled_from(["I32", "BF16", "F8_E4M3", "F4", "BOOL"]))
    def check(place, value):
        tampered("weights.safetensors", packed(replaced(header, place, value)))

    check()
    for claimed in (1, 10**6, 2**40, 2**63, 2**64 - 1):
        assert tampered("weights.safetensors", packed(header, claimed)) is not None
    first, second = [name for name in header if name != "__metadata__"][:2]
    overlapping = {**header, first: {**header[first], "data_offsets": [0, 4]}}
    assert tampered("weights.safetensors", packed(overlapping)) is not None
    assert tampered("weights.safetensors", packed({first: header[second]})) is not None


def test_many_layers_are_refused_before_they_are_built(export, tampered):
    config = json.loads((export / "config.json").read_text())
    config["config"]["model"]["layers"] = 3000
    whole = (export / "config.json").read_bytes()
    assert "layers" in tampered("config.json", json.dumps(config).encode())
    tampered("config.json", whole)
    genotype = json.loads((export / "genotype.json").read_text())
    genotype["layers"] = genotype["layers"][:1] * 3000
    refused = tampered("genotype.json", json.dumps(genotype).encode())
    assert "has 3000 layers of 2 heads" in refused


def test_the_card_may_be_edited(export, tampered):
    card = (export / "README.md").read_bytes()
    (export / "README.md").write_bytes(card + b"\nIntended use: my thesis.\n")
    assert loads_or_refuses(export) is None
    (export / "README.md").unlink()
    assert loads_or_refuses(export) is None
    (export / "README.md").write_bytes(card)
