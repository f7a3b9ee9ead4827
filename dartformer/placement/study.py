"""A placement in a checkpoint: its workdir, what its config stands for, and its budget."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from dartformer import config as configs
from dartformer.attention import to_text
from dartformer.attention.full import Full
from dartformer.config import PlacementConfig
from dartformer.config.checkpoint import ENCODER_QUANTITIES, KV_BYTES, require_kv_bytes
from dartformer.cost.budget import Budget, BudgetTooSmall, Price, number
from dartformer.cost.prices import prices
from dartformer.errors import InputError
from dartformer.machine.identity import Identity, fingerprint
from dartformer.machine.record import Record
from dartformer.machine.workdir import (
    LockedFolder,
    crc32,
    jsonable,
    read_json,
    write_checked_json,
)
from dartformer.models.mixers import require_all
from dartformer.placement.records import FileMark, Teacher
from dartformer.pretrained import Pretrained, described, load_pretrained
from dartformer.pretrained.base import Described
from dartformer.pretrained.passages import KINDS, TEXT, Split, both_kinds, documents, tokens_of
from dartformer.pretrained.placement import Placement, Places, cache_price, top
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.layout import CONFIG, claim

R = TypeVar("R", bound=Record)

CHECKED = (
    "config.json",
    "tokenizer.json",
    "*.safetensors",
    "modules.json",
    "1_Pooling/config.json",
)
"""The files of a checkpoint that decide what its places are worth."""


class PlacementFolder:
    """The workdir of a placement, and its files; for readers, which need no lock."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / CONFIG
        self.teacher = self.path / "teacher.json"
        self.scores = self.path / "scores.json"
        self.exchange = self.path / "exchange.json"
        self.genotype = self.path / "genotype.json"
        self.tuning = self.path / "tuning.json"
        self.training = self.path / "tuning"
        self.tuned = self.path / "tuned"
        self.evaluation = self.path / "evaluation.json"
        self.results = self.path / "results.json"
        self.budget = self.path / "budget.json"

    def read(self, record: type[R], file: Path) -> R | None:
        """The record in a file; None where there is no file, `InputError` where it is damaged."""
        if not file.exists():
            return None
        return record.from_dict(read_json(file), str(file))

    def read_config(self) -> PlacementConfig:
        """The config that the workdir was made with."""
        return configs.placement_from_dict(read_json(self.config))

    def read_genotype(self) -> Genotype:
        """The genotype that was derived; `InputError` where there is none."""
        if not self.genotype.exists():
            raise InputError(f"there is no {self.genotype}: run `dartformer run` first.")
        return Genotype.from_dict(read_json(self.genotype))


class PlacementWorkdir(PlacementFolder):
    """The workdir of a placement, which no other process can open while it is held."""

    def __init__(self, path: str | Path, config: PlacementConfig):
        super().__init__(path)
        self._lock = LockedFolder(self.path)
        try:
            claim(self.path, jsonable(configs.to_dict(config)))
        except BaseException:
            self.close()
            raise

    def write(self, file: Path, record: Record) -> None:
        """Write a record to one of the files."""
        write_checked_json(file, record.to_dict())

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()

    def __enter__(self) -> "PlacementWorkdir":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_placement(path: str | Path) -> bool:
    """Whether a folder is the workdir of a placement in a checkpoint."""
    file = Path(path) / CONFIG
    return file.is_file() and configs.is_placement(read_json(file))


class Limit(NamedTuple):
    """How large the caches of a sequence may be, how slow a token, or how costly an encoder.

    Attributes:
      amount: the most of the quantity, of all layers together.
      length: tokens of the sequence.
      quantity: bytes of the caches, or what a token or an encoder's text takes.
      table: file of measured latencies; "" for the one in the user's cache folder.
      trust_table: use it although another device or other versions measured it.
      phase: "decode" for the latency of a token.
    """

    amount: float
    length: int
    quantity: str = KV_BYTES
    table: str = ""
    trust_table: bool = False
    phase: str = "forward"

    def price(self, places: Places) -> Price:
        """What the placements cost."""
        return _price(places, self._replace(amount=math.inf))

    def cost_of(self, kept: np.ndarray, places: Places) -> float:
        """What a placement costs."""
        return self.price(places).of(places.genotype(kept), places.space)


@functools.lru_cache(maxsize=16)
def _price(places: Places, limit: Limit) -> Price:
    """The price of a quantity; a latency is measured, once."""
    if limit.quantity == KV_BYTES:
        return places.kv_bytes(limit.length)
    space = places.space
    if places.encodes:
        # It keeps whole layers, so that no other group of heads is measured.
        space = replace(space, granularity="layer")
    budget = Budget(
        ((limit.quantity, limit.amount),),
        length=limit.length,
        phase=limit.phase,
        table=limit.table,
        trust_table=limit.trust_table,
    )
    return prices(places.described.config, space, budget)[limit.quantity]


def by_layer(scores: np.ndarray) -> np.ndarray:
    """`[L, 1]`: what the places of each layer are worth together."""
    return scores.sum(1, keepdims=True)


@dataclass(frozen=True)
class PlacementStudy:
    """What a config stands for, each part made when it is first needed."""

    config: PlacementConfig

    @cached_property
    def described(self) -> Described:
        """The checkpoint without its weights."""
        return described(Path(self.config.checkpoint.folder).expanduser())

    @cached_property
    def places(self) -> Places:
        """The layers and KV groups of the checkpoint, and what they cost."""
        return Places(self.described, self.config.checkpoint.attention)

    @cached_property
    def model(self) -> Pretrained:
        """The checkpoint with its weights."""
        return load_pretrained(self.described.folder)

    @cached_property
    def placement(self) -> Placement:
        """The checkpoint, ready to be scored."""
        return Placement(self.model, self.config.checkpoint.attention)

    @cached_property
    def tokens(self) -> np.ndarray:
        """The text."""
        vocabulary = self.described.config.vocabulary
        return tokens_of(self.described.folder, self.config.checkpoint.text, vocabulary)

    @cached_property
    def kinds(self) -> Mapping[str, Split]:
        """The sequences, by kind."""
        options = self.config.checkpoint
        if self.places.encodes:
            split = documents(
                self.described,
                options.text,
                options.length,
                options.sequences,
                options.held_out,
            )
            return {TEXT: split}
        return both_kinds(self.tokens, options.length, options.sequences, options.held_out)

    @property
    def divergence(self) -> str:
        """What the scores add up to, in a word."""
        if self.places.encodes:
            return "distance"
        return "KL"

    @property
    def kind_names(self) -> tuple[str, ...]:
        """The kinds of sequences, without reading any."""
        if self.places.encodes:
            return (TEXT,)
        return tuple(KINDS)

    @property
    def columns(self) -> int:
        """C, the places of a layer that are chosen one by one."""
        if self.config.space.granularity == "layer":
            return 1
        return self.places.groups

    def at_granularity(self, scores: np.ndarray) -> np.ndarray:
        """Scores of the places that are chosen one by one."""
        if self.columns == 1:
            return by_layer(scores)
        return scores

    @cached_property
    def limit(self) -> Limit:
        """The budget of the config."""
        budget, keep = self.config.search.limits, self.config.checkpoint.keep
        if budget is not None:
            return limit_of(budget, self.places, "search.budget")
        layers = self.described.config.layers
        total = layers * self.columns
        if keep > total:
            raise InputError(f"checkpoint.keep must be at most the {total} places, got {keep}.")
        kept = top(np.zeros((layers, self.columns)), keep)
        limit = Limit(0, self.described.config.length)
        if self.places.encodes:
            limit = Limit(0, self.config.checkpoint.length, ENCODER_QUANTITIES[0])
        return limit._replace(amount=limit.cost_of(kept, self.places))

    @cached_property
    def tuned_space(self) -> SearchSpace:
        """Full and the attention that the other places have once they are tuned."""
        replacement = self.config.tune.replacement
        if replacement is None:
            return self.places.space
        require_all([replacement], self.described.config)
        return replace(self.places.space, candidates=(Full(), replacement))

    def tuned_genotype(self, kept: np.ndarray) -> Genotype:
        """The genotype that keeps places `[L, C]`, once it is tuned."""
        return self.tuned_space.genotype(np.where(kept, 0, 1))

    def tuned_bytes(self, kept: np.ndarray) -> int:
        """What the caches of the tuned placement take, at the length of the budget."""
        price = cache_price(self.described.config, self.tuned_space, self.limit.length)
        return round(price.of(self.tuned_genotype(kept), self.tuned_space))

    def cache_bytes(self, kept: np.ndarray, length: int) -> int:
        """What the caches of a placement take; 0 for an encoder, which has none."""
        if self.places.encodes:
            return 0
        return self.places.bytes_of(kept, length)

    @property
    def affordable_share(self) -> float:
        """Share of the places that the budget has room for; all of them cost the same."""
        full, cheap = (self.limit.cost_of(kept, self.places) for kept in ends(self.places))
        return min((self.limit.amount - cheap) / (full - cheap), 1.0)

    def check(self) -> None:
        """Raise `InputError` for whatever cannot be, before anything is written or loaded."""
        self.places.require_length(self.config.checkpoint.length)
        if self.places.encodes and self.config.tune.steps:
            raise InputError(
                f"tune.steps={self.config.tune.steps} does not work with {self.described.folder}, "
                f"because an encoder predicts no tokens to tune on. Use tune.steps=0."
            )
        if self.places.encodes and self.columns > 1:
            raise InputError(
                f"space.granularity={self.config.space.granularity!r} does not work with "
                f"{self.described.folder}, because an encoder keeps no keys that heads could share. "
                f"Use space.granularity='layer'."
            )
        self.limit, self.kinds, self.tuned_space  # noqa: B018 - raise

    def identity(self, marks: Sequence[FileMark]) -> Identity:
        """Fingerprints of what scores belong to."""
        options = self.config.checkpoint
        contents = [(mark.name, mark.crc32) for mark in marks]
        tokens = {}
        for kind, split in self.kinds.items():
            tokens[kind] = split.calibration.tokens.tolist()
        settings = [options.cheap, options.points, options.length, options.sequences]
        if "frozen" in options.rules:
            settings += [options.frozen_steps, self.limit.amount, self.limit.length]
        return {
            "checkpoint": fingerprint(contents),
            "text": fingerprint(tokens),
            "search": fingerprint(settings),
        }


def limit_of(budget: Budget, places: Places, where: str = "--budget") -> Limit:
    """A budget as a limit; `InputError` for what no placement can meet."""
    if places.encodes:
        return _limit_of_encoder(budget, places, where)
    if budget.quantities == ("latency_ms",):
        return _limit_of_decoding(budget, places, where)
    require_kv_bytes(budget, where)
    length = budget.length
    limit = dict(budget.limits)[KV_BYTES]
    full, cheap = (places.bytes_of(kept, length) for kept in ends(places))
    if cheap >= full:
        raise InputError(
            f"{to_text(places.cheap)} keeps as much as full attention at length={length}. Use a "
            f"larger length or a smaller window."
        )
    if limit < cheap:
        raise BudgetTooSmall(
            f"the budget kv_bytes = {limit:,.0f} at length={length} is below {cheap:,} bytes, "
            f"which {to_text(places.cheap)} takes everywhere. Raise it, or use a smaller window."
        )
    return Limit(limit, length)


def _limit_of_encoder(budget: Budget, places: Places, where: str) -> Limit:
    """A budget of what one text takes."""
    (quantity, amount), *others = budget.limits
    choices = " or ".join(ENCODER_QUANTITIES)
    for name in (quantity, *dict(others)):
        if name == KV_BYTES:
            raise InputError(
                f"{where}: kv_bytes does not work with {places.described.folder}, because an "
                f"encoder keeps no cache. Limit {choices}, with a length, or use checkpoint.keep."
            )
        if name not in ENCODER_QUANTITIES:
            raise InputError(
                f"{where}: {name} does not work with an encoder, whose layers differ in "
                f"computation alone. Limit {choices}, with a length."
            )
    if others:
        raise InputError(f"{where} limits {quantity} and {others[0][0]}. Limit one of them.")
    _require_here(budget, where)
    if not budget.length:
        raise InputError(f"{where} needs a length, as in {quantity}=12,length=256.")
    if budget.batch != 1 or budget.phase != "forward":
        raise InputError(f"{where}: {quantity} is of one text. Leave out batch and phase.")
    places.require_length(budget.length)
    limit = Limit(amount, budget.length, quantity, budget.table, budget.trust_table)
    _require_room(limit, places)
    return limit


def _require_here(budget: Budget, where: str) -> None:
    """Raise `InputError` for latencies of a device that is not here."""
    if budget.on:
        raise InputError(
            f"{where}: on={budget.on} does not work with a checkpoint, whose latencies are measured "
            f"here. Leave it out."
        )


def _limit_of_decoding(budget: Budget, places: Places, where: str) -> Limit:
    """A budget of the measured milliseconds of a token."""
    amount = dict(budget.limits)["latency_ms"]
    _require_here(budget, where)
    if budget.phase != "decode":
        raise InputError(
            f"{where}: latency_ms of a decoder is that of a token. Add phase=decode, as in "
            f"latency_ms=12,length=2048,phase=decode."
        )
    if not budget.length:
        raise InputError(f"{where} needs a length, as in latency_ms=12,length=2048,phase=decode.")
    if budget.batch != 1:
        raise InputError(f"{where}: latency_ms is of one sequence. Leave out batch={budget.batch}.")
    places.require_length(budget.length)
    limit = Limit(
        amount, budget.length, "latency_ms", budget.table, budget.trust_table, budget.phase
    )
    _require_room(limit, places)
    return limit


def _require_room(limit: Limit, places: Places) -> None:
    """Raise `InputError` for a limit below the cheapest placement, or where none is cheaper."""
    full, cheap = (limit.cost_of(kept, places) for kept in ends(places))
    if cheap >= full:
        raise InputError(
            f"{to_text(places.cheap)} takes as long as full attention at length={limit.length}. "
            f"Use a larger length or a smaller window."
        )
    if limit.amount < cheap:
        raise BudgetTooSmall(
            f"the budget {limit.quantity} = {number(limit.amount)} at length={limit.length} is below "
            f"{number(cheap)}, which {to_text(places.cheap)} takes everywhere. Raise it, or use a "
            f"smaller window."
        )


def ends(places: Places) -> tuple[np.ndarray, np.ndarray]:
    """All places full, and none."""
    layers = places.described.config.layers
    return np.ones((layers, 1), bool), np.zeros((layers, 1), bool)


def marks_of(source: Path) -> Iterator[FileMark]:
    """The files of a checkpoint as they are."""
    for pattern in CHECKED:
        for file in sorted(source.glob(pattern)):
            about = file.stat()
            yield FileMark(
                file.relative_to(source).as_posix(), about.st_size, about.st_mtime_ns, crc32(file)
            )


def require_unchanged(teacher: Teacher, source: Path) -> None:
    """Raise `InputError` where a checkpoint is not the one that was scored."""
    for mark in teacher.files:
        file = source / mark.name
        if not file.is_file():
            raise InputError(
                f"there is no {file}, with which the places were scored. Put the checkpoint back, "
                f"or choose another workdir."
            )
        about = file.stat()
        # Like git, the content is read only where the size or the time differ.
        if (about.st_size, about.st_mtime_ns) == (mark.bytes, mark.modified):
            continue
        if about.st_size != mark.bytes or crc32(file) != mark.crc32:
            raise InputError(
                f"{file} has changed since the places were scored. Put the checkpoint back, or "
                f"choose another workdir."
            )
