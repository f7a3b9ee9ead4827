"""A guess at labels: their kind, the classes, and which rows are left out."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dartformer.errors import InputError
from dartformer.tasks.columns import MOST_CLASSES
from dartformer.tasks.label_counts import MOST_NUMBERS, LabelCounts, learnable, numbers_first
from dartformer.tasks.preparation import MissingClasses

LISTED_NAMES = 6
"""Class names that a sentence lists."""

Outcome = TypeVar("Outcome")


def of_labels(labels: LabelCounts, options: dict[str, Any], file: str, named: bool) -> list[str]:
    """Set the classes, and what happens to rows without one; what was guessed of them."""
    if options["kind"] == "regression":
        sentences = [_regression(labels, options, file)]
    else:
        sentences = _classes(labels, options, file, named)
    if labels.missing:
        options["on_bad_label"] = "drop"
        sentences.append(
            f"{labels.missing:,} of {labels.rows.total():,} rows have no label and are left out"
        )
    if labels.misaligned:
        options["on_bad_label"] = "drop"
        sentences.append(
            f"{labels.misaligned:,} of {labels.rows.total():,} rows have another number of labels "
            f"than words and are left out"
        )
    return sentences


def _regression(labels: LabelCounts, options: dict[str, Any], file: str) -> str:
    numbers = 0
    for name, n in labels.total().items():
        if is_finite(name):
            numbers += n
    odd = labels.total().total() - numbers
    if not numbers:
        raise InputError(f"the column {labels.column!r} of {file} holds no numbers to predict.")
    sentence = (
        f"regression: the label is a number with {_count(labels)} different values "
        f"(--kind=classification makes each a class)"
    )
    if odd:
        options["on_bad_label"] = "drop"
        sentence += f"; {odd:,} rows whose label is no number are left out"
    return sentence


def majority_share(labels: LabelCounts | None, options: Mapping[str, Any]) -> float:
    """The share of the most frequent class; 0 where there are no classes."""
    names = options.get("label_names")
    if labels is None or not names:
        return 0.0
    total = labels.total()
    counts = [total[name] for name in names]
    return max(counts) / max(1, sum(counts))


def is_finite(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _count(labels: LabelCounts) -> str:
    count = len(labels.total())
    if count > MOST_NUMBERS:
        return f"more than {MOST_NUMBERS:,}"
    return f"{count:,}"


def _classes(labels: LabelCounts, options: dict[str, Any], file: str, named: bool) -> list[str]:
    total = labels.total()
    if len(total) < 2:
        raise InputError(
            f"the column {labels.column!r} of {file} has {len(total)} different values; at least 2 "
            f"are needed. Name another with --label."
        )
    if len(total) > MOST_NUMBERS or (len(total) > MOST_CLASSES and not named):
        raise InputError(
            f"the column {labels.column!r} of {file} has {_count(labels)} different values, too "
            f"many for classes, and they are not numbers. Name the label column with --label."
        )
    classes: list[str] = sorted(total, key=numbers_first)
    rare: dict[str, int] = {}
    # Of words a class may be rare: a row with it holds others too.
    if options["kind"] == "classification":
        classes, rare = learnable(labels)
    if len(classes) < 2:
        raise InputError(
            f"the column {labels.column!r} of {file} has {len(total)} different values in "
            f"{total.total():,} rows: too few rows of each for train, valid and test."
        )
    options["label_names"] = tuple(classes)
    sentences = [_label_sentence(labels, options)]
    if rare:
        options["on_bad_label"] = "drop"
    first = next(iter(labels.counts))
    absent = {name: rows for name, rows in rare.items() if not labels.counts[first][name]}
    if absent:
        sentences.append(
            f"classes that {first} lacks cannot be learned, and their rows in the other splits are "
            f"left out: {listed(absent)}"
        )
    few = {name: rows for name, rows in rare.items() if name not in absent}
    if few:
        sentences.append(
            f"classes with too few rows to learn and test them are left out with their rows: "
            f"{listed(few)}"
        )
    return sentences


def _label_sentence(labels: LabelCounts, options: Mapping[str, Any]) -> str:
    """What was guessed of the labels."""
    total = labels.total()
    counts = {name: total[name] for name in options["label_names"]}
    start = "classification into"
    if options["kind"] == "labelling":
        start = "a label for each word, of"
    majority = max(counts, key=lambda name: counts[name])
    share = 100 * majority_share(labels, options)
    sentence = (
        f"{start} {len(counts)} classes ({listed(counts)}); always saying {majority!r} is right "
        f"in {share:.0f}%"
    )
    if all(map(is_finite, counts)) and options["kind"] == "classification":
        sentence += " (--kind=regression predicts numbers instead)"
    return sentence


def listed(counts: Mapping[str, int]) -> str:
    """ "neg 30, pos 28, ..." """
    phrases = []
    for name, n in list(counts.items())[:LISTED_NAMES]:
        phrases.append(f"{name} {n:,}")
    if len(counts) > LISTED_NAMES:
        phrases.append("...")
    return ", ".join(phrases)


def without_missing_classes(
    options: dict[str, Any],
    sentences: list[str],
    labels: LabelCounts | None,
    attempt: Callable[[], Outcome],
) -> Outcome:
    """What preparing the data with the options gives, without the classes that end up outside train.

    They are taken out of the options, which `attempt` reads."""
    while True:
        try:
            return attempt()
        except MissingClasses as error:
            names = [name for name in options["label_names"] if name not in error.names]
            if labels is None or len(names) < 2:
                raise
            total = labels.total()
            lost = {name: total[name] for name in error.names}
        options["label_names"] = tuple(names)
        options["on_bad_label"] = "drop"
        sentences.append(
            f"classes without a row in train, when rows are drawn for valid and test and repeated "
            f"ones are left out, are left out: {listed(lost)}"
        )
