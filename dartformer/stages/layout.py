"""Layout: every path of a workdir, its lock, and how its records are read and written."""

import contextlib
import copy
import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import ConfigDict

from dartformer import config as configs
from dartformer.config import Config
from dartformer.errors import InputError
from dartformer.machine import hosts
from dartformer.machine.identity import fingerprint
from dartformer.machine.record import Record
from dartformer.machine.workdir import (
    LockedFolder,
    differences,
    jsonable,
    read_json,
    write_checked_json,
    write_json,
    write_text,
)
from dartformer.results import SCHEMA, GenotypeRecord, Results, SearchRecord, TrainingRecord
from dartformer.space.genotype import Genotype

R = TypeVar("R", bound=Record)

CONFIG = "config.json"
"""The config of a workdir."""

DATA = "data"
"""The folder of the rows of `dartformer.fit`, which are there before there is a config."""

TRAININGS = "trainings"
"""The folder of the trainings from scratch."""

TRAINING = "training.json"
"""In the folder of a training: which genotype it is of."""

FOUND_LINK = "retrain"
"""A link to the training of the found genotype."""

READABLE = 40
"""Letters of a training's folder that say which genotype it is of."""


def genotype_key(genotype: Genotype) -> str:
    """The fingerprint of a genotype, which can stand in a path."""
    return fingerprint(genotype.to_dict())


def training_folder(genotype: Genotype) -> str:
    """Where a genotype is trained, within a workdir: "trainings/full_everywhere_1x2-3f9a...".

    A training is known by what it is of, whatever role the genotype has in the run.
    """
    text = re.sub(r"[^A-Za-z0-9_.=-]+", "_", str(genotype))
    # Without dots in front, which hide a folder, or an end that was cut in a row of underscores.
    text = text[:READABLE].strip("._")
    return f"{TRAININGS}/{text}-{genotype_key(genotype)}"


WHERE = ("mesh", "data.dir", "log.trackers")
"""Fields that say where a run runs and not what it is: a workdir may go on with others."""


def _without_place(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the fields of `WHERE`."""
    kept = copy.deepcopy(dict(config))
    for name in WHERE:
        section, _, field = name.partition(".")
        if field:
            kept.get(section, {}).pop(field, None)
        else:
            kept.pop(section, None)
    return kept


def claim(path: Path, config: dict[str, Any]) -> None:
    """Make a locked folder the workdir of a config: `config.json` is written, or says the same.

    Where it runs may differ (`WHERE`). Raises `InputError` where it belongs to another config, or holds other files.
    """
    file = path / CONFIG
    if not file.exists():
        # The lock is there already, because a folder is claimed by one process at a time.
        names = set(os.listdir(path)) - {LockedFolder.NAME, DATA}
        if names:
            first = sorted(names)[:3]
            raise InputError(
                f"the workdir {path} holds other files ({', '.join(first)}) and no "
                f"config.json: choose an empty or a new folder."
            )
        write_json(file, config)
        return
    saved = read_json(file)
    if not isinstance(saved, dict):
        raise InputError(f"{file} is damaged: it must hold an object.")
    changes = list(differences(_without_place(saved), _without_place(config)))
    if changes:
        raise InputError(
            f"the workdir {path} belongs to another config; it differs in "
            f"{'; '.join(changes)}. Choose another workdir, or the config it was made with."
        )


def _require_one_config(config: dict[str, Any]) -> None:
    """Raise `InputError` where processes of one run have read different configs."""
    texts = hosts.gathered(json.dumps(config))
    for process, text in enumerate(texts):
        changes = list(differences(json.loads(texts[0]), json.loads(text)))
        if changes:
            raise InputError(
                f"processes 0 and {process} have different configs: {'; '.join(changes[:3])}. Start "
                f"all of them with the same file and options."
            )


class Layout:
    """Where everything of a workdir lies; for readers, which need no lock."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.data = self.path / DATA
        self.config = self.path / CONFIG
        self.results = self.path / "results.json"
        self.genotype = self.path / "genotype.json"
        self.search = self.path / "search"
        self.alphas = self.search / "alphas.json"
        self.prices = self.search / "prices.json"
        self.budget = self.path / "budget.json"
        self.pareto = self.path / "pareto.json"
        self.profile = self.path / "profile.json"
        self.test_scores = self.path / "test_scores.json"
        self.attention = self.path / "attention.json"
        self.provenance = self.path / "provenance.json"
        self.report = self.path / "report.html"
        self.export = self.path / "export"
        self.race = self.path / "race.json"
        self.summary = self.path / "summary"

    def search_of(self, seeds: tuple[int, ...], together: bool) -> Path:
        """Where seeds are searched: all of them in `search`, or each in a folder of its own."""
        # One program has one checkpoint for all its seeds.
        if together:
            return self.search
        return self.search / f"seed{seeds[0]}"

    def training(self, genotype: Genotype, seed: int) -> Path:
        """Where a genotype is trained with one seed."""
        return self.path / training_folder(genotype) / f"seed{seed}"

    def looks_of(self, genotype: Genotype, seed: int) -> Path:
        """The looks that the process of an entrant took at its training."""
        return self.training(genotype, seed) / "looks.json"

    def training_of(self, record: GenotypeRecord, seed: int) -> Path:
        """`training`, of the genotype in a record."""
        return self.training(Genotype.from_dict(record.to_dict()), seed)

    def shape(self, name: str) -> Path:
        """The workdir of one shape of a search over shapes."""
        return self.path / "shapes" / name

    def read(self, record: type[R], file: Path) -> R | None:
        """The record in a file; None where there is no file, `InputError` where it is damaged."""
        # A link to nowhere is no missing file.
        if not os.path.lexists(file):
            return None
        return record.from_dict(read_json(file), str(file))


class Workdir(Layout):
    """The folder of a run with one config, which no other process can open while it is held.

    Opening makes the folder and writes `config.json`, or checks that the one there says the same.
    Raises `InputError` where the folder cannot be written, belongs to another config (the
    differences are named), or is in use.
    """

    def __init__(self, path: str | Path, config: Config | ConfigDict):
        super().__init__(path)
        config = configs.build(config)
        self.task = str(config.task.name)
        self._lock = LockedFolder(self.path)
        try:
            plain = jsonable(configs.to_dict(config))
            _require_one_config(plain)
            hosts.by_chief(lambda: claim(self.path, plain))
            hosts.require_same(
                f"what stands in the workdir {self.path}",
                str((self.path / CONFIG).exists()),
                "All processes need the same workdir, on a disk that they share.",
            )
        except BaseException:
            # Without the object nobody could release the folder.
            self.close()
            raise

    def read_results(self) -> Results:
        """What `results.json` holds so far."""
        return self.read(Results, self.results) or Results(self.task)

    def record(self, **sections: Any) -> Results:
        """Put sections into `results.json`, keeping its other sections."""
        # Read again each time: stages share the file, and each knows its own sections only.
        results = dataclasses.replace(self.read_results(), schema=SCHEMA, **sections)
        write_checked_json(self.results, results.to_dict())
        return results

    def record_seconds(self, seconds: Mapping[str, float]) -> None:
        """Put the seconds of a stage into `results.json`."""
        # The seconds of stages that finished earlier stay.
        spent = dict(self.read_results().seconds or {})
        spent.update(seconds)
        self.record(seconds=spent)

    def write(self, file: Path, record: Record) -> None:
        """Write a record to one of the files of the layout."""
        write_checked_json(file, record.to_dict())

    def name_training(self, genotype: Genotype, name: str) -> None:
        """Write what is trained in the folder of a genotype; the name it had first stays."""
        hosts.by_chief(lambda: self._name_training(genotype, name))

    def _name_training(self, genotype: Genotype, name: str) -> None:
        file = self.path / training_folder(genotype) / TRAINING
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            genotype_record = GenotypeRecord.from_dict(genotype.to_dict())
            self.write(file, TrainingRecord(name, genotype_record))

    def link_found(self, genotype: Genotype) -> None:
        """Make `retrain` lead to the training of the found genotype, for people and their scripts."""
        hosts.by_chief(lambda: self._link_found(genotype))

    def _link_found(self, genotype: Genotype) -> None:
        link = self.path / FOUND_LINK
        if link.exists() and not link.is_symlink():
            return  # a folder of an earlier version
        draft = self.path / f".{FOUND_LINK}.link"
        # Nothing here reads the link, and some file systems have none.
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
            draft.symlink_to(training_folder(genotype))
            draft.replace(link)

    def write_genotype(self, genotype: Genotype) -> None:
        """Write `genotype.json`."""
        write_text(self.genotype, genotype.to_json())

    def read_genotype(self) -> Genotype:
        """The genotype that `derive` wrote; `InputError` where there is none."""
        if not self.genotype.exists():
            raise InputError(
                f"there is no {self.genotype}: run `dartformer derive` first "
                f"(or `dartformer run` for all stages)."
            )
        try:
            return Genotype.from_dict(read_json(self.genotype))
        except InputError as error:
            raise InputError(
                f"{self.genotype}: {error} Delete it and run `dartformer derive` again."
            ) from None

    def read_search(self) -> SearchRecord | None:
        """The finished search; None before it is finished."""
        return self.read(SearchRecord, self.alphas)

    def has_training(self) -> bool:
        """Whether the derived genotype has begun to be trained."""
        return hosts.by_chief(self._has_training)

    def _has_training(self) -> bool:
        if not self.genotype.exists():
            return False
        return (self.path / training_folder(self.read_genotype())).exists()

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
