"""The attentions to search over: the table of built-in ones, and how others join it.

An attention is a frozen dataclass (see `base.Attention`). To add one here, write a file and a line
in `BUILT_IN`. To add one from outside, call `dartformer.register("attention", name, cls)` or offer
an entry point of the group `dartformer.attention`. `check` tests it.
"""

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
from dartformer.attention.window_linear import WindowLinear
from dartformer.registry import Registry

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
    "WindowLinear",
    "check",
    "names",
    "parse",
    "to_text",
]

BUILT_IN: dict[str, type] = {
    "full": Full,
    "local": Local,
    "strided": Strided,
    "block": Block,
    "sparse": Sparse,
    "longformer": Longformer,
    "bigbird": BigBird,
    "sink": Sink,
    "linear": Linear,
    "window_linear": WindowLinear,
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


def _fits(cls: type) -> bool:
    parameters = getattr(cls, "__dataclass_params__", None)
    return bool(
        parameters and parameters.frozen and isinstance(getattr(cls, "traits", None), Traits)
    )


ATTENTIONS: Registry[type] = Registry(
    "attention",
    BUILT_IN,
    group="dartformer.attention",
    requirement="a class decorated with @dataclass(frozen=True), with `traits`",
    fits=_fits,
)
"""Every attention by name: the built-in ones, and those of other packages."""


def names() -> tuple[str, ...]:
    """Every known attention: built in, registered, and offered by entry points."""
    return tuple(ATTENTIONS.names())


def parse(text: str) -> Attention:
    """The attention that `text` spells: `full`, `local(window=16)` or `local(16)`. Inverse of
    `to_text`.

    Raises:
      InputError: not of this form, an unknown name or option, or a value of the wrong type or
        range.
    """
    return spec.parse(text, ATTENTIONS)


def to_text(attention: Attention) -> str:
    """The text of a registered attention with all its fields, `local(window=16)`. Inverse of
    `parse`."""
    return spec.to_text(attention, ATTENTIONS)


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
        table=ATTENTIONS,
    )
