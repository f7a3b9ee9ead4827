"""Tasks on texts: prepared from rows on first use, with a tokenizer of the training part."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dartformer.data.prepare import Examples, Notes, Prepared, prepared
from dartformer.data.sources import from_source
from dartformer.data.splits import Split
from dartformer.errors import InputError
from dartformer.machine.identity import fingerprint
from dartformer.tasks import rules, simple, tagging
from dartformer.tasks.encoding import TextEncoding, token_names
from dartformer.tasks.preparation import VERSION, Preparation, Source, changed

if TYPE_CHECKING:  # imported where texts are prepared: a loaded model needs none
    from tensorflow_datasets.features import FeatureConnector


@dataclass(frozen=True, kw_only=True)
class TextTask(TextEncoding):
    """A task on texts; a subclass says where the rows of its splits come from."""

    @abstractmethod
    def sources(self, data_dir: str | None) -> dict[str, Source]:
        """The source of "train" and, if the data have them, "valid" and "test".

        `InputError` says what is missing."""

    def check(self, data_dir: str | None = None) -> None:
        """Raise `InputError` where the data are missing, or their first row cannot be read."""
        for name, source in self.sources(data_dir).items():
            if next(iter(source.rows()), None) is None:
                raise InputError(f"{self.title}: {name} has no rows.")

    def fitted(self, data_dir: str | None = None) -> Self:
        """This task with what it learned from its training part; prepared on first use."""
        learned = self._prepared(data_dir).notes["learned"]
        return replace(self, learned=json.dumps(learned, sort_keys=True))

    def facts(self, data_dir: str | None = None) -> dict[str, Any]:
        """What was counted while preparing, by split.

        Rows, why some were dropped, labels, the shares of unknown tokens and of padding."""
        return self._prepared(data_dir).notes["splits"]

    def load(self, data_dir: str | None = None) -> Mapping[str, Split]:
        """Splits "train", "valid" and "test", prepared on first use.

        They are kept under `data_dir`, by default where TFDS keeps data.

        Raises `InputError` for a row that a rule refuses, or a class without an example in train."""
        splits: dict[str, Split] = {}
        ready = self._prepared(data_dir)
        for name, source in ready.splits.items():
            split = from_source(source, self.length, self.vocabulary)
            if name == "train" and "groups" in ready.notes:
                split.groups = ready.notes["groups"]
            splits[name] = split
        return splits

    def _prepared(self, data_dir: str | None) -> Prepared:
        from tensorflow_datasets import features as kinds

        sources = self.sources(data_dir)
        options = dict(vars(self))
        del options["learned"]  # it follows from the others and the data
        if not options["checkpoint"]:
            del options["checkpoint"]  # as before there was this option
        identity = [(name, source.identity) for name, source in sorted(sources.items())]
        version: object = VERSION
        if options.get("group"):
            version = VERSION, "with the groups of train in a file"
        if self.tokens == "checkpoint":
            version = version, fingerprint(self.tokenizer.state())
        token_feature = kinds.Tensor(shape=(None,), dtype=self.token_dtype.type)
        features: dict[str, FeatureConnector] = {
            "tokens": token_feature,
            "label": self._label_feature(),
        }
        if self.inputs == 2:
            features["tokens2"] = token_feature

        def examples(notes: Notes) -> dict[str, Examples]:
            by_split = Preparation(self, sources).run(notes)
            # Rows that come while others are read would be in the next start's data only.
            now = self.sources(data_dir)
            if {name: source.identity for name, source in now.items()} != dict(identity):
                raise changed(self.title)
            return by_split

        return prepared(
            f"dartformer_{type(self).__name__.lower()}",
            (sorted(options.items()), identity, version),
            f"{self.title}: {self}.",
            features,
            examples,
            data_dir,
            title=self.title,
            label=f"{self.tokens}-{self.length}",
        )

    def _label_feature(self) -> "FeatureConnector":
        from tensorflow_datasets import features as kinds

        if self.kind == "regression":
            return kinds.Scalar(np.float32)
        if self.kind == "classification":
            return kinds.Scalar(np.int32)
        return kinds.Tensor(shape=(None,), dtype=np.int32)

    def value(self, output: float) -> float:
        """The number that an output of the model means: outputs are scaled."""
        learned = json.loads(self.learned)
        return output * learned["scale"] + learned["mean"]

    def baselines(self, train: Split, split: Split) -> dict[str, float]:
        """Rules of `dartformer.tasks.simple` that fit the kind of labels.

        They are fitted on `train` and scored on `split`."""
        if self.kind == "regression":
            return {"mean": simple.mean_of_train(train, split)}
        if self.kind == "labelling":
            return {"own_token": simple.own_token(train, split, self.vocabulary, self.classes)}
        if self.kind == "language":
            return simple.bigram(train, split, self.vocabulary, self.tokens)
        features = simple.occurs(self.vocabulary)
        if self.tokens in ("bytes", "characters"):
            features = simple.occurs(simple.HASHED, grams=4)
        scores = {"naive_bayes": simple.naive_bayes(train, split, self.classes, features)}
        if self.inputs == 2 and self.classes == 2:
            scores["overlap"] = simple.overlap(train, split, features)
        return scores

    def plain_rules(self, train: Split, valid: Split, merit: rules.Merit) -> Sequence[rules.Rule]:
        """Linear models on n-grams; of labelled tokens, on the token and its neighbours."""
        if self.kind == "language":
            return []
        if self.kind == "labelling":
            return tagging.of_words(token_names(self), self.classes, train, valid, merit)
        return rules.of_texts(self, train, valid, merit)
