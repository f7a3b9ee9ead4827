"""Do two documents match? Two inputs, one encoder: Long Range Arena's retrieval task on papers, one
of which may cite the other.

The archive that Long Range Arena points to is gone; its three TSV files are read where somebody has
them, and so is any set of documents with pairs of their names."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, ClassVar

from dartformer.data.records import members, opened
from dartformer.data.rows import Row
from dartformer.errors import InputError
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.files import identity, located
from dartformer.tasks.text import Source, TextTask

LABELS = ("no", "yes")
AAN = {
    "train": "new_aan_pairs.train.tsv",
    "valid": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
PAIRS = {part: f"pairs.{part}.tsv" for part in ("train", "valid", "test")}
DOCUMENTS = "docs.jsonl"


@dataclass(frozen=True, kw_only=True)
class Matching(TextTask):
    """`path` is a folder, or a tar archive (which is read, never unpacked), that holds either
    `docs.jsonl` (`id`, `text`) and `pairs.{train,valid,test}.tsv` (label, id, id; a header may
    stand above), or `new_aan_pairs.{train,eval,test}.tsv` (label, id, id, text, text). Each
    document has at most `length` tokens."""

    path: str = ""
    tokens: str = "bytes"
    length: int = 4000

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="do two documents match? (papers, one of which may cite the other)",
        paper="ACL Anthology Network, Radev et al. 2013; as a task Tay et al. 2020, 2011.04006",
    )

    @property
    def title(self) -> str:
        """What messages call it."""
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
        """Train, valid and test; `InputError` says what was looked for."""
        if not self.path:
            raise InputError(
                f"task.path is empty: matching needs a folder or an archive with {DOCUMENTS} and "
                f"{', '.join(PAIRS.values())}, or with {', '.join(AAN.values())}."
            )
        path = located(self.path, data_dir)
        known = json.dumps(identity(path))
        names = set(_names(path, known))
        if {DOCUMENTS, *PAIRS.values()} <= names:
            files = PAIRS
        elif set(AAN.values()) <= names:
            files = AAN
        else:
            raise InputError(
                f"{path} holds neither {DOCUMENTS} and {', '.join(PAIRS.values())}, nor "
                f"{', '.join(AAN.values())}."
            )

        def source(part: str) -> Source:
            return Source(lambda: _rows(path, files[part], known), (str(path), part, known))

        return {part: source(part) for part in files}


def _rows(path: Path, file: str, known: str) -> Iterator[Row]:
    paired = file in PAIRS.values()
    documents = _documents(path, known) if paired else {}
    fields = 3 if paired else 5
    for number, line in enumerate(_file(path, file), 1):
        where = f"{file}, row {number}"
        found = line.decode("utf-8", "surrogateescape").rstrip("\r\n").split("\t", fields - 1)
        if len(found) != fields:
            raise InputError(f"{where}: {len(found)} fields where {fields} are needed.")
        if number == 1 and found[0] == "label":
            continue
        label = found[0].removesuffix(".0")
        texts = found[3:]
        if paired:
            for name in found[1:]:
                if name not in documents:
                    raise InputError(f"{where}: there is no document {name!r} in {DOCUMENTS}.")
            texts = [documents[name] for name in found[1:]]
        yield Row(tuple(texts), LABELS[int(label)] if label in ("0", "1") else label, where)


def _file(path: Path, name: str) -> Iterator[bytes]:
    for found, data in _files(path):
        if found == name:
            yield from data


def _files(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Base name and bytes of the files of a folder or an archive."""
    if path.is_dir():
        for file in sorted(p for p in path.iterdir() if p.is_file()):
            with opened(file) as data:
                yield file.name, data
    else:
        for name, data in members(path):
            yield name.rpartition("/")[2], data


@lru_cache(maxsize=2)
def _names(path: Path, known: str) -> tuple[str, ...]:
    return tuple(name for name, _ in _files(path))


@lru_cache(maxsize=1)
def _documents(path: Path, known: str) -> dict[str, str]:
    """Texts by name; kept, because every pass over the pairs needs them all."""
    found = {}
    for number, line in enumerate(_file(path, DOCUMENTS), 1):
        try:
            row = json.loads(line.decode("utf-8", "surrogateescape"))
            found[str(row["id"])] = str(row["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{DOCUMENTS}, line {number}: {error!r}; an object with id and text is needed."
            ) from None
    return found
