"""A table of measured latencies by attention, heads of its group, batch, length and phase.

It is a JSON file. An attention is measured as it is used, in a compiled block with its norms,
projections and feed-forward: the block with it, less the same block with heads that do nothing. A
call of the attention alone would be mostly the start of a program."""

import bisect
import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import jax
import numpy as np

from dartformer._version import __version__
from dartformer.accelerators.devices import label
from dartformer.attention import to_text
from dartformer.attention.base import Attention
from dartformer.attention.identity import Identity
from dartformer.attention.uniform import Uniform
from dartformer.cost import measure, predict
from dartformer.cost.analytic import nothing
from dartformer.errors import InputError
from dartformer.machine import user_cache
from dartformer.machine.record import Plain, Record
from dartformer.machine.workdir import jsonable, read_json, write_json
from dartformer.models.sizes import BLOCK, TransformerConfig, without_defaults
from dartformer.space.genotype import Genotype

FORMAT = 1
ROUNDS = 40
"""The least of these is taken: other processes of the machine can only add."""

REPEATS = 40
"""Calls of a complete model."""


class At(NamedTuple):
    """How a latency is measured.

    Attributes:
      batch: examples at once.
      length: tokens of each; in the phase "decode" those in the caches, with the new one.
      phase: of `dartformer.cost.budget.PHASES`.
      spread: whether the heads of a group read as many heads of keys and values as they can, and
        not as few.
    """

    batch: int
    length: int
    phase: str
    spread: bool = False


@dataclass(frozen=True)
class Entry(Record):
    """A latency in the file.

    Attributes:
      of: what was measured: everything that the latency depends on.
      seconds: the least of all calls.
    """

    of: dict[str, Plain]
    seconds: float

    @property
    def key(self) -> str:
        """What entries are found by."""
        return repr(sorted(self.of.items()))


@dataclass(frozen=True)
class TableFile(Record):
    """The file of a table.

    Attributes:
      format: 1.
      device: that measured it, in words.
      versions: of packages that a latency depends on.
      entries: in the order in which they were measured.
    """

    format: int
    device: str
    versions: dict[str, str]
    entries: tuple[Entry, ...]


def versions() -> dict[str, str]:
    """Versions of packages that a latency depends on."""
    return {"jax": jax.__version__, "dartformer": __version__}


def cache_file(device: str = "") -> Path:
    """The table of a device and these versions in the user's cache folder; "" for this device."""
    device = device or measure.device()
    kind = hashlib.sha256(f"{device} {versions()}".encode()).hexdigest()[:12]
    return user_cache.folder() / f"latency-{kind}.json"


class Table:
    """Measured latencies, read from a file, and written back whenever an entry was added.

    Args:
      file: where; None for `cache_file()`. Created if it is missing.
      trusted: use it although another device or other versions measured it.
      on: a device whose latencies are predicted by its compiler, and not measured; "" for none.

    Raises:
      InputError: it is damaged, or another device's or other versions', and not trusted.
    """

    def __init__(self, file: str | Path | None = None, trusted: bool = False, on: str = ""):
        self.device = measure.device()
        self.predictor: predict.Predictor | None = None
        if on:
            self.device, self.predictor = label(on), predict.Predictor(on)
        if file is None:
            file = cache_file(self.device)
        self.file = Path(file)
        self.versions = versions()
        self.entries: dict[str, Entry] = {}
        self.foreign = False
        if self.file.exists():
            self._read(trusted)

    def _read(self, trusted: bool) -> None:
        data = read_json(self.file)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InputError(f"{self.file} is not a table of latencies of format {FORMAT}.")
        content = TableFile.from_dict(data, str(self.file))
        if content.device != self.device:
            self._refuse_foreign("device", content.device, self.device, trusted)
        if content.versions != self.versions:
            self._refuse_foreign("versions", content.versions, self.versions, trusted)
        self.device = content.device
        self.versions = content.versions
        self.entries = {entry.key: entry for entry in content.entries}

    def _refuse_foreign(self, name: str, theirs: object, ours: object, trusted: bool) -> None:
        self.foreign = True
        if not trusted:
            raise InputError(
                f"the latencies in {self.file} were measured on another {name} ({theirs}; here "
                f"{ours}). Name another file to measure them again, or use them as they are with "
                f"--trust-table."
            )

    def attention(
        self,
        config: TransformerConfig,
        attention: Attention,
        heads: int,
        *,
        batch: int,
        length: int,
        phase: str,
        spread: bool = False,
    ) -> float:
        """Seconds that a group of `heads` heads of an attention adds to a layer; see `At`.

        Between measured numbers of heads it is linear. What grouping costs a layer with several
        groups is shared out to them by heads.
        """
        at = At(batch, length, phase, spread and config.sharing > 1)
        sizes = measured_heads(config.heads)
        if heads in sizes:
            return self._of_group(config, attention, heads, at)
        after = bisect.bisect(sizes, heads)  # sizes ascend, and `heads` is between two of them
        low, high = sizes[after - 1], sizes[after]
        below = self._of_group(config, attention, low, at)
        above = self._of_group(config, attention, high, at)
        return below + (above - below) * (heads - low) / (high - low)

    def _of_group(
        self, config: TransformerConfig, attention: Attention, heads: int, at: At
    ) -> float:
        """Seconds of a group of a size that is measured."""
        if heads == config.heads:
            return self._added(config, attention, heads, at)
        # The cheapest second group stands for what grouping costs. Heads that do nothing carry
        # their share of it.
        half = measured_heads(config.heads)[-2]  # the largest group that leaves room for another
        grouping = self._added(config, Uniform(), half, at)
        if isinstance(attention, Identity):
            return grouping * heads / config.heads
        added = self._added(config, attention, heads, at)
        return max(added - grouping * (1 - heads / config.heads), 0.0)

    def _added(self, config: TransformerConfig, attention: Attention, heads: int, at: At) -> float:
        """Seconds that heads of an attention add to a layer whose other heads do nothing."""
        if isinstance(attention, Identity):
            return 0.0
        of = {"attention": to_text(attention), "heads": heads, **_setting(config, at)}
        if self.predictor is not None:
            return self._get(of, lambda: self._foretold(config, attention, heads, at))
        return self._get(
            of,
            lambda: attention_seconds(
                config,
                attention,
                heads,
                batch=at.batch,
                length=at.length,
                phase=at.phase,
                spread=at.spread,
            ),
        )

    def _foretold(
        self, config: TransformerConfig, attention: Attention, heads: int, at: At
    ) -> float:
        """`_added`, by the roofline of a block with the attention less that of one without."""
        assert self.predictor is not None
        times = []
        for count in (heads, 0):
            genotype = Genotype((heads_of_block(config, attention, count, at.spread),))
            times.append(
                self.predictor.seconds(
                    config,
                    genotype,
                    whole=False,
                    batch=at.batch,
                    length=at.length,
                    phase=at.phase,
                )
            )
        return max(times[0] - times[1], 0.0)

    def close(self) -> None:
        """End the process that predicts, where there is one."""
        if self.predictor is not None:
            self.predictor.close()

    def rest(self, config: TransformerConfig, *, batch: int, length: int, phase: str) -> float:
        """Seconds of a model whose heads do nothing."""

        def model_seconds() -> float:
            tokens = length - (config.tokens - config.length)
            if self.predictor is not None:
                return self.predictor.seconds(
                    config, nothing(config), whole=True, batch=batch, length=tokens, phase=phase
                )
            if phase == "decode":
                measured = measure.decode(
                    config, nothing(config), batch=batch, length=tokens, repeats=REPEATS
                )
            else:
                measured = measure.model(
                    config,
                    nothing(config),
                    batch=batch,
                    length=tokens,
                    phase=phase,
                    repeats=REPEATS,
                )
            return measured.seconds.min

        sizes = jsonable(without_defaults(dataclasses.asdict(config)))
        del sizes["seed"]  # of the weights, which cost the same
        del sizes["target"]  # this device, which the file names
        of = {"rest": sizes, "batch": batch, "length": length, "phase": phase}
        return self._get(of, model_seconds)

    def _get(self, of: dict[str, Plain], call: Callable[[], float]) -> float:
        """The latency of an entry, measured by `call` where there is none yet."""
        key = Entry(of, 0.0).key
        if key not in self.entries:
            if self.foreign:
                name = of.get("attention") or "the model"
                raise InputError(
                    f"{self.file} is another device's and lacks {name} at batch {of['batch']}, "
                    f"length {of['length']}, phase {of['phase']}: it can only be measured there."
                )
            self.entries[key] = Entry(of, call())
            self.save()
        return float(self.entries[key].seconds)

    def save(self) -> None:
        """Write the file."""
        content = TableFile(FORMAT, self.device, self.versions, tuple(self.entries.values()))
        try:
            write_json(self.file, content.to_dict())
        except OSError as error:
            raise InputError(
                f"cannot write the table of latencies {self.file}: {error.strerror}."
            ) from None


def measured_heads(heads: int) -> tuple[int, ...]:
    """Sizes of groups that are measured: powers of two, and all heads."""
    sizes = []
    size = 1
    while size < heads:
        sizes.append(size)
        size *= 2
    return (*sizes, heads)


def _setting(config: TransformerConfig, at: At) -> dict[str, Plain]:
    """What an attention's latency depends on beside itself."""
    spread: dict[str, Plain] = {}
    if at.spread:  # else left out, so that older entries stay valid
        spread["spread"] = True
    return {
        "batch": at.batch * config.inputs,
        "length": at.length,
        "phase": at.phase,
        "heads_of_layer": config.heads,
        "head_dim": config.head_dim,
        "mlp_dim": config.mlp_dim,
        "kv_heads": config.kv_heads,
        "qk_norm": config.qk_norm,
        "positions": config.positions,
        "dropout": config.dropout,
        "model_dim": config.model_dim,
        "dtype": config.dtype,
        "causal": config.causal,
        "kernel": config.kernel,
        "branch_norm": config.branch_norm,
        "attention_dropout": config.attention_dropout,
        **_of_block(config),
        **spread,
    }


def _of_block(config: TransformerConfig) -> dict[str, Plain]:
    """The options of the block that are not as by default, so that older entries stay valid."""
    options = {name: getattr(config, name) for name in BLOCK}
    return cast(dict[str, Plain], jsonable(without_defaults(options)))


def heads_of_block(
    config: TransformerConfig, attention: Attention, heads: int, spread: bool
) -> tuple[Attention, ...]:
    """A row of heads: so many of an attention, and others that do nothing; see `At`."""
    order = np.arange(config.heads)
    if spread:
        # First one head of each group that shares keys, then a second one.
        order = order.reshape(-1, config.sharing).T.reshape(-1)
    row: list[Attention] = [Identity()] * config.heads
    for head in order[:heads].tolist():
        row[head] = attention
    return tuple(row)


def attention_seconds(
    config: TransformerConfig,
    attention: Attention,
    heads: int,
    *,
    batch: int,
    length: int,
    phase: str,
    spread: bool = False,
) -> float:
    """Seconds that `heads` heads of an attention add to a block; see `At`.

    The block's other heads do nothing (`identity`)."""

    def block(heads: int) -> Callable[[], object]:
        genotype = Genotype((heads_of_block(config, attention, heads, spread),))
        return measure.block(config, genotype, 0, batch=batch, length=length, phase=phase)

    calls = [block(heads), block(0)]
    for call in calls:
        call()  # warm up
    times = np.zeros((ROUNDS, 2))
    for i in range(ROUNDS):
        # They take turns, so that a slow moment of the machine hits both.
        for j, call in enumerate(calls):
            times[i, j] = _seconds(call)
    # The least of each: what disturbs a measurement only ever makes it longer.
    with_attention, without = times.min(0)
    # Noise may make the difference of a cheap attention negative.
    return max(float(with_attention - without), 0.0)


def _seconds(call: Callable[[], object]) -> float:
    start = measure.clock()
    jax.block_until_ready(call())
    return measure.clock() - start
