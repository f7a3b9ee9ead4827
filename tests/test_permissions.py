"""Who may read what is written is what the umask says."""

import os
from pathlib import Path

import pytest
from test_export import RESULTS, made

from dartformer.export.write import export
from dartformer.machine.workdir import write_json, write_text
from dartformer.report import plots


@pytest.fixture(params=[0o077, 0o022, 0o002, 0o027], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {path.stat().st_mode & 0o777 for path in Path(folder).rglob("*") if path.is_file()}


def test_files_of_a_workdir(umask, tmp_path):
    write_text(tmp_path / "new/report.html", "a")
    write_json(tmp_path / "new/results.json", {})
    (tmp_path / "new/old.json").touch(0o600)
    write_json(tmp_path / "new/old.json", {})
    plots.genotype_of([["full"]]).save(tmp_path / "new/genotype.svg")
    assert modes(tmp_path / "new") == {0o666 & ~umask}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~umask
    assert sorted(os.listdir(tmp_path / "new")) == sorted(
        ["report.html", "results.json", "old.json", "genotype.svg"]
    )


def test_files_of_an_export(umask, tmp_path):
    folder = export(made([["full", "uniform"]]), tmp_path / "e", RESULTS)
    assert modes(folder) == {0o666 & ~umask}
