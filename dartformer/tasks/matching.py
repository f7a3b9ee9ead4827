"""Do two documents match? Two inputs, one encoder: Long Range Arena's retrieval task.

It pairs papers, one of which may cite the other. The archive that Long Range Arena points to is
gone; its three TSV files are read if you have them, and so is any set of documents with pairs of
their names."""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

from dartformer.data.compressed import members, opened
from dartformer.data.lines import decoded, parsed
from dartformer.data.locations import identity, located
from dartformer.data.rows import Row
from dartformer.errors import InputError
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.preparation import Source
from dartformer.tasks.text import TextTask

LABELS = ("no", "yes")
AAN = {
    "train": "new_aan_pairs.train.tsv",
    "valid": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
PAIRS = {
    "train": "pairs.train.tsv",
    "valid": "pairs.valid.tsv",
    "test": "pairs.test.tsv",
}
DOCUMENTS = "docs.jsonl"


@dataclass(frozen=True, kw_only=True)
class Matching(TextTask):
    """Pairs of documents of at most `length` tokens each.

    Attributes:
      path: a folder, or a tar archive (which is read, never unpacked), that holds either `docs.jsonl`
        (`id`, `text`) and `pairs.{train,valid,test}.tsv` (label, id, id, with or without a header), or
        `new_aan_pairs.{train,eval,test}.tsv` (label, id, id, text, text).
      tokens: "bytes", "characters", "words" or "bpe" (byte-pair encoding).
      length: most tokens of a document; a longer one is cropped.
    """

    path: str = ""
    tokens: str = "bytes"
    length: int = 4000

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Decide whether two documents match: papers, one of which may cite the other",
        paper="ACL Anthology Network, Radev et al. 2013; as a task Tay et al. 2020, 2011.04006",
    )

    @property
    def title(self) -> str:
        """Its name in messages."""
        return "matching"

    @property
    def labels(self) -> tuple[str, ...]:
        """No and yes."""
        return LABELS

    @property
    def inputs(self) -> int:
        """Two documents."""
        return 2

    def sources(self, data_dir: str | None) -> dict[str, Source]:
        """Train, valid and test; `InputError` says which files are needed."""
        pairs = ", ".join(PAIRS.values())
        aan = ", ".join(AAN.values())
        if not self.path:
            raise InputError(
                f"task.path is empty: matching needs a folder or an archive with {DOCUMENTS} and "
                f"{pairs}, or with {aan}."
            )
        path = located(self.path, data_dir)
        version = json.dumps(identity(path))
        names = set(_names(path, version))
        if {DOCUMENTS, *PAIRS.values()} <= names:
            files = PAIRS
        elif set(AAN.values()) <= names:
            files = AAN
        else:
            raise InputError(f"{path} holds neither {DOCUMENTS} and {pairs}, nor {aan}.")
        sources = {}
        for part, file in files.items():
            # Not a lambda, which would read the last `file` of the loop.
            rows = functools.partial(_rows, path, file, version)
            sources[part] = Source(rows, (str(path), part, version))
        return sources


def _rows(path: Path, file: str, version: str) -> Iterator[Row]:
    paired = file in PAIRS.values()
    documents: dict[str, str] = {}
    count = 5
    if paired:
        documents = _documents(path, version)
        count = 3
    for number, line in enumerate(decoded(_file(path, file)), 1):
        where = f"{file}, row {number}"
        fields = line.split("\t", count - 1)
        if len(fields) != count:
            raise InputError(f"{where}: {len(fields)} fields, and {count} are needed.")
        label = fields[0].removesuffix(".0")
        if number == 1 and label == "label":
            continue
        if label in ("0", "1"):
            label = LABELS[int(label)]
        texts = fields[3:]
        if paired:
            texts = []
            for name in fields[1:]:
                texts.append(_document(documents, name, where))
        yield Row(tuple(texts), label, where)


def _document(documents: dict[str, str], name: str, where: str) -> str:
    if name not in documents:
        raise InputError(f"{where}: there is no document {name!r} in {DOCUMENTS}.")
    return documents[name]


def _file(path: Path, name: str) -> Iterator[bytes]:
    """Lines of a file of a folder or an archive."""
    for entry, data in _files(path):
        if entry == name:
            yield from data


def _files(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Base name and bytes of the files of a folder or an archive."""
    if path.is_dir():
        for file in sorted(filter(Path.is_file, path.iterdir())):
            with opened(file) as data:
                yield file.name, data
    else:
        for name, data in members(path):
            yield name.rpartition("/")[2], data


# `version` changes with the files, so that the caches never return what is old.


@functools.lru_cache(maxsize=2)
def _names(path: Path, version: str) -> tuple[str, ...]:
    return tuple(name for name, _ in _files(path))


@functools.lru_cache(maxsize=1)
def _documents(path: Path, version: str) -> dict[str, str]:
    """Texts by name; kept, because every pass over the pairs needs them all."""
    documents = {}
    for number, line in enumerate(decoded(_file(path, DOCUMENTS)), 1):
        try:
            row: Any = parsed(line)
            documents[str(row["id"])] = str(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{DOCUMENTS}, line {number}: {error!r}; an object with id and text is needed."
            ) from None
    return documents
