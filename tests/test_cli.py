"""The command line: bad input is one clear line, exit code 2, nothing written; good input is what
is asked for."""

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_resume import finish, launch, outcome, write_config

import dartformer
from dartformer.attention import ATTENTIONS
from dartformer.cli.main import main
from dartformer.cli.new import OWN_DATA, space_file
from dartformer.config import to_dict
from dartformer.report import provenance
from dartformer.stages import scores
from dartformer.tasks import BUILT_IN, TASKS
from dartformer.tasks.planted import KINDS

ROOT = Path(__file__).resolve().parents[1]


def error_of(capsys, *arguments):
    """The one line that a failing command prints; checks the exit code and that nothing else is
    printed."""
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line]
    assert len(lines) == 1, err
    assert lines[0].startswith("dartformer: error: ")
    return lines[0]


BAD = {
    "mistyped field": (["--config.search.stepps=3"], "unknown config field 'search.stepps'"),
    "section": (["--config.search=3"], "is a section"),
    "not a number": (["--config.search.steps=many"], "takes a whole number (as 12), got 'many'"),
    "unknown attention": (
        ["--config.space.candidates=full,locl(window=2)"],
        "Did you mean 'local'?",
    ),
    "unknown option": (["--config.space.candidates=full,local(windw=2)"], "windw"),
    "negative window": (["--config.space.candidates=full,local(window=-2)"], "-2"),
    "one candidate": (["--config.space.candidates=full"], "at least two"),
    "no candidate": (["--config.space.candidates="], "at least two"),
    "twice the same": (["--config.space.candidates=full,full"], "holds 'full' twice"),
    "zero heads": (
        ["--config.model.heads=0"],
        "model.heads must be a whole number of at least 1, got 0",
    ),
    "zero layers": (["--config.model.layers=0"], "model.layers must be"),
    "dropout of one": (["--config.model.dropout=1.0"], "below 1"),
    "unknown pooling": (["--config.model.pooling=men"], "Did you mean 'mean'?"),
    "pooling of a sequence's label": (
        ["--config.model.pooling=none"],
        "Use model.pooling='mean', 'cls' or 'last'",
    ),
    "granularity": (["--config.space.granularity=heads"], "Did you mean 'head'?"),
    "no steps": (["--config.search.steps=0"], "search.steps must be at least 1"),
    "negative rate": (
        ["--config.search.alphas.learning_rate=-1"],
        "search.alphas.learning_rate must be at least 0",
    ),
    "optimizer": (["--config.retrain.optimizer.name=adamm"], "Did you mean 'adam'?"),
    "no seeds": (["--config.retrain.seeds="], "retrain.seeds must be"),
    "a seed beyond 32 bits": (
        ["--config.seed=4294967296"],
        "seed must be between 0 and 4294967295",
    ),
    "too many layers": (["--config.model.layers=3000"], "model.layers must be at most 1000"),
    "a batch of many terabytes": (
        ["--config.data.eval_batch_size=1000000000000000"],
        "of memory, which no machine has. Lower data.eval_batch_size",
    ),
    "more than this machine has": (
        ["--config.model.mlp_dim=10000000000"],
        "and this machine has",
    ),
    "a length that no budget has": (
        ["--config.search.budget=flops=1e12,length=100000"],
        "the model takes at most",
    ),
    "decoding without a causal attention": (
        ["--config.search.budget=kv_bytes=1e12", "--config.space.candidates=full,nystrom"],
        "a budget for decoding does not work with nystrom",
    ),
    "seed twice": (["--config.retrain.seeds=1,1"], "retrain.seeds must be"),
    "task option": (["--config.task.max_depth=0"], "max_depth"),
    "impossible task": (["--config.task.min_length=100", "--config.task.max_length=200"], "100"),
    "hypergradient": (["--config.search.strategy.hypergradient=third"], "hypergradient"),
    "unknown argument": (["--confg.x=1"], "unknown argument '--confg.x=1'"),
    "missing value": (["--config.search.steps"], "needs a value"),
}


@pytest.mark.parametrize("arguments, message", BAD.values(), ids=BAD)  # noqa: PT006 - reads as the table does
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, tmp_path, capsys):
    config = write_config(tmp_path)
    workdir = tmp_path / "run"
    line = error_of(capsys, "run", f"--config={config}", f"--workdir={workdir}", *arguments)
    assert message in line
    assert not workdir.exists()


def test_a_batch_larger_than_the_data(tmp_path, data_dir, capsys):
    config = write_config(tmp_path, **{"data.dir": data_dir, "data.batch_size": 5000})
    assert main(["search", f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert "batch size 5000" in capsys.readouterr().err


def test_a_causal_task_refuses_an_attention_that_is_not(tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    from dartformer.tasks.listops import ListOps

    monkeypatch.setattr(ListOps, "traits", replace(ListOps.traits, causal=True))
    config = write_config(
        tmp_path, **{"space.candidates": ("full", "linformer(rank=2)"), "model.pooling": "last"}
    )
    line = error_of(capsys, "search", f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert "linformer(rank=2, sharing='none') does not work with a causal task" in line


HEAD = "import sys\nimport dartformer\n"
BAD_FILES = {
    "no function": ("x = 1", "no function get_config()"),
    "syntax": ("def get_config(:", "bad.py, line 3: "),
    "no config": ("def get_config():\n    return 3", "must return a config"),
    "mistyped section": (
        "def get_config():\n    c = dartformer.defaults()\n    c.serach.steps = 3",
        "bad.py, line 5: ",
    ),
    "another type": (
        "def get_config():\n    c = dartformer.defaults()\n    c.search.steps = 'x'",
        "bad.py, line 5: ",
    ),
    "a section as a number": (
        "def get_config():\n    c = dartformer.defaults()\n    c.search = 3\n    return c",
        "bad.py, line 5: ",
    ),
    "a section as None": (
        "def get_config():\n    c = dartformer.defaults()\n    c.search = None\n    return c",
        "config field 'search' is a section, got None.",
    ),
    "a field as None": (
        "def get_config():\n    c = dartformer.defaults()\n    c.search.steps = None\n    return c",
        "search.steps takes a whole number, got None.",
    ),
    "a field too many": (
        "def get_config():\n    c = dartformer.defaults()\n"
        "    with c.unlocked():\n        c.search.step = 3\n    return c",
        "unknown config field 'search.step'. Did you mean 'search.steps'?",
    ),
    "another task's options": (
        "def get_config():\n    c = dartformer.defaults()\n    c.task.name = 'recall'\n    return c",
        "dartformer.defaults(task='recall')",
    ),
    "an unknown task": (
        "def get_config():\n    return dartformer.defaults('listop')",
        "bad.py, line 4: unknown task 'listop'. Did you mean 'listops'?",
    ),
    "a name": ("def get_config():\n    return confg", "bad.py, line 4: NameError: name 'confg'"),
    "a value": ("x = int('many')", "bad.py, line 3: ValueError: invalid literal for int()"),
    "an import": ("import no_such_module", "bad.py, line 3: ModuleNotFoundError: No module"),
    "a key": ("x = {}['steps']", "bad.py, line 3: KeyError: 'steps'."),
    "an exit": ("sys.exit(0)", "bad.py, line 3: the file exits."),
    "an exit inside": ("def get_config():\n    sys.exit('no')", "bad.py, line 4: the file exits."),
    "an empty exception": ("raise RuntimeError", "bad.py, line 3: RuntimeError."),
    "no arguments": ("def get_config(task):\n    return task", "bad.py: TypeError: get_config()"),
    "not a function": ("get_config = 3", "bad.py: TypeError: 'int' object is not callable"),
    "a null byte": ("x = '\0'", "bad.py"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_config_files_that_will_not_do(name, tmp_path, capsys):
    text, message = BAD_FILES[name]
    (tmp_path / "bad.py").write_text(HEAD + text)
    flags = f"--config={tmp_path / 'bad.py'}", f"--workdir={tmp_path / 'run'}"
    assert message in error_of(capsys, "run", *flags)
    assert not (tmp_path / "run").exists()


def test_a_config_file_that_is_not_there(tmp_path, capsys):
    for file, problem in (("nowhere.py", "no config file"), (tmp_path, "is a folder")):
        line = error_of(capsys, "run", f"--config={file}", f"--workdir={tmp_path / 'run'}")
        assert problem in line


def test_workdirs_that_will_not_do(tmp_path, capsys, tiny):
    from dartformer.stages.layout import Workdir

    config = write_config(tmp_path)
    Workdir(tmp_path / "run", dartformer.load_config(config)).close()
    flags = f"--config={config}", f"--workdir={tmp_path / 'run'}"
    line = error_of(capsys, "run", *flags, "--config.search.steps=13", "--config.seed=1")
    assert "belongs to another config; it differs in search.steps: 12 -> 13; seed: 0 -> 1" in line
    (tmp_path / "file").write_text("")
    assert "cannot write to the workdir" in error_of(
        capsys, "run", flags[0], f"--workdir={tmp_path / 'file' / 'run'}"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    assert "holds other files (thesis.tex)" in error_of(
        capsys, "run", flags[0], f"--workdir={tmp_path / 'full'}"
    )
    with Workdir(tmp_path / "run", dartformer.load_config(config)):
        assert "in use by another process" in error_of(capsys, "search", *flags)


@pytest.mark.parametrize("verb", ["derive", "retrain", "evaluate", "profile", "export"])
def test_a_verb_without_what_it_needs_says_what_to_run(verb, tmp_path, capsys):
    config = write_config(tmp_path)
    line = error_of(capsys, verb, f"--config={config}", f"--workdir={tmp_path / 'run'}")
    assert "first" in line


def test_list_is_a_table_or_json(capsys):
    for what, some in (
        ("attentions", "linformer"),
        ("strategies", "darts"),
        ("tasks", "listops"),
        ("fields", "search.steps"),
    ):
        assert main(["list", what, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert some in [row["name"] for row in rows]
        assert main(["list", what]) == 0
        assert some in capsys.readouterr().out


def test_strategies_are_listed_with_paper_and_what_goes_with_them(capsys):
    assert main(["list", "strategies", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len({row["name"] for row in rows}) == len(rows)
    kinds = {
        kind: [row for row in rows if row["kind"] == kind]
        for kind in ("strategy", "hypergradient", "extra")
    }
    assert sum(map(len, kinds.values())) == len(rows)
    for row in kinds["strategy"]:
        assert row["paper"].startswith("arXiv")
        assert row["derivations"]
    assert all(row["summary"].endswith(".") for row in rows)
    assert main(["list", "strategies"]) == 0
    shown = capsys.readouterr().out
    assert all(row["name"] in shown for row in rows)


def test_attentions_are_listed_with_traits_cost_and_paper(capsys, monkeypatch):
    assert main(["list", "attentions", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) >= set(ATTENTIONS)
    linformer, uniform = rows["linformer"], rows["uniform"]
    assert (linformer["causal"], linformer["fixed_length"], linformer["growth"]) == (
        False,
        True,
        1.0,
    )
    assert (linformer["positions"], linformer["dropout"]) == ([], "slots")
    assert uniform["positions"] == ["rotary"]  # it reads neither q nor k, which are what is turned
    n, h, d = (rows["full"]["cost"]["shape"][k] for k in ("length", "heads", "head_dim"))
    assert rows["full"]["cost"]["flops"] == pytest.approx(4 * h * n * n * d, rel=0.1)
    assert linformer["cost"]["parameters"] == 2 * h * 32 * n
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", "attentions"]) == 0
    out = capsys.readouterr().out
    for row in rows.values():
        assert f"\n{row['spec']}\n" in out
        assert row["summary"] in out
        assert f"{row['cost']['flops'] / 1e6:.1f} " in out  # no column is cut off


SPACES = sorted((ROOT / "search_spaces").glob("*.py"))


def arguments_of(file):
    """What `new` is asked for to print a search space."""
    name, _, size = file.stem.rpartition("_")
    if name == "planted":
        return ["--task=planted", f"--config.task.kind={size}"]
    if size in ("published", "mixes"):
        return [f"--task={name}", f"--size={size}"]
    return [f"--task={name}"]


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_new_copies_a_search_space(file, tmp_path, capsys):
    """The files of search_spaces/ come with the package; `new` changes their own name alone."""
    packaged = ROOT / "dartformer/configs" / file.name
    assert file.read_text() == packaged.read_text(), (
        "cp dartformer/configs/[a-z]*.py search_spaces/"
    )
    assert main(["new", *arguments_of(file)]) == 0
    out = capsys.readouterr().out
    assert out == file.read_text().replace(f"search_spaces/{file.name}", "my_space.py")
    assert "--config=my_space.py" in out
    dartformer.load_config(file)


def test_the_search_spaces_are_those_of_the_package():
    packaged = {file.name for file in (ROOT / "dartformer/configs").glob("*.py")}
    assert packaged - {"__init__.py"} == {file.name for file in SPACES}
    tasks = set(BUILT_IN) - set(OWN_DATA)
    assert all(space_file(task).exists() for task in tasks)
    # Of these two there is no published size.
    published = tasks - {"planted", "passage"}
    assert all(space_file(task, "published").exists() for task in published)
    assert all(space_file("planted", kind=kind).exists() for kind in KINDS)


@pytest.mark.parametrize("task", ["listops", "planted", "image", "language"])
def test_new_prints_a_config_that_loads(task, tmp_path, capsys):
    for extra in (["--preset=published"], ["--config.search.steps=7"]):
        assert main(["new", f"--task={task}", *extra]) == 0
        (tmp_path / "my_space.py").write_text(capsys.readouterr().out)
        config = dartformer.load_config(tmp_path / "my_space.py")
        if extra == ["--config.search.steps=7"]:
            assert config.search.steps == 7
        if extra == ["--preset=published"]:
            assert (config.search.alphas.learning_rate, config.search.strategy.hypergradient) == (
                3e-4,
                "second",
            )


def test_new_sets_fields_with_what_they_mean(tmp_path, capsys):
    """What the file assigns is replaced; what it does not is added to its section."""
    values = {
        "space.candidates": "full,uniform",
        "search.budget.parameters": "1e5",
        "search.strategy.name": "gumbel",
        "search.strategy.hard": "false",
        "baselines": "false",
        "derive.tie_margin": "0.1",
    }
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    assert main(["new", *flags]) == 0
    text = capsys.readouterr().out
    assert text.count("config.space.candidates") == 1
    assert "# Candidates whose mixture weights differ by less are tied." in text
    assert all(len(line) <= 100 for line in text.splitlines())
    (tmp_path / "my_space.py").write_text(text)
    config = dartformer.load_config(tmp_path / "my_space.py")
    assert config.space.candidates == ("full", "uniform")
    assert config.search.budget == {"parameters": 1e5}
    assert config.search.strategy.name == "gumbel"
    assert config.search.strategy.hard is False
    assert not any(vars(config.baselines).values())
    assert config.derive.tie_margin == 0.1
    assert main(["new", *flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == to_dict(config)


def test_new_knows_another_packages_task(tmp_path, monkeypatch, capsys):
    """As docs/tasks.md says: by its entry point, with its options to be edited."""
    page = (ROOT / "docs/tasks.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    (tmp_path / "mirror_task.py").write_text(code)
    info = tmp_path / "mirror-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mirror\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dartformer.task]\nmirror = mirror_task:Mirror\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TASKS, "registered", {})
    try:
        assert main(["new", "--task=mirror", "--config.task.length=8"]) == 0
        text = capsys.readouterr().out
        assert "is a text the same backwards?" in text
        (tmp_path / "my_space.py").write_text(text)
        config = dartformer.load_config(tmp_path / "my_space.py")
        assert config.task.length == config.task.built.length == 8
        assert "config.task.train = 4000" in text
        line = error_of(capsys, "new", "--task=mirror", "--size=published")
        assert "no published size of the task mirror" in line
    finally:
        sys.modules.pop("mirror_task", None)


def test_new_refuses_what_there_is_not(capsys):
    assert "Did you mean 'listops'?" in error_of(capsys, "new", "--task=listop")
    assert "preset" in error_of(capsys, "new", "--preset=best")
    assert "unknown size 'tiny'" in error_of(capsys, "new", "--size=tiny")
    assert "no published size of the task planted" in error_of(
        capsys, "new", "--task=planted", "--size=published"
    )
    assert "Did you mean 'mix'?" in error_of(
        capsys, "new", "--task=planted", "--config.task.kind=mixx"
    )


def test_disk_full_keeps_the_last_checkpoint(tmp_path, data_dir):
    """On a small file system that fills up during the search: one line, and after room is made the
    run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        config = write_config(
            tmp_path,
            **{
                "data.dir": data_dir,
                "log.checkpoint_every": 1,
                "baselines.random": False,
                "baselines.homogeneous": False,
            },
        )
        workdir = disk / "run"
        process = launch(config, workdir, "search")
        filler = disk / "filler"
        while process.poll() is None and not (workdir / "search/checkpoints/steps/3").exists():
            pass
        file = os.open(filler, os.O_CREAT | os.O_WRONLY)
        with contextlib.suppress(OSError):
            while True:
                os.write(file, b"x" * 4096)
        os.close(file)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, err
        last = [line for line in err.splitlines() if line.startswith("dartformer: error")]
        assert len(last) == 1
        assert "no space left on the device" in last[0]
        assert "Traceback" not in err
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        _, err = finish(launch(config, workdir, "search"))
        assert "resuming at step" in err
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_no_tensorflow_anywhere(tmp_path, data_dir):
    """A whole search, data made and read, imports no TensorFlow."""
    config = write_config(tmp_path, **{"data.dir": str(tmp_path), "search.steps": 2})
    code = (
        "import sys\n"
        "from dartformer.cli.main import main\n"
        f"assert main(['search', '--config={config}', '--workdir={tmp_path / 'run'}']) == 0\n"
        "assert 'tensorflow_datasets' in sys.modules\n"
        "assert not [m for m in sys.modules if m == 'tensorflow' or m.startswith('tensorflow.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_predict_and_exports(tmp_path, whole_run, capsys):
    """One short run through the command line, and everything one can ask of its export."""
    workdir, results = whole_run
    assert set(results) >= {
        "task",
        "seeds",
        "test",
        "valid",
        "baselines",
        "genotype",
        "parameters",
        "steps",
        "seconds",
        "verdict",
    }
    assert set(results["baselines"]) == {"majority", "root_operator", "random"}
    assert outcome(workdir)
    stored = scores.read(workdir)
    assert stored.array("random").mean() == pytest.approx(
        results["baselines"]["random"]["test"]["accuracy"]
    )
    seen = json.loads((workdir / "attention.json").read_text())
    maps = np.frombuffer(base64.b64decode(seen["examples"][0]["maps"]["data"]), np.int8)
    n = len(seen["examples"][0]["tokens"])
    assert maps.shape == (2 * 2 * n * n,)
    assert maps.reshape(2, 2, n, n).max() == 127
    assert [entry.state for entry in provenance.read(workdir)] == ["done"] * 7

    folder = str(workdir / "export")
    assert (
        main(["predict", folder, "--text", "[MAX 2 9 ]", "--text", "[MIN 2 [SM 1 1 ] ]", "--json"])
        == 0
    )
    rows = json.loads(capsys.readouterr().out)
    assert [row["text"] for row in rows] == ["[MAX 2 9 ]", "[MIN 2 [SM 1 1 ] ]"]
    assert "probabilities" not in rows[0]
    assert main(["predict", folder, "--text", "[MAX 2 9 ]", "--probabilities", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    ranked = list(row["probabilities"].values())
    assert len(ranked) == 10
    assert sum(ranked) == pytest.approx(1, abs=1e-5)
    assert ranked == sorted(ranked, reverse=True)
    assert next(iter(row["probabilities"])) == row["label"]
    assert main(["predict", folder, "--text", "[MAX 2 9 ]", "--top=3"]) == 0
    assert capsys.readouterr().out.count(",") == 2
    assert "must be at least 1" in error_of(capsys, "predict", folder, "--text=x", "--top=0")
    (tmp_path / "texts").write_text("[MAX 2 9 ]\n\n[MIN 2 3 ]\n")
    assert main(["predict", folder, f"--file={tmp_path / 'texts'}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert "'[MAXX'" in error_of(capsys, "predict", folder, "--text", "[MAXX 2 9 ]")
    long = error_of(capsys, "predict", folder, "--text", "[MAX 1 2 3 4 5 6 7 8 9 ]")
    assert "11 tokens; at most 8" in long
    assert "cannot read nowhere: No such file" in error_of(
        capsys, "predict", folder, "--file=nowhere"
    )
    assert "no folder" in error_of(
        capsys, "predict", str(tmp_path / "nowhere"), "--text", "[MAX 2 9 ]"
    )
    assert "not an exported model" in error_of(
        capsys, "predict", str(tmp_path), "--text", "[MAX 2 9 ]"
    )
    for name in ("weights.safetensors", "genotype.json", "model.stablehlo", "config.json"):
        file = workdir / "export" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1])
        assert f"{name} is damaged" in error_of(capsys, "predict", folder, "--text", "[MAX 2 9 ]")
        file.unlink()
        assert f"lacks {name}" in error_of(capsys, "predict", folder, "--text", "[MAX 2 9 ]")
        file.write_bytes(whole)

    # The StableHLO file in a process that never imports dartformer or flax, as the model card says
    # to use it.
    served = dartformer.load(folder)
    ids = served.model.task.encode("[MAX 2 9 ]")
    code = (workdir / "export/README.md").read_text().split("```python\n")[1].split("```")[0]
    n, k = served.model.shape.length, len(ids)
    code += (
        f"tokens = numpy.zeros((2, {n}), numpy.int32); tokens[:, :{k}] = {ids}\n"
        f"valid = numpy.zeros((2, {n}), bool); valid[:, :{k}] = True\n"
        "import json, sys; print(json.dumps(run.call(tokens, valid).tolist()))\n"
        "assert not {'dartformer', 'flax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    logits = json.loads(done.stdout.splitlines()[-1])
    want = served.logits(["[MAX 2 9 ]", ids])
    assert (
        max(
            abs(a - b)
            for x, y in zip(logits, want.tolist(), strict=True)
            for a, b in zip(x, y, strict=True)
        )
        < 1e-5
    )
