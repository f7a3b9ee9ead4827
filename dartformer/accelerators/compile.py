"""Compile for a device that is not here, in a process of its own."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from dartformer.accelerators.devices import Device, described, require_compiler
from dartformer.accelerators.program import facts
from dartformer.errors import InputError
from dartformer.machine import compile_cache
from dartformer.machine.record import Record

NEEDED = re.compile(
    r"\(?([\d.]+)([KMGT]?)\)? (?:of|exceeds available) ?(?:memory|[Hh][Bb][Mm])?", re.I
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(Exception):
    """A program that does not fit the memory of its device.

    Attributes:
      needed: bytes, or 0 where the compiler does not say.
    """

    def __init__(self, needed: int):
        super().__init__(f"{needed} bytes")
        self.needed = needed


class GaveUp(Exception):
    """A program that the compiler for its device refuses, with its words."""


@dataclass(frozen=True)
class Estimate(Record):
    """What the compiler for a device says of a program.

    Attributes:
      peak_bytes: in memory at once: arguments, outputs and temporaries.
      temp_bytes: of temporaries.
      argument_bytes, output_bytes: of what the program is given and gives.
      flops: of products, with loops multiplied by their turns (see `program.Facts`).
      moved_bytes: read from main memory and written to it, with loops multiplied by their turns.
      roofline_ms: the least time at the device's FLOP/s and bandwidth: the longer of both.
      bound: which of both it is, "flops" or "bytes".
      largest_bytes: of the largest array, with what fills it up to tiles.
      largest_array: that array.
      operations: numbers of gathers, scatters, sorts, loops ("while") and conditionals.
      compile_seconds: of processors.
    """

    peak_bytes: int
    temp_bytes: int
    argument_bytes: int
    output_bytes: int
    flops: float
    moved_bytes: float
    roofline_ms: float
    bound: str
    largest_bytes: int
    largest_array: str
    operations: dict[str, int]
    compile_seconds: float


def environment(device: Device) -> dict[str, str]:
    """The environment of a process that compiles for a device."""
    # A program of another device is no entry for the cache of this one, and its time to compile is
    # wanted.
    apart = {"JAX_PLATFORMS": "cpu", compile_cache.VARIABLE: "off"}
    return {**os.environ, **apart, **device.variables}


def estimate(
    device: Device,
    function: Callable[..., object],
    *arguments: object,
    donate: tuple[int, ...] = (),
) -> Estimate:
    """Compile `function` for a device, in a process with its `environment`.

    Args:
      device: that the program is made for; `Target`s within the function must be its own.
      function: as for `jax.jit`.
      arguments: trees of anything with a shape and a dtype.
      donate: numbers of the arguments whose memory the program may take.

    Raises:
      TooLarge: it does not fit the device's memory.
      GaveUp: the compiler refuses it.
    """
    from jax.experimental import topologies

    chip = topologies.get_topology_desc(**device.topology).devices[0]
    where = jax.sharding.SingleDeviceSharding(chip)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), arguments
    )
    with described(device.target):
        lowered = jax.jit(function, donate_argnums=donate).lower(*placed)
    started = time.process_time()
    options: dict[str, str | bool] = {**device.options}
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if "RESOURCE_EXHAUSTED" in message:
            raise TooLarge(needed_bytes(message)) from None
        raise GaveUp(message.splitlines()[0]) from None
    found = _estimate(device, compiled, time.process_time() - started)
    # The compiler for GPUs does not compare.
    if found.peak_bytes > device.memory:
        raise TooLarge(found.peak_bytes)
    return found


def _estimate(device: Device, compiled: Any, seconds: float) -> Estimate:
    memory, program = compiled.memory_analysis(), facts(compiled.as_text())
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes
    whole += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    by_flops, by_bytes = program.flops / device.flops, program.moved / device.bandwidth
    return Estimate(
        peak_bytes=memory.peak_memory_in_bytes or whole,
        temp_bytes=memory.temp_size_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        flops=program.flops,
        moved_bytes=program.moved,
        roofline_ms=1e3 * max(by_flops, by_bytes),
        bound="flops" if by_flops > by_bytes else "bytes",
        largest_bytes=program.largest,
        largest_array=program.array,
        operations=program.operations,
        compile_seconds=seconds,
    )


def needed_bytes(message: str) -> int:
    """The bytes that a compiler says a program needs; 0 where it does not say."""
    # "Used 18.77G of 15.75G hbm", or "(18.77G) exceeds available HBM (15.75G)".
    found = NEEDED.search(message)
    if not found:
        return 0
    return int(float(found[1]) * UNITS[found[2].upper()])


class Process:
    """A process that compiles for a device, and that may crash. Close it with `close`.

    Its module runs `serve`.

    Args:
      device: that it compiles for, in its `environment`.
      module: that it runs.
    """

    def __init__(self, device: Device, module: str):
        require_compiler(device)
        self.device = device
        # Closed with the process, and not at the end of a block.
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(device),
        )

    def ask(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Its answers to a request, one after another.

        Raises `InputError` where it raised one, or ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: what it said follows
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        for line in stdout:
            if not line.startswith("{"):  # a compiler that talks
                continue
            answer = json.loads(line)
            if answer == DONE:
                return
            if "refused" in answer:
                raise InputError(answer["refused"])
            yield answer
        raise InputError(self._last_words())

    def _last_words(self) -> str:
        """Why the process ended, in one line."""
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["it said nothing"]
        return (
            f"the compiler for {self.device.name} gave up with status {status}: {lines[-1][:300]}"
        )

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


DONE = {"done": True}
"""The last answer to a request."""


def serve(answers: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]) -> None:
    """Answer requests from standard input, as the other end of a `Process`."""
    for line in sys.stdin:
        try:
            for answer in answers(json.loads(line)):
                print(json.dumps(answer), flush=True)
            print(json.dumps(DONE), flush=True)
        except InputError as error:
            print(json.dumps({"refused": str(error)}), flush=True)
