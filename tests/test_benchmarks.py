"""The benchmarks run, on sizes that take seconds; what they measure is no test's matter."""

import json
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "experiments/benchmarks"


@pytest.fixture
def benchmark(monkeypatch, capsys, compile_quickly):
    """From the name of a script and its arguments, the lines it prints."""
    def run(name, *arguments):
        monkeypatch.syspath_prepend(FOLDER)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    yield run
    sys.modules.pop("measure", None)


PEER = """#!{python}
import json, sys
for line in sys.stdin:
    made = "make" in json.loads(line)
    if made and '"linformer' in line:
        print(json.dumps({{"error": "it cannot"}}), flush=True)
    else:
        print(json.dumps({{"packages": {{"theirs": "1.0"}}}} if made else {{"seconds": 1e-9}}), flush=True)
"""


def test_peers(benchmark, tmp_path):
    """With a stand-in for their interpreter, which says that it took no time at all."""
    stand_in = tmp_path / "python"
    stand_in.write_text(PEER.format(python=sys.executable))
    stand_in.chmod(0o755)
    _, torch, linformer, skipped, verdict = benchmark(
        "peers.py", f"--python={stand_in}", "--only=torch,linformer,fla-retention", "--sizes=1,16,2,4",
        "--seconds=0", "--threads=1000")
    assert (torch["spec"], torch["packages"], torch["met"]) == ("full", {"theirs": "1.0"}, False)
    assert torch["eager_over_ours"] < 1e-3
    assert skipped["peers"] == ["fla-retention"]
    assert "it cannot" in linformer["error"]
    assert verdict["missed"].keys() == {"torch"}
    assert verdict["not_measured"] == ["linformer"]
    with pytest.raises(SystemExit, match="no peer is called nobody"):
        benchmark("peers.py", "--only=nobody", "--threads=1000")


def test_attention(benchmark, tmp_path):
    lines = benchmark("attention.py", "--only=local(window=2),strided", "--lengths=1024,2048", "--seconds=0",
                      "--device=yes", "--device-lengths=16", "--device-size=32", f"--plot={tmp_path / 'growth.png'}")
    named = {name: [line for line in lines if line["name"] == name] for name in
             ("attention", "growth", "crossover", "ceilings", "device")}
    local, strided = named["attention"]
    assert local["growth_array"] == pytest.approx(1, abs=0.01)
    assert strided["growth_array"] == pytest.approx(2, abs=0.01)
    assert set(local["full_over_this"]) == {"1024", "2048"}
    assert "crossover" in local
    assert named["growth"][0]["types"] == 1
    assert [line["forward"].keys() for line in named["device"]] == 2 * [{"ms", "temp_mib", "of_matmul", "of_copy"}]
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert benchmark("attention.py", f"--from={tmp_path / 'lines.jsonl'}", f"--plot={tmp_path / 'again.svg'}") == []
    assert "local(window=2)" in (tmp_path / "again.svg").read_text()
