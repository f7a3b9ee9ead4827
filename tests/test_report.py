"""The report: what a reader finds on the page, with and without JavaScript, of whole runs and of
halves."""

import dataclasses
import http.client
import json
import os
import re
import runpy
import shlex
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from dartformer.cli.grammar import parser
from dartformer.cli.main import main
from dartformer.errors import InputError
from dartformer.machine.workdir import read_json
from dartformer.report import charts, compare, figure, provenance, reading, verdicts, watch
from dartformer.report import page as report
from dartformer.report.models import Score
from dartformer.training import metric

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def shown(page):
    """What a reader without JavaScript sees: no scripts, no tags."""
    text = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_a_whole_run(whole_run):
    workdir, results = whole_run
    page = (workdir / "report.html").read_text()
    assert len(page) < 5e6
    text = shown(page)
    for line in results["verdict"]:
        assert line[1:].replace("'", "&#39;") in text
    assert "the majority class scores" in text
    for one in results["diagnostics"]["findings"]:
        assert one["verdict"].replace("'", "&#39;") in text
    assert re.search(r"random genotype \d+\.\d% ", text)
    for link in re.findall(r'<a href="([^"]+)"', page):
        assert (workdir / link).exists()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S).group(1))
    drawn = {chart["name"] for chart in data["charts"]}
    assert drawn == {
        "race",
        "comparison",
        "accuracy_cost",
        "confusion",
        "trajectories",
        "winners",
        "curves",
        "search_curves",
        "dropping",
        "cost_per_layer",
        "attention",
    }
    assert data["trajectories"]["shape"] == [1, 8, 2, 2, 3]
    assert {f'data-chart="{name}"' in page for name in drawn} == {True}


def test_half_a_run_says_how_far_it_is(whole_run, tmp_path):
    whole, _ = whole_run
    (tmp_path / "search").mkdir()
    config = json.loads((whole / "config.json").read_text())
    config["task"]["name"] = "<img src=x onerror=alert(1)>"
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = shown(report.report(tmp_path))
    assert "The search has not chosen a genotype yet." in text
    assert "search not started" in text
    lines = (whole / "search/metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "search/metrics.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    with pytest.raises(ValueError, match="too <hot>"), provenance.noted(tmp_path, "search"):
        raise ValueError("too <hot>")
    page = report.report(tmp_path)
    assert "search in progress step 4 of 12" in shown(page)
    assert "search stopped: too &lt;hot&gt;" in page
    assert "<img" not in page.split("</style>")[1].split('<script type="application/json"')[0]
    assert "<hot>" not in page
    for name in ("genotype.json", "search/alphas.json"):
        shutil.copy(whole / name, tmp_path / name)
    assert "It is not evaluated yet" in shown(report.report(tmp_path))


def test_texts_of_examples_cannot_leave_their_place(whole_run, tmp_path):
    whole, _ = whole_run
    for name in ("config.json", "genotype.json", "results.json"):
        shutil.copy(whole / name, tmp_path / name)
    seen = read_json(whole / "attention.json")
    evil = "</script><script>alert(1)</script>"
    seen["examples"][0].update(text=evil, tokens=[evil] * len(seen["examples"][0]["tokens"]))
    (tmp_path / "attention.json").write_text(json.dumps(seen))
    assert "<script>alert" not in report.report(tmp_path)


def test_thinning_keeps_extremes_and_ends():
    points = [(i, float(i == 4321) - float(i == 77)) for i in range(10_000)]
    kept = reading.thinned(points, 100)
    assert len(kept) <= 102
    assert {0, 77, 4321, 9999} <= {step for step, _ in kept}
    assert reading.thinned(points[:50], 100) == tuple(points[:50])


def test_several_seeds_in_one_log_and_in_several(whole_run, tmp_path):
    config = json.loads((whole_run[0] / "config.json").read_text())
    config["search"]["seeds"], config["space"]["granularity"] = 2, "layer"
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = (
        np.random.default_rng(0).dirichlet((1, 1, 1), (2, 50, 2, 1)).round(3)
    )  # [S, T, L, 1, K]
    whole = np.broadcast_to(weights, (2, 50, 2, 2, 3)).tolist()
    together = [
        {"step": t + 1, "loss": 1.0, "margin_rows": [0.5], "mixtures": [whole[0][t], whole[1][t]]}
        for t in range(50)
    ]
    apart = {
        f"seed{s}/": [{"step": t + 1, "loss": 1.0, "mixture": whole[s][t]} for t in range(50)]
        for s in range(2)
    }
    for logs in ({"": together}, apart):
        shutil.rmtree(tmp_path / "search", ignore_errors=True)
        for name, lines in logs.items():
            (tmp_path / "search" / name).mkdir(parents=True)
            (tmp_path / "search" / name / "metrics.jsonl").write_text(
                "".join(json.dumps(o) + "\n" for o in lines)
            )
        found = reading.read(tmp_path).trajectory
        assert (found.seeds, found.logged) == ((0, 1), 50)
        np.testing.assert_allclose(
            found.weights, weights[:, [t - 1 for t in found.steps]], atol=1e-6
        )
    assert (
        len({line["loss"] for line, _ in reading.heads(tmp_path / "search/seed0/metrics.jsonl")})
        == 1
    )


def test_the_front_is_what_nothing_beats():
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.4), (2.0, 0.7), (4.0, 0.9)]
    assert charts.frontier(points, higher=True) == [1, 3, 0]
    assert charts.frontier(points, higher=False) == [1, 2]


@pytest.fixture(scope="module")
def another(whole_run, tmp_path_factory):
    """A run like the whole one that found another genotype, and answers every test example as
    `random` did there."""
    whole, results = whole_run
    path = tmp_path_factory.mktemp("another")
    for name in ("config.json", "search/alphas.json", "search/metrics.jsonl", "test_scores.json"):
        (path / name).parent.mkdir(exist_ok=True)
        shutil.copy(whole / name, path / name)
    random = results["baselines"]["random"]
    (path / "results.json").write_text(json.dumps({**results, **random}))
    (path / "genotype.json").write_text(json.dumps(random["genotype"]))
    kept = read_json(path / "test_scores.json")
    kept["models"]["found"] = kept["models"]["random"]
    (path / "test_scores.json").write_text(json.dumps(kept))
    return path


def test_compare_pairs_examples_and_names_places(whole_run, another, tmp_path, capsys):
    whole, results = whole_run
    assert (
        main(["compare", str(whole), str(another), "--json", f"--html={tmp_path / 'both.html'}"])
        == 0
    )
    data = json.loads(capsys.readouterr().out)
    (pair,) = data["pairs"]
    difference = results["test"]["accuracy"] - results["baselines"]["random"]["test"]["accuracy"]
    assert pair["bootstrap"]["difference"] == pytest.approx(difference)
    assert pair["bootstrap"]["low"] <= difference <= pair["bootstrap"]["high"]
    here, there = (
        results["genotype"]["layers"],
        results["baselines"]["random"]["genotype"]["layers"],
    )
    assert pair["genotypes"]["count"] == sum(
        a != b for x, y in zip(here, there, strict=True) for a, b in zip(x, y, strict=True)
    )
    text = shown((tmp_path / "both.html").read_text())
    assert pair["examples"] in text
    assert main(["compare", str(whole), str(another)]) == 0
    assert " ".join(pair["seeds"].split()) in " ".join(capsys.readouterr().out.split())
    (another / "test_scores.json").unlink()
    (pair,) = compare.compare([whole, another]).pairs
    assert "kept no scores of test examples" in pair.examples
    other = reading.read(another)
    settings = dataclasses.replace(other.settings, task="recall")
    readings = {"a": reading.read(whole), "b": dataclasses.replace(other, settings=settings)}
    pair = compare.pair("a", "b", readings, metric.ACCURACY)
    assert pair.seeds == "different tasks: listops and recall"
    for wrong in ([whole], [whole, whole], [whole, tmp_path]):
        with pytest.raises(InputError):
            compare.compare(wrong)


def test_the_terminal_draws_what_the_page_says(whole_run, tmp_path, monkeypatch, capsys):
    """And docs/report.md's commands and code do what it says; with svg, in which text can be
    searched."""
    workdir, results = whole_run
    (tmp_path / "runs").mkdir()
    for name in ("demo", "full", "mine"):
        shutil.copytree(
            workdir,
            tmp_path / "runs" / name,
            ignore=shutil.ignore_patterns("checkpoints", "export"),
        )
    monkeypatch.chdir(tmp_path)
    typed = re.findall(
        r"dartformer (?:report|compare) [^`\n]+", (ROOT / "docs/report.md").read_text()
    )
    watching, comparing, drawing = (shlex.split(one)[1:] for one in typed)
    assert parser().parse_args(watching).watch == "runs/demo"
    assert main(comparing) == 0
    assert (tmp_path / "compare.html").exists()
    capsys.readouterr()
    assert main([one.replace("=pdf", "=svg") for one in drawing]) == 0
    out = capsys.readouterr().out
    assert verdicts.headline(reading.read(workdir))[0] in out
    letters = re.findall(r"^ *layers? [\d-]+  ([A-Z ]+)$", out, re.M)
    names = dict(re.findall(r"^ *([A-Z])  (\S+) in \d of 4 heads$", out, re.M))
    rows = [[names[sign] for sign in row.split()] for row in letters]
    assert rows in (results["genotype"]["layers"], results["genotype"]["layers"][:1])
    drawn = {file.stem: file.read_text() for file in (tmp_path / "runs/demo/figures").iterdir()}
    assert {
        "genotype",
        "comparison",
        "trajectories",
        "loss",
        "valid_accuracy",
        "cost_per_layer",
        "attention_0",
    } <= set(drawn)
    assert ">weight in the mixture</text>" in drawn["trajectories"]
    example = tmp_path / "example.py"
    example.write_text(
        re.search(r"```python\n(.*?)```", (ROOT / "docs/report.md").read_text(), re.S).group(1)
    )
    made = runpy.run_path(str(example))
    assert set(made["drawn"]) == set(drawn)


def test_watching_serves_this_machine_alone_and_notices_news(another):
    with watch.server(another) as serving:
        assert serving.server_address[0] == "127.0.0.1"
        threading.Thread(target=serving.serve_forever, daemon=True).start()

        def ask(path, host="localhost"):
            connection = http.client.HTTPConnection(*serving.server_address)
            connection.request("GET", path, headers={"Host": f"{host}:{serving.server_address[1]}"})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        status, page = ask("/")
        assert status == 200
        assert 'id="live"' in page
        assert not (another / "report.html").exists()
        before = ask("/version")[1]
        assert ask("/version")[1] == before
        (another / "genotype.json").unlink()
        assert ask("/version")[1] != before
        assert "Layers downward" not in ask("/")[1]
        assert ask("/config.json")[0] == 200
        assert ask("/../../etc/passwd")[0] == ask("/.lock")[0] == 404
        assert ask("/", host="evil.example")[0] == 403
        serving.shutdown()


@pytest.fixture(scope="module")
def browser():
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    driver = shutil.which("chromedriver")
    if CHROMIUM is None or driver is None:
        pytest.skip("no Chromium with its driver here: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tempfile.mkdtemp()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield made
    made.quit()
    shutil.rmtree(profile, ignore_errors=True)


DRAW = """const done = arguments[0];
Promise.all([...dartformerReport.charts.keys()].map(dartformerReport.begin))
  .then(() => done("drawn"), (e) => done(e.stack))"""


def test_every_part_works_in_a_browser(browser, whole_run):
    """From a file: no error, no request, every control does something, and nothing is wider than a
    phone."""
    workdir, _ = whole_run
    address = (workdir / "report.html").as_uri()
    browser.get_log("performance")
    for width, scheme in ((1200, "light"), (760, "dark"), (380, "light")):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        browser.get(address)
        assert browser.execute_async_script(DRAW) == "drawn"
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert (
            browser.execute_script(
                "return document.querySelector('.verdict').getBoundingClientRect().bottom"
            )
            < 800
        )
        small = (
            "return [...document.querySelectorAll('[data-chart]')].filter(e => "
            "e.querySelector('svg, canvas').getBoundingClientRect().height < 40).length"
        )
        assert browser.execute_script(small) == 0
    # Every select takes its last option and every slider its first step: a picture changes, or
    # words do.
    changed = """const one = arguments[0], before = document.body.innerHTML;
      if (one.tagName === "SELECT") one.selectedIndex = one.options.length - 1; else one.value = one.min;
      for (const kind of ["input", "change"]) one.dispatchEvent(new Event(kind, {bubbles: true}));
      setTimeout(() => arguments[1](document.body.innerHTML !== before), 150);"""
    controls = browser.find_elements("css selector", "select, input[type=range]")
    names = [one.get_attribute("id") or one.get_attribute("name") for one in controls]
    assert {
        "t-layer",
        "t-head",
        "t-step",
        "a-example",
        "a-layer",
        "a-head",
        "measure",
        "number",
        "model",
    } <= set(names)
    for name, one in zip(names, controls, strict=True):
        assert one.accessible_name, name
        assert browser.execute_async_script(changed, one), name
    for one in browser.find_elements("css selector", "button.csv"):
        one.click()
        name, rows = browser.execute_script("return document.documentElement.dataset.saved").split()
        assert int(rows) > 0, name
    for head in browser.find_elements("css selector", "#table-models th button"):
        for order in ("ascending", "descending"):
            head.click()
            assert head.find_element("xpath", "..").get_attribute("aria-sort") == order
    for one in browser.find_elements("css selector", "summary"):
        one.click()
    errors = [line for line in browser.get_log("browser") if line["level"] != "INFO"]
    assert not errors
    asked = [
        m["params"]["request"]["url"]
        for m in (json.loads(line["message"])["message"] for line in browser.get_log("performance"))
        if m["method"] == "Network.requestWillBeSent" and "new-tab-page" not in json.dumps(m)
    ]
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert address in asked


def test_a_page_searches_no_folder_of_checkpoints(tmp_path, monkeypatch):
    (tmp_path / "search/checkpoints/2.tmp/state").mkdir(parents=True)
    (tmp_path / "search/seed0").mkdir()
    before = watch.version(tmp_path)
    (tmp_path / "search/seed0/metrics.jsonl").write_text("{}\n")
    assert watch.version(tmp_path) != before
    scandir, folders = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: folders.append(str(path)) or scandir(path))
    monkeypatch.setattr(os, "listdir", lambda path: folders.append(str(path)) or [])
    watch.version(tmp_path)
    assert not any("2.tmp" in folder for folder in folders)


def test_a_chart_rounds_as_the_tables_do():
    """10.25 is 10.2 in Python and 10.3 in JavaScript."""
    scores = [Score("found", 0.1025, {0: 0.1025}), Score("other", 0.5, {})]
    chart = charts.comparison(scores, metric.ACCURACY)
    drawn = figure.alone(chart).encoded("svg").decode()
    assert ">10.2</text>" in drawn
    assert ">10.3</text>" not in drawn
    assert metric.ACCURACY.text(0.1025) == "10.2%"
