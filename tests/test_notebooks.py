"""The notebooks are stored as they ran, and run from top to bottom."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_stored_with_its_outputs(file):
    cells = json.loads(file.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    # From top to bottom, each once.
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    # What a reader of another machine cannot use.
    assert not re.search(r"/(home|root|tmp|work|Users)/", json.dumps(outputs))
    for cell in code:
        compile("".join(cell["source"]), file.name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file):
    nbclient = pytest.importorskip("nbclient", reason="the extra notebooks is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the extra notebooks is not installed")
    notebook = nbformat.read(file, 4)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)
