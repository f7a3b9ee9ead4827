"""A table of measured latencies: attention x heads in its group x batch x length x phase, in a JSON file.

An attention is measured as it is used, inside a compiled program: a loop that feeds its output back, less the same loop
without it. A call by itself would be mostly the start of a program.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dartformer._version import __version__
from dartformer.attention import format as spec
from dartformer.attention.base import Attention, Inputs
from dartformer.attention.identity import Identity
from dartformer.attention.uniform import Uniform
from dartformer.cost import measure
from dartformer.cost.analytic import nothing
from dartformer.errors import InputError
from dartformer.genotype import Genotype
from dartformer.transformer import TransformerConfig, attend, take_heads
from dartformer.workdir import read_json, write_json

FORMAT = 1
FEEDBACK = 1e-6
"""Share of an attention's output that goes into its next inputs: enough that no pass can be left out."""

ROUND = 0.01
"""Seconds of a round of calls, about."""

ROUNDS = 15
"""The least of these is taken: what else the machine does can only add."""

REPEATS = 40
"""Calls of a whole model."""


def versions() -> dict[str, str]:
    """What else a latency depends on."""
    return {"jax": jax.__version__, "dartformer": __version__}


def cache_file() -> Path:
    """The table of this device and these versions in the user's cache folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kind = hashlib.sha256(f"{measure.device()} {versions()}".encode()).hexdigest()[:12]
    return base / "dartformer" / f"latency-{kind}.json"


class Table:
    """Latencies by what was measured; read from a file, and written back whenever something was added.

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
        if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("entries"), list):
            raise InputError(f"{self.file} is no table of latencies of format {FORMAT}.")
        for what, ours in (("device", self.device), ("versions", self.versions)):
            if data.get(what) != ours:
                self.foreign = True
                if not trusted:
                    raise InputError(
                        f"the latencies in {self.file} were measured on another {what} ({data.get(what)}; here "
                        f"{ours}): name another file, where they are measured anew, or take them as they are with "
                        f"--trust-table.")
        self.device, self.versions = data["device"], data["versions"]
        self.seconds = {_key(one["of"]): one for one in data["entries"]}

    def attention(self, config: TransformerConfig, one: Attention, heads: int, *, batch: int, length: int,
                  phase: str) -> float:
        """Seconds that `heads` heads of an attention add to a layer; between measured numbers of heads, linear."""
        known = measured_heads(config.heads)
        if heads in known:
            return self._get({"attention": spec(one), "heads": heads, **_place(config, batch, length, phase)},
                             lambda: attention_seconds(config, one, heads, batch=batch, length=length, phase=phase))
        low = max(n for n in known if n < heads)
        high = min(n for n in known if n > heads)
        below, above = (self.attention(config, one, n, batch=batch, length=length, phase=phase) for n in (low, high))
        return below + (above - below) * (heads - low) / (high - low)

    def rest(self, config: TransformerConfig, *, batch: int, length: int, phase: str) -> tuple[float, float]:
        """Seconds of a model without its attentions; and what grouping heads adds to a layer with several groups."""
        where = {"model": _sizes(config), **_place(config, batch, length, phase)}

        def one(attention: Attention, heads: int) -> float:
            return self.attention(config, attention, heads, batch=batch, length=length, phase=phase)

        def whole(genotype: Genotype) -> float:
            tokens = length - (config.tokens - config.length)
            found = measure.model(config, genotype, batch=batch, length=tokens, phase=phase, repeats=REPEATS)
            return found.seconds["min"]

        plain = self._get({"rest": "identity", **where}, lambda: whole(nothing(config)))
        rest = plain - config.layers * one(Identity(), config.heads)
        if config.heads < 2:
            return max(rest, 0.0), 0.0
        half = config.heads // 2
        two = Genotype(((Uniform(),) * half + (Identity(),) * (config.heads - half),) * config.layers)
        mixed = self._get({"rest": "two groups", **where}, lambda: whole(two))
        groups = one(Uniform(), half) + one(Identity(), config.heads - half)
        return max(rest, 0.0), max((mixed - rest) / config.layers - groups, 0.0)

    def _get(self, of: dict[str, Any], call: Callable[[], float]) -> float:
        key = _key(of)
        if key not in self.seconds:
            if self.foreign:
                raise InputError(f"{self.file} is another device's and lacks {of.get('attention') or 'the model'} at "
                                 f"batch {of['batch']}, length {of['length']}, phase {of['phase']}: it can only be "
                                 f"measured there.")
            self.seconds[key] = {"of": of, "seconds": call()}
            self.save()
        return float(self.seconds[key]["seconds"])

    def save(self) -> None:
        """Write the file."""
        try:
            write_json(self.file, {"format": FORMAT, "device": self.device, "versions": self.versions,
                                   "entries": list(self.seconds.values())})
        except OSError as error:
            raise InputError(f"cannot write the table of latencies {self.file}: {error.strerror}.") from None


def measured_heads(heads: int) -> tuple[int, ...]:
    """Sizes of groups that are measured: powers of two, and all heads."""
    return tuple(sorted({*(2**i for i in range(heads.bit_length()) if 2**i < heads), heads}))


def _place(config: TransformerConfig, batch: int, length: int, phase: str) -> dict[str, Any]:
    """What an attention's latency depends on beside itself."""
    return {"batch": batch * config.inputs, "length": length, "phase": phase, "head_dim": config.head_dim,
            "model_dim": config.model_dim, "dtype": config.dtype, "causal": config.causal, "kernel": config.kernel,
            "branch_norm": config.branch_norm, "alibi": config.positions == "alibi",
            "attention_dropout": config.attention_dropout}


def _sizes(config: TransformerConfig) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(config).items() if k != "seed"}


def _key(of: dict[str, Any]) -> str:
    return repr(sorted(of.items()))


def attention_seconds(config: TransformerConfig, one: Attention, heads: int, *, batch: int, length: int,
                      phase: str) -> float:
    """Seconds of one attention inside a program: of a loop with it, less the same loop without."""
    with_it, without = (_loop(config, one, heads, batch, length, phase, real) for real in (True, False))
    turns = 1
    while True:  # as many turns as fill a round
        spent = _spent(with_it, turns)
        if spent >= ROUND or turns >= 4096:
            break
        turns = min(4096, max(turns + 1, int(turns * 1.2 * ROUND / max(spent, 1e-6))))
    times = np.array([(_spent(with_it, turns), _spent(without, turns)) for _ in range(ROUNDS)]) / turns
    most, least = times.min(0)
    return max(float(most - least), 0.0)


def _spent(call: Callable[[int], Any], turns: int) -> float:
    started = measure.clock()
    jax.block_until_ready(call(turns))
    return measure.clock() - started


def _loop(config: TransformerConfig, one: Attention, heads: int, batch: int, length: int, phase: str,
          real: bool) -> Callable[[int], Any]:
    """turns -> the inputs after so many passes; without the attention, v stands for its output."""
    # As a layer does it: all heads are there, and a group takes its own out of them, here as far apart as they can be.
    given, params = measure.attention_inputs(config, one, config.heads, batch=batch, length=length)
    if heads < config.heads:
        _, params = measure.attention_inputs(config, one, heads, batch=batch, length=length)
    if "x" not in one.traits.reads:
        given.pop("x")
    rest, valid = measure.fixed(config, config.heads), jnp.ones(given["v"].shape[:2], bool)
    group = tuple(h * config.heads // heads for h in range(heads))

    def forward(params: Any, given: dict[str, Any]) -> Any:
        inputs = Inputs(given["q"], given["k"], given["v"], given.get("x"), valid, **rest)
        inputs = take_heads(inputs, group) if heads < config.heads else inputs
        return attend(one, params, inputs, config, train=phase == "train", key=jax.random.key(0))

    def change(params: Any, given: dict[str, Any]) -> Any:
        if not real:
            return given["v"]
        if phase == "forward":
            return forward(params, given)
        y, back = jax.vjp(forward, params, given)
        return back(y)

    def turn(i: Any, state: Any) -> Any:
        made = jax.lax.optimization_barrier(change(*state))  # all of it is made, though little is used
        moved = FEEDBACK * sum(leaf.ravel()[0].astype(jnp.float32) for leaf in jax.tree.leaves(made))
        return jax.tree.map(lambda a: (a * (1 + moved)).astype(a.dtype), state)

    compiled = jax.jit(lambda turns, state: jax.lax.fori_loop(0, turns, turn, state)).lower(
        1, (params, given)).compile()
    return lambda turns: compiled(turns, (params, given))
