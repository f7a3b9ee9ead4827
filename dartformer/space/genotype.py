"""The discrete result of a search: for each layer, for each head, one attention."""

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dartformer import attention
from dartformer.attention.base import Attention
from dartformer.errors import InputError
from dartformer.space.source import source

FORMAT = 1


@dataclass(frozen=True)
class Genotype:
    """Plain data: `layers[l][h]` is the attention of head h in layer l.

    All layers have the same number of heads."""

    layers: tuple[tuple[Attention, ...], ...]

    def __post_init__(self) -> None:
        widths = list(map(len, self.layers))
        # The mixture of a genotype is one array [L, H, K], which has no room for ragged layers.
        if not widths or widths[0] == 0 or len(set(widths)) > 1:
            raise InputError(
                f"a genotype needs at least one layer, and the same number of heads in all layers; "
                f"got {widths} heads."
            )

    @classmethod
    def homogeneous(cls, attention: Attention, layers: int, heads: int) -> "Genotype":
        """One attention in all layers and heads."""
        return cls(((attention,) * heads,) * layers)

    @property
    def heads(self) -> int:
        """H, the number of heads of each layer."""
        return len(self.layers[0])

    def groups(self, layer: int) -> tuple[tuple[Attention, tuple[int, ...]], ...]:
        """The heads of a layer by attention, in the order in which the attentions appear."""
        groups: dict[Attention, list[int]] = {}
        for head, kind in enumerate(self.layers[layer]):
            groups.setdefault(kind, []).append(head)
        pairs = []
        for kind, heads in groups.items():
            pairs.append((kind, tuple(heads)))
        return tuple(pairs)

    def texts(self) -> list[list[str]]:
        """The attentions as text: `[["full", "local(window=16)"], ...]`."""
        texts = []
        for heads in self.layers:
            texts.append(list(map(attention.to_text, heads)))
        return texts

    def to_dict(self) -> dict[str, object]:
        """Explicit lists: `{"format": 1, "layers": [["full", "local(window=16)"], ...]}`."""
        return {"format": FORMAT, "layers": self.texts()}

    @classmethod
    def from_dict(cls, data: object) -> "Genotype":
        """The inverse of `to_dict`; raises `InputError` where the data is something else."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"not a genotype of format {FORMAT}: {str(data)[:80]!r}.")
        layers = data.get("layers")
        if not isinstance(layers, list) or not all(map(_is_list_of_texts, layers)):
            raise InputError(
                "a genotype's 'layers' must be a list of lists of attentions written as text."
            )
        # Each text once: a large model has many heads, and few attentions.
        by_text = {}
        for text in dict.fromkeys(itertools.chain.from_iterable(layers)):
            by_text[text] = attention.parse(text)
        parsed = []
        for heads in layers:
            parsed.append(tuple(by_text[text] for text in heads))
        return cls(tuple(parsed))

    def to_json(self) -> str:
        """One line for each layer, so that two genotypes differ line by line."""
        # json.dumps with an indent would give every head a line of its own.
        rows = ",\n    ".join(map(json.dumps, self.texts()))
        return f'{{\n  "format": {FORMAT},\n  "layers": [\n    {rows}\n  ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """The inverse of `to_json`."""
        try:
            data = json.loads(text)
        # A number of thousands of digits is a ValueError, brackets without end a RecursionError.
        except (ValueError, RecursionError) as error:
            raise InputError(f"not a genotype: {error}.") from None
        return cls.from_dict(data)

    def to_source(self, framework: str = "flax") -> str:
        """A module with these attentions, in a few lines of "flax" or "torch" to paste and run.

        Raises `InputError` for attentions that PyTorch has no call for: it has full and local."""
        return source(self.layers, framework)

    def __str__(self) -> str:
        return in_words(self.texts())

    def describe_layer(self, layer: int) -> str:
        """A layer in short: "full" or "full x2 + linear x2"."""
        return layer_in_words(self.texts()[layer])


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def in_words(layers: Sequence[Sequence[str]]) -> str:
    """A genotype in short, from the texts of its attentions, which need not be installed."""
    if len(set().union(*layers)) == 1:
        return f"{layers[0][0]} everywhere ({len(layers)}x{len(layers[0])})"
    return " | ".join(map(layer_in_words, layers))


def layer_in_words(heads: Sequence[str]) -> str:
    """A layer in short: "full" or "full x2 + linear x2"."""
    counts = Counter(heads)
    if len(counts) == 1:
        return heads[0]
    # A Counter keeps the order of first appearance, so equal layers read alike.
    parts = []
    for text, count in counts.items():
        parts.append(f"{text} x{count}")
    return " + ".join(parts)


def parse_candidates(texts: Sequence[str]) -> tuple[Attention, ...]:
    """Candidates from their texts; raises `InputError` for fewer than two, or for duplicates."""
    # A text is a sequence of its letters, and would fail with a message about one of them.
    if isinstance(texts, str):
        raise InputError(f"space.candidates must be a list of attentions, got the text {texts!r}.")
    if len(texts) < 2:
        raise InputError(
            f"space.candidates needs at least two attentions to choose among, got {list(texts)}."
        )
    candidates = tuple(map(attention.parse, texts))
    # Compared once parsed: "local" and "local(window=16)" are two texts of one attention.
    for text, candidate in zip(texts, candidates, strict=True):
        if candidates.count(candidate) > 1:
            raise InputError(f"space.candidates holds {text!r} twice.")
    return candidates
