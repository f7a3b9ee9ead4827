"""Profile: what models cost on this device, whole, by layer and by attention."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from dartformer import cost
from dartformer.attention import to_text
from dartformer.attention.base import Attention, Shape
from dartformer.config import Config, capacity
from dartformer.errors import InputError
from dartformer.machine.workdir import read_json
from dartformer.models.decode import can_generate
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.results import (
    AttentionProfile,
    Latency,
    LayerPrice,
    LayerProfile,
    ModelProfile,
    Profile,
)
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.layout import Workdir
from dartformer.stages.study import Study

MOST_REPEATS = 1_000_000
"""Timed calls. Their median needs a few dozen."""

DECODE = "decoding is one more token of each example after {length}"
BY_FORMULA = (
    ", by formula: no latency is measured, because only models that predict the next token, such as "
    "those of the task language, are run token by token"
)
STUCK = "; these cannot decode token by token: {names}"

SINGLE = ("found", "given", "exported")
"""Names of what is profiled layer by layer; of homogeneous models one layer says all."""


@dataclasses.dataclass(frozen=True)
class At:
    """Where costs are measured.

    Attributes:
      batch: examples at once.
      lengths: tokens of an example; of several, the first is the one of the tables and all are the
        sweep.
      phase: one of `budget.PHASES`.
      repeats: calls that are timed.
    """

    batch: int = 1
    lengths: tuple[int, ...] = ()
    phase: str = "forward"
    repeats: int = 20

    @property
    def decoding(self) -> bool:
        """Whether costs are of one more token."""
        return self.phase == "decode"

    def checked(self, config: TransformerConfig, genotypes: Mapping[str, Genotype]) -> "At":
        """With the model's own length as the default; raises `InputError` for impossible values."""
        lengths = self.lengths or (config.length,)
        _require_positive("batch", self.batch)
        _require_positive("repeats", self.repeats)
        for length in lengths:
            _require_positive("length", length)
        cost.check_phase(self.phase)
        if max(lengths) > config.length:
            raise InputError(
                f"the model takes at most {config.length} tokens, got a length of {max(lengths)}: "
                f"set the task's length with --config."
            )
        if self.repeats > MOST_REPEATS:
            raise InputError(f"repeats must be at most {MOST_REPEATS:,}, got {self.repeats}.")
        # Beyond 64 bits XLA would end the process, without an error to report.
        if not self.decoding:
            size = capacity.activation_bytes(config, self.batch)
            subject = f"a batch of {self.batch} examples needs"
            capacity.require_memory(capacity.Need(subject, size, "--batch or --length"))
        foreign = [str(length) for length in lengths if length != config.length]
        for attention in _attentions(genotypes):
            if attention.traits.fixed_length and foreign:
                raise InputError(
                    f"{to_text(attention)} has parameters for {config.length} tokens only, and "
                    f"cannot be profiled at {', '.join(foreign)}."
                )
        return dataclasses.replace(self, lengths=lengths)


def _require_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}.")


def _attentions(genotypes: Mapping[str, Genotype]) -> Iterator[Attention]:
    for genotype in genotypes.values():
        for heads in genotype.layers:
            yield from heads


class Setting(NamedTuple):
    """Sizes of a model, and where it is measured.

    Attributes:
      config: sizes.
      at: batch, phase and repeats.
      length: tokens of an example.
    """

    config: TransformerConfig
    at: At
    length: int

    @property
    def documents(self) -> int:
        """Sequences at once: two of an example that compares documents."""
        return self.at.batch * self.config.inputs

    @property
    def tokens(self) -> int:
        """Of a sequence, with what the model adds, such as [CLS]."""
        return self.length + self.config.tokens - self.config.length

    def shape(self, heads: int) -> Shape:
        """What an attention on a group of heads is given."""
        # At most: each of the heads may read another key and value head.
        kv_heads = min(heads, self.config.kv_heads or heads)
        return self.config.attention_shape(
            heads, kv_heads=kv_heads, batch=self.documents, length=self.tokens
        )


class Measurement(NamedTuple):
    """What was measured of a compiled program; fields of a profile's row."""

    latency_seconds: Latency
    throughput: float
    xla_temp_bytes: int
    xla_flops: float | None


def profile(
    study: Study,
    workdir: Workdir,
    genotype: Genotype,
    at: At | None = None,
    detail: bool = False,
) -> Profile:
    """The found genotype and the homogeneous ones, measured; writes `profile.json`."""
    named = {"found": genotype, **homogeneous(study.space)}
    data = profile_all(study.model, named, at or At(), detail)
    # So that a report shows no profile of a genotype that was replaced since.
    data = dataclasses.replace(data, identity=dict(study.model_identity(genotype)))
    workdir.write(workdir.profile, data)
    return data


def homogeneous(space: SearchSpace) -> dict[str, Genotype]:
    """A search space by its homogeneous models."""
    named = {}
    for genotype in space.homogeneous():
        named[str(genotype)] = genotype
    return named


def profile_all(
    config: TransformerConfig, named: Mapping[str, Genotype], at: At, detail: bool
) -> Profile:
    """Profile genotypes of one size.

    Args:
      config: sizes.
      named: genotypes by name; of those in `SINGLE` every layer is measured, of a search space one
        layer of each.
      at: batch, lengths, phase.
      detail: measure each layer, and each attention on its group of heads, too.
    """
    at = at.checked(config, named)
    setting = Setting(config, at, at.lengths[0])
    groups = _groups(named.values())
    models = _models(setting, named, detail)
    attentions = []
    for attention, heads in groups:
        attentions.append(by_attention(setting, attention, heads, detail))
    data = Profile(
        cost.device(),
        jax.__version__,
        at.batch,
        setting.length,
        at.phase,
        config.dtype,
        tuple(models),
        tuple(attentions),
    )
    if at.decoding:
        note = _note(setting.length, groups, models)
        data = dataclasses.replace(data, note=note)
    if not detail:
        return data
    data = dataclasses.replace(data, layers=tuple(_layers(setting, named)))
    if len(at.lengths) < 2:
        return data
    sweep = []
    for length in at.lengths:
        sweep += _models(Setting(config, at, length), named, False)
    return dataclasses.replace(data, sweep=tuple(sweep))


def _models(setting: Setting, named: Mapping[str, Genotype], useful: bool) -> list[ModelProfile]:
    rows = []
    for name, genotype in named.items():
        rows.append(whole(setting, name, genotype, useful))
    return rows


def _layers(setting: Setting, named: Mapping[str, Genotype]) -> list[LayerProfile]:
    """Rows of the layers of a single model, or one row for each model of a search space."""
    rows = []
    single = not named.keys().isdisjoint(SINGLE)
    for name, genotype in named.items():
        if name in SINGLE:
            rows += by_layer(setting, genotype)
        elif not single:
            # All layers of a homogeneous model cost the same.
            rows += by_layer(setting, genotype)[:1]
    return rows


def _groups(genotypes: Iterable[Genotype]) -> list[tuple[Attention, int]]:
    """Each attention with each number of heads that it has in a layer, once."""
    groups: dict[tuple[Attention, int], None] = {}  # a set that keeps its order
    for genotype in genotypes:
        for layer in range(len(genotype.layers)):
            for attention, heads in genotype.groups(layer):
                groups[attention, len(heads)] = None
    return list(groups)


def _note(length: int, groups: list[tuple[Attention, int]], models: Sequence[ModelProfile]) -> str:
    note = DECODE.format(length=length)
    if not any(model.latency_seconds for model in models):
        note += BY_FORMULA
    stuck = set()
    for attention, _ in groups:
        if not cost.decodes(attention):
            stuck.add(to_text(attention))
    if stuck:
        note += STUCK.format(names=", ".join(sorted(stuck)))
    return note


def whole(setting: Setting, name: str, genotype: Genotype, useful: bool) -> ModelProfile:
    """The row of a whole model.

    With the FLOPs that are `useful`, which takes a second for each attention.
    """
    config, at = setting.config, setting.at
    shapes = _shapes(setting, genotype)
    row = _by_formula(setting, name, genotype, shapes)
    if at.decoding:
        return _decoding(setting, row, genotype)
    if useful:
        row = dataclasses.replace(row, useful_flops=_useful(config, row.flops, shapes))
    measured = cost.model(
        config,
        genotype,
        batch=at.batch,
        length=setting.length,
        phase=at.phase,
        repeats=at.repeats,
    )
    return dataclasses.replace(row, **_measured(measured, at.batch)._asdict())


def _shapes(setting: Setting, genotype: Genotype) -> list[tuple[Attention, Shape]]:
    """The attentions of all layers, each on its group of heads."""
    shapes = []
    for layer in range(setting.config.layers):
        for attention, heads in genotype.groups(layer):
            shapes.append((attention, setting.shape(len(heads))))
    return shapes


def _by_formula(
    setting: Setting, name: str, genotype: Genotype, shapes: list[tuple[Attention, Shape]]
) -> ModelProfile:
    """The row of a whole model without anything measured."""
    config, batch, tokens = setting.config, setting.at.batch, setting.tokens
    layers, activation, training, state = [], [], [], []
    for layer in range(config.layers):
        price = cost.attention_cost(config, genotype, layer, batch=setting.documents, length=tokens)
        activation.append(price.activation_bytes)
        state.append(price.state_bytes)
        layers.append(LayerPrice(price.flops, price.activation_bytes, price.state_bytes))
    for attention, shape in shapes:
        training.append(cost.training_bytes(attention, shape, causal=config.causal))
    return ModelProfile(
        name,
        tuple(map(tuple, genotype.texts())),
        batch,
        setting.length,
        cost.model_parameters(transformer(config, genotype)),
        cost.flops(config, genotype, batch=batch, length=tokens),
        # Layers reuse the memory of intermediate arrays, one after another. What a backward pass
        # or the next token needs of each layer is kept for all of them at once.
        max(activation),
        sum(training),
        sum(state),
        tuple(layers),
        latency_seconds=None,
        throughput=None,
    )


def _decoding(setting: Setting, row: ModelProfile, genotype: Genotype) -> ModelProfile:
    """The row with the FLOPs of one more token, or with none where the model cannot decode."""
    for attention in _attentions({row.name: genotype}):
        if not cost.decodes(attention):
            return dataclasses.replace(row, decodes=False, flops=None)
    flops = cost.decoding_flops(
        setting.config, genotype, batch=setting.documents, length=setting.tokens
    )
    row = dataclasses.replace(row, decodes=True, flops=flops)
    if not can_generate(setting.config, genotype):
        return row
    at = setting.at
    measured = cost.decode(
        setting.config, genotype, batch=at.batch, length=setting.length, repeats=at.repeats
    )
    size = measured.argument_bytes + measured.temp_bytes
    fields = _measured(measured, at.batch)._asdict()
    return dataclasses.replace(row, decode_bytes=size, **fields)


def _useful(
    config: TransformerConfig, executed: float | None, shapes: list[tuple[Attention, Shape]]
) -> float | None:
    """FLOPs without those on what masks leave out; None where an attention cannot tell."""
    if executed is None:
        return None
    wasted = 0.0
    for attention, shape in shapes:
        useful = cost.useful_flops(attention, shape, causal=config.causal)
        if useful is None:
            return None
        wasted += attention.cost(shape).flops - useful
    return executed - wasted


def _measured(measured: cost.Measured, batch: int) -> Measurement:
    latency = Latency(*measured.seconds)
    return Measurement(latency, batch / latency.median, measured.temp_bytes, measured.xla_flops)


def by_attention(
    setting: Setting, attention: Attention, heads: int, measure: bool
) -> AttentionProfile:
    """The row of one attention on a group of heads, projections excluded."""
    config, at, shape = setting.config, setting.at, setting.shape(heads)
    price = attention.cost(shape)
    row = AttentionProfile(
        to_text(attention),
        heads,
        price.parameters,
        price.flops,
        price.activation_bytes,
        price.state_bytes,
        cost.training_bytes(attention, shape, causal=config.causal),
        cost.decodes(attention),
    )
    if not measure or at.decoding:
        return row
    useful = cost.useful_flops(attention, shape, causal=config.causal)
    measured = cost.attention(
        config,
        attention,
        heads,
        batch=at.batch,
        length=setting.tokens,
        phase=at.phase,
        repeats=at.repeats,
    )
    fields = _measured(measured, at.batch)._asdict()
    return dataclasses.replace(row, useful_flops=useful, **fields)


def by_layer(setting: Setting, genotype: Genotype) -> list[LayerProfile]:
    """A row for each layer of a genotype: its whole block; equal layers are measured once."""
    rows: list[LayerProfile] = []
    measured: dict[tuple[Attention, ...], LayerProfile] = {}
    for layer, heads in enumerate(genotype.layers):
        if heads not in measured:
            measured[heads] = _layer(setting, genotype, layer)
        rows.append(dataclasses.replace(measured[heads], layer=layer))
    return rows


def _layer(setting: Setting, genotype: Genotype, layer: int) -> LayerProfile:
    config, at, tokens = setting.config, setting.at, setting.tokens
    price = cost.attention_cost(config, genotype, layer, batch=setting.documents, length=tokens)
    row = LayerProfile(
        layer,
        genotype.describe_layer(layer),
        price.parameters,
        price.flops,
        price.activation_bytes,
        price.state_bytes,
    )
    if at.decoding:
        return row
    measured = cost.layer(
        config,
        genotype,
        layer,
        batch=at.batch,
        length=tokens,
        phase=at.phase,
        repeats=at.repeats,
    )
    return dataclasses.replace(row, **_measured(measured, at.batch)._asdict())


def parse_lengths(text: str) -> tuple[int, ...]:
    """ "128,256" as numbers; raises `InputError`."""
    parts = filter(str.strip, text.split(","))
    try:
        return tuple(map(int, parts))
    except ValueError:
        raise InputError(
            f"--length takes whole numbers separated by commas, got {text!r}."
        ) from None


def profile_asked(config: Config, genotypes: Mapping[str, Genotype], at: At) -> Profile:
    """Profile without a workdir: the genotypes, or the search space of the config."""
    named = genotypes or homogeneous(config.search_space)
    return profile_all(config.transformer, named, at, True)


def read_genotype(file: str | Path) -> Genotype:
    """The genotype in a file; raises `InputError`."""
    data = read_json(Path(file))
    try:
        return Genotype.from_dict(data)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
