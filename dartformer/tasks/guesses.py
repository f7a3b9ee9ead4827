"""What a guess at a user's data is."""

from typing import Any, NamedTuple


class Guess(NamedTuple):
    """What a file seems to hold.

    Attributes:
      options: of the task.
      train: how many rows train will have.
      sentences: what was guessed, and why.
      half: rows of the smaller half of train, of which a batch must consist.
      task: the name of the task.
    """

    options: dict[str, Any]
    train: int
    sentences: list[str]
    half: int
    task: str = "files"
