"""The way to a config: defaults, a file, overrides, and then the typed `Config`, checked once."""

import contextlib
import dataclasses
import importlib
import os
import runpy
import sys
import traceback
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from ml_collections import ConfigDict, FrozenConfigDict

from dartformer import strategies, tasks
from dartformer.config import compat
from dartformer.config.checkpoint import (
    Checkpoint,
    PlacementConfig,
    PlacementSpace,
    Tune,
)
from dartformer.config.overrides import convert, override, require_names
from dartformer.config.presets import PRESETS, field_defaults, strategy_defaults, with_positions
from dartformer.config.sections import (
    Baselines,
    Config,
    Data,
    Derive,
    Log,
    Mesh,
    Named,
    Race,
    Retrain,
    Search,
    Space,
)
from dartformer.errors import InputError, brief, is_storable, unknown
from dartformer.fields import FieldError
from dartformer.machine.workdir import jsonable, read_json
from dartformer.models.sizes import TransformerOptions
from dartformer.tasks.base import Task


def defaults(
    task: str = "listops",
    strategy: str = "",
    preset: str = "recommended",
    granularity: str = Space.granularity,
) -> ConfigDict:
    """Every field with its default, to be assigned to; locked against misspelling.

    Args:
      task: a name of `dartformer list tasks`; its options become `config.task.*`.
      strategy: a name of `dartformer list strategies`; its options become
        `config.search.strategy.*`. By default "race" for one attention everywhere, else "darts".
      preset: "recommended"; "published" for the settings of the DARTS paper; or the blocks of a
        well-known model, "gpt2", "bert", "llama" or "qwen3", with the recommended search.
      granularity: what chooses an attention: the whole "model", each "layer", each
        "kv_group", or each "head".
    """
    # For one attention everywhere a race of the candidates costs a third of training all of them; a
    # search is for mixes.
    if not strategy:
        strategy = "darts"
        if granularity == "model" and preset != "published":
            strategy = "race"
    task_type = cast(type[Task], tasks.find(task))
    strategies.find(strategy, "strategy")
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    if preset == "published" and strategy != "darts":
        raise InputError(
            f"preset='published' does not work with the strategy {strategy!r}, because it holds "
            f"the settings of the DARTS paper. Use strategy='darts'."
        )
    choice = strategy_defaults(strategy)
    model = TransformerOptions()
    if task_type.traits.per_token:
        model = TransformerOptions(pooling="none")
    if task_type.traits.decoded:
        model = TransformerOptions(pooling="decode", classifier="mlp")
    config = ConfigDict(
        {
            "seed": Config.seed,
            "start": Config.start,
            "metric": Config.metric,
            "task": {"name": task, **_task_defaults(task_type)},
            "data": field_defaults(Data),
            "mesh": field_defaults(Mesh),
            "model": _plain(model),
            "space": {**field_defaults(Space), "granularity": granularity},
            "search": {
                **field_defaults(Search),
                "strategy": dict(choice.options),
                "projections": choice.projections,
                "budget": {},
                "weights": _plain(Search.weights),
                "alphas": _plain(choice.alphas),
            },
            "derive": _plain(Derive(choice.rule, Derive.tie_margin, choice.second_opinion)),
            "retrain": _plain(Retrain()),
            "race": field_defaults(Race),
            "baselines": field_defaults(Baselines),
            "log": field_defaults(Log),
        }
    )
    # Locked, so that a mistyped field in a config file is an error and not a new field.
    config.lock()
    override(config, PRESETS[preset])
    config.space.candidates = with_positions(Space.candidates, config.model.positions)
    return config


def checkpoint_defaults(folder: str = "", text: str = "", **fields: object) -> ConfigDict:
    """Every field of a config that places full attention in a checkpoint, with its default.

    Set `search.budget`, such as `{"kv_bytes": 40e6, "length": 8192}`, or `checkpoint.keep`.

    Args:
      folder: of the checkpoint, as Hugging Face writes it.
      text: a file of text like that which the model is for.
      fields: more fields of the section `checkpoint`.
    """
    config = ConfigDict(
        {
            "seed": PlacementConfig.seed,
            "checkpoint": field_defaults(Checkpoint),
            "space": field_defaults(PlacementSpace),
            "search": {"budget": {}},
            "tune": field_defaults(Tune),
        }
    )
    config.lock()
    values = {"folder": str(folder), "text": str(text), **fields}
    override(config, {f"checkpoint.{name}": value for name, value in values.items()})
    return config


def is_placement(config: object) -> bool:
    """Whether a config, or the data of one, is of a placement in a checkpoint."""
    return isinstance(config, ConfigDict | Mapping) and "checkpoint" in config


def _task_defaults(task_type: type[Task]) -> dict[str, object]:
    """The options of a task that have a default, with it."""
    options = tasks.options_of(task_type)
    values = {}
    for name, value in field_defaults(task_type).items():
        if name in options:  # what a task learns from its data is a field, but no option
            values[name] = value
    return values


def load_config(path: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """Run a config file's `get_config()`, apply the overrides, build and check the config.

    The file is the user's own Python and runs as such; the `config.json` of a workdir is only read.
    Raises `InputError` for a missing file, a file without `get_config`, whatever the file raises, a
    mistyped field, or a value that cannot be."""
    return build(_loaded(path, overrides))


def load_any(
    path: str | Path, overrides: Mapping[str, object] | None = None
) -> Config | PlacementConfig:
    """`load_config` of a search, or of a placement in a checkpoint."""
    config = _loaded(path, overrides)
    if is_placement(config):
        return build_placement(config)
    return build(config)


def _loaded(path: str | Path, overrides: Mapping[str, object] | None) -> ConfigDict:
    """What `get_config()` of a file returns, with the overrides."""
    path = Path(path)
    # Not `Path.is_file`, which raises for a name that is too long.
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder, and --config takes a Python file.")
    if not os.path.isfile(path):
        raise InputError(f"there is no config file {path}.")
    if path.suffix == ".json":
        config = _of_json(path)
        override(config, overrides or {})
        return config
    try:
        with _siblings(path.absolute().parent):
            config = _run(path)
    except KeyboardInterrupt:
        raise
    # `sys.exit()` in the file must not end a program that reads it.
    except BaseException as error:
        raise _raised_by(path, error) from None
    if isinstance(config, Config):  # of a file that has built it itself
        config = editable(config)
    if isinstance(config, PlacementConfig):
        config = _editable_placement(to_dict(config))
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)  # overrides must be able to change it
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{path}: get_config() must return a config made by dartformer.defaults(), "
            f"got {type(config).__name__}."
        )
    override(config, overrides or {})
    return config


def _of_json(path: Path) -> ConfigDict:
    """What the `config.json` of a workdir holds."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path} must hold the object that a workdir's config.json does.")
    if is_placement(data):
        return _editable_placement(data)
    return _editable(data)


def _run(path: Path) -> object:
    """What the file's `get_config()` returns."""
    namespace = runpy.run_path(str(path))
    if "get_config" not in namespace:
        raise InputError("the file has no function get_config().")
    return namespace["get_config"]()


_folders: set[str] = set()
"""The folders of the configs that were loaded in this process."""


@contextlib.contextmanager
def _siblings(folder: Path) -> Iterator[None]:
    """Let a config import the modules beside it."""
    # Configs of two folders may have helpers of the same name: each gets its own.
    foreign = set()
    for name, module in sys.modules.items():
        home = Path(getattr(module, "__file__", None) or "/")
        if home.name == "__init__.py":
            home = home.parent
        if str(home.parent) in _folders - {str(folder)}:
            foreign.add(name.partition(".")[0])
    for name in list(sys.modules):
        if name.partition(".")[0] in foreign:
            del sys.modules[name]
    _folders.add(str(folder))
    # Last: a file beside a config must not replace a module of Python or of a package.
    sys.path.append(str(folder))
    # A helper that was just edited is read again, not its bytecode of the same second.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if str(folder) in sys.path:  # the config may change the path itself
            sys.path.remove(str(folder))


def _raised_by(path: Path, error: BaseException) -> InputError:
    """One line for what a config file raised, with the file and the line number."""
    # The error may come from deep inside a library: the last line of the user's own files is the
    # one that they can change.
    frames = traceback.extract_tb(error.__traceback__)
    file, line = path, None
    for frame in frames:
        source = Path(frame.filename)
        beside = source.absolute().parent == path.absolute().parent
        if beside and source.is_file():  # and not "<frozen runpy>"
            file, line = path.with_name(source.name), frame.lineno
    try:
        message = str(error).split("\n")[0][:500]
    except Exception:  # of an error that cannot print itself
        message = ""
    name = type(error).__name__
    # A file that is no Python has no frame of its own.
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line, message, name = error.lineno, error.msg, ""
    place = str(file)
    if line:
        place += f", line {line}"
    if isinstance(error, SystemExit):
        return InputError(f"{place}: the file exits. Return a config from get_config() instead.")
    if isinstance(error, InputError):
        return InputError(f"{place}: {message}")
    if frames and "ml_collections" in frames[-1].filename:
        # A mistyped field or a value of another type: the library's message says which.
        name, message = "", message.strip("'\"")
    reason = ": ".join(filter(None, [name, message.rstrip(".")]))
    return InputError(f"{place}: {reason}.")


def from_dict(data: Mapping[str, Any]) -> Config:
    """The config that `to_dict` wrote, in the `config.json` of a workdir or an export."""
    return build(_editable(data))


def placement_from_dict(data: Mapping[str, Any]) -> PlacementConfig:
    """The config of a placement in the `config.json` of its workdir."""
    return build_placement(_editable_placement(data))


def _editable_placement(data: Mapping[str, Any]) -> ConfigDict:
    config = checkpoint_defaults()
    override(config, dict(_flatten(data)))
    return config


def editable(config: Config) -> ConfigDict:
    """A config that can be assigned to again, and then built."""
    return _editable(to_dict(config))


def _editable(data: Mapping[str, Any]) -> ConfigDict:
    try:
        # Defaults of the same task and strategy have the same fields, so values must only be set.
        config = defaults(data["task"]["name"], data["search"]["strategy"]["name"])
        values = dict(_flatten(data))
    except (KeyError, TypeError) as error:
        raise InputError(f"not a dartformer config: {error}.") from None
    override(config, values)
    return config


def _flatten(data: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_dict(config: Config | PlacementConfig | ConfigDict) -> dict[str, Any]:
    """Plain nested data, lists for tuples."""
    if isinstance(config, ConfigDict):
        return jsonable(config.to_dict())
    return jsonable(_plain(config))


def _plain(section: Any) -> dict[str, Any]:
    """The fields of a section and of the sections in it, in the order of their names."""
    if isinstance(section, Named):
        return dict(sorted(section.to_dict().items()))
    values = {}
    for field in sorted(dataclasses.fields(section), key=lambda field: field.name):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            value = _plain(value)
        values[field.name] = value
    return values


def build(config: Config | ConfigDict) -> Config:
    """The typed config of one that was assigned to, checked; one that is typed is what it was.

    Raises `InputError` for the first thing that cannot be, before anything is written or trained.
    """
    if isinstance(config, Config):
        return config
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"a config is made by dartformer.defaults() or dartformer.load_config(), "
            f"got {type(config).__name__}."
        )
    if is_placement(config):
        raise InputError(
            "this is the config of a checkpoint, which nothing is trained of. Use `dartformer run`, "
            "`derive`, `evaluate` or `report`, or dartformer.place()."
        )
    built: Config = _section(Config, _values(config), "")
    compat.check(built)
    return built


def build_placement(config: PlacementConfig | ConfigDict) -> PlacementConfig:
    """The typed config of a placement, checked; one that is typed is what it was."""
    if isinstance(config, PlacementConfig):
        return config
    if not isinstance(config, ConfigDict) or not is_placement(config):
        raise InputError(
            "this is no config of a checkpoint, which dartformer.checkpoint_defaults() makes, and "
            "`dartformer new --from=FOLDER` writes."
        )
    built: PlacementConfig = _section(PlacementConfig, _values(config), "")
    return built


def _values(config: ConfigDict) -> dict[str, Any]:
    """The plain values of a config."""
    require_names(config)
    try:
        return config.to_dict()
    except ValueError as error:  # a required placeholder of ml_collections that nobody filled
        raise InputError(f"the config is not complete: {error}.") from None


def _section(cls: Any, values: object, name: str) -> Any:
    """The section `name` of type `cls` from plain values."""
    if not isinstance(values, Mapping):
        raise InputError(f"config field {name!r} is a section, got {brief(values)}.")
    hints = typing.get_type_hints(cls)
    typed = {}
    for key, value in values.items():
        full = f"{name}.{key}".lstrip(".")
        if key not in hints:
            fields = [f"{name}.{hint}".lstrip(".") for hint in hints]
            raise unknown("config field", full, fields)
        typed[key] = _value(hints[key], value, full)
    # A field that somebody deleted has its default again; a task or a strategy has none.
    for field in dataclasses.fields(cls):
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and field.name not in typed:
            full = f"{name}.{field.name}".lstrip(".")
            raise InputError(
                f"the config has no section {full!r}. Begin with dartformer.defaults()."
            )
    try:
        return cls(**typed)
    except FieldError as error:
        # The section knows its field, and this function knows where the section stands.
        if not name:
            raise
        raise error.within(name) from None


def _value(hint: Any, value: object, name: str) -> object:
    """A value of a section; lists and ints become what the field holds."""
    # Which fields these have depends on their name: no type hint says it.
    if name in _NAMED:
        return _NAMED[name](value)
    if dataclasses.is_dataclass(hint):
        return _section(hint, value, name)
    # JSON knows no tuples, and writes 1.0 as 1 where a person does.
    if isinstance(value, list) and typing.get_origin(hint) is tuple:
        return tuple(value)
    if hint is float and type(value) is int and is_storable(value):
        return float(value)
    return value


def _choice(section: object, name: str) -> tuple[str, dict[str, object]]:
    """The name in the section of a task or a strategy, and the options beside it."""
    if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
        raise InputError(f"config field {name!r} is a section with a name, got {brief(section)}.")
    options = dict(section)
    return options.pop("name"), options


def _task(section: object) -> Named[Task]:
    """The task of a config."""
    name, options = _choice(section, "task")
    task_type = cast(type[Task], tasks.find(name))
    _require_own("task", name, options, tasks.options_of(task_type), "task")
    # An option that somebody deleted has its default again.
    options = {**_task_defaults(task_type), **options}
    return Named(name, options, tasks.make(name, options))


def _strategy(section: object) -> Named[strategies.StrategyOptions]:
    """The strategy of a config."""
    name, options = _choice(section, "search.strategy")
    strategy_options = field_defaults(strategies.find(name))
    _require_own("search.strategy", name, options, strategy_options, "strategy")
    options = {**strategy_options, **options}
    values = {}
    for option, value in options.items():
        values[option] = convert(f"search.strategy.{option}", value, strategy_options[option])
    return Named(name, values, strategies.make(name, values))


def _require_own(
    section: str,
    name: str,
    options: Mapping[str, object],
    allowed: Mapping[str, object],
    argument: str,
) -> None:
    """Raise `InputError` where the options in a section are not those of what it names."""
    if options.keys() - allowed.keys():
        raise InputError(
            f"{section}.name is {name!r}, but the options beside it belong to another {argument}. "
            f"Write dartformer.defaults({argument}={name!r}), which has its own."
        )


_NAMED = {"task": _task, "search.strategy": _strategy}
"""The sections that name a task or a strategy, with what reads them."""
