"""What a folder of data holds: its splits, the files of each in order, and nothing hidden."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from dartformer.data.compressed import suffix
from dartformer.errors import InputError
from dartformer.machine.record import Place, Plain, decode
from dartformer.machine.workdir import read_json

SPLITS = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test", "testing"),
}
"""The names under which a folder may have each split, in any case."""

CLUTTER = (
    "__macosx",
    "__pycache__",
    "thumbs.db",
    "desktop.ini",
    "@eadir",
    "$recycle.bin",
    "lost+found",
)
"""What systems and editors leave in folders, beside names that start with a dot."""

PREPARED = "dartformer_"
"""How the names of folders start that hold prepared data."""

BESIDE_CONFIG = (".lock", "provenance.json", "genotype.json")
"""Files one of which every workdir and export has beside its config.json."""

NO_DATA = (".py", ".ipynb", ".log", ".out", ".err")
"""Files that stand beside data and are written while these are used."""

SHARD = re.compile(r"(.+)[-_.](\d+)-of-(\d+)")
"""The name of one of several files that hold a split together, such as train-00000-of-00003."""

CACHED = ("cache-", "tmp")
"""How the names of files start that the library `datasets` writes beside its data."""

METADATA = ("dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json")
"""Files that the library `datasets` writes about its data."""

MAPPING = "indices"
"""The name of the file with which `datasets` keeps a selection of rows, and their order."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is there for a system or an editor, and holds no data."""
    return name.startswith(".") or name.lower() in CLUTTER


def is_output(folder: Path) -> bool:
    """Whether a folder is the workdir of a run, an export, or prepared data, or holds only these.

    Your data may have it in their folder, and it changes while they are read."""
    if not folder.is_dir():
        return False
    if folder.name.startswith(PREPARED):
        return True
    if (folder / "config.json").is_file():
        return any((folder / name).exists() for name in BESIDE_CONFIG)
    # TFDS makes it beside what it prepares.
    if folder.name == "downloads" and any(folder.parent.glob(f"{PREPARED}*")):
        return True
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    # All, and so not many: the first file of data ends it.
    return bool(names) and all(is_output(folder / name) for name in names)


def entries(folder: Path) -> list[Path]:
    """The files and folders of a folder that are neither hidden nor output, by name."""
    try:
        # Sorted: a file system lists a folder in any order.
        listed = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror or error}.") from None
    return [entry for entry in listed if not is_hidden(entry.name) and not is_output(entry)]


def files_below(folder: Path) -> list[Path]:
    """All files below a folder that may hold data, by name."""
    files = []
    for place, names, file_names in os.walk(folder):
        # The walk goes on in the folders that are left in this list.
        for name in list(names):
            if is_hidden(name) or is_output(Path(place, name)):
                names.remove(name)
        for name in file_names:
            file = Path(place, name)
            if not is_hidden(name) and file.suffix not in NO_DATA and file.is_file():
                files.append(file)
    return sorted(files)


def split_of(name: str) -> str:
    """The split that a name stands for; the name itself where it is another's."""
    for split, names in SPLITS.items():
        if name.lower() in names:
            return split
    return name


def split_files(folder: Path, kinds: Collection[str]) -> dict[str, list[Path]]:
    """The files of each split, or its one folder, of `folder` and of `folder/data`.

    Args:
      folder: of the data.
      kinds: suffixes of the files that can be read.

    Raises:
      InputError: two candidates for one split, or a file of several is missing.
    """
    candidates: dict[str, dict[str, list[Path]]] = {}
    for place in (folder, folder / "data"):
        if not place.is_dir():
            continue
        for entry in entries(place):
            source = _source_name(entry, kinds)
            split = split_of(_stem(source, entry))
            if source and split in SPLITS:
                sources = candidates.setdefault(split, {})
                sources.setdefault(str(place / source), []).append(entry)
    # Folders named dev and test alone may as well be classes.
    if "train" not in candidates and _all_folders(candidates):
        return {}
    files = {}
    for split, sources in candidates.items():
        if len(sources) > 1:
            names = [str(group[0].relative_to(folder)) for group in sources.values()]
            raise InputError(
                f"{folder} has {len(names)} candidates for the split {split!r}: "
                f"{' and '.join(names)}. Remove all but one, or set task.path, task.valid and "
                f"task.test to files."
            )
        for group in sources.values():
            require_all_shards(group)
            files[split] = group
    return files


def _source_name(entry: Path, kinds: Collection[str]) -> str:
    """A file's name without the number of its shard; "" for a file of another kind."""
    if entry.is_dir():
        return entry.name
    if suffix(entry) not in kinds or entry.name in METADATA:
        return ""
    stem, dot, endings = entry.name.partition(".")
    return f"{_without_number(stem)}{dot}{_without_number(endings)}"


def _without_number(name: str) -> str:
    """A part of a file's name without the number of its shard."""
    shard = SHARD.fullmatch(name)
    if shard:
        return shard[1]
    return name


def _stem(source: str, entry: Path) -> str:
    stem = source.partition(".")[0]
    # The library `datasets` calls its files NAME-SPLIT.arrow, and TFDS NAME-SPLIT.array_record.
    if suffix(entry) in (".arrow", ".array_record", ".tfrecord"):
        return stem.rpartition("-")[2]
    return stem


def _all_folders(candidates: Mapping[str, Mapping[str, list[Path]]]) -> bool:
    for sources in candidates.values():
        for group in sources.values():
            if not group[0].is_dir():
                return False
    return True


def require_all_shards(files: list[Path]) -> None:
    """Raise `InputError` where one of several files that belong together is missing."""
    numbers, totals = set(), set()
    for file in files:
        shard = SHARD.match(file.name)
        if shard:
            numbers.add(int(shard[2]))
            totals.add(int(shard[3]))
    if not totals:
        return
    total = max(totals)
    # Not the set of all numbers: a name may claim any total.
    if len(totals) > 1 or len(numbers) != total or max(numbers) != total - 1:
        raise InputError(
            f"{files[0].parent} has {len(files)} files such as {files[0].name}, and their names "
            f"promise {total}."
        )


def numbered_files(folder: Path, kinds: Collection[str]) -> list[Path]:
    """Files of one kind whose names differ in digits alone, such as 0000.parquet.

    Empty where the folder holds anything else that can be read, or folders."""
    files, names = [], set()
    for entry in entries(folder):
        if entry.is_dir():
            return []
        if suffix(entry) in kinds and entry.name not in METADATA:
            files.append(entry)
            names.add(re.sub(r"\d+", "0", entry.name))
    # A single file without a number was not meant to be read with its folder.
    if len(names) != 1 or not re.search(r"\d", files[0].name):
        return []
    require_all_shards(files)
    return files


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a `datasets` folder, in order; its cached files are none of them.

    Raises `InputError` for a damaged `state.json`, or rows that are selected by a mapping."""
    state = folder / "state.json"
    if state.is_file():
        return _listed_files(folder, state)
    files = []
    for entry in entries(folder):
        if suffix(entry) != ".arrow" or entry.name.startswith(CACHED):
            continue
        if entry.stem == MAPPING:
            raise _mapped(folder)
        files.append(entry)
    return files


def _listed_files(folder: Path, state: Path) -> list[Path]:
    """The files that a `state.json` lists."""
    place = Place(str(state))
    content = decode(dict[str, Plain], read_json(state), place)
    # Older versions of the library wrote the second key.
    for key in ("_indices_files", "_indices_data_files"):
        if content.get(key):
            raise _mapped(folder)
    files = []
    present = {entry.name for entry in entries(folder)}
    listed = decode(list[dict[str, Plain]], content.get("_data_files"), place.at("_data_files"))
    for i, item in enumerate(listed):
        entry = place.at("_data_files").at(i).at("filename")
        name = decode(str, item.get("filename"), entry)
        if name not in present:
            raise entry.wrong(f"names {name!r}, which is no file of the folder")
        files.append(folder / name)
    return files


def _mapped(folder: Path) -> InputError:
    return InputError(
        f"{folder} keeps its rows behind an indices mapping. Call flatten_indices() on the dataset "
        f"and save it again."
    )
