"""A table of measured latencies: attention x heads in its group x batch x length x phase, in a JSON
file.

An attention is measured as it is used, in a compiled block with its norms, projections and
feed-forward: the block with it, less the same block with heads that do nothing. A call by itself
would be mostly the start of a program."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dartformer._version import __version__
from dartformer.attention import to_text
from dartformer.attention.base import Attention
from dartformer.attention.identity import Identity
from dartformer.attention.uniform import Uniform
from dartformer.cost import measure
from dartformer.cost.analytic import nothing
from dartformer.errors import InputError
from dartformer.machine import user_cache
from dartformer.machine.workdir import read_json, write_json
from dartformer.models.transformer import TransformerConfig
from dartformer.space.genotype import Genotype

FORMAT = 1
ROUNDS = 40
"""The least of these is taken: what else the machine does can only add."""

REPEATS = 40
"""Calls of a whole model."""


def versions() -> dict[str, str]:
    """What else a latency depends on."""
    return {"jax": jax.__version__, "dartformer": __version__}


def cache_file() -> Path:
    """The table of this device and these versions in the user's cache folder."""
    kind = hashlib.sha256(f"{measure.device()} {versions()}".encode()).hexdigest()[:12]
    return user_cache.folder() / f"latency-{kind}.json"


class Table:
    """Latencies by what was measured; read from a file, and written back whenever something was
    added.

    Args:
      file: where; None for `cache_file()`. Made if it is not there.
      trusted: take it although another device or other versions measured it.

    Raises:
      InputError: it is damaged, or another device's or other versions', and not trusted.
    """

    def __init__(self, file: str | Path | None = None, trusted: bool = False):
        self.file = cache_file() if file is None else Path(file)
        self.device, self.versions = measure.device(), versions()
        self.seconds: dict[str, dict[str, Any]] = {}
        self.foreign = False
        if not self.file.exists():
            return
        data = read_json(self.file)
        if (
            not isinstance(data, dict)
            or data.get("format") != FORMAT
            or not isinstance(data.get("entries"), list)
        ):
            raise InputError(f"{self.file} is no table of latencies of format {FORMAT}.")
        for what, ours in (("device", self.device), ("versions", self.versions)):
            if data.get(what) != ours:
                self.foreign = True
                if not trusted:
                    raise InputError(
                        f"the latencies in {self.file} were measured on another {what} ({data.get(what)}; here "
                        f"{ours}): name another file, where they are measured anew, or take them as they are with "
                        f"--trust-table."
                    )
        self.device, self.versions = data["device"], data["versions"]
        self.seconds = {_key(one["of"]): one for one in data["entries"]}

    def attention(
        self,
        config: TransformerConfig,
        one: Attention,
        heads: int,
        *,
        batch: int,
        length: int,
        phase: str,
    ) -> float:
        """Seconds that a group of `heads` heads of an attention adds to a layer; between measured
        numbers, linear.

        What grouping costs a layer with several groups is shared out to them by heads.
        """
        known = measured_heads(config.heads)
        if heads not in known:
            low, high = max(n for n in known if n < heads), min(n for n in known if n > heads)
            below, above = (
                self.attention(config, one, n, batch=batch, length=length, phase=phase)
                for n in (low, high)
            )
            return below + (above - below) * (heads - low) / (high - low)
        if heads == config.heads:
            return self._added(config, one, heads, batch, length, phase)
        # The cheapest second group stands for what grouping costs; the heads that do nothing have
        # had their part of it.
        grouping = self._added(
            config, Uniform(), measured_heads(config.heads)[-2], batch, length, phase
        )
        if isinstance(one, Identity):
            return grouping * heads / config.heads
        added = self._added(config, one, heads, batch, length, phase)
        return max(added - grouping * (1 - heads / config.heads), 0.0)

    def _added(
        self,
        config: TransformerConfig,
        one: Attention,
        heads: int,
        batch: int,
        length: int,
        phase: str,
    ) -> float:
        if isinstance(one, Identity):
            return 0.0
        of = {"attention": to_text(one), "heads": heads, **_place(config, batch, length, phase)}
        return self._get(
            of,
            lambda: attention_seconds(config, one, heads, batch=batch, length=length, phase=phase),
        )

    def rest(self, config: TransformerConfig, *, batch: int, length: int, phase: str) -> float:
        """Seconds of a model whose heads do nothing."""

        def whole() -> float:
            tokens = length - (config.tokens - config.length)
            return measure.model(
                config, nothing(config), batch=batch, length=tokens, phase=phase, repeats=REPEATS
            ).seconds["min"]

        return self._get(
            {"rest": _sizes(config), "batch": batch, "length": length, "phase": phase}, whole
        )

    def _get(self, of: dict[str, Any], call: Callable[[], float]) -> float:
        key = _key(of)
        if key not in self.seconds:
            if self.foreign:
                raise InputError(
                    f"{self.file} is another device's and lacks {of.get('attention') or 'the model'} at "
                    f"batch {of['batch']}, length {of['length']}, phase {of['phase']}: it can only be "
                    f"measured there."
                )
            self.seconds[key] = {"of": of, "seconds": call()}
            self.save()
        return float(self.seconds[key]["seconds"])

    def save(self) -> None:
        """Write the file."""
        try:
            write_json(
                self.file,
                {
                    "format": FORMAT,
                    "device": self.device,
                    "versions": self.versions,
                    "entries": list(self.seconds.values()),
                },
            )
        except OSError as error:
            raise InputError(
                f"cannot write the table of latencies {self.file}: {error.strerror}."
            ) from None


def measured_heads(heads: int) -> tuple[int, ...]:
    """Sizes of groups that are measured: powers of two, and all heads."""
    return tuple(sorted({*(2**i for i in range(heads.bit_length()) if 2**i < heads), heads}))


def _place(config: TransformerConfig, batch: int, length: int, phase: str) -> dict[str, Any]:
    """What an attention's latency depends on beside itself."""
    return {
        "batch": batch * config.inputs,
        "length": length,
        "phase": phase,
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
    }


def _sizes(config: TransformerConfig) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(config).items() if k != "seed"}


def _key(of: dict[str, Any]) -> str:
    return repr(sorted(of.items()))


def attention_seconds(
    config: TransformerConfig, one: Attention, heads: int, *, batch: int, length: int, phase: str
) -> float:
    """Seconds that `heads` heads of an attention add to a block whose other heads do nothing
    (`identity`)."""
    rows = tuple((one,) * n + (Identity(),) * (config.heads - n) for n in (heads, 0))
    calls = [
        measure.block(config, Genotype((row,)), 0, batch=batch, length=length, phase=phase)
        for row in rows
    ]
    for call in calls:
        call()
    times = np.array([[_spent(call) for call in calls] for _ in range(ROUNDS)])  # they take turns
    most, least = times.min(0)
    return max(float(most - least), 0.0)


def _spent(call: Callable[[], Any]) -> float:
    started = measure.clock()
    jax.block_until_ready(call())
    return measure.clock() - started
