"""The discrete result of a search: for each layer, for each head, one attention."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dartformer import attention
from dartformer.attention.base import Attention
from dartformer.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class Genotype:
    """Plain data: `layers[l][h]` is the attention of head h in layer l; every layer has as many
    heads."""

    layers: tuple[tuple[Attention, ...], ...]

    def __post_init__(self) -> None:
        widths = {len(heads) for heads in self.layers}
        if not self.layers or widths == {0} or len(widths) != 1:
            raise InputError(
                f"a genotype needs at least one layer, and layers of equally many heads; "
                f"got {[len(heads) for heads in self.layers]} heads."
            )

    @classmethod
    def homogeneous(cls, one: Attention, layers: int, heads: int) -> "Genotype":
        """`one` in every layer and head."""
        return cls(((one,) * heads,) * layers)

    @property
    def heads(self) -> int:
        """H, the number of heads of each layer."""
        return len(self.layers[0])

    @property
    def is_homogeneous(self) -> bool:
        """Whether one attention stands everywhere."""
        return len({a for heads in self.layers for a in heads}) == 1

    def groups(self, layer: int) -> tuple[tuple[Attention, tuple[int, ...]], ...]:
        """The heads of a layer grouped by attention, in the order in which the attentions first
        appear."""
        heads = self.layers[layer]
        return tuple(
            (a, tuple(h for h, b in enumerate(heads) if b == a)) for a in dict.fromkeys(heads)
        )

    def to_dict(self) -> dict[str, Any]:
        """Explicit lists: `{"format": 1, "layers": [["full", "local(window=16)"], ...]}`."""
        return {
            "format": FORMAT,
            "layers": [[attention.to_text(a) for a in heads] for heads in self.layers],
        }

    @classmethod
    def from_dict(cls, data: Any) -> "Genotype":
        """The inverse of `to_dict`; raises `InputError` where the data is something else."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"not a genotype of format {FORMAT}: {str(data)[:80]!r}.")
        layers = data.get("layers")
        if not isinstance(layers, list) or not all(
            isinstance(heads, list) and all(isinstance(a, str) for a in heads) for heads in layers
        ):
            raise InputError(
                "a genotype's 'layers' must be a list of lists of attentions written as text."
            )
        return cls(tuple(tuple(attention.parse(a) for a in heads) for heads in layers))

    def to_json(self) -> str:
        """One line for each layer, so that two genotypes differ line by line."""
        rows = ",\n    ".join(json.dumps(heads) for heads in self.to_dict()["layers"])
        return f'{{\n  "format": {FORMAT},\n  "layers": [\n    {rows}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """The inverse of `to_json`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"not a genotype: {error}.") from None
        return cls.from_dict(data)

    def __str__(self) -> str:
        return in_words(self.to_dict()["layers"])

    def describe_layer(self, layer: int) -> str:
        """A layer in short: "full" or "full x2 + linear x2"."""
        return layer_in_words(self.to_dict()["layers"][layer])


def in_words(layers: Sequence[Sequence[str]]) -> str:
    """A genotype in short, from the texts of its attentions alone, which need not be known here."""
    if len({a for heads in layers for a in heads}) == 1:
        return f"{layers[0][0]} everywhere ({len(layers)}x{len(layers[0])})"
    return " | ".join(map(layer_in_words, layers))


def layer_in_words(heads: Sequence[str]) -> str:
    """A layer in short: "full" or "full x2 + linear x2"."""
    counts = Counter(heads)
    return heads[0] if len(counts) == 1 else " + ".join(f"{a} x{n}" for a, n in counts.items())


def parse_candidates(texts: Sequence[str]) -> tuple[Attention, ...]:
    """Candidates from their texts; raises `InputError` for fewer than two, or for one that stands
    twice."""
    if isinstance(texts, str):
        raise InputError(f"space.candidates must be a list of attentions, got the text {texts!r}.")
    if len(texts) < 2:
        raise InputError(
            f"space.candidates needs at least two attentions to choose among, got {list(texts)}."
        )
    candidates = tuple(attention.parse(text) for text in texts)
    for text, one in zip(texts, candidates, strict=True):
        if candidates.count(one) > 1:
            raise InputError(f"space.candidates holds {text!r} twice.")
    return candidates
