"""What a family of checkpoints says of itself: its sizes, and where each tensor belongs."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import numpy as np

from dartformer.attention.full import Full
from dartformer.attention.local import Local
from dartformer.errors import InputError, brief, unknown
from dartformer.models.sizes import TransformerConfig
from dartformer.space.genotype import Genotype

T = TypeVar("T", int, float, str, bool)

Axes = tuple[int, ...]
"""The shape of an array."""

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
"""Our names of the activations, by theirs."""


class Refused(InputError):
    """An option of a checkpoint that this package lacks.

    Attributes:
      values: the section of `config.json` with the option.
      name: of the option.
    """

    def __init__(self, message: str, values: Mapping[str, object], name: str):
        super().__init__(message)
        self.values, self.name = values, name


class Settings:
    """The `config.json` of a checkpoint, whose values are checked when they are read."""

    def __init__(self, file: str, values: Mapping[str, object]):
        self.file, self.values = file, values

    def _value(self, name: str, kind: type[T], default: T | None) -> T:
        value = self.values.get(name)
        # JSON's null stands for the default, too.
        if value is None:
            value = default
        if value is None:
            raise InputError(f"{self.file} has no {name!r}.")
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{self.file}: {name} is {brief(value)}, which is no {kind.__name__}.")
        return value

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self._value(name, int, default)
        if value < least:
            raise InputError(f"{self.file}: {name} must be at least {least}, got {value}.")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number."""
        return self._value(name, float, default)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return self._value(name, bool, default)

    def text(self, name: str, default: str) -> str:
        """A text."""
        return self._value(name, str, default)

    def items(self, name: str, length: int) -> list[object]:
        """A list of that length; empty where there is none."""
        value = self.values.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) != length:
            raise InputError(f"{self.file}: {name} must be a list of {length}, got {brief(value)}.")
        return value

    def section(self, name: str) -> "Settings":
        """A dict within this one; empty where there is none."""
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise InputError(f"{self.file}: {name} is {brief(value)}, which is no section.")
        return Settings(f"{self.file}: {name}", value)

    def refuse(self, name: str, value: object, reason: str) -> Refused:
        """The error for an option that this package lacks."""
        return self.refused(
            name, f"{self.file}: {name}={brief(value)} does not work here, because {reason}."
        )

    def refused(self, name: str, message: str | InputError) -> Refused:
        """The error for an option, in words of its own."""
        return Refused(str(message), self.values, name)

    def require(self, name: str, value: bool, reason: str) -> None:
        """Raise `InputError` where a switch is not as it must be; a missing one is."""
        if self.flag(name, value) != value:
            raise self.refuse(name, not value, reason)

    def activation(self, name: str, default: str) -> str:
        """Our name of an activation."""
        activation = self.text(name, default)
        if activation not in ACTIVATIONS:
            error = unknown(f"activation ({name} of {self.file})", activation, ACTIVATIONS)
            raise self.refused(name, error)
        return ACTIVATIONS[activation]

    def theta(self, default: float) -> float:
        """The base of rotary positions, which must be the plain ones."""
        # Transformers 5 writes `rope_parameters`; before it were `rope_theta` and `rope_scaling`.
        rope = self.section("rope_parameters")
        scaling = self.section("rope_scaling")
        for section, name in itertools.product((rope, scaling), ("rope_type", "type")):
            kind = section.text(name, "default")
            if kind != "default":
                raise section.refused(
                    name,
                    f"{section.file} has the type {brief(kind)}, and dartformer has plain rotary "
                    f"positions only ('default').",
                )
        for section in (self, rope):
            share = section.number("partial_rotary_factor", 1.0)
            if share != 1:
                raise section.refuse(
                    "partial_rotary_factor", share, "whole heads are rotated and not parts of them"
                )
        return rope.number("rope_theta", self.number("rope_theta", default))


class Layout(NamedTuple):
    """How an array of a checkpoint becomes one of ours, and ours one of a checkpoint.

    Attributes:
      shape: from the shape of ours to that of the checkpoint's.
      convert: (the checkpoint's array, the shape of ours) -> ours. It must be a view, by reshaping,
        transposing and indexing alone: what is written into it is then in the checkpoint's array.
    """

    shape: Callable[[Axes], Axes]
    convert: Callable[[np.ndarray, Axes], np.ndarray]


SAME = Layout(lambda ours: ours, lambda x, ours: x)
"""As it is: norms, biases, embeddings."""

# A torch Linear stores [out, in], ours [in, out].
LINEAR = Layout(lambda ours: ours[::-1], lambda x, ours: x.T)


def _heads_shape(ours: Axes) -> Axes:
    e, h, d = ours
    return h * d, e


def _heads(x: np.ndarray, ours: Axes) -> np.ndarray:
    e, h, d = ours
    return x.reshape(h, d, e).transpose(2, 0, 1)


HEADS = Layout(_heads_shape, _heads)
"""Queries, keys or values of a torch Linear, `[H D, E]` to `[E, H, D]`."""

HEAD_BIAS = Layout(lambda ours: (ours[0] * ours[1],), lambda x, ours: x.reshape(ours))
"""Their biases, `[H D]` to `[H, D]`."""


def _output_shape(ours: Axes) -> Axes:
    h, d, e = ours
    return e, h * d


def _output(x: np.ndarray, ours: Axes) -> np.ndarray:
    h, d, e = ours
    return x.reshape(e, h, d).transpose(1, 2, 0)


OUTPUT = Layout(_output_shape, _output)
"""The output projection of a torch Linear, `[E, H D]` to `[H, D, E]`."""


class Tensor(NamedTuple):
    """One array of ours and the tensor that it is made from.

    Attributes:
      ours: the name of a leaf of our weights, such as `blocks/0/up/kernel`.
      theirs: the name in the checkpoint, without its prefix.
      layout: see `Layout`.
    """

    ours: str
    theirs: str
    layout: Layout = SAME


def of_layers(layers: int, table: Sequence[Tensor]) -> list[Tensor]:
    """The entries of a table for every layer, with its number in place of `{l}`."""
    entries = []
    for layer in range(layers):
        for entry in table:
            ours = f"blocks/{layer}/{entry.ours}"
            entries.append(Tensor(ours, entry.theirs.replace("{l}", str(layer)), entry.layout))
    return entries


class Architecture(NamedTuple):
    """What a `config.json` describes."""

    config: TransformerConfig
    genotype: Genotype


class Described(NamedTuple):
    """What the `config.json` of a checkpoint describes, without its weights.

    Attributes:
      folder: of the checkpoint.
      family: its `model_type`.
      config: sizes and choices of the Transformer.
      genotype: its attentions.
    """

    folder: Path
    family: str
    config: TransformerConfig
    genotype: Genotype


class Windowed(NamedTuple):
    """A class of transformers with one sliding window, in the layers that `layer_types` names.

    Attributes:
      model_type: of its `config.json`.
      prefix: what the names of its classes begin with, such as "Ministral".
      options: what `config.json` needs beside `layer_types` and `sliding_window`.
      defaults: what the checkpoint's own class takes where `config.json` says nothing, and this one
        does not.
    """

    model_type: str
    prefix: str
    options: Mapping[str, object]
    defaults: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True)
class Family:
    """One kind of checkpoints.

    Attributes:
      name: in words.
      architecture: (settings, dtype of the activations) -> sizes and attentions; raises
        `InputError` for what this package lacks.
      tensors: the table of all tensors of a model.
      prefixes: what may stand before all names of a checkpoint.
      ignored: patterns of names that are no part of the model, such as buffers and poolers; `*`
        stands for any text.
      windowed: (sizes) -> the class that such a model with windows in some layers is written as;
        None where transformers has no such class.
    """

    name: str
    architecture: Callable[[Settings, str], Architecture]
    tensors: Callable[[TransformerConfig], list[Tensor]]
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = ()
    windowed: Callable[[TransformerConfig], Windowed] | None = None


def attentions(settings: Settings, layers: int, heads: int, kinds: Sequence[object]) -> Genotype:
    """The genotype of `layer_types`: full attention, or a sliding window of so many tokens.

    A window of W counts the token itself, where that of `local` does not.
    """
    rows: list[tuple[Full | Local, ...]] = []
    for kind in kinds or ["full_attention"] * layers:
        attention: Full | Local = Full()
        if kind == "sliding_attention":
            attention = Local(settings.count("sliding_window") - 1)
        elif kind != "full_attention":
            kinds = ("full_attention", "sliding_attention")
            error = unknown(f"layer type ({settings.file})", kind, kinds)
            raise settings.refused("layer_types", error)
        rows.append((attention,) * heads)
    return Genotype(tuple(rows))
