"""How long a report takes to write and to open: 100 layers of 32 heads, 10,000 logged steps.

    python experiments/benchmarks/report.py [--layers=100] [--heads=32] [--steps=10000]
    [--workdir=DIR] [--times=5]

Makes a workdir with files of that size (most of it mixtures; removed afterwards unless --workdir
names one), writes its report, and opens it in headless Chromium with a fresh profile. Prints one
JSON line. `first` is from the start of the navigation until what the window shows is drawn,
`loaded` until the load event, `all` until every chart of the page is drawn, which a reader who
scrolls never waits for at once."""

import argparse
import base64
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, say

import dartformer
from dartformer import config as configs
from dartformer.machine.workdir import write_json
from dartformer.report.page import report

CANDIDATES = (
    "full",
    "local(window=16)",
    "linear(feature='elu')",
    "linformer(rank=32, sharing='none')",
)
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
DRAWN = """const done = arguments[0], near = [...document.querySelectorAll("[data-chart]")].filter((one) =>
  one.getBoundingClientRect().top < innerHeight);
const wait = () => near.every((one) => one.dataset.drawn) ? done(performance.now()) : setTimeout(wait, 5);
wait();"""
ALL = """const done = arguments[0], began = performance.now();
Promise.all([...dartformerReport.charts.keys()].map(dartformerReport.begin))
  .then(() => done(performance.now() - began));"""


def make(folder: Path, layers: int, heads: int, steps: int) -> None:
    """A workdir of that size, as the stages would have left it; every number is invented."""
    rng, k = np.random.default_rng(0), len(CANDIDATES)
    config = dartformer.defaults("listops")
    configs.override(
        config,
        {
            "model.layers": layers,
            "model.heads": heads,
            "space.candidates": CANDIDATES,
            "space.granularity": "head",
            "search.steps": steps,
            "retrain.steps": steps,
            "retrain.seeds": (0, 1, 2),
            "log.every": 1,
        },
    )
    write_json(folder / "config.json", configs.to_dict(config))
    goal = rng.normal(size=(layers, heads, k)) * 2
    texts = []
    for share in np.linspace(0, 1, 50):
        mixture = np.exp(goal * share) / np.exp(goal * share).sum(-1, keepdims=True)
        texts.append(json.dumps(mixture.round(4).tolist()))
    mixture = np.array(json.loads(texts[-1]))

    def log(name: str, tail: bool) -> None:
        file = folder / name / "metrics.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w", encoding="utf-8") as handle:
            for step in range(1, steps + 1):
                loss = 2.3 * np.exp(-step / steps * 2) + rng.normal() * 0.05
                line = json.dumps(
                    {"step": step, "loss": loss, "accuracy": 1 - loss / 2.4, "gradient_norm": 1.0}
                )
                end = f', "mixture": {texts[step * 50 // (steps + 1)]}}}\n' if tail else "}\n"
                handle.write(line[:-1] + end)

    log("search", True)
    for seed in range(3):
        log(f"trainings/found/seed{seed}", False)
        log(f"trainings/random/seed{seed}", False)
    write_json(
        folder / "search/alphas.json",
        {
            "candidates": CANDIDATES,
            "granularity": "head",
            "alphas": goal,
            "mixture": mixture,
            "seconds": 1.0,
            "seeds": [{"seed": 0, "alphas": goal, "mixture": mixture}],
            "diagnostics": {"findings": [], "verdicts": []},
            "compile_seconds": 1.0,
        },
    )
    genotype = {"format": 1, "layers": [[CANDIDATES[i] for i in row] for row in goal.argmax(-1)]}
    write_json(folder / "genotype.json", genotype)
    full = {"format": 1, "layers": [["full"] * heads] * layers}
    for name, layers_of in (("found", genotype), ("random", full)):
        write_json(
            folder / f"trainings/{name}/training.json", {"name": name, "genotype": layers_of}
        )

    def scored(mean: float) -> dict[str, Any]:
        return {
            "test": {
                "accuracy": mean,
                "spread": 0.01,
                "per_seed": [mean - 0.01, mean, mean + 0.01],
                "examples": 2000,
                "loss": 1.0,
            },
            "valid": {"accuracy": mean, "per_seed": [mean - 0.01, mean, mean + 0.01]},
            "steps": steps,
            "parameters": 10**8,
            "flops": 1e12 * (1 + mean),
            "genotype": genotype,
        }

    write_json(
        folder / "results.json",
        {
            "task": "listops",
            "metric": "accuracy",
            "seeds": [0, 1, 2],
            "steps": steps,
            **scored(0.6),
            "seconds": {},
            "verdict": [
                "the found model beats a random genotype (+10.0 points, noise 2.0 over 3 seeds)"
            ],
            "baselines": {
                "majority": {"test": {"accuracy": 0.1}},
                "random": {
                    **scored(0.5),
                    "genotype": full,
                },
            },
        },
    )
    shown = list(range(0, layers, max(1, layers // 5)))[:5]
    n = 24
    write_json(
        folder / "attention.json",
        {
            "seed": 0,
            "step": steps,
            "part": "test",
            "layers": shown,
            "heads": list(range(heads)),
            "examples": [
                {
                    "text": "[MAX 1 2 ]",
                    "label": "2",
                    "answer": "2",
                    "tokens": [str(i) for i in range(n)],
                    "maps": {
                        "scale": np.ones((len(shown), heads)),
                        "data": base64.b64encode(
                            rng.integers(0, 127, (len(shown), heads, n, n), np.int8).tobytes()
                        ).decode(),
                    },
                }
            ]
            * 4,
        },
    )


def opened(file: Path) -> dict[str, float]:
    """Milliseconds of one opening, each in a browser of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    profile = tempfile.mkdtemp()
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(flag)
    browser = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    try:
        browser.get(file.as_uri())
        first = browser.execute_async_script(DRAWN)
        loaded = browser.execute_script(
            "return performance.getEntriesByType('navigation')[0].loadEventEnd"
        )
        return {"loaded": loaded, "first": first, "all": browser.execute_async_script(ALL)}
    finally:
        browser.quit()
        shutil.rmtree(profile, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("layers", 100), ("heads", 32), ("steps", 10_000), ("times", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--workdir")
    arguments = parser.parse_args()
    folder = Path(arguments.workdir or tempfile.mkdtemp())
    if not (folder / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        make(folder, arguments.layers, arguments.heads, arguments.steps)
    started = time.perf_counter()
    page = report(folder)
    seconds = time.perf_counter() - started
    runs = [opened(folder / "report.html") for _ in range(arguments.times)]
    machine()
    say(
        name="report",
        layers=arguments.layers,
        heads=arguments.heads,
        steps=arguments.steps,
        page_bytes=len(page),
        write_seconds=round(seconds, 2),
        times=arguments.times,
        **{f"{name}_ms": round(statistics.median(r[name] for r in runs)) for name in runs[0]},
        worst_first_ms=round(max(r["first"] for r in runs)),
    )
    if not arguments.workdir:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
