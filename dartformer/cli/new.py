"""The config file that `dartformer new` prints: a search space of this package, or one for your
own data or task. Every line of it is meant to be edited."""

import argparse
import ast
import json
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from dartformer import config as configs
from dartformer import tasks
from dartformer.cli import checkpoint
from dartformer.cli.output import print_json
from dartformer.config.overrides import BUDGET
from dartformer.config.presets import MODELS, PRESETS, with_positions
from dartformer.config.reference import sentence_of
from dartformer.config.sections import Space
from dartformer.errors import InputError, unknown
from dartformer.machine.printable import note, one_line, printable
from dartformer.stages.proposal import AS_IT_FITS, MINUTES, MOST_RACED, Wishes, drafted
from dartformer.tasks.files import Files
from dartformer.tasks.guess import tried
from dartformer.tasks.guesses import Columns, Guess
from dartformer.tasks.label_counts import several_labels
from dartformer.tasks.planted import KINDS

SPACES = Path(__file__).resolve().parents[1] / "configs"
"""The search spaces that come with the package."""

FILE = "my_space.py"
"""What the printed config is called in its own text."""

OWN_DATA = ("files", "series", "pictures")
"""The tasks on data of the user's own, for which `--data` writes a config."""

SIZES = ("small", "published", "mixes")

OF_DATA = ("text", "label", "kind", "group", "split", "minutes", "steps", "candidates")
"""Options that need --data."""

WIDTH = 100

SKELETON = '''"""{head}
"""

import dartformer


def get_config():
    config = dartformer.defaults(task="{task}")

    return config
'''

EMPTY_CALL = 'defaults(task="")'
"""The call in the skeleton, where it is of no task."""

SMALL: dict[str, object] = {
    "model.layers": 2,
    "model.heads": 4,
    "model.head_dim": 16,
    "model.model_dim": 64,
    "model.mlp_dim": 128,
    "space.candidates": ("full", "local(window=4)", "linear", "uniform"),
    "space.granularity": "layer",
    "search.steps": 300,
    "retrain.steps": 300,
    "retrain.seeds": (0, 1, 2),
    "baselines.homogeneous": True,
    "baselines.random": True,
    "log.eval_every": 100,
    "log.checkpoint_every": 100,
}
"""A model and a schedule for two CPU cores, for tasks that no search space was written for."""


class DataConfig(NamedTuple):
    """A config for a user's own file.

    Attributes:
      text: of the config file.
      guess: what the file seems to hold.
    """

    text: str
    guess: Guess


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Print a starting config."""
    if arguments.checkpoint and not checkpoint.trains(arguments.checkpoint, arguments.data):
        text = _new_for_checkpoint(arguments, values)
    elif arguments.data:
        text = _new_for_data(arguments, values)
    elif arguments.checkpoint:
        raise InputError(
            f"--from={arguments.checkpoint} needs --data=FILE: texts that have a class or a number "
            f"each, for the encoder to be trained on, or plain text that its layers are scored with."
        )
    elif any(getattr(arguments, name) is not None for name in OF_DATA):
        flags = ", ".join(f"--{name}" for name in OF_DATA)
        raise InputError(f"{flags} are about a file of yours. Use them with --data FILE.")
    else:
        task = arguments.task or "listops"
        text = starting_config(task, arguments.preset, values, arguments.size)
    if arguments.json:
        print_json(configs.to_dict(load_text(text)))
    else:
        print(printable(text), end="")
    return 0


def _new_for_checkpoint(arguments: argparse.Namespace, values: Mapping[str, object]) -> str:
    """The config for --from; prints what was found on standard error."""
    for name in ("task", *OF_DATA):
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name} does not work with --from, because nothing is trained. Leave it out."
            )
    if not arguments.data:
        raise InputError(
            "--from needs --data=FILE, a text like that which the checkpoint is for: its layers are "
            "scored with it."
        )
    folder, file = arguments.checkpoint, arguments.data
    proposal = checkpoint.propose(folder, file, values)
    listed = "\n          ".join(
        map(one_line, proposal.sentences)
    )  # below the first, behind "Found:    "
    head = checkpoint.HEAD.format(file=FILE, found=listed, budget=proposal.budget)
    call = f"checkpoint_defaults({literal(folder)}, text={literal(file)})"
    text = SKELETON.format(head=_inside_docstring(head), task="").replace(EMPTY_CALL, call)
    for sentence in proposal.sentences:
        note(f"found: {sentence}")
    return with_values(text, configs.checkpoint_defaults(folder, file), proposal.values)


def _new_for_data(arguments: argparse.Namespace, values: dict[str, str]) -> str:
    """The config for --data; prints the guesses on standard error."""
    if arguments.task not in (None, "files") or arguments.preset != "recommended":
        raise InputError(
            "--data does not work with --task or --preset, because it writes a config of the task "
            "that fits the data, with the recommended preset. Leave them out."
        )
    columns = arguments.text or ()
    labels = arguments.label or [""]
    if len(labels) > 1:
        raise several_labels(labels)
    label, kind = labels[0], arguments.kind or ""
    minutes = arguments.minutes
    if minutes is None and arguments.steps is None:
        minutes = MINUTES
    config = config_for_data(
        arguments.data,
        columns,
        label,
        values,
        kind=kind,
        group=arguments.group or "",
        split=arguments.split or "",
        wishes=Wishes(
            minutes, arguments.steps, arguments.candidates or "", arguments.checkpoint or ""
        ),
    )
    if not arguments.quiet:
        for sentence in config.guess.sentences:
            note(f"guessed: {sentence}")
    return config.text


def starting_config(
    task: str,
    preset: str = "recommended",
    values: Mapping[str, Any] | None = None,
    size: str = "small",
) -> str:
    """The text of a config file for a task.

    Args:
      task: a name of `dartformer list tasks`.
      preset: see `dartformer.defaults`.
      values: dotted fields that are set on top.
      size: "small", for two CPU cores, "published", the size known from the literature, or "mixes",
        where no single attention gives the answer (the task recall).
    """
    values = dict(values or {})
    if size not in SIZES:
        raise unknown("size", size, SIZES)
    kind = "recall"
    # Each kind of planted task has a search space of its own.
    if task == "planted":
        kind = values.pop("task.kind", kind)
        if kind not in KINDS:
            raise unknown("kind of planted task", kind, KINDS)
    file = space_file(task, size, kind)
    if file.exists():
        text = file.read_text(encoding="utf-8").replace(f"search_spaces/{file.name}", FILE)
    else:
        text = _without_a_space(task, size)
    # The strategy decides about the defaults of other fields, so it cannot be set after them.
    strategy = str(values.pop("search.strategy.name", ""))
    named = {"space.granularity", "space.candidates", "model.layers"} & set(values)
    if not (file.exists() or strategy or named):
        # All of such a small space races.
        strategy = "race"
        values.setdefault("search.strategy.random", MOST_RACED)
    text, config = _with_defaults(text, task, strategy, preset, values)
    if preset in MODELS:
        values = {**_of_preset(text, preset), **values}
    return with_values(text, config, values)


def _of_preset(text: str, preset: str) -> dict[str, object]:
    """The fields that a file of a search space sets, as the preset of a model has them."""
    values: dict[str, object] = {}
    assigned = _assigned(text)
    for name, value in PRESETS[preset].items():
        if name in assigned:
            values[name] = value
    positions = str(PRESETS[preset]["model.positions"])
    if "space.candidates" in assigned:
        start, end = assigned["space.candidates"]
        lines = text.split("\n")[start:end]
        candidates = ast.literal_eval("\n".join(lines).partition("=")[2].strip())
        values["space.candidates"] = with_positions(candidates, positions)
    return values


def space_file(task: str, size: str = "small", kind: str = "recall") -> Path:
    """The file of the search space of a task, whether there is one or not."""
    name = f"{task}_{size}"
    if name == "listops_small":
        name = "listops_tiny"
    if name == "planted_small":
        name = f"planted_{kind}"
    return SPACES / f"{name}.py"


def config_for_data(
    file: str,
    texts: Sequence[str] = (),
    label: str = "",
    values: Mapping[str, object] | None = None,
    kind: str = "",
    group: str = "",
    split: str = "",
    wishes: Wishes = AS_IT_FITS,
) -> DataConfig:
    """A config for the user's own file, with what was guessed of it.

    Raises `InputError` where no guess gives a config that runs."""
    values = dict(values or {})
    columns = Columns(tuple(texts), label, kind, group, split)
    draft = drafted(file, columns, values, wishes)
    contents = draft.contents
    items = []
    for sentence in contents.sentences:
        items.append(f"* {one_line(sentence)}.")
    guesses = "\n          ".join(items)  # below the first, behind "Guessed:  "
    head = (
        f"Your own data: {one_line(file)}, about {contents.train:,} rows to train on.\n\n"
        f"Command:  dartformer run --config={FILE} --workdir=runs/mine\n"
        f"Guessed:  {guesses}"
    )
    text = SKELETON.format(head=_inside_docstring(head), task=contents.task)
    settings = draft.settings
    text, config = _with_defaults(text, contents.task, draft.strategy, "recommended", settings)
    text = with_values(text, config, settings)
    _require_that_runs(text, values)
    return DataConfig(text, contents)


def _text_or_none(value: object) -> str | None:
    if value:
        return str(value)
    return None


def _require_that_runs(text: str, values: Mapping[str, object]) -> None:
    """Raise `InputError` for a config that `run` would refuse, because of the user's values."""
    config = load_text(printable(text))
    assert isinstance(config, configs.Config)
    for name in values:
        # The guess has tried its own options.
        if name.startswith("task."):
            task = config.task.built
            if isinstance(task, Files):
                tried(task, _text_or_none(config.data.dir))
            return


def _of_task(options: Mapping[str, object]) -> dict[str, object]:
    """The options of a task as dotted fields of a config."""
    settings = {}
    for option, value in options.items():
        settings[f"task.{option}"] = value
    return settings


def _without_a_space(task: str, size: str) -> str:
    """The config of a task that no search space was written for: another package's."""
    if task in OWN_DATA:
        raise InputError("which file? `dartformer new --data FILE` reads it and writes a config.")
    traits: Any = getattr(tasks.find(task), "traits", None)
    if size != "small" or task in tasks.BUILT_IN:
        raise InputError(f"there is no {size} size of the task {task}.")
    head = (
        f"The task {task}, for two CPU cores.\n\n{traits.summary}\n\n"
        f"Command:  dartformer run --config={FILE} --workdir=runs/{task}"
    )
    config = configs.defaults(task)
    options = config.task.to_dict()
    del options["name"]
    settings = _of_task(options)
    if traits.causal and not traits.per_token:
        settings["model.pooling"] = "last"  # a mean would let the answer see every token
    settings.update(SMALL)
    return with_values(SKELETON.format(head=_inside_docstring(head), task=task), config, settings)


def _with_defaults(
    text: str, task: str, strategy: str, preset: str, values: Mapping[str, object]
) -> tuple[str, ConfigDict]:
    """The text of a config file that begins with other defaults, and these."""
    granularity = str(values.get("space.granularity", Space.granularity))
    # What is as by default is left out of the call.
    arguments = [f'task="{task}"']
    if strategy:
        arguments.append(f'strategy="{strategy}"')
    if preset != "recommended":
        arguments.append(f'preset="{preset}"')
    if granularity == "model":
        arguments.append('granularity="model"')
    call = f"defaults({', '.join(arguments)})"
    config = configs.defaults(task, strategy, preset, granularity)
    return text.replace(f'defaults(task="{task}")', call), config


def _inside_docstring(text: str) -> str:
    """A text without what would end or escape the docstring that holds it."""
    return text.replace("\\", "/").replace('"""', "'''")


def with_values(text: str, config: ConfigDict, values: Mapping[str, object]) -> str:
    """The text of a config file with fields set in it.

    A field that the file assigns gets its new value there. Another joins those of its section, with
    a comment that says what it means. `config` is what the file starts from; the values are set in
    it, too, which reads texts as the fields' types."""
    configs.override(config, values)
    for name, value in _settings(config, values):
        # Every value moves the lines below it, so the text is parsed again for each.
        lines = text.split("\n")
        spans = _assigned(text)
        assignment = _assignment(f"    config.{name} = ", value)
        if name in spans:
            start, end = spans[name]
            lines[start:end] = assignment
        else:
            place = _place(lines, spans, name)
            comment = _comment(sentence_of(config, name))
            lines[place:place] = [*comment, *assignment]
        text = "\n".join(lines)
    return text


def _settings(config: ConfigDict, values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The fields that values set, with what they are now; a section of switches is several."""
    budget = False
    for name in values:
        if name == BUDGET or name.startswith(f"{BUDGET}."):
            budget = True
            continue
        value: Any = config
        for part in name.split("."):
            value = value[part]
        if isinstance(value, ConfigDict):
            for switch, on in value.items():
                yield f"{name}.{switch}", on
        else:
            yield name, value
    if budget:
        yield BUDGET, config.search.budget.to_dict()


def _assigned(text: str) -> dict[str, tuple[int, int]]:
    """The fields that `get_config` assigns, with their first line and the one after their last."""
    spans = {}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Assign):
            continue
        target = ast.unparse(node.targets[0])
        if target.startswith("config."):
            spans[target.removeprefix("config.")] = node.lineno - 1, node.end_lineno or node.lineno
    return spans


def _place(lines: list[str], spans: Mapping[str, tuple[int, int]], name: str) -> int:
    """The line before which a new field stands: after its section, or before the return.

    A section of its own is set off by a blank line, which is added."""
    section = name.split(".")[0]
    ends = []
    for field, (_, end) in spans.items():
        if field.split(".")[0] == section:
            ends.append(end)
    if ends:
        return max(ends)
    # The last one: the docstring of a config may quote the line.
    place = len(lines) - 1 - lines[::-1].index("    return config")
    lines.insert(place, "")
    return place


def _comment(sentence: str) -> list[str]:
    if not sentence:
        return []
    start = "    # "
    return textwrap.wrap(
        sentence[0].upper() + sentence[1:], WIDTH, initial_indent=start, subsequent_indent=start
    )


def _assignment(start: str, value: object) -> list[str]:
    """The lines of Python that assign a value, as ruff would format them."""
    line = start + literal(value)
    if len(line) <= WIDTH or not isinstance(value, tuple):
        return [line]
    lines = [f"{start}("]
    for item in value:
        lines.append(f"        {literal(item)},")
    lines.append("    )")
    return lines


def literal(value: object) -> str:
    """A value as Python, with texts in double quotes."""
    if isinstance(value, tuple):
        items = ", ".join(map(literal, value))
        if len(value) == 1:
            items += ","
        return f"({items})"
    if isinstance(value, dict):
        entries = []
        for key, item in value.items():
            entries.append(f"{literal(key)}: {literal(item)}")
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, str):
        # JSON's escapes are Python's too, and unlike repr it always uses double quotes.
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def load_text(text: str) -> configs.Config | configs.PlacementConfig:
    """The config of a file with this text."""
    with tempfile.TemporaryDirectory() as folder:
        # Through a file, because a config is a module and is loaded as one.
        file = Path(folder) / FILE
        file.write_text(text, encoding="utf-8")
        return configs.load_any(file)
