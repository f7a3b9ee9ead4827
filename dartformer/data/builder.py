"""The TFDS builder of prepared data sets. It brings TFDS, which a loaded model does not need."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from dartformer.machine.workdir import crc32

Example = Mapping[str, Any]
Notes = dict[str, Any]

ARRAY = ".npy"
"""The suffix of the file of a note that is an array."""


@dataclass(frozen=True)
class Recipe:
    """What a builder writes.

    Attributes:
      name: of the set, an identifier.
      description: one sentence kept with the data.
      features: of an example.
      splits: from empty notes, which it fills, to the examples of every split.
    """

    name: str
    description: str
    features: Mapping[str, tfds.features.FeatureConnector]
    splits: Callable[[Notes], Mapping[str, Iterable[Example]]]


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Ask no server about data that are made here."""


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes `splits()` as a TFDS data set, with checksums of its files."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, recipe: Recipe, **arguments: Any):
        self.name = recipe.name
        self._recipe = recipe
        super().__init__(**arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=self._recipe.description,
            features=tfds.features.FeaturesDict(dict(self._recipe.features)),
            # The task decides the order, and batches are shuffled anyway.
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, Example]]]:
        self.notes: Notes = {}
        generators: dict[str, Iterator[tuple[int, Example]]] = {}
        for name, examples in self._recipe.splits(self.notes).items():
            generators[name] = enumerate(examples)
        return generators

    def _generate_examples(self) -> Iterator[tuple[int, Example]]:
        raise AssertionError("every split has its own generator")

    def _download_and_prepare(self, *arguments: Any, **options: Any) -> None:
        super()._download_and_prepare(*arguments, **options)
        folder = Path(self.data_path)
        notes = {}
        for name, note in self.notes.items():
            if isinstance(note, np.ndarray):
                np.save(folder / f"{name}{ARRAY}", note)
            else:
                notes[name] = note
        files = {}
        for file in sorted([*folder.glob("*.array_record*"), *folder.glob(f"*{ARRAY}")]):
            files[file.name] = [file.stat().st_size, crc32(file)]
        self.info.metadata.update({"files": files, "notes": notes})
