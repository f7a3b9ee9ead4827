"""The verbs on an exported model: predict and push."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dartformer.cli.output import print_json
from dartformer.data.compressed import opened, suffix
from dartformer.data.lines import decoded
from dartformer.data.locations import located
from dartformer.data.records import READERS, read
from dartformer.data.rows import is_blank, repaired
from dartformer.data.tables import unnamed
from dartformer.errors import InputError
from dartformer.export import push as pushing
from dartformer.export.checksums import CHECKSUMS
from dartformer.export.load import Answer, Served, load
from dartformer.export.predict import answers_or_faults, stream
from dartformer.machine import compile_cache
from dartformer.machine.printable import one_line, printable, printable_json
from dartformer.machine.workdir import jsonable
from dartformer.tasks.base import ReadsTables

Document = str | list[str] | np.ndarray
"""A text, two texts for a model that compares them, or tokens that are numbers."""


class Input(NamedTuple):
    """A document of the command line or of a file.

    Attributes:
      document: what the model reads.
      where: names it in errors: a line of a file, or nothing.
      row: names a row of a table in answers.
    """

    document: Document
    where: str = ""
    row: str = ""


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Answer texts from the command line, from a file or from a stream."""
    # One program for each length of a batch: the next call finds them compiled.
    compile_cache.use()
    served = load(exported(Path(arguments.folder)), arguments.device)
    top = _top(arguments, served)
    if arguments.jsonl is not None:
        return _answer_stream(arguments, served, top)
    inputs = _inputs(arguments, served)
    answers: list[Answer] = []
    documents = [entry.document for entry in inputs]
    replies = answers_or_faults(served, documents, top=top)
    for entry, reply in zip(inputs, replies, strict=True):
        if isinstance(reply, str):
            raise InputError(f"{entry.where}{reply}")
        answers.append(reply)
    if arguments.json:
        records = []
        for entry, answer in zip(inputs, answers, strict=True):
            records.append({**_fields(entry), **answer})
        print_json(records)
        return 0
    for entry, answer in zip(inputs, answers, strict=True):
        print(printable(_line(entry, answer)))
    return 0


def exported(folder: Path) -> Path:
    """The folder of an export: that folder, or the one in it where it is the workdir of a run."""
    inside = folder / "export"
    if (inside / CHECKSUMS).is_file() and not (folder / CHECKSUMS).exists():
        return inside
    return folder


def _fields(entry: Input) -> dict[str, Any]:
    """What an answer in JSON says of its document."""
    fields: dict[str, Any] = {}
    if entry.row:
        fields["row"] = entry.row
    if not isinstance(entry.document, np.ndarray):
        fields["text"] = entry.document
    return fields


def _top(arguments: argparse.Namespace, served: Served) -> int:
    """How many of the most probable labels an answer lists; 0 for the best alone."""
    if arguments.top is None and not arguments.probabilities:
        return 0
    flag = "--probabilities"
    if arguments.top is not None:
        flag = "--top"
        if arguments.top < 1:
            raise InputError(f"--top must be at least 1, got {arguments.top}.")
    if served.model.task.traits.metric == "r2":
        raise InputError(
            f"{flag} does not work with this model because it predicts numbers, which have no "
            f"probabilities. Leave it out."
        )
    if served.model.shape.labels_tokens and not (arguments.json or arguments.jsonl):
        raise InputError(
            f"{flag} does not fit on a line because this model labels every token. Add --json."
        )
    return arguments.top or len(served.labels)


def _inputs(arguments: argparse.Namespace, served: Served) -> Sequence[Input]:
    """The documents of --text, --pair or --file."""
    compares = served.model.shape.inputs == 2
    task = served.model.task
    if arguments.file is not None:
        if isinstance(task, ReadsTables) and _is_table(arguments.file, served):
            return list(_read_table(task, located(arguments.file, None)))
        return list(_read_file(arguments.file, compares))
    if compares and arguments.pair is None:
        raise InputError("this model compares two texts. Use --pair A B.")
    if not compares and arguments.pair is not None:
        raise InputError("this model reads one text. Use --text.")
    return list(map(Input, arguments.text or arguments.pair))


def lines_of(file: str) -> Iterator[str]:
    """The lines of a file, compressed or not, or of standard input for "-", as training reads them."""
    if file == "-":
        # Bytes, because the encoding of standard input depends on the locale.
        yield from decoded(sys.stdin.buffer)
        return
    with opened(Path(file)) as data:
        yield from decoded(data)


def _is_table(file: str, served: Served) -> bool:
    """Whether a file, or a folder, has columns with names, and not a document in each line."""
    path = Path(file)
    if path.is_dir():
        return True
    if suffix(path) not in READERS or suffix(path) == ".txt" or not path.is_file():
        return False
    if served.model.shape.features or suffix(path) not in (".csv", ".tsv"):
        return True
    # Two texts with a tab between them need no header.
    first = next(read(path), {})
    return list(first) != unnamed(len(first))


def _read_table(task: ReadsTables, path: Path) -> Iterator[Input]:
    """One document for each row."""
    for where, document in task.unlabelled(path):
        yield Input(document, f"{where}: ", where)


def _read_file(file: str, compares: bool) -> Iterator[Input]:
    """One document for each line that is not blank."""
    for number, line in enumerate(lines_of(file), 1):
        if is_blank(line):
            continue
        where = f"{file}, line {number}: "
        if not compares:
            yield Input(line, where)
            continue
        parts = line.split("\t")
        if len(parts) != 2:
            raise InputError(f"{where}two texts are needed, with one tab between them.")
        yield Input(parts, where)


def _line(entry: Input, answer: Mapping[str, Any]) -> str:
    """An answer and its document, separated by tabs; of numbers, the name of their row."""
    text = entry.document
    if isinstance(text, np.ndarray):
        text = entry.row
    elif not isinstance(text, str):
        text = "\t".join(text)
    text = repaired(text)
    if "value" in answer:
        return f"{answer['value']:.6g}\t{text}"
    label, probability = answer["label"], answer["probability"]
    if isinstance(label, list):  # a label for each token: print the least certain probability
        return f"{' '.join(label)}\t{min(probability):.3f}\t{text}"
    if "probabilities" in answer:
        ranked = [f"{name} {value:.3f}" for name, value in answer["probabilities"].items()]
        return f"{', '.join(ranked)}\t{text}"
    return f"{label}\t{probability:.3f}\t{text}"


def _answer_stream(arguments: argparse.Namespace, served: Served, top: int) -> int:
    """Answer JSON lines as they come; lines with errors are counted and reported at the end."""
    failed = total = 0
    for reply in stream(served, lines_of(arguments.jsonl), arguments.batch, top=top):
        print(_json_line(reply.record), flush=True)
        total += 1
        failed += reply.failed
    if failed:
        raise InputError(f"{failed} of {total} lines could not be read. See their 'error' fields.")
    return 0


def _json_line(record: Mapping[str, Any]) -> str:
    """A record as JSON, in the characters that standard output can print."""
    plain = jsonable(record)
    text = printable_json(json.dumps(plain, ensure_ascii=False))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # standard output is not UTF-8
        return printable_json(json.dumps(plain))
    return text


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
