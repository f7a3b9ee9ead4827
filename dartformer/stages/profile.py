"""Profile: what models cost on this device, whole, by layer and by attention, beside the
homogeneous ones."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from dartformer import cost
from dartformer.attention import to_text
from dartformer.config import Config
from dartformer.errors import InputError
from dartformer.machine.workdir import write_json
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.study import Run

DECODE = (
    "decoding is priced by formula, as one more token after {length}: nothing here runs token by token, so that "
    "no latency is measured{names}"
)
STUCK = "; these cannot be decoded, as a later token changes earlier outputs: "

ONE = ("found", "given", "exported")
"""Names of what is profiled layer by layer; of homogeneous models one layer says all."""


@dataclasses.dataclass(frozen=True)
class At:
    """Where costs are asked for.

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

    def checked(self, config: TransformerConfig, genotypes: Mapping[str, Genotype]) -> "At":
        """With the model's own length where none is given; raises `InputError` for what cannot
        be."""
        lengths = self.lengths or (config.length,)
        for name, value in (
            ("batch", self.batch),
            ("repeats", self.repeats),
            *(("length", n) for n in lengths),
        ):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number of at least 1, got {value!r}.")
        cost.check_phase(self.phase)
        if max(lengths) > config.length:
            raise InputError(
                f"the model takes at most {config.length} tokens, got a length of {max(lengths)}: set "
                f"the task's length with --config."
            )
        for one in {a: None for g in genotypes.values() for heads in g.layers for a in heads}:
            if one.traits.fixed_length and set(lengths) != {config.length}:
                raise InputError(
                    f"{to_text(one)} has parameters for {config.length} tokens alone, and cannot be "
                    f"profiled at {', '.join(str(n) for n in lengths if n != config.length)}."
                )
        return dataclasses.replace(self, lengths=lengths)


def profile(
    run: Run, genotype: Genotype, at: At | None = None, detail: bool = False
) -> dict[str, Any]:
    """The found genotype and the homogeneous ones, measured; writes `profile.json` in the
    workdir."""
    data = profile_all(run.model, {"found": genotype, **homogeneous(run.space)}, at or At(), detail)
    write_json(run.file("profile.json"), data)
    return data


def homogeneous(space: SearchSpace) -> dict[str, Genotype]:
    """A search space by its homogeneous models."""
    return {str(g): g for g in space.homogeneous()}


def profile_all(
    config: TransformerConfig, named: Mapping[str, Genotype], at: At, detail: bool
) -> dict[str, Any]:
    """Profile genotypes of one size.

    Args:
      config: sizes.
      named: genotypes by name; of those in `ONE` every layer is looked at, of a search space one
        layer of each.
      at: batch, lengths, phase.
      detail: measure each layer, and each attention on its group of heads, too.

    Returns:
      "device", "batch", "length", "phase", "dtype"; "models", "attentions" and "layers", a list of
      rows each; "sweep", rows of every model at every length where there are several.
    """
    at = at.checked(config, named)
    length = at.lengths[0]
    groups = {
        (a, len(heads)): None
        for g in named.values()
        for l in range(config.layers)
        for a, heads in g.groups(l)
    }
    data: dict[str, Any] = {
        "device": cost.device(),
        "jax": jax.__version__,
        "batch": at.batch,
        "length": length,
        "phase": at.phase,
        "dtype": config.dtype,
        "models": [whole(config, n, g, at, length, detail) for n, g in named.items()],
        "attentions": [by_attention(config, a, n, at, length, detail) for a, n in groups],
    }
    if at.phase == "decode":
        stuck = sorted({to_text(a) for a, _ in groups if not cost.decodes(a)})
        data["note"] = DECODE.format(length=length, names=STUCK + ", ".join(stuck) if stuck else "")
    if detail:
        data["layers"] = [
            row
            for name, g in named.items()
            if name in ONE or not any(n in named for n in ONE)
            for row in by_layer(config, g, at, length)[: None if name in ONE else 1]
        ]
        if len(at.lengths) > 1:
            data["sweep"] = [
                whole(config, n, g, at, one, False) for one in at.lengths for n, g in named.items()
            ]
    return data


def whole(
    config: TransformerConfig, name: str, genotype: Genotype, at: At, length: int, useful: bool
) -> dict[str, Any]:
    """The row of a whole model; with the FLOPs that are `useful`, which takes a second for each
    type."""
    documents, n = at.batch * config.inputs, length + config.tokens - config.length
    layers = [
        cost.attention_cost(config, genotype, l, batch=documents, length=n)
        for l in range(config.layers)
    ]
    parts = [
        _shaped(config, a, len(heads), documents, n)
        for l in range(config.layers)
        for a, heads in genotype.groups(l)
    ]
    executed = cost.flops(config, genotype, batch=at.batch, length=n)
    row: dict[str, Any] = {
        "name": name,
        "genotype": genotype.to_dict()["layers"],
        "batch": at.batch,
        "length": length,
        "parameters": cost.model_parameters(transformer(config, genotype)),
        "flops": executed,
        **(
            {"useful_flops": _useful(config, parts, executed)}
            if useful and at.phase != "decode"
            else {}
        ),
        "attention_activation_bytes": max(c.activation_bytes for c in layers),
        "attention_training_bytes": sum(
            cost.training_bytes(a, s, causal=config.causal) for a, s in parts
        ),
        "state_bytes": sum(c.state_bytes for c in layers),
        "layers": [
            {"flops": c.flops, "activation_bytes": c.activation_bytes, "state_bytes": c.state_bytes}
            for c in layers
        ],
    }
    if at.phase == "decode":
        able = all(cost.decodes(a) for a, _ in parts)
        return {
            **row,
            "decodes": able,
            "latency_seconds": None,
            "throughput": None,
            "flops": cost.decoding_flops(config, genotype, batch=documents, length=n)
            if able
            else None,
        }
    return {
        **row,
        **_measured(
            cost.model(
                config, genotype, batch=at.batch, length=length, phase=at.phase, repeats=at.repeats
            ),
            at.batch,
        ),
    }


def _useful(
    config: TransformerConfig, parts: list[tuple[Any, Any]], executed: float
) -> float | None:
    wasted = 0.0
    for attention, shape in parts:
        useful = cost.useful_flops(attention, shape, causal=config.causal)
        if useful is None:
            return None
        wasted += attention.cost(shape).flops - useful
    return executed - wasted


def _shaped(
    config: TransformerConfig, attention: Any, heads: int, documents: int, n: int
) -> tuple[Any, Any]:
    return attention, config.attention_shape(
        heads, kv_heads=-(-heads // config.sharing), batch=documents, length=n
    )


def _measured(found: cost.Measured, batch: int) -> dict[str, Any]:
    return {
        "latency_seconds": found.seconds._asdict(),
        "throughput": batch / found.seconds.median,
        "xla_temp_bytes": found.temp_bytes,
        "xla_flops": found.xla_flops,
    }


def by_attention(
    config: TransformerConfig, attention: Any, heads: int, at: At, length: int, measure: bool
) -> dict[str, Any]:
    """The row of one attention on a group of heads, projections excluded."""
    documents, n = at.batch * config.inputs, length + config.tokens - config.length
    _, shape = _shaped(config, attention, heads, documents, n)
    found = attention.cost(shape)
    row = {
        "attention": to_text(attention),
        "heads": heads,
        "parameters": found.parameters,
        "flops": found.flops,
        "activation_bytes": found.activation_bytes,
        "state_bytes": found.state_bytes,
        "training_bytes": cost.training_bytes(attention, shape, causal=config.causal),
        "decodes": cost.decodes(attention),
    }
    if measure and at.phase != "decode":
        row["useful_flops"] = cost.useful_flops(attention, shape, causal=config.causal)
        row.update(
            _measured(
                cost.attention(
                    config,
                    attention,
                    heads,
                    batch=at.batch,
                    length=n,
                    phase=at.phase,
                    repeats=at.repeats,
                ),
                at.batch,
            )
        )
    return row


def by_layer(
    config: TransformerConfig, genotype: Genotype, at: At, length: int
) -> list[dict[str, Any]]:
    """A row for each layer of a genotype: its whole block; equal layers are measured once."""
    documents, n = at.batch * config.inputs, length + config.tokens - config.length
    rows: list[dict[str, Any]] = []
    known: dict[Any, dict[str, Any]] = {}
    for l in range(config.layers):
        heads = genotype.layers[l]
        if heads not in known:
            found = cost.attention_cost(config, genotype, l, batch=documents, length=n)
            known[heads] = {
                "attentions": genotype.describe_layer(l),
                "attention_parameters": found.parameters,
                "attention_flops": found.flops,
                "attention_activation_bytes": found.activation_bytes,
                "state_bytes": found.state_bytes,
            }
            if at.phase != "decode":
                known[heads].update(
                    _measured(
                        cost.layer(
                            config,
                            genotype,
                            l,
                            batch=at.batch,
                            length=n,
                            phase=at.phase,
                            repeats=at.repeats,
                        ),
                        at.batch,
                    )
                )
        rows.append({"layer": l, **known[heads]})
    return rows


def parse_lengths(text: str) -> tuple[int, ...]:
    """ "128,256" as numbers; raises `InputError`."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(
            f"--length takes whole numbers separated by commas, got {text!r}."
        ) from None


def profile_asked(config: Config, given: Mapping[str, Genotype], at: At) -> dict[str, Any]:
    """Genotypes that are named, or the search space of a config where none is, and no workdir."""
    genotypes = given or homogeneous(config.search_space)
    return profile_all(config.transformer, genotypes, at, True)


def read_genotype(file: str | Path) -> Genotype:
    """The genotype in a file; raises `InputError`."""
    try:
        return Genotype.from_json(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the genotype {file}: {error}.") from None
