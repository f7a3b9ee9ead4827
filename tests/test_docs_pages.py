"""What README.md and the other pages of docs/ tell a newcomer to type: every command is one, and
the tutorial runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dartformer as df
from dartformer import config as configs
from dartformer.cli.grammar import parser
from dartformer.cli.main import main, overrides
from dartformer.stages import proposal
from dartformer.stages.pace import Pace
from dartformer.stages.study import Study
from dartformer.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

FEW = [
    "search.steps=4",
    "search.observe=false",
    "retrain.steps=4",
    "retrain.seeds=0",
    "derive.second_opinion=",
    "space.candidates=uniform,identity",
    "model.layers=1",
    "model.heads=2",
    "model.head_dim=4",
    "model.model_dim=8",
    "model.mlp_dim=8",
]
"""For a run that has only to work."""


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.S)


def commands(page):
    """The dartformer commands of a page, as lists of arguments; alternatives `a|b` one after the
    other."""
    for block in [*blocks(page, "console"), *blocks(page, "sh")]:
        lines = block.replace("\\\n", " ").splitlines()
        # With prompts, everything else is output.
        prompts = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in prompts or lines:
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words[:1] != ["dartformer"]:
                continue
            words = words[1 : words.index(">")] if ">" in words else words[1:]
            if "|" in words:
                words = words[: words.index("|")]
            place, choices = next(
                ((i, w.split("|")) for i, w in enumerate(words) if "|" in w), (0, words[:1])
            )
            for one in choices:
                yield [*words[:place], one, *words[place + 1 :]]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_the_paths_of_a_page_exist(name):
    """Every path in backticks and every relative link, from the root of the repository."""
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text("utf-8"), flags=re.S)
    paths = re.findall(r"`((?:dartformer|docs|experiments|tests|search_spaces)/[\w./-]*)`", text)
    links = re.findall(r"\]\((?!http|#)([^)]+)\)", text)
    missing = [path for path in (*paths, *links) if not (ROOT / path).exists()]
    assert not missing


def test_the_map_names_every_part_of_the_package():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("```mermaid")[1].split("```")[0]
    parts = {path.stem for path in (ROOT / "dartformer").iterdir() if path.suffix == ".py"}
    parts |= {path.parent.name for path in (ROOT / "dartformer").glob("*/__init__.py")}
    missing = {part for part in parts if not part.startswith("_")} - set(re.findall(r"\w+", text))
    assert not missing


def test_the_index_lists_every_page_once():
    text = (ROOT / "docs/index.md").read_text("utf-8")
    links = re.findall(r"\]\((\w+\.md)\)", text)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert sorted(links) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_one(page):
    """It parses, and the fields it sets are fields."""
    for words in commands(page):
        if len(words) > 1 or words[0] not in (
            "search",
            "derive",
            "retrain",
            "evaluate",
            "export",
            "report",
        ):
            arguments, extra = parser().parse_known_args(words)
            found = overrides(extra)
            task = getattr(arguments, "task", None) or (
                "files" if getattr(arguments, "data", None) else "listops"
            )
            configs.override(
                df.defaults(task), {k: v for k, v in found.items() if not k.startswith("task.")}
            )
        else:
            assert words[0] in parser().format_help()


def test_from_your_data_to_a_model(tmp_path, monkeypatch, capsys, compile_quickly):
    """The tutorial, with a tiny model, and without the stages that look at what was made."""
    monkeypatch.chdir(tmp_path)
    # How fast this machine is decides about the size of the space.
    monkeypatch.setattr(proposal, "measure", lambda study: Pace(0.01, 2.0))
    page = ROOT / "docs/tutorial.md"
    make, use = blocks(page, "python")
    exec(compile(make, page.name, "exec"), {})
    new, run, export, predict, by_head, again, _ = (words for words in commands(page))
    assert main(new) == 0
    out, err = capsys.readouterr()
    assert "a token is a patch of 2 x 2 pixels, 16 of them in a picture" in err
    assert "16 models race" in err
    Path("my_space.py").write_text(out, "utf-8")
    few = [*(f"--config.{one}" for one in FEW), "--config.data.dir=."]
    for verb in ("search", "derive", "race", "evaluate"):
        assert main([verb, *run[1:], *few]) == 0
    (name,) = (word for word in export if word.startswith("--entrant"))
    assert name == "--entrant=conv(width=5)"
    # Which models reach the end of so short a race is chance.
    results = json.loads(Path("runs/mine/results.json").read_text())
    finalist = next(entrant for entrant in results["race"]["entrants"] if entrant["finalist"])
    name = finalist["name"].removeprefix("homogeneous.")
    assert main(["export", *run[1:], *few, f"--entrant={name}"]) == 0
    capsys.readouterr()
    assert main(predict) == 0
    assert capsys.readouterr().out.split("\t")[0] in "0123456789"
    exec(compile(use, page.name, "exec"), {})
    assert capsys.readouterr().out.split()[0] in "0123456789"
    assert main(by_head) == 0
    Path("heads.py").write_text(capsys.readouterr().out, "utf-8")
    config = df.load_config("heads.py", overrides(again[3:]))
    assert (config.search.strategy.name, config.space.granularity) == ("darts", "head")


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    task, space, _ = blocks(ROOT / "docs/tasks.md", "python")
    (tmp_path / "mirror_task.py").write_text(task)
    (tmp_path / "mirror_space.py").write_text(space)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TASKS, "registered", {})
    try:
        config = df.load_config(tmp_path / "mirror_space.py")
        study = Study(config)
        test = study.parts["test"].take(np.arange(200))
        texts = [study.task.decode(row) for row in test["tokens"]]
        assert [text == text[::-1] for text in texts] == test["label"].astype(bool).tolist()
        assert study.task.encode(texts[0]) == test["tokens"][0].tolist()
        rules = study.task.baselines(study.parts["train"], study.parts["test"])
        assert 0.5 < rules["ends"] < 0.7
        with pytest.raises(df.InputError, match="mirror takes 1 to 16 letters"):
            study.task.encode("abcx")
        with pytest.raises(df.InputError, match="must be even"):
            df.load_config(tmp_path / "mirror_space.py", {"task.length": "7"})
    finally:
        sys.modules.pop("mirror_task", None)


def test_the_site_builds(tmp_path):
    """Strictly: no broken link, no page without a place, nothing that the API pages name and is not
    there."""
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not included in the" not in done.stderr, done.stderr
    assert "SearchResult" in (tmp_path / "site/api.html").read_text("utf-8")


def test_a_budget_in_a_config():
    (code,) = blocks(ROOT / "docs/cost.md", "python")
    config = df.defaults("listops")
    exec(code, {"config": config})
    configs.build(config)
    assert dict(config.search.budget)["latency_ms"] == 12
