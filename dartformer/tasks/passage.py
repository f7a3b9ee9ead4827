"""A repeated passage: text of your own in which a passage comes a second time, at the end.

Natural text in place of the random tokens of the recall tasks. The idea is that of copying in
Jelassi et al. 2024 (Repeat After Me, arXiv:2402.01032); the task is this package's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dartformer.data.splits import Batch, Split, in_order
from dartformer.data.text_ids import survey
from dartformer.errors import InputError
from dartformer.tasks import generated, simple
from dartformer.tasks.base import TaskTraits
from dartformer.tasks.generated import batch_of, below, draws
from dartformer.tasks.language import Language
from dartformer.tasks.requirements import require_at_least, require_seed


@dataclass(frozen=True, kw_only=True)
class Passage(Language):
    """A stretch of the file `path`, and at its end a passage of it once more.

    An example is `length` - `passage` tokens of text, which begin anywhere, and then `passage`
    tokens that stand somewhere in them. Each token of the second passage from number `cue` on has a
    label, the next token; the tokens before it are the cue that tells the passage from others. As
    in `language`, the file's last part is the test part, the text before it the valid part. Parts
    of the data share no text, but examples of one part do.

    Attributes:
      passage: tokens of the passage.
      cue: tokens of the second passage without a label.
      train: number of training examples; with `endless`, what the simple rules are fitted on.
      valid: number of validation examples.
      test: number of test examples.
      endless: draw new training examples without end.
      seed: of the examples.
    """

    passage: int = 64
    cue: int = 8
    train: int = 12_800
    valid: int = 500
    test: int = 1_280
    endless: bool = False
    seed: int = 0

    traits: ClassVar[TaskTraits] = TaskTraits(
        summary="Continue a passage of your own text that came before (causal)",
        paper="none: any text file; after Jelassi et al. 2024, 2402.01032",
        causal=True,
        per_token=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text:
            raise InputError(
                "task.text does not work with the task passage, which reads one text. Leave it out."
            )
        require_at_least(self, passage=2, cue=1, train=1, valid=1, test=1)
        require_seed(self)
        if self.cue >= self.passage:
            raise InputError(
                f"task.cue must be below task.passage = {self.passage}, got {self.cue}."
            )
        if self.length < 2 * self.passage:
            raise InputError(
                f"task.length must be at least 2 * passage = {2 * self.passage}, got {self.length}."
            )

    @property
    def _stretch(self) -> int:
        """Tokens before the second passage."""
        return self.length - self.passage

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` where there is no file, or a part is shorter than an example."""
        for name, part in survey(self._text_source(), data_dir).parts.items():
            # Bytes are counted when they are read: a text has at least as many as characters.
            if self.tokens == "characters":
                self._require_text(name, part.characters)

    def _require_text(self, name: str, count: int) -> None:
        if count < self._stretch:
            raise InputError(
                f"the {name} part of {self.path} has {count} tokens, and an example takes "
                f"{self._stretch} of them. Use a longer text or a smaller task.length."
            )

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", generated from the file as they are read.

        The ids of a text above 32 MB are prepared once, in files that are mapped."""
        tokens = np.min_scalar_type(self.vocabulary)
        # The same numbers whatever the number of training examples.
        numbers = generated.numbers(self.test, self.valid, self.train)
        splits: dict[str, Split] = {}
        for name, part in self.text_parts(data_dir).items():
            self._require_text(name, len(part.ids))

            def examples(indices: np.ndarray, ids: np.ndarray = part.ids) -> Batch:
                return self.examples(ids, indices)

            endless = self.endless and name == "train"
            part_numbers = {name: numbers[name]}
            part_splits = generated.splits(examples, part_numbers, endless, tokens, np.int32)
            splits.update(part_splits)
        return splits

    def facts(self, data_dir: str | None = None) -> dict[str, Any]:
        """As of `language`; of a checkpoint's tokens those of the text, which is not packed."""
        if self.tokens != "checkpoint":
            return super().facts(data_dir)
        facts = {}
        for name, part in self.text_parts(data_dir).items():
            facts[name] = {
                "characters": part.notes.characters,
                "tokens": part.notes.tokens,
                "invalid UTF-8": part.notes.invalid,
            }
        return facts

    def examples(self, ids: np.ndarray, indices: np.ndarray) -> Batch:
        """The examples of those numbers [B] from the text `ids` [T].

        Each is a function of the options, the text and its number alone."""
        start_bits, passage_bits = draws(self.seed, indices, 2).T
        start = below(len(ids) - self._stretch + 1, start_bits)
        passage = below(self._stretch - self.passage + 1, passage_bits)
        text = ids[start[:, None] + np.arange(self._stretch)].astype(np.int32)
        places = passage[:, None] + np.arange(self.passage)
        tokens = np.concatenate([text, np.take_along_axis(text, places, 1)], axis=1)
        label = np.full_like(tokens, -1)
        # Token i of the second passage predicts token i + 1 of it; the last predicts none.
        first = self._stretch + self.cue - 1
        label[:, first:-1] = tokens[:, first + 1 :]
        return batch_of(tokens, label)

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """`own_token`, the token that most often followed in train; and `last_pair`.

        `last_pair` answers what followed the last earlier place of the token and the one before."""
        rules = {"own_token": simple.own_token(train, split, self.vocabulary, self.classes)}
        right = count = 0
        for batch in in_order(split):
            tokens, label = batch["tokens"], batch["label"]
            for place in range(self._stretch + self.cue - 1, self.length - 1):
                answer = _after_last_pair(tokens, place)
                right += int((answer == label[:, place]).sum())
                count += len(answer)
        rules["last_pair"] = right / count
        return rules


def _after_last_pair(tokens: np.ndarray, place: int) -> np.ndarray:
    """`[B]` what followed the last earlier place of the tokens at `place` - 1 and `place`; 0: none."""
    # Pairs that end before `place`, the last one first.
    second = tokens[:, place - 1 : 0 : -1]
    first = tokens[:, place - 2 :: -1]
    is_pair = (second == tokens[:, place, None]) & (first == tokens[:, place - 1, None])
    end = place - 1 - is_pair.argmax(1)
    answer = tokens[np.arange(len(tokens)), end + 1]
    return np.where(is_pair.any(1), answer, 0)
