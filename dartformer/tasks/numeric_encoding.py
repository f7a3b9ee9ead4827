"""Options of tasks on sequences of numbers, and these as tokens.

Numbers are scaled by channel, with what is learned from the training part alone and kept in
`learned`, so that a prediction scales as training did."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dartformer.data.numbers import sequence
from dartformer.data.rows import Rules
from dartformer.data.sequences import Patches, Scale
from dartformer.errors import InputError, unknown
from dartformer.tasks.requirements import require_at_least, require_fraction, require_seed

KINDS = ("classification", "regression", "forecasting")


@dataclass(frozen=True, kw_only=True)
class NumericEncoding(ABC):
    """Sequences of numbers as tokens of some steps each.

    Attributes:
      label_names: the classes in order; `dartformer new --data FILE` finds them.
      channels: numbers of a step.
      valid_fraction: share of train that becomes the valid split where the source has none.
      test_fraction: share of train that becomes the test split where the source has none.
      seed: of the rows that become valid and test.
      on_duplicate: sequences that occur in two splits: "drop", "keep" or "error".
      on_bad_label: rows whose label is none of the classes, or whose numbers are none: "error" or
        "drop".
    """

    label_names: tuple[str | int, ...] = ()
    channels: int = 1
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    on_duplicate: str = "drop"
    on_bad_label: str = "error"
    learned: str = field(default="", repr=False, metadata={"option": False})

    traits: ClassVar[Any]

    def __post_init__(self) -> None:
        require_at_least(self, channels=1)
        require_seed(self)
        require_fraction(self, "valid_fraction", "test_fraction")
        if self.kind not in KINDS:
            raise unknown("task.kind", self.kind, KINDS)
        if self.label_names and self.kind != "classification":
            raise InputError(
                f"task.kind = {self.kind!r} has no classes: leave task.label_names empty."
            )
        self.rules  # noqa: B018 - raises for an unknown rule

    # What a task says of itself.

    @property
    @abstractmethod
    def title(self) -> str:
        """The data's name."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Most tokens of a sequence."""

    @property
    def crop(self) -> str:
        """What is kept of a longer sequence: its "head" or its "tail"."""
        return "head"

    @property
    @abstractmethod
    def patch_steps(self) -> int:
        """Steps of a token."""

    @property
    def kind(self) -> str:
        """ "classification", "regression" or "forecasting"."""
        return "classification"

    @property
    def horizon_steps(self) -> int:
        """How many steps after the last one a forecast is of."""
        return 1

    @property
    def rules(self) -> Rules:
        """What to do with bad rows."""
        return Rules(duplicate=self.on_duplicate, bad_label=self.on_bad_label)

    @property
    def vocabulary(self) -> int:
        """Padding alone: tokens are no ids."""
        return 1

    @property
    def features(self) -> int:
        """Numbers of a token."""
        # A forecast reads the level of its target beside the channels.
        return self.patch_steps * (self.channels + (self.kind == "forecasting"))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes, or of the one number."""
        if self.kind != "classification":
            return ("value",)
        return tuple(map(str, self.label_names))

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.labels)

    # From numbers to tokens.

    @property
    def target(self) -> int | None:
        """The channel that is forecast; None where nothing is."""
        return None

    @property
    def patches(self) -> Patches:
        """How steps become tokens."""
        return Patches(self.length, self.patch_steps, self.target)

    @property
    def scale(self) -> Scale:
        """The scale of each channel; `InputError` before `fitted`."""
        state = self._state()
        return Scale(np.array(state["mean"]), np.array(state["deviation"]))

    def _state(self) -> dict[str, Any]:
        if not self.learned:
            raise InputError(
                f"{self.title} has not learned the scale of its numbers yet. Prepare its data first."
            )
        return dict(json.loads(self.learned))

    def steps(self, text: str) -> np.ndarray:
        """The steps `[T, D]` of a text of numbers; `InputError` for what is none."""
        try:
            values = sequence(text)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"{error}. Separate numbers by spaces or commas, and steps of several channels by "
                f"semicolons."
            ) from None
        # One step after the other, as they are printed without a mark between them.
        if values.shape[1] == 1 and len(values) % self.channels == 0:
            values = values.reshape(-1, self.channels)
        return values

    def tokens_of(self, values: np.ndarray) -> np.ndarray:
        """Tokens `[n, F]` of a sequence as it is in the data, `[T, D]`, scaled as in training."""
        if values.ndim != 2 or values.shape[1] != self.channels or not len(values):
            raise InputError(
                f"the model reads steps of {self.channels} numbers, got an array of shape "
                f"{list(values.shape)}."
            )
        values = self.cropped(values)
        count = len(values)
        padded = np.zeros((self.length * self.patch_steps, self.channels), np.float32)
        padded[:count] = self.scale(values)
        batch = self.patches(padded[None], np.array([count]))
        return batch["tokens"][0][batch["valid"][0]]

    def encode(self, text: str) -> Any:
        """Tokens `[n, F]` of a sequence that is written as text."""
        return self.tokens_of(self.steps(text))

    def decode(self, ids: Sequence[Any]) -> str:
        """The scaled numbers of tokens `[n, F]`, in which padding is left out."""
        rows = []
        for token in np.asarray(ids, np.float64).reshape(-1, self.features):
            rows.append(" ".join(f"{number:.3g}" for number in token))
        return "; ".join(rows)

    def cropped(self, values: np.ndarray) -> np.ndarray:
        """At most the steps that the model reads."""
        most = self.length * self.patch_steps
        if len(values) <= most:
            return values
        # A forecast is of what follows the last step.
        if self.crop == "head" and self.kind != "forecasting":
            return values[:most]
        return values[-most:]

    def value(self, output: float) -> float:
        """The number that an output of the model means: outputs are scaled.

        Of a forecast it is the change from the last step."""
        scale = self._state()["label"]
        return output * scale["scale"] + scale["mean"]

    def value_after(self, output: float, tokens: np.ndarray) -> float:
        """The number that an output means after tokens `[n, F]`: of a forecast, the value itself."""
        value = self.value(output)
        if self.target is None:
            return value
        level = float(tokens[0, self.channels])  # behind the channels of the first step
        scale = self.scale
        return value + level * scale.deviation[self.target] + scale.mean[self.target]
