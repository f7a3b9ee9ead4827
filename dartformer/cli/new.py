"""The config file that `dartformer new` prints: a small space for a task, every line of it meant to
be edited."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from dartformer import config as configs
from dartformer.cli.examples import EXAMPLES, SIZES, text_of
from dartformer.errors import InputError, unknown
from dartformer.tasks.guess import Guess, guess

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
    "planted": """\
A planted answer for two CPU cores: symbols whose labels only one kind of attention can get right. A search that does
not find it cannot be trusted on a task where nobody knows the answer.

Command:  dartformer run --config={file} --workdir=runs/planted
Takes:    about two minutes on two cores.
Expect:   {expect}
""",
}

EXPECT = {
    "recall": """\
`full`, at about 99% on test: a value must be found by its key, wherever that stands. The next best candidate
          has about 28%, guessing 12.5%.""",
    "local": """\
`local(window=4)`, at 100% on test: the most frequent letter near by. Whatever cannot tell near from far stays
          at about 53%, the token's own letter gives 49%.""",
    "strided": """\
`strided(stride=8)`, at 100% on test: the most frequent letter of every eighth. The others stay below 49%.""",
    "global": """\
one of `full`, `linear`, `linformer` and `uniform`, at about 95% on test: the most frequent letter of all.
          They are equals here, and the report will call them ties. `strided` has about 47%.""",
    "mix": """\
one head `local(window=4)` and one `strided(stride=8)`: even positions need the one, odd ones the other. No
          homogeneous model has both.""",
    "relay": """\
`local(window=4)`, then `strided(stride=8)`, at about 87% on test: the most frequent among every eighth of the
          letters that are the most frequent near by. The other way round gives about 69%.""",
}
"""What to expect of each kind of planted task."""

VALUES: dict[str, dict[str, Any]] = {
    "listops": {
        "task.max_depth": 3,
        "task.max_args": 4,
        "task.min_length": 8,
        "task.max_length": 64,
        "task.train": 10_000,
        "task.valid": 1_000,
        "task.test": 2_000,
        "model.layers": 2,
        "model.heads": 4,
        "model.head_dim": 16,
        "model.model_dim": 64,
        "model.mlp_dim": 128,
        "space.candidates": ("full", "local(window=4)", "linear", "uniform"),
        "space.granularity": "layer",
        "search.steps": 300,
        "retrain.steps": 500,
        "retrain.seeds": (0, 1, 2),
        "log.eval_every": 250,
        "log.checkpoint_every": 250,
        "baselines.homogeneous": True,
        "baselines.random": True,
        "baselines.uniform": True,
    },
}

SEVEN = (
    "full",
    "local(window=4)",
    "strided(stride=8)",
    "linear",
    "linformer(rank=8)",
    "uniform",
    "identity",
)


def planted(kind: str) -> dict[str, Any]:
    """A space in which a kind of planted task has one answer, and the steps in which it is
    learned."""
    steps = 300 if kind in ("recall", "mix", "relay") else 150
    return {
        "task.kind": kind,
        "model.layers": 2 if kind == "relay" else 1,
        "model.heads": 2,
        "model.head_dim": 16,
        "model.model_dim": 32,
        "model.mlp_dim": 64,
        "model.stem": "bigram",
        "space.candidates": SEVEN[:4] if kind == "relay" else SEVEN,
        "space.granularity": {"mix": "head", "relay": "layer"}.get(kind, "model"),
        "data.batch_size": 16,
        "search.steps": 600 if kind == "relay" else steps,
        "search.weights.learning_rate": 5e-3,
        "retrain.steps": steps,
        "retrain.seeds": (0, 1, 2),
        "retrain.optimizer.learning_rate": 5e-3,
        "log.eval_every": 150,
        "log.checkpoint_every": 150,
        "baselines.homogeneous": True,
        "baselines.random": True,
        "baselines.uniform": True,
    }


NOTES = {
    "task.kind": "which answer is planted (see `dartformer.tasks.planted`)",
    "task.max_depth": "how the data are made (see `dartformer list tasks`)",
    "model.layers": "sizes; heads * head_dim need not be model_dim",
    "data.batch_size": "examples in a step",
    "space.candidates": "what is searched over (see `dartformer list attentions`)",
    "space.granularity": '"model": one attention everywhere; "layer"; "head"',
    "search.steps": "how long",
    "baselines.homogeneous": "compare with every candidate alone, a random genotype, and all candidates mixed",
}


def starter(
    task: str,
    preset: str = "recommended",
    values: Mapping[str, Any] | None = None,
    file: str = "my_space.py",
    head: str = "",
    size: str = "small",
) -> str:
    """The text of a config file for a task; `values` are set on top of the starting ones, `head` is
    its docstring.

    `size` is "small", for two CPU cores, or "published", the one that the task is known for.
    """
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    if task == "files" and not head:
        raise InputError(
            "which file? `dartformer new --data FILE` looks at it and writes a config for it."
        )
    example = EXAMPLES[size].get(task)
    known = list(dict.fromkeys([*HEADS, *EXAMPLES["small"]]))
    if task not in known and not head:
        raise unknown("task", task, known)
    if not example and not head and (size != "small" or task not in HEADS):
        raise InputError(f"there is no {size} size of the task {task}.")
    values = dict(values or {})
    strategy = values.pop("search.strategy.name", "darts")
    config = configs.defaults(task, strategy, preset)
    kind = values.get("task.kind", "recall")
    if task == "planted" and kind not in EXPECT:
        raise unknown("kind of planted task", kind, EXPECT)
    start = (
        example.values if example else planted(kind) if task == "planted" else VALUES.get(task, {})
    )
    chosen = {**start, **values}
    configs.override(config, chosen)
    arguments = (
        f"task={task!r}"
        + (f", strategy={strategy!r}" if strategy != "darts" else "")
        + (f", preset={preset!r}" if preset != "recommended" else "")
    )
    lines = []
    for name in chosen:
        section: Any = config
        for part in name.split("."):
            section = section[part]
        if isinstance(section, ConfigDict):
            continue  # a section of switches set as one; its fields are written below it
        if name in NOTES and (name != "task.kind" or task == "planted"):
            lines.append(f"    # {NOTES[name]}")
        lines.append(assignment(f"    config.{name} = ", section))
    if example:
        head = text_of(example, task, file, size)
    head = head or HEADS[task].format(file=file, expect=EXPECT.get(kind))
    made = f"    config = dartformer.defaults({arguments})\n".replace("'", '"')
    return (
        f'"""{head}"""\n\nimport dartformer\n\n\ndef get_config():\n'
        + made
        + "\n".join(lines)
        + "\n    return config\n"
    )


def assignment(start: str, value: Any) -> str:
    """A line of Python that assigns a value, in several lines where it is long and a tuple."""
    if not isinstance(value, tuple):
        return start + literal(value)
    items = [literal(one) + "," for one in value]
    if len(items) > 1:
        items[-1] = items[-1][:-1]
    lines = [start + "("]
    for i, item in enumerate(items):
        last = i == len(items) - 1
        gap = "" if lines[-1].endswith("(") or not lines[-1].strip() else " "
        if len(lines[-1]) + len(gap) + len(item) + last > 120 and gap:
            lines.append(" " * (len(start) + 1))
            gap = ""
        lines[-1] += gap + item
    return "\n".join(lines) + ")"


def literal(value: Any) -> str:
    """A value as Python, texts in double quotes."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(literal, value)) + ("," if len(value) == 1 else "") + ")"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def for_data(
    file: str, texts: Sequence[str] = (), label: str = "", values: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any], Guess]:
    """A config for the user's own file, the values it sets, and what was guessed of the file."""
    found = guess(file, texts, label)
    batch = max(1, min(32, found.train // 4))
    steps = min(400, max(50, 10 * found.train // batch))
    chosen: dict[str, Any] = {
        **{f"task.{k}": v for k, v in found.options.items()},
        "data.batch_size": batch,
        **({"model.pooling": "none"} if found.options["kind"] == "labelling" else {}),
        "model.layers": 2,
        "model.heads": 4,
        "model.head_dim": 16,
        "model.model_dim": 64,
        "model.mlp_dim": 128,
        "space.candidates": ("full", "local(window=4)", "linear", "uniform"),
        "space.granularity": "layer",
        "search.steps": steps,
        "retrain.steps": steps,
        "retrain.seeds": (0, 1, 2),
        "log.eval_every": max(10, steps // 4),
        "log.checkpoint_every": max(10, steps // 4),
        "baselines.homogeneous": True,
        "baselines.random": True,
        "baselines.uniform": True,
        **(values or {}),
    }
    guessed = "\n          ".join(f"* {sentence}." for sentence in found.sentences)
    head = f"""\
Your own data: {file}, about {found.train:,} rows to train on.

Command:  dartformer run --config=my_space.py --workdir=runs/mine
Guessed:  {guessed}
""".replace("\\", "/").replace('"""', "'''")
    return starter("files", values=chosen, head=head), chosen, found
