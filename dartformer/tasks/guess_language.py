"""A guess at plain text: options of the task `language`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dartformer.data.locations import identity, located
from dartformer.data.text_ids import Survey, TextSource, is_long, sample, surveyed
from dartformer.errors import InputError, brief
from dartformer.tasks.base import parts
from dartformer.tasks.guess_tokens import MEASURED, characters_size, tokens_of
from dartformer.tasks.guesses import Guess
from dartformer.tasks.language import Language

LENGTHS = (256, 128, 64, 32, 16)
"""Lengths of a window that are guessed."""

FEWEST_WINDOWS = 128
"""Windows of train below which a shorter length is guessed."""

SAMPLE = 400
"""Pieces of a text that decide its tokens."""


def guess_language(file: str, columns: Sequence[str] = (), kind: str = "") -> Guess:
    """Guess the options for a file or folder of plain text.

    Args:
      file: a file or a folder.
      columns: those that the user names, of which plain text has none.
      kind: that the user names, or empty.

    Raises:
      InputError: the user names a column or another kind, or the text is too short.
    """
    if columns or kind not in ("", "language"):
        raise InputError(
            f"{file} is plain text, which has no columns and no labels. Leave out --text, --label "
            f"and --kind to predict its next character. For labelled texts use a table (CSV, TSV, "
            f"JSONL) or a folder of .txt files for each class."
        )
    draft = Language(path=file)
    source = TextSource(located(file, None), (draft.valid_fraction, draft.test_fraction))
    # Nothing is written: a guess may be made where the data are not prepared.
    held = surveyed(source, json.dumps(identity(source.path)))
    stretches = held.parts
    count = stretches["train"].characters
    tokens = tokens_of(sample(source, stretches["train"], MEASURED, SAMPLE), "language")
    options: dict[str, object] = {"path": file, "tokens": tokens.kind}
    different = np.flatnonzero(held.frequencies)
    if tokens.kind == "characters":
        size = characters_size(list(map(chr, different)))
        if size:
            options["vocabulary_size"] = size
    options["length"] = _length(count)
    task = Language(**options)  # type: ignore[arg-type]
    train, half = _windows(task, source.path, held)
    total = sum(part.characters for part in stretches.values())
    sentences = [
        f"plain text of {total:,} characters, so the task is to predict the next one",
        f"the parts in the order of the text: {count:,} characters for train, "
        f"{stretches['valid'].characters:,} for valid, {stretches['test'].characters:,} for test",
        f"tokens are {tokens.kind}, {len(different):,} different characters in train; windows of "
        f"{task.length} tokens, {train:,} of them in train",
    ]
    # Parts that are cut from one file share the count of the file.
    invalid = sum(part.invalid for part in stretches.values())
    if invalid:
        sentences.append(f"{invalid:,} bytes are not valid UTF-8 and are read as U+FFFD")
    return Guess(options, train, sentences, half, "language")


def _windows(task: Language, path: Path, held: Survey) -> tuple[int, int]:
    """Windows of train, and of the smaller half of it."""
    if not is_long(path):
        windows = parts(task)
        return len(windows["train"]), min(len(windows["weights"]), len(windows["alphas"]))
    count = held.parts["train"].characters
    if task.tokens == "bytes":
        # A code point takes another byte of UTF-8 from each of these on.
        for first in (0x80, 0x800, 0x10000):
            count += int(held.frequencies[first:].sum())
    windows_of_train = -(-(count - 1) // task.length)
    return windows_of_train, windows_of_train // 2


def with_checkpoint(guessed: Guess, values: Mapping[str, object], data_dir: str | None) -> Guess:
    """The guess at a text or at a column of texts, read with a checkpoint's tokenizer.

    It is the guess itself where no option that the user sets names a checkpoint.

    Args:
      guessed: at the data.
      values: dotted fields that the user sets.
      data_dir: where data are prepared.

    Raises:
      InputError: the data are no text to continue, or do not fit the options.
    """
    options: dict[str, object] = {"tokens": "checkpoint"}
    for name in ("tokens", "checkpoint", "end"):
        if f"task.{name}" in values:
            options[name] = str(values[f"task.{name}"])
    for name in ("vocabulary_size", "length"):
        if f"task.{name}" in values:
            options[name] = _whole(name, values[f"task.{name}"])
    if options["tokens"] != "checkpoint" or "task.checkpoint" not in values:
        return guessed
    if guessed.options.get("kind", guessed.task) != "language":
        raise InputError(
            f"task.checkpoint does not work with the task {guessed.task}, which predicts labels. "
            f"Add --kind=language to predict the next token."
        )
    options["path"] = guessed.options["path"]
    if guessed.task == "files":
        options["text"] = guessed.options["text"]
    task = Language(**{"length": 1, **options})  # type: ignore[arg-type]
    if "vocabulary_size" not in options:
        # Written down, so that the model does not need the tokenizer.
        options["vocabulary_size"] = task.vocabulary
    packed = task.packed(data_dir)
    counts = {name: len(part.ids) for name, part in packed.items()}
    options.setdefault("length", _length(counts["train"]))
    windows = parts(replace(task, length=options["length"]), data_dir)  # type: ignore[arg-type]
    documents = "one document"
    if packed["train"].documents > 1:
        documents = f"{packed['train'].documents:,} documents, packed one after another"
    sentences = [
        f"text, so the task is to predict the next token; the file of train has {documents}",
        f"tokens are those of {options['checkpoint']}: {counts['train']:,} for train, "
        f"{counts['valid']:,} for valid, {counts['test']:,} for test; windows of "
        f"{options['length']} tokens, {len(windows['train']):,} of them in train",
    ]
    half = min(len(windows["weights"]), len(windows["alphas"]))
    return Guess(options, len(windows["train"]), sentences, half, "language")


def _whole(option: str, value: object) -> int:
    """A whole number, which the command line gives as a text."""
    try:
        return int(str(value))
    except ValueError:
        raise InputError(f"task.{option} must be a whole number, got {brief(value)}.") from None


def _length(characters: int) -> int:
    """The longest window of which there are enough."""
    for length in LENGTHS:
        if characters >= FEWEST_WINDOWS * length:
            return length
    return LENGTHS[-1]
