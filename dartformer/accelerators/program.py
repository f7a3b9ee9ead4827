"""What the text of a compiled program says of itself: FLOPs, bytes moved, arrays, operations.

XLA's own counts have the body of a loop once, whatever its turns, and those of its GPU compiler are
empty. These multiply by the turns, and fill arrays up to the tiles that a TPU keeps them in.
"""

import functools
import math
import re
from collections import Counter
from typing import NamedTuple

BYTES = {
    "pred": 1,
    "s4": 1,
    "u4": 1,
    "s8": 1,
    "u8": 1,
    "f8e4m3fn": 1,
    "f8e5m2": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "u64": 8,
    "f64": 8,
    "c64": 8,
    "c128": 16,
}

FREE = frozenset(
    {
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "opt-barrier",
        "partition-id",
        "replica-id",
        "copy-done",
        "async-done",
        "async-update",
        "all-gather-done",
        "all-reduce-done",
    }
)
"""Operations that move nothing, or whose start was counted."""

EXCHANGES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
"""Operations by which devices exchange numbers."""

COUNTED = ("gather", "scatter", "sort", "while", "conditional")
"""Operations that `Facts` counts in the text; those within loops once."""

PRODUCTS = {"__cudnn$fmhaSoftmax": 2, "__cudnn$fmhaSoftmaxBackward": 5}
"""Products of N x N x D in a call of cuDNN's attention."""

STATED = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
"""What a Pallas kernel says of its own FLOPs, where its author wrote an estimate."""

SPLASH = {"splash_mha_fwd": (2, ""), "splash_mha_dq": (3, "_dq"), "splash_mha_dkv": (4, "_dkv")}
"""Kernels of splash attention: their products of N x N x D, and what names of their blocks end in."""

ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
TILE = re.compile(r"T\(([\d,]+)\)")
SPACE = re.compile(r"S\(([1-9])\)")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
OPCODE = re.compile(r"([\w\-]+)\(")
CALLED = re.compile(r"(?:calls|to_apply|body|called_computation)=%?([\w.\-]+)")


class Array(NamedTuple):
    """An array of a program.

    Attributes:
      kind: its type, such as "bf16".
      dims: sizes.
      bytes: with what fills it up to tiles.
      fast: it is in a memory of the chip, and not in its main one.
    """

    kind: str
    dims: tuple[int, ...]
    bytes: int
    fast: bool

    def __str__(self) -> str:
        return f"{self.kind}[{','.join(map(str, self.dims))}]"


class Instruction(NamedTuple):
    """A line: `name = arrays opcode(operands), attributes`."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    arguments: str

    @property
    def bytes(self) -> int:
        """Of its output in main memory."""
        return sum(array.bytes for array in self.arrays if not array.fast)

    @property
    def called(self) -> str:
        """The computation that it runs, or ""."""
        found = CALLED.search(self.attributes)
        return found[1] if found else ""


class Computation(NamedTuple):
    """Instructions by name, in order."""

    instructions: dict[str, Instruction]
    root: str


class Facts(NamedTuple):
    """What a program does.

    Attributes:
      flops: of products of matrices, convolutions, Fourier transforms and attention kernels.
      moved: bytes read and written in main memory: operands and outputs of all operations, those
        of a fusion as one, with the rows alone where only these are read or written.
      largest: bytes of the largest array in memory.
      array: that array, such as "f32[8,8,2048,2048]".
      operations: how many there are of `COUNTED`, by name.
      unknown: loops whose turns the text does not say, which were counted once.
    """

    flops: float
    moved: float
    largest: int
    array: str
    operations: dict[str, int]
    unknown: int


class Exchange(NamedTuple):
    """What devices send to one another by one kind of operation.

    Attributes:
      times: it runs, in loops as often as these turn.
      bytes: of its results on one device, all times together.
    """

    times: int
    bytes: float


class Work(NamedTuple):
    """FLOPs, and bytes moved."""

    flops: float
    moved: float


def facts(text: str) -> Facts:
    """What the optimized HLO `text` of a program says."""
    return Program(text).facts()


def array_of(kind: str, dims: str, order: str, layout: str) -> Array:
    """An array from the parts of its text, such as "f32", "8,64", "1,0" and "T(8,128)"."""
    sizes = tuple(int(d) for d in dims.split(",") if d)
    filled = list(sizes)
    tile = TILE.search(layout)
    if tile and order:
        minor = [int(axis) for axis in order.split(",")]
        rows = [int(size) for size in tile[1].split(",")]
        # The last number of the tile is for the axis that is the most minor in memory.
        for axis, size in zip(minor, reversed(rows), strict=False):
            filled[axis] += -filled[axis] % size
    size = math.prod(filled) * BYTES.get(kind, 0)
    return Array(kind, sizes, size, bool(SPACE.search(layout)))


@functools.lru_cache(maxsize=100_000)
def arrays_of(text: str) -> tuple[Array, ...]:
    """All arrays of a type's text, which may be a tuple."""
    return tuple(array_of(*found) for found in ARRAY.findall(text) if found[0] in BYTES)


def _closing(text: str) -> int:
    """Where the bracket closes with which `text` opens."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i
    raise ValueError(f"a bracket does not close in {text[:80]!r}")


def instruction_of(name: str, text: str) -> Instruction:
    """An instruction from what follows its name and " = "."""
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].strip()
    found = OPCODE.match(rest)
    if not found:
        raise ValueError(f"{name}: no operation in {rest[:80]!r}")
    opening = found.end() - 1
    closing = opening + _closing(rest[opening:])
    arguments = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, found[1], arrays_of(shape), operands, rest[closing + 1 :], arguments)


def computation_of(lines: list[str]) -> Computation:
    """A computation from its instructions."""
    instructions = {}
    root = ""
    for line in lines:
        if found := LINE.match(line):
            instructions[found[2]] = instruction_of(found[2], found[3])
            if found[1]:
                root = found[2]
    return Computation(instructions, root)


class Program:
    """The computations of a program, from the text of optimized HLO."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        name: str | None = None
        lines: list[str] = []
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            header = HEADER.match(line)
            if header:
                name, lines = header[2], []
                if header[1]:
                    self.entry = name
            elif line == "}" and name is not None:
                self.computations[name] = computation_of(lines)
                name = None
            elif LINE.match(line) or not lines:
                lines.append(line)
            else:  # attributes of a kernel go on in further lines
                lines[-1] += line
        if not self.entry:
            raise ValueError("the text is no program of HLO: it has no entry")
        self.unknown = 0

    def facts(self) -> Facts:
        """What the program does."""
        self.unknown = 0
        work = self._work(self.entry)
        operations: Counter[str] = Counter()
        largest = Array("pred", (), 0, False)
        fused = self._fused()
        for name, computation in self.computations.items():
            for instruction in computation.instructions.values():
                if instruction.opcode in COUNTED:
                    operations[instruction.opcode] += 1
                if name not in fused:
                    every = (largest, *instruction.arrays)
                    largest = max(every, key=lambda array: array.bytes)
        counts = {name: operations[name] for name in COUNTED}
        return Facts(work.flops, work.moved, largest.bytes, str(largest), counts, self.unknown)

    def _fused(self) -> set[str]:
        """Computations of fusions, whose arrays are never in memory."""
        fused = set()
        for computation in self.computations.values():
            for instruction in computation.instructions.values():
                if instruction.opcode == "fusion":
                    fused.add(instruction.called)
        return fused

    def _work(self, name: str) -> Work:
        """Of a computation that runs once."""
        flops = moved = 0.0
        computation = self.computations[name]
        for instruction in computation.instructions.values():
            work = self._work_of(computation, instruction)
            flops, moved = flops + work.flops, moved + work.moved
        return Work(flops, moved)

    def _work_of(self, computation: Computation, instruction: Instruction) -> Work:
        opcode = instruction.opcode
        if opcode in FREE or "AllocateBuffer" in instruction.attributes:
            return Work(0.0, 0.0)
        if opcode == "while":
            body = self._work(instruction.called)
            turns = self.turns(instruction)
            return Work(body.flops * turns, body.moved * turns)
        if opcode == "conditional":
            branches = [self._work(branch) for branch in _branches(instruction)]
            return Work(max(b.flops for b in branches), max(b.moved for b in branches))
        if opcode in ("call", "async-start"):
            return self._work(instruction.called)
        return Work(self._flops(computation, instruction), self._moved(computation, instruction))

    def exchanges(self) -> dict[str, Exchange]:
        """What devices exchange in one run, by operation; those of `EXCHANGES` that occur."""
        return self._exchanges(self.entry)

    def _exchanges(self, name: str) -> dict[str, Exchange]:
        """Of a computation that runs once."""
        found: dict[str, Exchange] = {}
        for instruction in self.computations[name].instructions.values():
            for operation, exchange in self._exchanges_of(instruction).items():
                before = found.get(operation, Exchange(0, 0.0))
                found[operation] = Exchange(
                    before.times + exchange.times, before.bytes + exchange.bytes
                )
        return found

    def _exchanges_of(self, instruction: Instruction) -> dict[str, Exchange]:
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in EXCHANGES:
            # One that only starts gives its operands first, and may give its counters last.
            arrays = instruction.arrays
            if opcode != instruction.opcode and len(arrays) > 1:
                sent = [array for array in arrays if array.dims or array.kind != "u32"]
                arrays = tuple(sent[len(sent) // 2 :])
            return {opcode: Exchange(1, float(sum(array.bytes for array in arrays)))}
        if opcode == "while":
            turns = self.turns(instruction)
            body = self._exchanges(instruction.called)
            return {
                operation: Exchange(turns * exchange.times, turns * exchange.bytes)
                for operation, exchange in body.items()
            }
        if opcode == "conditional":
            branches = [self._exchanges(branch) for branch in _branches(instruction)]
            return max(branches, key=lambda found: sum(e.bytes for e in found.values()))
        if opcode in ("call", "async", "fusion"):
            return self._exchanges(instruction.called)
        return {}

    def turns(self, loop: Instruction) -> int:
        """How often the body of a loop runs; 1 where the text does not say."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        bounds = self._bounds(condition[1]) if condition else set()
        if len(bounds) == 1:
            return bounds.pop()
        self.unknown += 1
        return 1

    def _bounds(self, name: str) -> set[int]:
        """Whole numbers in the condition of a loop; JAX's count from 0 and compare with one."""
        bounds: set[int] = set()
        for instruction in self.computations[name].instructions.values():
            if instruction.opcode == "constant" and instruction.arguments.isdigit():
                bounds.add(int(instruction.arguments))
            elif instruction.opcode == "fusion":
                bounds |= self._bounds(instruction.called)
        return bounds

    # FLOPs.

    def _flops(self, computation: Computation, instruction: Instruction) -> float:
        """Of products in an instruction, or within a fusion."""
        opcode = instruction.opcode
        if opcode == "fusion":
            inside = self.computations[instruction.called]
            return sum(
                self._flops(inside, instruction) for instruction in inside.instructions.values()
            )
        if opcode == "dot":
            lhs = _first(computation, instruction, 0)
            return _product_flops(instruction, lhs, r"lhs_contracting_dims=\{([\d,]*)\}")
        if opcode == "convolution":
            lhs, rhs = (_first(computation, instruction, i) for i in (0, 1))
            return convolution_flops(instruction, lhs, rhs)
        if opcode == "fft":
            length = re.search(r"fft_length=\{(\d+)", instruction.attributes)
            numbers = math.prod(instruction.arrays[0].dims)
            return 5.0 * numbers * math.log2(int(length[1])) if length else 0.0
        if opcode != "custom-call":
            return 0.0
        target = re.search(r'custom_call_target="([^"]+)"', instruction.attributes)
        if target and target[1] in PRODUCTS:
            q, k = (_first(computation, instruction, i).dims for i in (0, 1))
            return 2.0 * PRODUCTS[target[1]] * math.prod(q) * k[1]  # [B, N, H, D] times M
        if target and target[1].startswith("__cublas"):
            lhs = _first(computation, instruction, 0)
            pattern = r'"lhs_contracting_dimensions":\[([\d",]*)\]'
            return _product_flops(instruction, lhs, pattern)
        if target and target[1] == "tpu_custom_call":
            operands = [
                _first(computation, instruction, i) for i in range(len(instruction.operands))
            ]
            stated = STATED.search(instruction.attributes)
            return splash_flops(instruction, operands) or float(stated[1] if stated else 0)
        return 0.0

    # Bytes.

    def _moved(self, computation: Computation, instruction: Instruction) -> float:
        opcode, operands = instruction.opcode, instruction.operands
        sizes = [_bytes(computation, name) for name in operands]
        if opcode == "fusion":
            return self._read(instruction, sizes) + self._written(instruction)
        if opcode in ("dynamic-slice", "slice"):
            return 2 * instruction.bytes
        if opcode == "gather":
            return 2 * instruction.bytes + sizes[1]
        if opcode == "dynamic-update-slice":
            return 2 * sizes[1]
        if opcode == "scatter":
            return 3 * sizes[-1] + sizes[len(sizes) // 2]
        if opcode == "copy-start":
            return 2 * sizes[0]
        return sum(sizes) + instruction.bytes

    def _read(self, fusion: Instruction, sizes: list[int]) -> float:
        """Bytes of its operands that a fusion reads."""
        inside = self.computations[fusion.called]
        total = 0.0
        for one in inside.instructions.values():
            if one.opcode == "parameter":
                whole = sizes[int(one.arguments)]
                total += min(whole, self._needed(inside, one.name, whole))
        return total

    def _needed(self, inside: Computation, name: str, whole: int) -> float:
        """Bytes of a value within a fusion that its users read, `whole` where they read all."""
        total = 0.0
        for user in inside.instructions.values():
            if name not in user.operands:
                continue
            first = user.operands[0] == name
            if user.opcode in ("dynamic-slice", "slice", "gather") and first:
                total += user.bytes
            elif user.opcode == "dynamic-update-slice" and first:
                continue  # written in place
            elif user.opcode in ("bitcast", "get-tuple-element"):
                total += self._needed(inside, user.name, whole)
            elif user.opcode == "fusion":
                total += self._needed_inside(user, name, whole)
            else:
                return whole
        return total

    def _needed_inside(self, fusion: Instruction, name: str, whole: int) -> float:
        """`_needed` of an operand of a fusion within a fusion."""
        inside = self.computations[fusion.called]
        total = 0.0
        for one in inside.instructions.values():
            if one.opcode == "parameter" and fusion.operands[int(one.arguments)] == name:
                total += self._needed(inside, one.name, whole)
        return total

    def _written(self, fusion: Instruction) -> float:
        """Bytes that a fusion writes: of rows alone where it updates an array in place."""
        inside = self.computations[fusion.called]
        root = inside.instructions[inside.root]
        outputs = [inside.root]
        if root.opcode == "tuple":
            outputs = list(root.operands)
        if len(outputs) != len(fusion.arrays):
            return fusion.bytes
        total = 0.0
        for name, array in zip(outputs, fusion.arrays, strict=True):
            rows = self._updated(inside, name)
            if not array.fast:
                total += array.bytes if rows is None else min(rows, array.bytes)
        return total

    def _updated(self, inside: Computation, name: str) -> int | None:
        """Bytes of the rows that make a value of another one in place; None for no such value."""
        one = inside.instructions[name]
        if one.opcode == "bitcast":
            return self._updated(inside, one.operands[0])
        if one.opcode == "dynamic-update-slice":
            return _bytes(inside, one.operands[1])
        if one.opcode == "fusion" and len(one.arrays) == 1:
            within = self.computations[one.called]
            return self._updated(within, within.root)
        return None


def _branches(conditional: Instruction) -> list[str]:
    """The computations of a conditional."""
    listed = re.search(r"branch_computations=\{([^}]*)\}", conditional.attributes)
    if listed:
        return [name.strip().lstrip("%") for name in listed[1].split(",")]
    return re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", conditional.attributes)


def _bytes(computation: Computation, name: str) -> int:
    """Of a value of the computation in main memory."""
    return computation.instructions[name].bytes


def _first(computation: Computation, instruction: Instruction, operand: int) -> Array:
    """The array that is an operand."""
    return computation.instructions[instruction.operands[operand]].arrays[0]


def _product_flops(instruction: Instruction, lhs: Array, pattern: str) -> float:
    """A multiply-add is two: for each number of the output, along all axes that are summed."""
    found = re.search(pattern, instruction.attributes)
    summed = 1
    for axis in re.findall(r"\d+", found[1]) if found else ():
        summed *= lhs.dims[int(axis)]
    return 2.0 * math.prod(instruction.arrays[0].dims) * summed


def convolution_flops(instruction: Instruction, lhs: Array, rhs: Array) -> float:
    """A multiply-add is two, for each pair of a number and a weight that is not in the padding.

    On a TPU products of matrices are convolutions, and a batch is an axis with as wide a window, of
    which one position meets a number.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert labels is not None
    out = dict(zip(labels[3], instruction.arrays[0].dims, strict=True))
    numbers = dict(zip(labels[1], lhs.dims, strict=True))
    weights = dict(zip(labels[2], rhs.dims, strict=True))
    total = 2.0 * out["b"] * out["f"] * weights["i"]  # "i" is that of one group of features
    window = _window(instruction.attributes)
    for axis in sorted(set(labels[3]) - {"b", "f"}):
        options = {name: sizes[int(axis)] for name, sizes in window.items() if sizes}
        total *= meetings(
            out[axis],
            numbers[axis],
            weights[axis],
            options.get("stride", 1),
            options.get("pad", 0),
            options.get("lhs_dilate", 1),
            options.get("rhs_dilate", 1),
        )
    return total


def splash_flops(call: Instruction, operands: list[Array]) -> float:
    """Of a kernel of splash attention; 0 for other kernels.

    Its first operand has a number for each block of queries and of keys that is visited.
    """
    for name, (products, kind) in SPLASH.items():
        if name not in call.name:
            continue
        floats = [x for x in operands if x.kind in ("bf16", "f32") and len(x.dims) > 2]
        q, k = floats[:2]
        pairs = q.dims[-2] * k.dims[-2]
        blocks = [
            re.search(rf'block_{axis}{kind}\\?": (\d+)', call.attributes) for axis in ("q", "kv")
        ]
        if all(blocks):
            visited = math.prod(operands[0].dims[-2:])
            for block in blocks:
                visited *= int(block[1]) if block else 1
            pairs = min(pairs, visited)
        return 2.0 * products * math.prod(q.dims[:-2]) * pairs * q.dims[-1]
    return 0.0


def _window(attributes: str) -> dict[str, list[int]]:
    """The numbers of each option of a window, by axis; of "pad" those before the first one."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    options: dict[str, list[int]] = {}
    for option in found[1].split() if found else ():
        name, _, sizes = option.partition("=")
        if name in ("stride", "pad", "lhs_dilate", "rhs_dilate"):
            options[name] = [int(size.split("_")[0]) for size in sizes.split("x")]
    return options


@functools.lru_cache(maxsize=10_000)
def meetings(
    out: int, numbers: int, window: int, stride: int, pad: int, dilated: int, spread: int
) -> int:
    """Pairs of an output and a position of the window at a number, along one axis.

    Args:
      out, numbers, window: sizes.
      stride: of the window.
      pad: before the first number; below 0 they are left out.
      dilated: distance of the numbers.
      spread: distance of the window's positions.
    """
    total = 0
    end = (numbers - 1) * dilated
    for position in range(out):
        start = position * stride - pad
        if dilated == 1 and spread == 1:
            total += max(0, min(start + window - 1, end) - max(start, 0) + 1)
            continue
        for step in range(window):
            place = start + step * spread
            total += 0 <= place <= end and place % dilated == 0
    return total
