"""What cannot go together in a config: one table of rules across its sections.

It is applied once, when the config is built (`dartformer.config.load.build`). It stands in this
folder because a rule is about typed sections, and whoever builds them applies it."""

from collections.abc import Callable
from typing import NamedTuple

from dartformer import derivations, strategies
from dartformer.attention.base import require
from dartformer.config import capacity
from dartformer.config.sections import ALPHAS, Config
from dartformer.cost.prices import check_budget
from dartformer.derivations.base import Rule as Derivation
from dartformer.errors import InputError
from dartformer.models.sizes import require_dtype
from dartformer.models.supernet import check_partial
from dartformer.training import trackers
from dartformer.training.devices import layout


class Rule(NamedTuple):
    """Two choices that do not work together.

    Attributes:
      name: of the rule.
      conflict: config -> whether the rule is broken, or why: something false where it is not.
      sentence: what a user reads, with `{config...}` and, where the conflict says why, `{reason}`.
    """

    name: str
    conflict: Callable[[Config], object]
    sentence: str


def _traits(config: Config) -> strategies.Traits:
    return config.search.strategy.built.traits


def _labels_tokens(config: Config) -> bool:
    return config.task.built.traits.per_token


def _no_labels_of_tokens(config: Config) -> str | None:
    """What to use instead, where the pooling does not fit a task with a label for each token."""
    traits = config.task.built.traits
    if not traits.per_token:
        return None
    fitting = "none"
    if traits.decoded:
        fitting = "decode"
    if config.model.pooling == fitting:
        return None
    if traits.decoded:
        return " to be read from the last one. Use model.pooling='decode'"
    return ". Use model.pooling='none'"


def _fixed_length(config: Config) -> object:
    """The first candidate that has parameters for one length alone."""
    # A batch of short examples is padded to their longest, not to the model's length.
    for candidate in config.search_space.candidates:
        if candidate.traits.fixed_length:
            return candidate
    return None


def _too_few_examples(config: Config) -> str | None:
    """Of a generated task, whose options say how many examples there are."""
    train = config.task.options.get("train")
    # Of other tasks `train` is absent, or a path: only their data say how many there are.
    if not isinstance(train, int) or config.task.options.get("endless"):
        return None
    traits, part = _traits(config), "task.train"
    if traits.supernet and traits.halves:
        train, part = train // 2, "a half of task.train"
    if config.data.batch_size <= train:
        return None
    return f"the {train} examples of {part}"


def _unlike_heads(config: Config) -> bool:
    """Whether heads that share keys and values could choose different candidates' own."""
    separate = config.search.projections == "separate" and config.space.granularity == "head"
    return separate and config.transformer.sharing > 1


def _unlike_gains(config: Config) -> bool:
    """Whether heads that share the gain of their q/k norm could choose different candidates' own."""
    by_head = config.space.granularity in ("head", "kv_group")
    return config.search.projections == "separate" and by_head and config.model.qk_norm_shared


def _no_budget(config: Config) -> str | None:
    if not config.search.budget:
        return None
    return strategies.budget_refusal(_traits(config))


def _no_kept_branches(config: Config) -> str | None:
    if config.search.remat:  # the default, which fits every strategy
        return None
    return strategies.remat_refusal(config.search.strategy.built)


def _is_top_k(derivation: Derivation | None) -> bool:
    return derivation is not None and derivations.name_of(derivation) == "top_k"


def _derivation_rules(field: str, read: Callable[[Config], Derivation | None]) -> list[Rule]:
    """The rules about a derivation, which `derive.rule` and `derive.second_opinion` share."""

    def needs_accuracy(config: Config) -> bool:
        compares = getattr(read(config), "metric", "loss")  # few derivations have a choice
        return compares == "accuracy" and config.task.built.traits.metric == "r2"

    def cannot_follow(config: Config) -> str | None:
        derivation = read(config)
        if derivation is None:
            return None
        traits = _traits(config)
        reason = derivations.refusal(derivation, traits)
        if reason is None:
            return None
        return f"{reason}. Use {' or '.join(traits.derivations)}"

    def needs_shared(config: Config) -> bool:
        return _is_top_k(read(config)) and config.search.projections == "separate"

    return [
        Rule(
            f"{field} by accuracy",
            needs_accuracy,
            f"derive.{field}={{config.derive.{field}!r}} does not work with the task "
            f"{{config.task.name}}, because a regression has no accuracy. Use metric=loss.",
        ),
        Rule(
            f"{field} after a strategy",
            cannot_follow,
            f"derive.{field}={{config.derive.{field}!r}} does not work with the strategy "
            f"{{config.search.strategy.name!r}}, because {{reason}}.",
        ),
        Rule(
            f"{field} of candidates in parallel",
            needs_shared,
            f"derive.{field}={{config.derive.{field}!r}} does not work with search.projections='separate', because "
            f"candidates in parallel share their queries, keys and values. "
            f"Use search.projections='shared'.",
        ),
    ]


NO_CLASSES = Rule(
    "classes",
    lambda config: config.task.built.classes == 0,
    "the task {config.task.name} has no classes. List them as task.label_names, or let "
    "`dartformer new --data FILE` find them.",
)

RULES: list[Rule] = [
    Rule(
        "labels of tokens",
        _no_labels_of_tokens,
        "model.pooling={config.model.pooling!r} does not work with the task {config.task.name}, "
        "because it has a label for each token{reason}.",
    ),
    Rule(
        "labels of sequences",
        lambda config: not _labels_tokens(config) and config.transformer.labels_tokens,
        "model.pooling={config.model.pooling!r} does not work with the task {config.task.name}, because it has a "
        "label for each sequence. Use model.pooling='mean', 'cls' or 'last'.",
    ),
    Rule(
        "batches of too few examples",
        _too_few_examples,
        "data.batch_size={config.data.batch_size} does not work with the task {config.task.name}, "
        "because batch size {config.data.batch_size} is more than {reason}. Lower data.batch_size, "
        "or raise task.train.",
    ),
    Rule(
        "shared keys and values",
        _unlike_heads,
        "model.kv_heads={config.model.kv_heads} does not work with search.projections='separate' "
        "and space.granularity='head', because heads that share keys and values could choose "
        "different ones. Use search.projections='shared', or granularity 'kv_group', 'layer' or 'model'.",
    ),
    Rule(
        "shared gains",
        _unlike_gains,
        "model.qk_norm_shared=True does not work with search.projections='separate' and "
        "space.granularity={config.space.granularity!r}, because heads that share a gain could choose "
        "different ones. Use search.projections='shared', or granularity 'layer' or 'model'.",
    ),
    Rule(
        "seeds in one program",
        lambda config: config.search.seeds > 1 and config.model.kernel == "cudnn",
        "model.kernel='cudnn' does not work with search.seeds > 1, because seeds run under "
        "jax.vmap. Use model.kernel='auto'.",
    ),
    Rule(
        "an optimizer of nothing",
        lambda config: not _traits(config).alphas and config.search.alphas != ALPHAS,
        "search.alphas has no effect with the strategy {config.search.strategy.name!r}, because "
        "it learns no architecture weights. Leave search.alphas at its defaults.",
    ),
    Rule(
        "a budget of candidates in parallel",
        lambda config: config.search.budget and _is_top_k(config.derive.derivation),
        "search.budget does not work with derive.rule='top_k', because a price is of one "
        "attention per head and 'top_k' keeps several. Use another rule.",
    ),
    Rule(
        "a budget without expected cost",
        _no_budget,
        "search.budget does not work with the strategy {config.search.strategy.name!r}, because "
        "{reason}. Use `dartformer derive --budget`, which works after any search.",
    ),
    Rule(
        "batches of several lengths",
        lambda config: config.data.buckets > 1 and _fixed_length(config),
        "data.buckets={config.data.buckets} does not work with {reason}, because it has "
        "parameters for one length only. Use data.buckets=1.",
    ),
    Rule(
        "branches that are kept",
        _no_kept_branches,
        "search.remat=False does not work with the strategy {config.search.strategy.name!r}, "
        "because it computes every candidate in every step and {reason}. Use search.remat=True.",
    ),
    *_derivation_rules("rule", lambda config: config.derive.derivation),
    *_derivation_rules("second_opinion", lambda config: config.derive.opinion),
    Rule(
        "seeds on devices",
        lambda config: config.search.seeds % config.mesh.seeds,
        "mesh.seeds={config.mesh.seeds} must divide search.seeds={config.search.seeds}.",
    ),
    Rule(
        "seeds without a supernet",
        lambda config: config.search.seeds > 1 and not _traits(config).supernet,
        "search.seeds={config.search.seeds} does not work with the strategy "
        "{config.search.strategy.name!r}, because it trains no supernet. Use retrain.seeds.",
    ),
]
"""Every rule; the first that is broken is the one a user reads."""


def check(config: Config) -> None:
    """Raise `InputError` for the first choices of a config that do not work together."""
    require_dtype(config.model.dtype)
    _check_shape(config)
    # A space of several shapes is searched shape by shape: each must work, before any is trained.
    for shape in config.shapes.values():
        if shape is not config:
            _check_shape(shape)


def _check_shape(config: Config) -> None:
    # A task without classes has no sizes, which everything below reads.
    _require(NO_CLASSES, config)
    # Before the rules, because they read every label and every place of the space.
    capacity.check(config)
    for rule in RULES:
        _require(rule, config)
    _check_parts(config)


def _require(rule: Rule, config: Config) -> None:
    """Raise `InputError` where a rule is broken."""
    # A conflict may be a mere `True`, whose sentence has no place for a reason.
    reason = rule.conflict(config)
    if reason:
        raise InputError(rule.sentence.format(config=config, reason=reason))


def _check_parts(config: Config) -> None:
    """What attentions, strategies, derivations and the supernet check of the rest themselves."""
    # After the rules, whose sentences name the fields of both sides.
    space, sizes, strategy = config.search_space, config.transformer, config.search.strategy.built
    for candidate in space.candidates:
        require(
            candidate,
            causal=sizes.causal,
            length=sizes.tokens,
            order=strategy.order,
            positions=sizes.positions,
            dropout=sizes.attention_dropout,
            head_dim=sizes.head_dim,
        )
    strategy.check(len(space.candidates), config.search.steps)
    check_partial(sizes.heads, space.granularity, config.search.projections, config.search.partial)
    if config.search.limits:
        check_budget(config.search.limits, sizes, space)
    config.derive.derivation.check(space)
    if config.derive.opinion:
        config.derive.opinion.check(space)


def require_here(config: Config) -> None:
    """Raise `InputError` where this machine lacks devices, memory or packages that the config needs.

    Apart from `check`, because a model that was trained elsewhere loads all the same.
    """
    part = config.data.part_size
    layout(config.mesh.shape, part)
    layout(config.mesh.shape, part, seeds_lead=True)
    capacity.require_here(config)
    trackers.require_installed(config.log.trackers)
