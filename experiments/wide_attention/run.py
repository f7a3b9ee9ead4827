"""Wide against deep: each type at a constant number of heads, on four tasks (Wide Attention, arXiv 2210.00640).

    python experiments/wide_attention/run.py --size=cpu --imdb=FOLDER_OR_ARCHIVE --matching=FOLDER_OR_ARCHIVE
    python experiments/wide_attention/run.py --size=published --imdb=... --matching=...     # on an accelerator

A line of JSON for each task, type and shape is added to `results/<size>.jsonl` as it comes; what stands there is not
trained again, so that the same command goes on where it was stopped. `--summary` prints the tables.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
import settings
from summary import summary
from trial import Lines, provenance, trained

from dartformer import attention
from dartformer.genotype import Genotype
from dartformer.progress import say
from dartformer.stages.base import Run

RESULTS = Path(__file__).parent / "results"
STEPS = {"listops": 300, "imdb_tokens": 250, "imdb_bytes": 250, "matching": 200}
"""Of a training at CPU size."""


def data_of(task: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Where a task's data are."""
    path = arguments.matching if task == "matching" else arguments.imdb if task.startswith("imdb") else None
    return ({"task.path": path} if path else {}) | ({"data.dir": arguments.data_dir} if arguments.data_dir else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("cpu", "published"), default="cpu")
    parser.add_argument("--tasks", default=",".join(settings.TASKS))
    parser.add_argument("--types", default="", help="names, as in settings.py; all ten by default")
    parser.add_argument("--shapes", choices=("ends", "all"), default="", help="the deepest and the widest alone, which "
                        "is the default at CPU size, or those between too")
    parser.add_argument("--imdb", default="", help="see search_spaces/imdb_bytes_small.py")
    parser.add_argument("--matching", default="", help="see search_spaces/matching_small.py")
    parser.add_argument("--data-dir", default="", help="where data are prepared")
    parser.add_argument("--steps", type=int, default=0, help="of a training, instead of its own number")
    parser.add_argument("--results", type=Path, help="file of JSON lines")
    parser.add_argument("--summary", action="store_true", help="print the tables of what is there, and train nothing")
    arguments = parser.parse_args()
    lines = Lines(arguments.results or RESULTS / f"{arguments.size}.jsonl", ("task", "type", "shape"))
    if arguments.summary:
        print(summary(lines.rows))
        return
    types = settings.TYPES[arguments.size]
    chosen = arguments.types.split(",") if arguments.types else list(types)
    small = arguments.size == "cpu"
    for task in arguments.tasks.split(","):
        shapes = settings.shapes(task, arguments.size)
        if (arguments.shapes or ("ends" if small else "all")) == "ends":
            shapes = [shapes[0], shapes[-1]]
        for name in chosen:
            for shape in shapes:
                key = {"task": task, "type": name, "shape": f"{shape[0]}x{shape[1]}"}
                if lines.find(**key):
                    continue
                steps = arguments.steps or (STEPS[task] if small else 0)
                config = settings.config(task, arguments.size, shape, steps, data_of(task, arguments))
                if name == "Sinkhorn":
                    config.model.pooling = "mean"  # as in the authors' code
                say(f"{task} {name} {key['shape']}")
                with tempfile.TemporaryDirectory() as folder, Run(config, Path(folder) / "run") as run:
                    genotype = Genotype.homogeneous(attention.parse(types[name]), *shape)
                    found, _ = trained(run, genotype, together=small,
                                       test_examples=2_000 if small else len(run.parts["test"]))
                lines.add(**key, attention=types[name], **found, **provenance())


if __name__ == "__main__":
    main()
