"""The page on own models and its four scripts, with few steps: what they print, and their length."""

import difflib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "experiments/own_model"
SCRIPTS = ("vit", "encoder_decoder", "series", "decoder")


def code(name):
    """The lines of a script from its first import on, without those that are blank."""
    text = (FOLDER / f"{name}.py").read_text("utf-8")
    lines = text[text.index("\nimport ") :].splitlines()
    return [line for line in lines if line.strip()]


def test_a_search_changes_at_most_twelve_lines_of_a_vision_transformer():
    before, after = code("vit_plain"), code("vit")
    assert 45 <= len(before) <= 60  # 70 with docstring and blank lines
    changed = [line for line in difflib.ndiff(before, after) if line.startswith("+ ")]
    assert len(changed) <= 12, changed


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_imports_nothing_of_ours_but_the_package(name):
    text = (FOLDER / f"{name}.py").read_text("utf-8")
    assert re.findall(r"^.*import.*dartformer.*$", text, re.M) == ["import dartformer as df"]


@pytest.mark.parametrize(
    "name",
    [
        "encoder_decoder",
        pytest.param("vit", marks=pytest.mark.slow),
        pytest.param("series", marks=pytest.mark.slow),
        pytest.param("decoder", marks=pytest.mark.slow),
    ],
)
def test_a_script_prints_json_and_the_verdict_last(name, capsys, compile_quickly):
    if name == "vit":
        pytest.importorskip("sklearn", reason="the extra sklearn is not installed")
    text = (FOLDER / f"{name}.py").read_text("utf-8")
    constants = re.search(r"^(.*\bSTEPS\b.*) = (.*)$", text, re.M)
    names, values = constants[1].split(", "), constants[2].split(", ")
    values[names.index("STEPS")] = "4"
    few = text.replace(constants[0], f"{constants[1]} = {', '.join(values)}", 1)
    exec(compile(few, f"{name}.py", "exec"), {"__name__": "__main__"})
    *_, first, last = capsys.readouterr().out.splitlines()
    assert json.loads(first)["gap"] <= 1e-5
    assert json.loads(last)["verdict"][0].endswith(" on test")


def test_the_page_runs(compile_quickly, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/own_model.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    namespace = {}
    for block in blocks:
        exec(compile(block, "docs/own_model.md", "exec"), namespace)
    assert namespace["race"].verdict
    assert (tmp_path / "race.html").is_file()
    shown = re.search(r"```diff\n(.*?)```", page, re.S)[1]
    script = (FOLDER / "vit.py").read_text("utf-8")
    for line in shown.splitlines():
        if line.startswith("+"):
            assert line[1:] in script
