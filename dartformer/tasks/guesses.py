"""What a guess at a user's data is."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from dartformer.data.records import Record

Rows = Callable[[], Iterable[Record]]
"""Starts reading the rows of a split."""


class Columns(NamedTuple):
    """What the user names of the data; empty for what is to be guessed.

    Attributes:
      texts: the column of texts or of numbers; of texts, two that are compared.
      label: the column of labels.
      kind: of what is predicted.
      group: the column of groups, whose rows are all in one split.
      split: the column that says which split a row is in.
    """

    texts: tuple[str, ...] = ()
    label: str = ""
    kind: str = ""
    group: str = ""
    split: str = ""


class Guess(NamedTuple):
    """What a file seems to hold.

    Attributes:
      options: of the task.
      train: how many rows train will have.
      sentences: what was guessed, and why.
      half: rows of the smaller half of train, of which a batch must consist.
      task: the name of the task.
      majority: the share of the most frequent class; 0 where there are no classes.
    """

    options: dict[str, Any]
    train: int
    sentences: list[str]
    half: int
    task: str = "files"
    majority: float = 0.0
