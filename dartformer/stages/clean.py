"""Clean: remove from a finished workdir what reports and exports do not need."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dartformer.config import is_placement
from dartformer.errors import InputError
from dartformer.machine.record import Record
from dartformer.machine.workdir import LockedFolder, read_json
from dartformer.results import GenotypeRecord, Results
from dartformer.space.genotype import Genotype
from dartformer.stages.layout import Layout, training_folder
from dartformer.training.checkpoint import superfluous

SEARCH = "checkpoints of the search (`derive` needs them)"
LOSERS = "checkpoints of models that did not win (`race --finish` needs them)"
EARLIER = "checkpoints of the winner that are neither its best nor its last"
EVENTS = "TensorBoard events (metrics.jsonl has the same numbers)"


class Removable(NamedTuple):
    """A file or a folder that nothing needs any more, and why."""

    kind: str
    path: Path


@dataclass(frozen=True)
class Group(Record):
    """What is removed of one kind.

    Attributes:
      kind: in words.
      files: how many.
      bytes: their sizes.
    """

    kind: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Cleaned(Record):
    """What `dartformer clean` removes.

    Attributes:
      workdir: that is cleaned.
      removed: whether it was removed; false with --dry-run.
      groups: of what is removed.
      files: that stay.
      bytes: their sizes.
    """

    workdir: str
    removed: bool
    groups: tuple[Group, ...]
    files: int
    bytes: int


def clean(path: str | Path, *, dry_run: bool = False) -> Cleaned:
    """Remove what the report, the export and the results of a finished run do not need.

    Raises `InputError` for a folder that is no workdir, or whose run is not evaluated yet: its
    checkpoints are what it goes on from.
    """
    layout = Layout(path)
    if not layout.config.exists():
        raise InputError(f"{path} is not a workdir: it has no config.json.")
    if is_placement(read_json(layout.config)):
        raise InputError(
            f"{path} is the workdir of a checkpoint, where nothing is trained: there is nothing to "
            f"remove."
        )
    lock = LockedFolder(layout.path)
    try:
        listed = list(removable(layout))
        groups = _groups(listed)
        if not dry_run:
            for found in listed:
                _remove(found.path)
    finally:
        lock.close()
    files, size = _size(layout.path)
    if dry_run:
        files -= sum(group.files for group in groups)
        size -= sum(group.bytes for group in groups)
    return Cleaned(str(path), not dry_run, groups, files, size)


def removable(layout: Layout) -> Iterator[Removable]:
    """What can go from a workdir, and from those of its shapes."""
    results = layout.read(Results, layout.results)
    if results is None or results.verdict is None:
        raise InputError(
            f"the run in {layout.path} is not evaluated yet, and needs its checkpoints to go on. "
            f"Run `dartformer run` first."
        )
    shapes = layout.path / "shapes"
    if shapes.is_dir():
        for name in sorted(os.listdir(shapes)):
            # The chosen shape has all results; the others were searched and trained only.
            yield from _of_one(Layout(layout.shape(name)), results)
    yield from _of_one(layout, results)


def _of_one(layout: Layout, results: Results) -> Iterator[Removable]:
    for folder in _folders(layout.search, "checkpoints"):
        yield Removable(SEARCH, folder)
    kept = _kept(results)
    for training in _children(layout.path / "trainings"):
        for seed in _children(training):
            checkpoints = seed / "checkpoints"
            if not checkpoints.is_dir():
                continue
            if training.name not in kept:
                yield Removable(LOSERS, checkpoints)
                continue
            for file in superfluous(checkpoints):
                yield Removable(EARLIER, file)
    for folder in _folders(layout.search, "tensorboard"):
        yield Removable(EVENTS, folder)
    for training in _children(layout.path / "trainings"):
        for folder in _folders(training, "tensorboard"):
            yield Removable(EVENTS, folder)


def _kept(results: Results) -> set[str]:
    """The names of the folders of trainings that are exported: the winner and the one to take."""
    records: list[GenotypeRecord] = []
    if results.genotype is not None:
        records.append(results.genotype)
    conclusion, baselines = results.conclusion, results.baselines or {}
    if conclusion is not None and conclusion.take in baselines:
        model = baselines[conclusion.take]
        genotype = getattr(model, "genotype", None)
        if genotype is not None:
            records.append(genotype)
    names = set()
    for record in records:
        names.add(Path(training_folder(Genotype.from_dict(record.to_dict()))).name)
    return names


def _children(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir())


def _folders(folder: Path, name: str) -> Iterator[Path]:
    """The folders of a name in a folder and in those of its seeds."""
    for parent in (folder, *_children(folder)):
        if (parent / name).is_dir():
            yield parent / name


def _groups(listed: list[Removable]) -> tuple[Group, ...]:
    files: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for kind, path in listed:
        count, size = _size(path)
        files[kind] = files.get(kind, 0) + count
        sizes[kind] = sizes.get(kind, 0) + size
    groups = []
    for kind, count in files.items():
        groups.append(Group(kind, count, sizes[kind]))
    return tuple(groups)


def _size(path: Path) -> tuple[int, int]:
    """How many files there are, and how large they are together."""
    if path.is_file():
        return 1, path.stat().st_size
    count = size = 0
    for parent, _, names in os.walk(path):
        for name in names:
            file = Path(parent, name)
            if not file.is_symlink():
                count += 1
                size += file.stat().st_size
    return count, size


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
