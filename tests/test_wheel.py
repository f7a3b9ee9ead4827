"""The built wheel in an empty environment: what somebody who only knows pip gets."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_version_is_semantic_and_the_changelog_begins_with_it():
    from dartformer._version import __version__

    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", __version__)
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == __version__
    assert len(set(headings)) == len(headings)


@pytest.mark.slow
def test_both_distributions_are_clean(tmp_path):
    """`twine check` has nothing to say, and they hold the package, all of it, and no more than what
    belongs to it."""
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *tmp_path.iterdir()], check=True
    )
    package = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "dartformer").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    wheel = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    assert {name for name in wheel if ".dist-info/" not in name} == package
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        source = {m.name.split("/", 1)[1] for m in archive.getmembers() if m.isfile()}
    assert {name for name in source if name.startswith("dartformer/")} == package
    others = {
        name for name in source if not name.startswith(("dartformer/", "dartformer.egg-info/"))
    }
    assert others == {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "MANIFEST.in",
        "PKG-INFO",
        "README.md",
        "pyproject.toml",
        "setup.cfg",
    }


@pytest.mark.slow
def test_the_wheel_works_without_a_clone(tmp_path):
    def run(*command):
        command = [str(part) for part in command]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(tmp_path / "venv/bin/pip", "install", "--quiet", next(tmp_path.glob("*.whl")))
    command = tmp_path / "venv/bin/dartformer"
    (tmp_path / "my_space.py").write_text(run(command, "new", "--task", "listops"))
    run(
        command,
        "run",
        "--config=my_space.py",
        "--workdir=run",
        f"--config.data.dir={tmp_path}",
        "--config.search.steps=6",
        "--config.retrain.steps=5",
        "--config.retrain.seeds=0",
        "--config.baselines=false",
        "--config.task.train=500",
    )
    assert (
        run(command, "predict", "run/export", "--text", "[MAX 2 9 [MIN 4 7 ] 0 ]").split("\t")[0]
        in "0123456789"
    )
    run(command, "list", "attentions", "--json")
