"""Real runs on real data: for each task and seed a search, the model derived from it, and every
candidate alone.

    python experiments/real.py --imdb=FOLDER --matching=ARCHIVE --image=FOLDER --language=FILE
    --csv=FILE > real.jsonl

A task whose data are not named is left out; `--only=imdb_tokens,image` takes these alone. Each
starts from the config of `search_spaces/` (for `--csv` from that of `dartformer new --data`) and
changes what `SETTINGS` says. Seeds come outermost: a run cut short has the same seeds of every
task. Run again with the same `--workdir`, it goes on where it stopped. When a task is done with a
seed there is a JSON line for each of its models and rules, then one for the task.

`--summary=FILE` prints means and spreads of a file of such lines, and runs nothing.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import dartformer
from dartformer.cli.new import config_for_data

SPACES = Path(__file__).resolve().parent.parent / "search_spaces"

SETTINGS: dict[str, dict[str, Any]] = {
    "imdb_tokens": {"search.steps": 100},
    "imdb_bytes": {"search.steps": 100},
    "language": {"data.batch_size": 16, "retrain.steps": 400, "search.steps": 60},
    "matching": {"search.steps": 100},
    "image": {"retrain.steps": 600, "search.steps": 80},
    "csv": {"model.layers": 1, "retrain.steps": 150, "search.steps": 60},
}
"""What differs from where a task starts."""

ALL = {
    "space.candidates": ("full", "local(window=8)", "linear"),
    "baselines.random": False,
    "search.observe": False,
    "race.rungs": (),
}
"""What differs in every task: three candidates, and each of them alone trained to the end."""


def run(name: str, seed: int, path: str, data: str, workdir: Path) -> None:
    """Search, derive, retrain with every candidate alone, evaluate; print what came out."""
    started = time.perf_counter()
    values = {
        **ALL,
        **SETTINGS[name],
        "task.path": path,
        "data.dir": data,
        "seed": seed,
        "retrain.seeds": (seed,),
    }
    if name == "csv":
        workdir.mkdir(parents=True, exist_ok=True)
        file = workdir / "csv.py"
        file.write_text(config_for_data(path).text)
    else:
        file = SPACES / f"{name}_small.py"
    steps = dartformer.load_config(file, values).retrain.steps
    values["log.eval_every"] = values["log.checkpoint_every"] = steps // 2
    config = dartformer.load_config(file, values)
    genotype = dartformer.derive(dartformer.search(config, workdir / f"{name}-{seed}"))
    results = dartformer.evaluate(genotype, config, workdir / f"{name}-{seed}")
    metric = results["metric"]
    for model, found in {"found": results, **results["baselines"]}.items():
        trained = (
            {"valid": found["valid"][metric], "parameters": found["parameters"]}
            if "valid" in found
            else {}
        )
        say(task=name, seed=seed, model=model, metric=metric, test=found["test"][metric], **trained)
    say(
        task=name,
        seed=seed,
        genotype=str(genotype),
        steps=steps,
        search_steps=config.search.steps,
        verdict=results["verdict"],
        seconds=round(time.perf_counter() - started),
    )


def summary(lines: list[dict[str, Any]]) -> None:
    """Mean, lowest and highest test score of every model over its seeds."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for line in lines:
        if "model" in line:
            found[line["task"], line["model"], line["metric"]].append(line["test"])
    for (task, model, metric), test in found.items():
        say(
            task=task,
            model=model,
            metric=metric,
            seeds=len(test),
            mean=round(sum(test) / len(test), 4),
            lowest=round(min(test), 4),
            highest=round(max(test), 4),
        )


def say(**line: Any) -> None:
    """One line of JSON."""
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option in ("imdb", "matching", "image", "language", "csv"):
        parser.add_argument(f"--{option}", default="", help="where its data are")
    parser.add_argument("--only", default=",".join(SETTINGS), help="tasks, separated by commas")
    parser.add_argument("--workdir", type=Path, default=Path("runs/real"))
    parser.add_argument(
        "--data", default="", help="where prepared sets are kept; by default where TFDS keeps data"
    )
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument(
        "--summary", type=Path, help="print the means of a file of lines, and run nothing"
    )
    arguments = parser.parse_args()
    if arguments.summary:
        summary([json.loads(line) for line in arguments.summary.read_text().splitlines()])
    else:
        for seed, task in itertools.product(arguments.seeds.split(","), arguments.only.split(",")):
            if where := getattr(arguments, task.split("_")[0]):
                run(task, int(seed), where, arguments.data, arguments.workdir)
