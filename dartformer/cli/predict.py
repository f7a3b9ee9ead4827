"""The verbs on an exported model: predict and push."""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from dartformer.cli.output import print_json
from dartformer.errors import InputError
from dartformer.export import push as pushing
from dartformer.export.load import Served, load
from dartformer.export.predict import stream
from dartformer.machine.printable import one_line, printable, printable_json
from dartformer.machine.workdir import jsonable

Document = str | list[str]
"""A text, or two texts for a model that compares them."""


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Answer texts from the command line, from a file or from a stream."""
    served = load(arguments.folder, arguments.device)
    if arguments.jsonl is not None:
        return _answer_stream(arguments, served)
    documents = _documents(arguments, compares=served.model.shape.inputs == 2)
    answers = served(documents)
    if arguments.json:
        records = []
        for document, answer in zip(documents, answers, strict=True):
            records.append({"text": document, **answer})
        print_json(records)
        return 0
    for document, answer in zip(documents, answers, strict=True):
        print(printable(_line(document, answer)))
    return 0


def _documents(arguments: argparse.Namespace, compares: bool) -> Sequence[Document]:
    """The documents of --text, --pair or --file; `compares` of a model that reads two texts."""
    if arguments.file is not None:
        return _read_file(arguments.file, compares)
    if compares and arguments.pair is None:
        raise InputError("this model compares two texts. Use --pair A B.")
    if not compares and arguments.pair is not None:
        raise InputError("this model reads one text. Use --text.")
    documents: list[Document] = arguments.text or arguments.pair
    return documents


def _read_file(file: str, compares: bool) -> Sequence[Document]:
    """One document for each line that is not blank."""
    try:
        if file == "-":
            data = sys.stdin.buffer.read()
        else:
            data = Path(file).read_bytes()
        # Bytes, because the encoding of standard input depends on the locale.
        text = data.decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None
    lines = []
    for line in text.splitlines():
        if line.strip():
            lines.append(line)
    if not compares:
        return lines
    documents = []
    for i, line in enumerate(lines, 1):
        parts = line.split("\t")
        if len(parts) != 2:
            raise InputError(f"{file}: text {i} must be two texts with one tab between them.")
        documents.append(parts)
    return documents


def _not_utf8(file: str, error: UnicodeDecodeError) -> InputError:
    return InputError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}.")


def _line(document: Document, answer: Mapping[str, Any]) -> str:
    """An answer and its document, separated by tabs."""
    text = document
    if not isinstance(text, str):
        text = "\t".join(text)
    if "value" in answer:
        return f"{answer['value']:.6g}\t{text}"
    label, probability = answer["label"], answer["probability"]
    if isinstance(label, list):  # a label for each token: print the least certain probability
        return f"{' '.join(label)}\t{min(probability):.3f}\t{text}"
    return f"{label}\t{probability:.3f}\t{text}"


@contextlib.contextmanager
def _opened(file: str) -> Iterator[TextIO]:
    """A text file, or standard input for "-", which stays open."""
    if file == "-":
        yield sys.stdin
        return
    with open(file, encoding="utf-8") as lines:
        yield lines


def _answer_stream(arguments: argparse.Namespace, served: Served) -> int:
    """Answer JSON lines as they come; lines with errors are counted and reported at the end."""
    failed = total = 0
    try:
        with _opened(arguments.jsonl) as lines:
            for answer in stream(served, lines, arguments.batch):
                line = json.dumps(jsonable(answer), ensure_ascii=False)
                print(printable_json(line), flush=True)
                total += 1
                failed += "error" in answer
    except BrokenPipeError:  # an OSError, but of the output: `main` knows what to do
        raise
    except OSError as error:
        raise InputError(f"cannot read {arguments.jsonl}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise _not_utf8(arguments.jsonl, error) from None
    if failed:
        raise InputError(f"{failed} of {total} lines could not be read. See their 'error' fields.")
    return 0


def push(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Upload an export to the Hugging Face hub, or list what would be uploaded."""
    result = pushing.push(
        arguments.folder, arguments.repo, private=arguments.private, dry_run=arguments.dry_run
    )
    if arguments.json:
        print_json(result)
        return 0
    for name, size in result["files"].items():
        print(f"{size:>12,}  {one_line(name)}")
    if result["uploaded"]:
        sentence = f"uploaded to {result['url']}"
    else:
        sentence = f"dry run, nothing was sent; would upload to {result['url']}"
    print(printable(sentence))
    return 0
