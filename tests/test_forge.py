"""The files for a forge: they parse, and agree with the package."""

import configparser
import re
import tomllib
from pathlib import Path

import pytest

from dartformer._version import __version__

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

ROOT = Path(__file__).resolve().parents[1]
FILES = [
    *sorted((ROOT / ".github").rglob("*.yml")),
    ROOT / ".pre-commit-config.yaml",
    ROOT / "CITATION.cff",
]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")


def load(name):
    return yaml.safe_load((ROOT / name).read_text("utf-8"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_is_yaml(file):
    assert isinstance(load(file), dict)


def test_every_workflow_has_least_permissions_and_no_secrets():
    for file in (ROOT / ".github/workflows").glob("*.yml"):
        assert load(file)["permissions"] == {"contents": "read"}
        assert "secrets." not in file.read_text("utf-8")


def test_the_tests_run_on_every_supported_python():
    versions = load(".github/workflows/check.yml")["jobs"]["tests"]["strategy"]["matrix"]
    classifiers = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    assert versions["python-version"] == classifiers
    assert SETUP["options"]["python_requires"] == f">={classifiers[0]}"


def test_every_make_target_of_a_workflow_exists():
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.M)
    text = (ROOT / ".github/workflows/check.yml").read_text("utf-8")
    for command in re.findall(r"run: make (.*)", text):
        assert {word for word in command.split() if "=" not in word} <= set(targets)


def test_the_formatter_is_one_that_the_test_extra_accepts():
    (hooks,) = load(".pre-commit-config.yaml")["repos"]
    minimum = re.search(r"ruff>=(\d+\.\d+)", SETUP["options.extras_require"]["test"]).group(1)
    assert hooks["rev"].startswith(f"v{minimum}.")
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert "ruff" in tomllib.load(file)["tool"]


def test_the_citation_is_of_this_version():
    citation = load("CITATION.cff")
    assert citation["version"] == __version__
    assert citation["license"] == SETUP["metadata"]["license"]
    assert f"Version {__version__}" in (ROOT / "README.md").read_text("utf-8")
