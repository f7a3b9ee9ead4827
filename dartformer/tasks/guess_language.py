"""A guess at plain text: options of the task `language`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
    texts = Language(path=file).texts()
    train = texts["train"].text
    tokens = tokens_of(_pieces(train), "language")
    options: dict[str, object] = {"path": file, "tokens": tokens.kind}
    if tokens.kind == "characters":
        size = characters_size([train])
        if size:
            options["vocabulary_size"] = size
    options["length"] = _length(len(train))
    task = Language(**options)  # type: ignore[arg-type]
    windows = parts(task)
    count = sum(len(part.text) for part in texts.values())
    sentences = [
        f"plain text of {count:,} characters, so the task is to predict the next one",
        f"the parts in the order of the text: {len(train):,} characters for train, "
        f"{len(texts['valid'].text):,} for valid, {len(texts['test'].text):,} for test",
        f"tokens are {tokens.kind}, {len(set(train)):,} different characters in train; windows of "
        f"{task.length} tokens, {len(windows['train']):,} of them in train",
    ]
    invalid = sum(part.invalid for part in texts.values())
    if invalid:
        sentences.append(f"{invalid:,} bytes are not valid UTF-8 and are read as U+FFFD")
    half = min(len(windows["weights"]), len(windows["alphas"]))
    return Guess(options, len(windows["train"]), sentences, half, "language")


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


def _pieces(text: str) -> list[str]:
    """Pieces of a text, evenly spaced."""
    starts = range(0, len(text), MEASURED)
    spacing = max(1, len(starts) // SAMPLE)
    return [text[start : start + MEASURED] for start in starts[::spacing]]


def _length(characters: int) -> int:
    """The longest window of which there are enough."""
    for length in LENGTHS:
        if characters >= FEWEST_WINDOWS * length:
            return length
    return LENGTHS[-1]
