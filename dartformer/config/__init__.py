"""Configurations: defaults, files, overrides, checks. An unknown field is an error, never a silent
new one.

A config file is Python with a function `get_config()` that starts from `dartformer.defaults(task)`
and assigns:

    import dartformer

    def get_config():
        config = dartformer.defaults(task="listops")
        config.search.steps = 200
        return config
"""

import dataclasses
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from dartformer import derivations, spec, strategies, tasks
from dartformer.attention.base import require
from dartformer.cost import budget as budgets
from dartformer.errors import InputError, unknown
from dartformer.machine.workdir import jsonable
from dartformer.models.supernet import PROJECTIONS, check_partial
from dartformer.models.transformer import TransformerConfig
from dartformer.space.genotype import parse_candidates
from dartformer.space.search_space import GRANULARITIES, SearchSpace, shapes
from dartformer.tasks.base import Task
from dartformer.training import metric, optimizer, trackers
from dartformer.training.devices import device_count

SELECT = ("best", "last")

BUDGET = "search.budget"
"""The field of which keys are added and not changed: see `dartformer.cost.budget`."""

SECOND_OPINION = "masked_drop(fine_tune=0)"
"""What is asked beside the alphas by default: the loss that rises without a candidate (arXiv
2108.04392)."""

ALPHAS: dict[str, Any] = {
    **optimizer.DEFAULTS,
    "name": "adam",
    "learning_rate": 0.1,
    "schedule": "constant",
    "warmup": 0.0,
    "b1": 0.5,
    "weight_decay": 0.0,
}
"""The alphas' optimiser by default."""

RECOMMENDED: dict[str, dict[str, Any]] = {
    # What found planted answers most reliably (experiments/benchmarks/README.md): slower alphas,
    # which a quick learner does not carry away, and the loss without a candidate asked where they
    # have not decided between some.
    "darts": {
        "search.alphas.learning_rate": 0.05,
        "derive.rule": "masked_drop(fine_tune=0, equals='weight')",
        "derive.second_opinion": "argmax",
    },
}
"""What the recommended preset changes of a strategy's own defaults."""

PRESETS: dict[str, dict[str, Any]] = {
    # Shared projections, normalised branches, weights alone for a third of the search, then a fast
    # Adam on the alphas; and `RECOMMENDED`.
    "recommended": {},
    # The settings of the DARTS paper and code (arXiv 1806.09055, cnn/train_search.py).
    "published": {
        "search.strategy.hypergradient": "second",
        "search.strategy.warmup": 0.0,
        "search.weights.name": "sgd",
        "search.weights.learning_rate": 0.025,
        "search.weights.final": 0.04,
        "search.weights.warmup": 0.0,
        "search.weights.momentum": 0.9,
        "search.weights.weight_decay": 3e-4,
        "search.weights.clip": 5.0,
        "search.alphas.name": "adam",
        "search.alphas.learning_rate": 3e-4,
        "search.alphas.schedule": "constant",
        "search.alphas.b1": 0.5,
        "search.alphas.b2": 0.999,
        "search.alphas.weight_decay": 1e-3,
        "search.alphas.clip": 0.0,
        "derive.rule": "argmax",
        "derive.second_opinion": SECOND_OPINION,
    },
}


def options(cls: type) -> dict[str, Any]:
    """The fields of a dataclass with their defaults."""
    return {
        f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING
    }


def defaults(
    task: str = "listops", strategy: str = "darts", preset: str = "recommended"
) -> ConfigDict:
    """Every field there is, with its default, locked against misspelling.

    Args:
      task: a name of `dartformer list tasks`; its options become `config.task.*`.
      strategy: a name of `dartformer list strategies`; its options become
        `config.search.strategy.*`.
      preset: "recommended", or "published" for the settings of the DARTS paper.
    """
    task_type: Any = tasks.find(task)
    strategies.find(strategy, "strategy")
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    if preset == "published" and strategy != "darts":
        raise InputError(
            f"the preset 'published' holds the settings of the DARTS paper; the strategy is {strategy!r}."
        )
    brought = brings(strategy)
    model = {
        k: v
        for k, v in options(TransformerConfig).items()
        if k not in ("causal", "seed", "inputs", "features")
    }
    config = ConfigDict(
        {
            "seed": 0,
            "task": {
                "name": task,
                **{k: v for k, v in options(task_type).items() if k in tasks.options_of(task_type)},
            },
            "data": {
                "dir": "",
                "batch_size": 32,
                "eval_batch_size": 250,
                "buckets": 1,
                "devices": 0,
            },
            "model": model,
            "space": {
                "candidates": ("full", "local(window=4)", "linear", "uniform"),
                "granularity": "layer",
                "aspect": "given",
            },
            "search": {
                "strategy": brought["search.strategy"],
                "projections": brought["search.projections"],
                "partial": 1,
                "remat": True,
                "budget": {},
                "steps": 300,
                "seeds": 1,
                "observe": True,
                "weights": dict(optimizer.DEFAULTS),
                "alphas": brought["search.alphas"],
            },
            "derive": {
                "rule": brought["derive.rule"],
                "tie_margin": 0.05,
                "second_opinion": brought["derive.second_opinion"],
            },
            "retrain": {
                "steps": 600,
                "seeds": (0,),
                "select": "best",
                "optimizer": dict(optimizer.DEFAULTS),
            },
            "baselines": {"homogeneous": True, "random": True, "uniform": True},
            "log": {"every": 20, "eval_every": 100, "checkpoint_every": 100, "trackers": ()},
        }
    )
    if task_type.traits.per_token:
        config.model.pooling = "none"
    config.lock()
    override(config, PRESETS[preset])
    return config


def brings(strategy: str) -> dict[str, Any]:
    """The fields whose defaults come with a strategy: its options, its projections, its alphas,
    what follows it."""
    traits = strategies.make(strategy, {}).traits
    recommended = RECOMMENDED.get(strategy, {})
    alphas = {
        name: recommended.get(f"search.alphas.{name}", value) for name, value in ALPHAS.items()
    }
    return {
        "search.strategy": {"name": strategy, **options(strategies.find(strategy))},
        "search.projections": traits.projections,
        "search.alphas": alphas,
        "derive.rule": traits.derivations[0],
        "derive.second_opinion": SECOND_OPINION if "masked_drop" in traits.derivations[1:] else "",
        **{name: value for name, value in recommended.items() if name.startswith("derive.")},
    }


def choose_strategy(config: ConfigDict, name: str) -> None:
    """Change the strategy, and with it every field it brings that still has the default of the one
    before."""
    strategies.find(name)
    before, after = brings(config.search.strategy.name), brings(name)
    with config.unlocked():
        config.search.strategy = ConfigDict(after["search.strategy"])
    if config.search.projections == before["search.projections"]:
        config.search.projections = after["search.projections"]
    for field, value in after["search.alphas"].items():
        if config.search.alphas[field] == before["search.alphas"][field]:
            config.search.alphas[field] = value
    for field in ("rule", "second_opinion"):
        if config.derive[field] == before[f"derive.{field}"]:
            config.derive[field] = after[f"derive.{field}"]


def override(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Set dotted fields, e.g. `{"search.steps": 200}`; texts are read as the type the field has.

    Another `search.strategy.name` is set first, with its own options in place of the other's (see
    `choose_strategy`). Raises `InputError` for a field that does not exist (with the nearest name)
    or a value of another type."""
    if (
        values.get("search.strategy.name", config.search.strategy.name)
        != config.search.strategy.name
    ):
        choose_strategy(config, values["search.strategy.name"])
    for name, value in values.items():
        if name == BUDGET or name.startswith(f"{BUDGET}."):
            _override_budget(config, name.removeprefix(BUDGET).lstrip("."), value)
            continue
        section, parts = config, name.split(".")
        for depth, part in enumerate(parts):
            if not isinstance(section, ConfigDict) or part not in section:
                known = section.keys() if isinstance(section, ConfigDict) else ()
                prefix = ".".join(parts[:depth])
                error = unknown(
                    "config field", name, [f"{prefix}.{k}" if prefix else k for k in known]
                )
                raise error
            if depth < len(parts) - 1:
                section = section[part]
        current = section[parts[-1]]
        if isinstance(current, ConfigDict):
            switches = all(isinstance(v, bool) for v in current.values())
            if not switches:
                raise InputError(
                    f"config field {name!r} is a section; set one of {', '.join(current.keys())} in it."
                )
            whole = convert(name, value, True)  # a section of switches is turned on or off as one
            for one in current:
                current[one] = whole
            continue
        section[parts[-1]] = convert(name, value, current)


def _override_budget(config: ConfigDict, key: str, value: Any) -> None:
    """A budget has the keys that it is given: `search.budget = "latency_ms=12"`,
    `search.budget.latency_ms = 12`."""
    if not key:
        found = budgets.parse([value], BUDGET) if isinstance(value, str) else dict(value)
    else:
        one = budgets.parse([f"{key}={value}"], BUDGET) if isinstance(value, str) else {key: value}
        found = {**config.search.budget.to_dict(), **one}
    config.search.budget = ConfigDict(found)


def convert(name: str, value: Any, like: Any) -> Any:
    """`value` in the type of `like`; a text is read, anything else must already be of that type."""
    wanted = type(like)
    try:
        if isinstance(value, str):
            if wanted is bool:
                return {
                    "true": True,
                    "1": True,
                    "yes": True,
                    "false": False,
                    "0": False,
                    "no": False,
                }[value.strip().lower()]
            if wanted in (int, float):
                return wanted(value)
            if wanted is tuple:
                items = [item.strip() for item in split_list(value)]
                return tuple(
                    convert(name, item, like[0]) if like else item for item in items if item
                )
        if wanted is float and type(value) is int:
            return float(value)
        if wanted is tuple and isinstance(value, list):
            value = tuple(value)
        if type(value) is not wanted:
            raise ValueError
    except (ValueError, KeyError):
        raise InputError(
            f"config field {name!r} takes {_kind(wanted)} (as {like!r}), got {value!r}."
        ) from None
    return value


def split_list(text: str) -> list[str]:
    """Split at commas outside brackets: "full,local(window=4)" has two items."""
    items, depth = [""], 0
    for sign in text.strip().strip("[]"):
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            items.append("")
        else:
            items[-1] += sign
    return items


def _kind(wanted: type) -> str:
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        tuple: "a list separated by commas",
    }.get(wanted, wanted.__name__)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Run a config file's `get_config()`, apply overrides, validate.

    The file is the user's own Python and runs as such. Raises `InputError` for a missing file, a
    file without `get_config`, a mistyped field, or a value that cannot be."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no config file {path}.")
    try:
        namespace = runpy.run_path(str(path))
    except SyntaxError as error:
        raise InputError(f"{path}, line {error.lineno}: {error.msg}.") from None
    if "get_config" not in namespace:
        raise InputError(f"{path} has no function get_config().")
    try:
        config = namespace["get_config"]()
    except (AttributeError, KeyError, TypeError) as error:
        # ml_collections' own message for a mistyped field, which ends in "Did you mean ...?".
        text = str(error.args[0] if error.args else error).strip("'\"").split("\n")[0]
        raise InputError(f"{path}: {text}") from None
    if not isinstance(config, ConfigDict):
        raise InputError(
            f"{path}: get_config() must return a config made by dartformer.defaults(), "
            f"got {type(config).__name__}."
        )
    override(config, overrides or {})
    validate(config)
    return config


def from_dict(data: Mapping[str, Any]) -> ConfigDict:
    """A config from what `to_dict` made (a workdir's or an export's `config.json`); validates."""
    try:
        config = defaults(data["task"]["name"], data["search"]["strategy"]["name"])
        flat = dict(_flatten(data))
    except (KeyError, TypeError) as error:
        raise InputError(f"not a dartformer config: {error}.") from None
    override(config, flat)
    validate(config)
    return config


def to_dict(config: ConfigDict) -> dict[str, Any]:
    """Plain nested data, lists for tuples."""
    return jsonable(config.to_dict())


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Any:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def make_task(config: ConfigDict) -> Task:
    """The task of a config."""
    section = config.task.to_dict()
    return tasks.make(section.pop("name"), section)


def make_strategy(config: ConfigDict) -> strategies.StrategyOptions:
    """The strategy of a config, with what is spelled in it (hypergradient, extras) parsed."""
    section = config.search.strategy.to_dict()
    name = section["name"]
    if section.keys() - {"name"} != options(strategies.find(name)).keys():
        raise InputError(
            f"search.strategy.name is {name!r}, but the options beside it are another strategy's: write "
            f"dartformer.defaults(strategy={name!r}), or --config.search.strategy.name={name}, which "
            f"bring its own."
        )
    if "hypergradient" in section:
        section["hypergradient"] = spec.parse(
            section["hypergradient"], strategies.HYPERGRADIENTS, "hypergradient"
        )
    if "extras" in section:
        section["extras"] = tuple(
            spec.parse(text, strategies.EXTRAS, "extra") for text in section["extras"]
        )
    return strategies.make(section.pop("name"), section)


def make_model(config: ConfigDict, task: Task) -> TransformerConfig:
    """Sizes of the network for a task; one without `inputs` and `features` reads one document of
    ids."""
    return TransformerConfig(
        vocabulary=task.vocabulary,
        classes=task.classes,
        length=task.length,
        causal=task.traits.causal,
        seed=config.seed,
        inputs=getattr(task, "inputs", 1),
        features=getattr(task, "features", 0),
        **config.model.to_dict(),
    )


def make_space(config: ConfigDict) -> SearchSpace:
    """What is searched over."""
    return SearchSpace(
        parse_candidates(config.space.candidates),
        config.model.layers,
        config.model.heads,
        config.space.granularity,
    )


def of_shapes(config: ConfigDict) -> dict[str, ConfigDict]:
    """The config of each shape of the space by name, such as "6x8"; the deepest first."""
    model, found = config.model, {}
    for layers, heads in shapes(model.layers, model.heads, config.space.aspect):
        one = config.copy_and_resolve_references()
        override(one, {"model.layers": layers, "model.heads": heads, "space.aspect": "given"})
        found[f"{layers}x{heads}"] = one
    return found


def validate(config: ConfigDict) -> None:
    """Raise `InputError` for the first thing that cannot be, before anything is built, written or
    trained."""
    task = make_task(config)
    known = metric.find(task.traits.metric)
    if not task.labels:
        raise InputError(
            f"the task {config.task.name} has no classes: list them as task.label_names, or let "
            f"`dartformer new --data FILE` find them."
        )
    trackers.check(config.log.trackers)
    model = make_model(config, task)
    if task.traits.per_token != (model.pooling == "none"):
        what, allowed = (
            ("token", "'none'")
            if task.traits.per_token
            else ("sequence", "'mean', 'cls' or 'last'")
        )
        raise InputError(
            f"the task {config.task.name} has a label for each {what}: model.pooling must be {allowed}, "
            f"got {model.pooling!r}."
        )
    if config.space.granularity not in GRANULARITIES:
        raise unknown("space.granularity", config.space.granularity, GRANULARITIES)
    others = of_shapes(config)
    if config.space.aspect != "given":
        for one in others.values():
            validate(one)
    space = make_space(config)
    strategy = make_strategy(config)
    for one in space.candidates:
        require(
            one,
            causal=model.causal,
            length=model.tokens,
            order=strategy.order,
            positions=model.positions,
            dropout=model.attention_dropout,
        )
    if (
        model.sharing > 1
        and config.search.projections == "separate"
        and config.space.granularity == "head"
    ):
        raise InputError(
            f"model.kv_heads = {model.kv_heads} cannot go with search.projections = 'separate' and "
            f"space.granularity = 'head': heads that share keys and values could want different ones; use "
            f"'shared' projections, or granularity 'layer' or 'model'."
        )
    if config.search.seeds > 1 and model.kernel == "cudnn":
        raise InputError(
            "model.kernel = 'cudnn' cannot be taken with search.seeds above 1, whose gradients are one "
            "vmap: use 'auto'."
        )
    strategy.check(len(space.candidates), config.search.steps)
    if not strategy.traits.alphas and config.search.alphas.to_dict() != ALPHAS:
        raise InputError(
            f"search.alphas has no effect: the strategy {config.search.strategy.name!r} learns no alphas."
        )
    if config.search.budget:
        budgets.Budget.of(config.search.budget.to_dict(), BUDGET)
        reason = strategies.budget_refusal(strategy.traits)
        if derivations.name_of(derivations.parse(config.derive.rule)) == "top_k":
            raise InputError(
                f"{BUDGET} cannot be taken with derive.rule = 'top_k': prices are of one candidate in "
                f"each place."
            )
        if reason:
            raise InputError(
                f"{BUDGET} cannot be taken with the strategy {config.search.strategy.name!r}: {reason}. "
                f"`dartformer derive --budget` can choose within a budget after any search."
            )
    for one in space.candidates:
        if config.data.buckets > 1 and one.traits.fixed_length:
            raise InputError(
                f"data.buckets = {config.data.buckets} gives batches of several lengths, and {one} has "
                f"parameters for one length alone."
            )
    if config.search.projections not in PROJECTIONS:
        raise unknown("search.projections", config.search.projections, PROJECTIONS)
    check_partial(
        config.model.heads,
        config.space.granularity,
        config.search.projections,
        config.search.partial,
    )
    if not config.search.remat and (reason := strategies.remat_refusal(strategy)):
        raise InputError(
            f"search.remat = False computes every candidate in every step, and cannot be taken with the "
            f"strategy {config.search.strategy.name!r}: {reason}."
        )
    _validate_rule("derive.rule", config.derive.rule, config, strategy.traits, known.name)
    if config.derive.second_opinion:
        _validate_rule(
            "derive.second_opinion",
            config.derive.second_opinion,
            config,
            strategy.traits,
            known.name,
        )
    if config.retrain.select not in SELECT:
        raise unknown("retrain.select", config.retrain.select, SELECT)
    for where in ("search.weights", "search.alphas", "retrain.optimizer"):
        section: Any = config
        for part in where.split("."):
            section = section[part]
        optimizer.validate(section, where)
    for name, value in (
        ("search.steps", config.search.steps),
        ("search.seeds", config.search.seeds),
        ("retrain.steps", config.retrain.steps),
        ("data.batch_size", config.data.batch_size),
        ("data.buckets", config.data.buckets),
        ("log.every", config.log.every),
        ("data.eval_batch_size", config.data.eval_batch_size),
        ("log.eval_every", config.log.eval_every),
        ("log.checkpoint_every", config.log.checkpoint_every),
    ):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}.")
    if not 0 <= config.derive.tie_margin < 1:
        raise InputError(
            f"derive.tie_margin must be at least 0 and below 1, got {config.derive.tie_margin}."
        )
    if config.search.seeds > 1 and not strategy.traits.supernet:
        raise InputError(
            f"search.seeds must be 1 for the strategy {config.search.strategy.name!r}, which trains no "
            f"supernet: retrain.seeds are the ones it uses."
        )
    seeds = config.retrain.seeds
    if (
        not seeds
        or len(set(seeds)) != len(seeds)
        or any(not isinstance(s, int) or s < 0 for s in seeds)
    ):
        raise InputError(
            f"retrain.seeds must be different whole numbers of at least 0, got {list(seeds)}."
        )


def require_here(config: ConfigDict) -> None:
    """Raise `InputError` for what the config asks of this machine and it has not: devices,
    trackers' packages.

    Apart from `validate`, because a model that was trained elsewhere can be loaded all the same.
    """
    device_count(config.data.devices, config.data.batch_size)
    trackers.require_installed(config.log.trackers)


def _validate_rule(
    where: str, text: str, config: ConfigDict, traits: strategies.Traits, score: str
) -> None:
    """Raise `InputError` where a derivation cannot be, or cannot follow the strategy or fit the
    space."""
    rule = derivations.parse(text)
    if score == "r2" and getattr(rule, "metric", "loss") == "accuracy":
        raise InputError(
            f"{where} = {text!r} compares accuracies, and where numbers are predicted there are none: "
            f"write it with metric=loss."
        )
    name = derivations.name_of(rule)
    reason = strategies.refusal(traits, name)
    if reason:
        raise InputError(
            f"{where} = {name!r} cannot follow the strategy {config.search.strategy.name!r}: {reason}. "
            f"What can: {', '.join(traits.derivations)}."
        )
    if name == "top_k" and config.search.projections == "separate":
        raise InputError(
            f"{where} = 'top_k' needs search.projections = 'shared': candidates in parallel share their "
            f"queries, keys and values in the derived model."
        )
    rule.check(make_space(config))
