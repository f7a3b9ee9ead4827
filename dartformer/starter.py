"""The config file that `dartformer new` prints: a small space for a task, every line of it meant to be edited."""

from collections.abc import Mapping
from typing import Any

from dartformer import config as configs
from dartformer.errors import unknown

HEADS = {
    "listops": """\
ListOps for two CPU cores: nested lists such as `[MAX 2 9 [MIN 4 7 ] 0 ]`, each worth one of ten digits.

Command:  dartformer run --config={file} --workdir=runs/listops
Takes:    about two minutes on two cores.
Expect:   about 44% on test; the majority class scores about 10%, a rule that sees the root operator only about 22%,
          the homogeneous `uniform` model about 40%. The three attentions that mix by content (full, local,
          linear) lie within a few points of one another at this size: the report will call them ties. That is the
          truth about this task, not a failure of the search.
""",
}

VALUES: dict[str, dict[str, Any]] = {
    "listops": {
        "task.max_depth": 3, "task.max_args": 4, "task.min_length": 8, "task.max_length": 64,
        "task.train": 10_000, "task.valid": 1_000, "task.test": 2_000,
        "model.layers": 2, "model.heads": 4, "model.head_dim": 16, "model.model_dim": 64, "model.mlp_dim": 128,
        "space.candidates": ("full", "local(window=4)", "linear", "uniform"), "space.granularity": "layer",
        "search.steps": 300, "retrain.steps": 500, "retrain.seeds": (0, 1, 2), "log.eval_every": 250,
        "log.checkpoint_every": 250,
        "baselines.homogeneous": True, "baselines.random": True,
    },
}

NOTES = {
    "task.max_depth": "how the data are made (see `dartformer list tasks`)",
    "model.layers": "sizes; heads * head_dim need not be model_dim",
    "space.candidates": "what is searched over (see `dartformer list attentions`)",
    "space.granularity": '"model": one attention everywhere; "layer"; "head"',
    "search.steps": "how long",
    "baselines.homogeneous": "train every candidate alone, too, and a random genotype",
}


def starter(task: str, preset: str = "recommended", values: Mapping[str, Any] | None = None,
            file: str = "my_space.py") -> str:
    """The text of a config file for a task; `values` are set on top of the starting ones."""
    if task not in HEADS:
        raise unknown("task", task, HEADS)
    config = configs.defaults(task, preset=preset)
    chosen = {**VALUES[task], **(values or {})}
    configs.override(config, chosen)
    arguments = f"task={task!r}" + (f", preset={preset!r}" if preset != "recommended" else "")
    lines = []
    for name in chosen:
        section: Any = config
        for part in name.split("."):
            section = section[part]
        if name in NOTES:
            lines.append(f"    # {NOTES[name]}")
        lines.append(f"    config.{name} = {section!r}".replace("'", '"'))
    head = HEADS[task].format(file=file)
    return (f'"""{head}"""\n\nimport dartformer\n\n\ndef get_config():\n'
            f"    config = dartformer.defaults({arguments})\n".replace("'", '"') + "\n".join(lines)
            + "\n    return config\n")
