"""The attentions to search over: the table of built-in ones, and how others join it.

An attention is a frozen dataclass (see `base.Attention`). To add one here: a file, and a line in
`ATTENTIONS`. To add one from outside: `register`, or an entry point in the group
`dartformer.attention`; `check` tests it."""

import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

from dartformer import spec
from dartformer.attention.base import Attention, Cost, Inputs, Params, Shape, Traits
from dartformer.attention.bigbird import BigBird
from dartformer.attention.block import Block
from dartformer.attention.conformance import check as _check
from dartformer.attention.conformance.check import ConformanceError, Report
from dartformer.attention.conv import Conv
from dartformer.attention.cosformer import Cosformer
from dartformer.attention.differential import Differential
from dartformer.attention.fourier import Fourier
from dartformer.attention.full import Full
from dartformer.attention.gated_delta import GatedDelta
from dartformer.attention.gated_linear import GatedLinear
from dartformer.attention.identity import Identity
from dartformer.attention.linear import Linear
from dartformer.attention.linformer import Linformer
from dartformer.attention.local import Local
from dartformer.attention.longformer import Longformer
from dartformer.attention.nystrom import Nystrom
from dartformer.attention.parallel import Parallel
from dartformer.attention.performer import Performer
from dartformer.attention.reformer import Reformer
from dartformer.attention.retention import Retention
from dartformer.attention.sink import Sink
from dartformer.attention.sinkhorn import Sinkhorn
from dartformer.attention.sparse import Sparse
from dartformer.attention.ssd import Ssd
from dartformer.attention.strided import Strided
from dartformer.attention.synthesizer import Synthesizer
from dartformer.attention.uniform import Uniform
from dartformer.errors import InputError

__all__ = [
    "ATTENTIONS",
    "Attention",
    "BigBird",
    "Block",
    "ConformanceError",
    "Conv",
    "Cosformer",
    "Cost",
    "Differential",
    "Fourier",
    "Full",
    "GatedDelta",
    "GatedLinear",
    "Identity",
    "Inputs",
    "Linear",
    "Linformer",
    "Local",
    "Longformer",
    "Nystrom",
    "Parallel",
    "Params",
    "Performer",
    "Reformer",
    "Report",
    "Retention",
    "Shape",
    "Sink",
    "Sinkhorn",
    "Sparse",
    "Ssd",
    "Strided",
    "Synthesizer",
    "Traits",
    "Uniform",
    "check",
    "names",
    "parse",
    "register",
    "to_text",
]

ATTENTIONS: dict[str, type] = {
    "full": Full,
    "local": Local,
    "strided": Strided,
    "block": Block,
    "sparse": Sparse,
    "longformer": Longformer,
    "bigbird": BigBird,
    "sink": Sink,
    "linear": Linear,
    "cosformer": Cosformer,
    "performer": Performer,
    "retention": Retention,
    "gated_linear": GatedLinear,
    "gated_delta": GatedDelta,
    "ssd": Ssd,
    "reformer": Reformer,
    "linformer": Linformer,
    "nystrom": Nystrom,
    "sinkhorn": Sinkhorn,
    "synthesizer": Synthesizer,
    "differential": Differential,
    "fourier": Fourier,
    "uniform": Uniform,
    "identity": Identity,
    "conv": Conv,
    "parallel": Parallel,
}
"""Name in specs, and class. `register` adds to it."""

GROUP = "dartformer.attention"
BUILT_IN = frozenset(ATTENTIONS)


class _Table(Mapping[str, type]):
    """`ATTENTIONS` and the entry points, which are imported when first asked for by name."""

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        points: dict[str, importlib.metadata.EntryPoint] = {}
        for point in importlib.metadata.entry_points(group=GROUP):
            if point.name in BUILT_IN or points.setdefault(point.name, point).value != point.value:
                raise InputError(
                    f"attention {point.name!r} (entry point {point.value}) is already registered: "
                    f"uninstall the package that offers it, or rename it there."
                )
        return points

    def __iter__(self) -> Iterator[str]:
        yield from ATTENTIONS
        yield from (name for name in self._entry_points() if name not in ATTENTIONS)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in ATTENTIONS or name in self._entry_points()

    def __getitem__(self, name: str) -> type:
        if name not in ATTENTIONS:
            point = self._entry_points()[name]
            try:
                cls = point.load()
            except Exception as error:
                raise InputError(
                    f"attention {name!r} (entry point {point.value}) cannot be loaded: {error}"
                ) from error
            register(name, cls)
        return ATTENTIONS[name]


_TABLE = _Table()


def register(name: str, cls: type) -> type:
    """Make `cls`, a frozen dataclass that keeps the protocol, known as `name`; returns `cls`. Twice
    is as good as once.

    Raises:
      InputError: the name is another's, or is no identifier, or `cls` is no frozen dataclass with
        `traits`.
    """
    if not name.isidentifier():
        raise InputError(f"attention name {name!r} must be an identifier, such as 'my_attention'.")
    if ATTENTIONS.get(name) is cls:
        return cls
    if name in ATTENTIONS:
        raise InputError(
            f"attention {name!r} is already registered, as {ATTENTIONS[name].__qualname__}."
        )
    parameters: Any = getattr(cls, "__dataclass_params__", None)
    if (
        parameters is None
        or not parameters.frozen
        or not isinstance(getattr(cls, "traits", None), Traits)
    ):
        raise InputError(
            f"{name}: {cls!r} must be a class decorated with @dataclass(frozen=True), with `traits`."
        )
    ATTENTIONS[name] = cls
    return cls


def names() -> tuple[str, ...]:
    """Every known attention: built in, registered, and offered by entry points."""
    return tuple(_TABLE)


def parse(text: str) -> Attention:
    """The attention that `text` spells: `full`, `local(window=16)` or `local(16)`. Inverse of
    `to_text`.

    Raises:
      InputError: not of this form, an unknown name or option, or a value of the wrong type or
        range.
    """
    return spec.parse(text, _TABLE)


def to_text(attention: Attention) -> str:
    """The text of a registered attention with all its fields, `local(window=16)`. Inverse of
    `parse`."""
    return spec.to_text(attention, _TABLE)


def check(
    attention: Attention,
    *,
    seed: int = 0,
    heads: int = 3,
    head_dim: int = 8,
    length: int = 53,
    tolerance: float = 1e-6,
    raise_: bool = True,
) -> Report:
    """Try the whole conformance suite on `attention`, a user's own type too: see `check.check`.

    Raises:
      ConformanceError: some property fails, and `raise_`; the message lists every one with its
        numbers.
    """
    return _check.check(
        attention,
        seed=seed,
        heads=heads,
        head_dim=head_dim,
        length=length,
        tolerance=tolerance,
        raise_=raise_,
        table=_TABLE,
    )
