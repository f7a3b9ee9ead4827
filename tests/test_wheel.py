"""The built wheel in an empty environment: what somebody who only knows pip gets."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_works_without_a_clone(tmp_path):
    def run(*command):
        command = [str(part) for part in command]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(tmp_path / "venv/bin/pip", "install", "--quiet", next(tmp_path.glob("*.whl")))
    command = tmp_path / "venv/bin/dartformer"
    (tmp_path / "my_space.py").write_text(run(command, "new", "--task", "listops"))
    run(command, "run", "--config=my_space.py", "--workdir=run", f"--config.data.dir={tmp_path}",
        "--config.search.steps=6", "--config.retrain.steps=5", "--config.retrain.seeds=0",
        "--config.baselines=false", "--config.task.train=500")
    assert run(command, "predict", "run/export", "--text", "[MAX 2 9 [MIN 4 7 ] 0 ]").split("\t")[0] in "0123456789"
    run(command, "list", "attentions", "--json")
