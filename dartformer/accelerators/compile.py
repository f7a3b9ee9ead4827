"""Compile for a device that is not here, in a process of its own."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax

from dartformer.accelerators.devices import Device, described
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


def answers(device: Device, module: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a module of this package answers to a request, in a process that compiles for a device.

    The module reads the request as JSON from its standard input and writes one object a line. An
    object with the key "refused" is an `InputError` there, and raised here.

    Raises:
      InputError: it was raised there, or the process ended, as of a crash in the compiler.
    """
    command = [sys.executable, "-m", module]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+", errors="replace") as log,
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment(device)
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for line in process.stdout:
                if not line.startswith("{"):  # a compiler that talks
                    continue
                answer = json.loads(line)
                if "refused" in answer:
                    raise InputError(answer["refused"])
                yield answer
        except BrokenPipeError:  # it ended before it read the request
            pass
        except BaseException:
            process.kill()
            raise
        if process.wait():
            log.seek(0)
            lines = log.read().strip().splitlines() or ["it said nothing"]
            raise InputError(
                f"the compiler for {device.name} gave up with status {process.returncode}: "
                f"{lines[-1][:300]}"
            )
