"""Wide against deep: each type at a constant number of heads, on four tasks (Wide Attention, arXiv
2210.00640).

    python experiments/wide_attention/run.py --size=cpu --imdb=FOLDER_OR_ARCHIVE
    --matching=FOLDER_OR_ARCHIVE python experiments/wide_attention/run.py --size=published
    --imdb=... --matching=...     # on an accelerator

A line of JSON for each task, type and shape is added to `results/<size>.jsonl` as it comes; what
stands there is not trained again, so that the same command goes on where it was stopped.
`--summary` prints the tables."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
import arena
from summary import summary
from trial import Lines, provenance, trained

from dartformer import attention
from dartformer.machine.progress import say
from dartformer.space.genotype import Genotype
from dartformer.stages.study import Study

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = arena.parser(__doc__, arena.TASKS)
    parser.add_argument(
        "--types", default="", help="names, as in experiments/arena.py; all ten by default"
    )
    parser.add_argument(
        "--shapes",
        choices=("ends", "all"),
        default="",
        help="the deepest and the widest alone, which "
        "is the default at CPU size, or those between too",
    )
    arguments = parser.parse_args()
    lines = Lines(
        arguments.results or RESULTS / f"{arguments.size}.jsonl", ("task", "type", "shape")
    )
    if arguments.summary:
        print(summary(lines.rows))
        return
    types = arena.TYPES[arguments.size]
    chosen = arguments.types.split(",") if arguments.types else list(arena.WIDE)
    small = arguments.size == "cpu"
    for task in arguments.tasks.split(","):
        shapes = arena.shapes(task, arguments.size)
        if (arguments.shapes or ("ends" if small else "all")) == "ends":
            shapes = [shapes[0], shapes[-1]]
        for name in chosen:
            for shape in shapes:
                key = {"task": task, "type": name, "shape": f"{shape[0]}x{shape[1]}"}
                if lines.find(**key):
                    continue
                data = arena.data_of(task, arguments.imdb, arguments.matching, arguments.data_dir)
                config = arena.config(task, arguments.size, shape, arguments.steps, data)
                if name == "Sinkhorn":
                    config.model.pooling = "mean"  # as in the authors' code
                say(f"{task} {name} {key['shape']}")
                run = Study(config)
                genotype = Genotype.homogeneous(attention.parse(types[name]), *shape)
                found, _ = trained(
                    run,
                    genotype,
                    together=small,
                    test_examples=2_000 if small else len(run.parts["test"]),
                )
                lines.add(**key, attention=types[name], **found, **provenance())


if __name__ == "__main__":
    main()
