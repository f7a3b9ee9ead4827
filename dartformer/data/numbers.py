"""Numbers in the cells of tables: one, or a sequence of them."""

import json
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from dartformer.data.rows import is_blank
from dartformer.errors import InputError, brief

MISSING = ("", "nan", "na", "n/a", "null", "none", "?", "-")
"""What tables write in place of a number, in lower case."""

BRACKETS = re.compile(r"^\s*[\[(].*[\])]\s*$", re.DOTALL)

STEP_ENDS = re.compile(r"[;\n]")
"""What ends a step of several numbers, in a text of them."""

BETWEEN = re.compile(r"[\s,]+")
"""What separates two numbers."""


def number(value: object) -> float:
    """A number; NaN for a missing one. `ValueError` says what is none."""
    if isinstance(value, str):
        text = value.strip()
        if text.lower() in MISSING:
            return math.nan
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{brief(value)} is no number") from None
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{brief(value)} is no number")
    return float(value)


def is_number(value: object) -> bool:
    """Whether a value is a number, also one that is written out, or a missing one."""
    try:
        number(value)
    except (ValueError, OverflowError):
        return False
    return True


def numbers(values: Iterable[object]) -> np.ndarray:
    """Numbers `[n]` float32; `ValueError` for what is none."""
    values = list(values)
    try:
        array = np.array(values, np.float64)
    except (ValueError, TypeError, OverflowError):
        # Slower, but it knows what tables write in place of a number.
        array = np.array([number(value) for value in values], np.float64)
    # Beyond the range of float32, a number counts as missing.
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    return np.where(np.isfinite(array), array, np.float32(np.nan))


def sequence(value: object) -> np.ndarray:
    """A sequence of numbers `[T, D]`, from a list of numbers or of lists of them, or from a text.

    In a text white space or commas separate numbers, and semicolons the steps of several channels.
    `ValueError` says what is wrong."""
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, list | tuple | np.ndarray) or not len(value):
        raise ValueError(f"{brief(value)} is no sequence of numbers")
    if not isinstance(value[0], list | tuple | np.ndarray):
        return numbers(value)[:, None]
    widths = {len(step) for step in value}
    if len(widths) > 1:
        raise ValueError(f"its steps have {min(widths)} to {max(widths)} numbers")
    flat = [item for step in value for item in step]
    return numbers(flat).reshape(len(value), -1)


def _parsed(text: str) -> Sequence[object]:
    """The numbers of a text, as a list."""
    if BRACKETS.match(text):
        try:
            return list(json.loads(text.replace("(", "[").replace(")", "]")))
        except (ValueError, RecursionError):
            text = text.strip()[1:-1]  # as NumPy prints arrays: without commas
    steps = [step for step in STEP_ENDS.split(text) if not is_blank(step)]
    rows = [BETWEEN.split(step.strip(" ,\t\r")) for step in steps]
    if len(rows) == 1:
        return rows[0]
    return rows


def is_sequence(value: object) -> bool:
    """Whether a value is a sequence of at least two numbers."""
    if isinstance(value, str) and not BETWEEN.search(value.strip()):
        return False
    if not isinstance(value, str | list):
        return False
    try:
        array = sequence(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return array.size > 1 and bool(np.isfinite(array).any())


def trimmed(values: np.ndarray) -> np.ndarray:
    """Values `[T, D]` without the missing steps at the end, with which tables fill up short rows."""
    present = np.flatnonzero(np.isfinite(values).any(1))
    if not len(present):
        return values[:0]
    return values[: present[-1] + 1]


def require_values(values: np.ndarray, where: str) -> None:
    """Raise `InputError` for a sequence without a number."""
    if not np.isfinite(values).any():
        raise InputError(f"{where}: its sequence holds no number.")
