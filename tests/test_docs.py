"""What docs/attention.md tells a newcomer to write and to type, done as it stands there."""

import dataclasses
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import dartformer as df
from dartformer import attention as attentions
from dartformer.cli.main import main
from dartformer.kernels.flash import KERNELS

FOLDER = Path(__file__).resolve().parents[1] / "docs"
PAGE = (FOLDER / "attention.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)


def file(name):
    """The block under the line that ends with the name of a file."""
    return re.search(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)```", PAGE, re.S).group(1)


def block(language, start):
    """The block of a language that begins so."""
    return next(text for kind, text in BLOCKS if kind == language and text.startswith(start))


def run(code):
    namespace = {}
    exec(compile(code, "docs/attention.md", "exec"), namespace)
    return namespace


def test_one_on_its_own():
    made = run(block("python", "import jax\n"))
    y = np.einsum("bhnk,bkhd->bnhd", made["matrix"], made["v"])
    np.testing.assert_allclose(made["y"], y, atol=1e-5)
    assert np.all(np.triu(made["matrix"][0, 0], 1) == 0)
    assert made["cost"].flops > 0


def test_the_table_of_types_is_what_the_script_makes():
    made = runpy.run_path(str(FOLDER / "make.py"))["page"](PAGE)
    assert made == PAGE, "run `python docs/make.py`"


def test_the_reference_of_results_is_what_the_script_makes():
    page = runpy.run_path(str(FOLDER / "make.py"))["results_page"]()
    assert page == (FOLDER / "results.md").read_text(), "run `python docs/make.py`"


def test_the_reference_of_fields_is_what_the_script_makes():
    page = runpy.run_path(str(FOLDER / "make.py"))["fields_page"]()
    assert page == (FOLDER / "fields.md").read_text(), "run `python docs/make.py`"
    assert "|  |" not in page, "a field without an entry in the Attributes of its class"


def test_the_fields_and_kernels_it_names_are_there():
    fields = set(re.findall(r"^\| `model\.(\w+)` \| ", PAGE, re.M))
    assert {"kv_heads", "positions", "qk_norm", "attention_dropout", "kernel"} <= fields
    assert fields <= {f.name for f in dataclasses.fields(df.TransformerConfig)}
    named = re.findall(r"^\| `(\w+)` \| ", PAGE.split("## Kernels")[1].split("##")[0], re.M)
    assert ("auto", *named) == KERNELS


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package of the page, as pip would leave it, and the process in its folder."""
    for name in ("agent_attention.py", "pyproject.toml", "agent_space.py"):
        (tmp_path / name).write_text(file(name))
    project = tomllib.loads(file("pyproject.toml"))["project"]
    folder = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (folder / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in project["entry-points"].items()
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attentions.ATTENTIONS, "registered", {})
    yield tmp_path
    sys.modules.pop("agent_attention", None)


def test_add_your_own_in_five_steps(installed, capsys, compile_quickly):
    """With fewer steps and stages, and without the candidate that is not theirs, so that theirs is
    what is found."""
    report = run(block("python", "import dartformer as df\nfrom agent_attention"))["report"]
    assert {r.status for r in report.results} == {"passed", "not applicable"}
    assert f"{report.attention}\n  {report.results[0]}\n" in block("", "agent(")
    assert main(["list", "attentions"]) == 0
    assert "agent(agents=8)" in capsys.readouterr().out
    assert report["definition"].status == "passed"

    flags = block("console", "dartformer run").split()[2:]
    flags += [
        f"--config.{one}"
        for one in (
            "search.steps=4",
            "retrain.steps=4",
            "task.train=200",
            "task.valid=40",
            "task.test=40",
            "derive.second_opinion=",
            "space.candidates=agent(agents=2),agent(agents=8)",
        )
    ]
    for verb in ("search", "derive", "retrain", "export"):
        assert main([verb, *flags]) == 0
    capsys.readouterr()
    assert main(shlex.split(block("console", "dartformer predict"))[1:]) == 0
    assert capsys.readouterr().out.endswith("\ta b a c a d a\n")
    served = run(block("python", "import dartformer as df\n\nserved"))["served"]
    assert "agent(agents=" in str(served.model.genotype)

    code = (
        "import sys, numpy as np, jax.export\n"
        "model = jax.export.deserialize(bytearray(open('runs/agent/export/model.stablehlo', 'rb').read()))\n"
        "tokens = np.load('tokens.npy')\n"
        "np.save('logits.npy', model.call(tokens, tokens > 0))\n"
        "assert not {'dartformer', 'agent_attention'} & set(sys.modules)"
    )
    tokens = np.zeros((1, 64), np.int32)
    ids = served.model.task.encode("a b a c a d a")
    tokens[0, : len(ids)] = ids
    np.save("tokens.npy", tokens)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=installed)
    np.testing.assert_allclose(
        np.load("logits.npy")[:, : len(ids)], served.logits([ids])[:, : len(ids)], atol=1e-5
    )


def test_without_the_package_a_model_names_what_it_lacks():
    with pytest.raises(df.InputError, match="unknown attention 'agent'"):
        df.parse("agent(agents=8)")
