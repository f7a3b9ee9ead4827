"""Checks that several tasks make: of their options, and of token ids."""

from collections.abc import Sequence

from dartformer.errors import InputError, seed_problem


def require_at_least(task: object, **limits: int) -> None:
    """Raise `InputError` for an option of a task below its limit."""
    for option, limit in limits.items():
        value = getattr(task, option)
        if value < limit:
            raise InputError(f"task.{option} must be at least {limit}, got {value}.")


def require_seed(task: object) -> None:
    """Raise `InputError` for a seed out of range."""
    problem = seed_problem(getattr(task, "seed"))  # noqa: B009 - tasks share no class
    if problem:
        raise InputError(f"task.seed {problem}")


def require_fraction(task: object, *options: str) -> None:
    """Raise `InputError` for a share of the data that would leave nothing, or too little."""
    for option in options:
        value = getattr(task, option)
        if not 0 < value < 0.5:
            raise InputError(f"task.{option} must be above 0 and below 0.5, got {value}.")


def require_ids(ids: Sequence[int], vocabulary: int) -> None:
    """Raise `InputError` for a token id beyond the vocabulary."""
    for i in ids:
        if not 0 <= i < vocabulary:
            raise InputError(f"token id {i} is not between 0 and {vocabulary - 1}.")
