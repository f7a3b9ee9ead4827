"""ListOps at the length of Long Range Arena: evaluate nested lists of operators over digits.

Nangia and Bowman 2018 (1804.06028) invented the task; Tay et al. 2020 (2011.04006) made it long.
Trees are drawn from the published distribution, but from a seed. There, always saying the majority
class scores 17.2%, and a rule that reads nothing but the first symbol 36.2%."""

import hashlib
import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from dartformer.data.prepare import Example, Notes, prepared
from dartformer.data.sources import from_source
from dartformer.data.splits import Split, in_order
from dartformer.errors import InputError, unknown
from dartformer.tasks import generated
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.requirements import require_at_least, require_ids, require_seed

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
SYMBOLS = ("", *OPERATORS, "]", *"0123456789")
"""The text of every token id; 0 is padding."""

END = SYMBOLS.index("]")
ZERO = SYMBOLS.index("0")

PATIENCE = 200_000
"""Draws in a row without a new expression after which the options are refused; of the published
distribution, 1 draw in 12 is new."""


@dataclass(frozen=True)
class ListOps:
    """Nested lists of operators over digits; the label is the value, 0 to 9.

    Raises `InputError` where no expression can satisfy the options.

    Attributes:
      max_depth: most levels of operators.
      max_args: most arguments of an operator.
      min_length: an expression has more tokens than this.
      max_length: an expression has fewer tokens than this.
      operator_probability: of a node above the last level to be an operator.
      train: number of training examples.
      valid: number of validation examples.
      test: number of test examples.
      seed: of the examples.
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000
    operator_probability: float = 0.25
    train: int = 96_000
    valid: int = 2_000
    test: int = 2_000
    seed: int = 0

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Evaluate a nested list of MIN, MAX, MED and SM over digits",
        paper="Nangia and Bowman 2018, 1804.06028; long as in Tay et al. 2020, 2011.04006",
        generated=True,
    )

    def __post_init__(self) -> None:
        require_at_least(
            self,
            max_depth=1,
            max_args=2,
            min_length=0,
            max_length=2,
            train=1,
            valid=1,
            test=1,
        )
        require_seed(self)
        if not 0 <= self.operator_probability <= 1:
            raise InputError(
                f"task.operator_probability must be in [0, 1], got {self.operator_probability}."
            )
        if self.max_length - self.min_length < 2:
            raise InputError(
                f"listops keeps expressions with min_length < tokens < max_length, and no number "
                f"of tokens is between min_length {self.min_length} and max_length {self.max_length}."
            )
        if self.min_length >= self.length:
            raise InputError(
                f"task.min_length is {self.min_length}, but a tree of max_depth {self.max_depth} "
                f"and max_args {self.max_args} has at most {self.length} tokens."
            )

    @property
    def vocabulary(self) -> int:
        """Token ids, with padding."""
        return len(SYMBOLS)

    @property
    def classes(self) -> int:
        """The ten digits."""
        return 10

    @property
    def length(self) -> int:
        """Tokens of the longest possible example: of the largest tree that `max_length` allows."""
        tokens = 1  # a tree of one level is a digit
        for _ in range(self.max_depth - 1):
            # An operator, its arguments and a bracket.
            tokens = 2 + self.max_args * tokens
            if tokens >= self.max_length:
                return self.max_length - 1
        return tokens

    @property
    def labels(self) -> tuple[str, ...]:
        """The digits as text."""
        return SYMBOLS[ZERO:]

    def encode(self, text: str) -> list[int]:
        """Token ids of an expression, with or without spaces around its brackets.

        Raises `InputError` for an empty text, an unknown symbol, more than `length` tokens, or
        brackets that do not match: the model's answer would mean nothing."""
        expression = symbols(text)
        for symbol in expression:
            if symbol not in SYMBOLS:
                raise unknown("ListOps symbol", symbol, SYMBOLS[1:])
        if not expression:
            raise InputError("an empty text is not a ListOps expression.")
        if len(expression) > self.length:
            raise InputError(
                f"the expression has {len(expression)} tokens; at most {self.length} are allowed."
            )
        _value(expression)
        return list(map(SYMBOLS.index, expression))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without padding; `InputError` for an id beyond the vocabulary."""
        require_ids(ids, len(SYMBOLS))
        return generated.spelled(ids, SYMBOLS)

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", generated on first use.

        They are kept under `data_dir`, by default where TFDS keeps data. Raises `InputError` where
        the options allow too few distinct expressions, or the folder cannot be written."""
        from tensorflow_datasets import features as kinds

        data = prepared(
            "dartformer_listops",
            sorted(asdict(self).items()),
            f"ListOps expressions and their values: {self}.",
            {
                "tokens": kinds.Tensor(shape=(None,), dtype=np.uint8),
                "label": kinds.ClassLabel(names=self.labels),
            },
            self._examples,
            data_dir,
            title="ListOps",
            totals=self._counts(),
            label=f"depth{self.max_depth}-args{self.max_args}-"
            f"length{self.min_length}to{self.max_length}-seed{self.seed}",
        )
        splits = {}
        for name, source in data.splits.items():
            splits[name] = from_source(source, self.length, self.vocabulary)
        return splits

    def _counts(self) -> dict[str, int]:
        """Examples of each split in the order of the stream.

        Test comes first: another number of examples to train on leaves valid and test as they
        were."""
        return {"test": self.test, "valid": self.valid, "train": self.train}

    def _examples(self, notes: Notes) -> dict[str, Iterator[Example]]:
        # One stream, which the splits take from in turn: no expression is in two of them.
        stream = expressions(self)
        examples = {}
        for name, count in self._counts().items():
            examples[name] = _encoded(stream, count)
        return examples

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`root_operator`: the most frequent label of `train` given the first token."""
        # table[t, c]: expressions of train that start with token t and have the value c.
        table = np.zeros((self.vocabulary, self.classes), np.int64)
        for batch in in_order(train):
            np.add.at(table, (batch["tokens"][:, 0], batch["label"]), 1)
        # The majority class answers for a first token that train does not have.
        prediction = np.where(table.any(1), table.argmax(1), table.sum(0).argmax())
        right = 0
        for batch in in_order(split):
            right += int((prediction[batch["tokens"][:, 0]] == batch["label"]).sum())
        return {"root_operator": right / len(split)}


def _encoded(stream: Iterator[tuple[bytes, int]], count: int) -> Iterator[Example]:
    """The next `count` expressions of a stream as examples."""
    for tokens, label in itertools.islice(stream, count):
        yield {"tokens": np.frombuffer(tokens, np.uint8), "label": label}


def symbols(text: str) -> list[str]:
    """The symbols of a text.

    Round brackets, with which the original files make binary trees, mean nothing and are dropped."""
    return re.findall(r"\[[^\s\[\]()]*|\]|[^\s\[\]()]+", text)


def _median(values: list[int]) -> int:
    ordered = sorted(values)
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) // 2


VALUE: dict[str, Callable[[list[int]], int]] = {
    "[MIN": min,
    "[MAX": max,
    "[MED": _median,
    "[SM": lambda values: sum(values) % 10,
    "[FIRST": lambda values: values[0],
    "[LAST": lambda values: values[-1],
}
"""The value of each operator given its arguments. The median of an even list is the truncated mean
of the middle two; FIRST and LAST are in the original files only."""


def evaluate(text: str) -> int:
    """The value, 0 to 9, of an expression.

    `InputError` names the symbol and position where it is malformed."""
    return _value(symbols(text))


def _value(expression: Sequence[str]) -> int:
    """The value of a list of symbols; see `evaluate`."""
    # Values of every open list; the first is of no list and gets the value of the expression.
    arguments: list[list[int]] = [[]]
    opened: list[tuple[int, str]] = []
    for i, symbol in enumerate(expression, 1):
        if len(arguments) == 1 and arguments[0]:
            raise InputError(f"symbol {i}, {symbol!r}, comes after the end of the expression.")
        if symbol in VALUE:
            opened.append((i, symbol))
            arguments.append([])
        elif symbol == "]":
            if not opened:
                raise InputError(f"symbol {i}, ']', closes nothing.")
            start, operator = opened.pop()
            values = arguments.pop()
            if not values:
                raise InputError(f"symbol {start}, {operator!r}, has no arguments.")
            arguments[-1].append(VALUE[operator](values))
        elif symbol in SYMBOLS[ZERO:]:
            arguments[-1].append(int(symbol))
        else:
            error = unknown("ListOps symbol", symbol, [*VALUE, *SYMBOLS[END:]])
            raise InputError(f"symbol {i}: {error}")
    if opened:
        start, operator = opened[-1]
        raise InputError(f"symbol {start}, {operator!r}, is never closed.")
    if not arguments[0]:
        raise InputError("an empty text is not a ListOps expression.")
    return arguments[0][0]


def draw(options: ListOps, uniform: Callable[[], float]) -> bytes | None:
    """The token ids of one tree, or None as soon as it must be longer than `options` allow.

    `uniform` draws from [0, 1). A node above the last level, the root included, is an operator with
    `operator_probability`, else a digit; an operator has 2 to `max_args` arguments; operators,
    digits and counts are all uniform. The published code chooses an operator after its arguments,
    but independently of them."""
    p = options.operator_probability
    choices = len(OPERATORS) * (options.max_args - 1)
    digits_per_unit = 0.0
    if p < 1:
        digits_per_unit = 10 / (1 - p)
    tokens = bytearray()
    pending: list[int] = []  # arguments to draw in every open list above the innermost
    remaining = 1  # arguments to draw in the innermost
    level = options.max_depth
    least = 1  # tokens that the tree will have if every node to come is a digit
    while True:
        u = uniform()
        if level > 1 and u < p:
            # The same number, stretched to [0, 1), chooses among all pairs of an operator and a
            # count.
            choice = min(int(u / p * choices), choices - 1)
            count, operator = divmod(choice, len(OPERATORS))
            # One token becomes two brackets and count + 2 arguments of at least one token.
            least += count + 3
            if least > options.length:
                return None
            tokens.append(1 + operator)
            pending.append(remaining)
            remaining = count + 2
            level -= 1
            continue
        digit = int(u * 10)
        if level > 1:
            digit = int((u - p) * digits_per_unit)
        tokens.append(ZERO + min(digit, 9))
        remaining -= 1
        while not remaining:
            if not pending:
                return bytes(tokens)
            tokens.append(END)
            remaining = pending.pop() - 1
            level += 1


def expressions(options: ListOps) -> Iterator[tuple[bytes, int]]:
    """An endless stream of token ids and label; no expression twice.

    The same for the same options with every version of Python, which promises that the stream of
    `random.Random(seed).random` never changes, and promises it of no other method. Raises
    `InputError` when no new expression is found."""
    uniform = random.Random(options.seed).random
    # Digests in place of expressions: 16 bytes stand for a thousand.
    digests: set[bytes] = set()
    rejected = 0
    while rejected < PATIENCE:
        tokens = draw(options, uniform)
        if tokens is not None and len(tokens) > options.min_length:
            digest = hashlib.blake2b(tokens, digest_size=16).digest()
            if digest not in digests:
                digests.add(digest)
                rejected = 0
                yield tokens, _value([SYMBOLS[i] for i in tokens])
                continue
        rejected += 1
    count = options.train + options.valid + options.test
    raise InputError(
        f"found only {len(digests):,} distinct ListOps expressions of the {count:,} that {options} "
        f"needs, and then none in {PATIENCE:,} draws. Use fewer examples, or allow more lengths, "
        f"depth or arguments."
    )
