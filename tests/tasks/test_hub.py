"""Data sets of the hub, which the library `datasets` keeps as Arrow files."""

import json
import sys
from types import SimpleNamespace

import pytest

from dartformer.data import hub
from dartformer.errors import InputError
from dartformer.tasks.files import Files
from dartformer.tasks.guess import guess


@pytest.fixture(autouse=True)
def fresh():
    hub.cached.cache_clear()
    yield
    hub.cached.cache_clear()


def library(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def written(folder, split, count):
    """A file as the library writes it, by Arrow alone."""
    import pyarrow

    rows = [{"text": f"row {i} of {split}", "label": i % 2} for i in range(count)]
    table = pyarrow.Table.from_pylist(rows)
    file = folder / f"films-{split}.arrow"
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return SimpleNamespace(cache_files=[{"filename": str(file)}])


def test_a_set_of_the_hub_is_read_from_its_arrow_files(monkeypatch, tmp_path):
    asked = []

    def load_dataset(*arguments):
        asked.append(arguments)
        return {"train": written(tmp_path, "train", 60), "test": written(tmp_path, "test", 20)}

    library(monkeypatch, load_dataset)
    assert guess("hf:somebody/films:plain").options["path"] == "hf:somebody/films:plain"
    task = Files(path="hf:somebody/films:plain", label_names=(0, 1), length=16)
    splits = task.load(str(tmp_path / "data"))
    assert len(splits["test"]) == 20
    assert len(splits["train"]) == 54
    assert asked == [("somebody/films", "plain")], "asked again"


def test_what_cannot_be_loaded_is_one_line(monkeypatch):
    def missing(*_):
        raise FileNotFoundError("Dataset 'nobody/none' doesn't exist.\nSee the hub")

    library(monkeypatch, missing)
    with pytest.raises(InputError, match=r"^cannot load hf:nobody/none: .* doesn't exist\.$"):
        Files(path="hf:nobody/none").check()
    with pytest.raises(InputError, match=r"names no data set\. Use hf:OWNER"):
        Files(path="hf:").check()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package datasets.*dartformer\[datasets\]"):
        Files(path="hf:nobody/other").check()


def test_the_library_itself(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    source = tmp_path / "films"
    source.mkdir()
    for split, count in (("train", 40), ("test", 9)):
        rows = [json.dumps({"text": f"row {i} of {split}", "label": i % 2}) for i in range(count)]
        (source / f"{split}.jsonl").write_text("\n".join(rows))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    task = Files(path=f"hf:{source}", label_names=(0, 1), length=16)
    splits = task.load(str(tmp_path / "data"))
    assert len(splits["test"]) == 9
    assert len(splits["train"]) == 36
