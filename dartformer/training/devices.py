"""Where the arrays of a training lie: the state and the batches on a mesh of devices.

The devices along `data` share the examples of each batch and hold whole copies of the state. Those
along `fsdp` share the examples, too, and divide weights, gradients and optimizer among themselves.
Those along `seeds` have seeds of their own. XLA exchanges what a step needs, and a step computes
what it does on one device, up to rounding.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.experimental.mesh_utils import create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dartformer.errors import InputError
from dartformer.machine import hosts
from dartformer.models.sharding import DATA, EXAMPLES, FSDP
from dartformer.models.stacks import leads_with_layers

State = TypeVar("State")
Arrays = TypeVar("Arrays")

SEEDS = "seeds"
"""The axis of a mesh whose devices have seeds of their own."""

SMALLEST = 2**14
"""Numbers of the smallest array that is divided, by default."""


@dataclass(frozen=True)
class MeshShape:
    """How many devices there are along each axis of a mesh.

    Attributes:
      data: devices that hold copies of the state; 0 for whatever the other axes leave.
      fsdp: devices that divide the state among themselves; 0 for all.
      seeds: devices that have seeds of their own.
    """

    data: int = 0
    fsdp: int = 1
    seeds: int = 1

    def __str__(self) -> str:
        return f"mesh.data={self.data}, mesh.fsdp={self.fsdp}, mesh.seeds={self.seeds}"


def resolved(wanted: MeshShape, batch: int, available: int, processes: int = 1) -> MeshShape:
    """A mesh without zeros, for a batch of so many examples.

    Several processes use all of their devices. One process leaves some out, where `mesh.data` is 0
    and more would not divide the batch.

    Raises:
      InputError: the axes need another number of devices, or do not divide the batch.
    """
    others = max(wanted.data, 1) * wanted.seeds
    fsdp = wanted.fsdp or max(available // others, 1)
    most = available // (fsdp * wanted.seeds)
    if max(wanted.data, 1) > most:
        raise InputError(
            f"{wanted} needs {max(wanted.data, 1) * fsdp * wanted.seeds} devices, and there are "
            f"{available}."
        )
    data = wanted.data or most
    if wanted.data == 0 and processes == 1:
        # Shares must be equal, since XLA splits an axis only into parts of one size.
        while data > 1 and batch % (data * fsdp):
            data -= 1
    shape = MeshShape(data, fsdp, wanted.seeds)
    used = data * fsdp * wanted.seeds
    if processes > 1 and used != available:
        raise InputError(
            f"{shape} uses {used} devices, and the {processes} processes have {available}. Several "
            f"processes use all of their devices."
        )
    if batch % (data * fsdp):
        raise InputError(
            f"{shape} cannot share a batch of {batch} equally: data.batch_size / data.accumulate "
            f"must be a multiple of {data * fsdp}."
        )
    return shape


def devices() -> list[jax.Device]:
    """The devices of the run: those of all processes that share it."""
    if hosts.count() > 1:
        return jax.devices()
    # Others may have connected this process, for a program of their own.
    return jax.local_devices()


def layout(
    wanted: MeshShape, batch: int, smallest: int = SMALLEST, seeds_lead: bool = False
) -> "MeshLayout | None":
    """Where the arrays of a training lie; None for one device.

    Args:
      wanted: of the config.
      batch: examples of a step that are in memory at once.
      smallest: numbers of the smallest array that is divided.
      seeds_lead: whether arrays lead with seeds. Otherwise the devices of `mesh.seeds` share
        examples.
    """
    if not seeds_lead and wanted.seeds > 1:
        data = wanted.data * wanted.seeds
        wanted = MeshShape(data, wanted.fsdp)
    shape = resolved(wanted, batch, len(devices()), hosts.count())
    if shape == MeshShape(1, 1, 1):
        return None
    return MeshLayout(shape, smallest, seeds_lead)


@dataclass(frozen=True)
class MeshLayout:
    """Where the arrays of a step `(state, batch)` lie.

    Attributes:
      shape: of the mesh.
      smallest: numbers of the smallest array that is divided.
      seeds_lead: whether arrays of state and batch lead with seeds.
    """

    shape: MeshShape
    smallest: int = SMALLEST
    seeds_lead: bool = False

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices, by data and fsdp; by seeds first, if these are divided."""
        sizes, names = [self.shape.data, self.shape.fsdp], [DATA, FSDP]
        # An axis of one device would still have its sums in every program.
        if self._seeds_axis is not None:
            sizes, names = [self.shape.seeds, *sizes], [SEEDS, *names]
        types = (AxisType.Auto,) * len(sizes)
        used = devices()[: math.prod(sizes)]
        across = _across_slices(sizes, used)
        if across is None:
            return jax.make_mesh(sizes, names, axis_types=types, devices=used)
        within = [size // count for size, count in zip(sizes, across, strict=True)]
        return Mesh(create_hybrid_device_mesh(within, across, used), names, axis_types=types)

    @property
    def _seeds_axis(self) -> str | None:
        if self.seeds_lead and self.shape.seeds > 1:
            return SEEDS
        return None

    @property
    def ways(self) -> int:
        """Parts that the examples of a batch are divided into."""
        return self.shape.data * self.shape.fsdp

    @property
    def replicated(self) -> NamedSharding:
        """A copy on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Of a batch: its share of the examples on each device."""
        if self.seeds_lead:
            return NamedSharding(self.mesh, PartitionSpec(self._seeds_axis, EXAMPLES))
        return NamedSharding(self.mesh, PartitionSpec(EXAMPLES))

    def state(self, arrays: Any) -> Any:
        """How each array of a state is divided.

        An array of at least `smallest` numbers is divided along its longest axis that `fsdp`
        divides, the later of equals; all others are copied. With seeds their axis comes first. An
        axis of layers is never divided, since each step of a loop reads one of them: there
        `smallest` counts the numbers of a layer.
        """

        def sharding(path: Any, leaf: Any) -> NamedSharding:
            return NamedSharding(self.mesh, self._spec(leaf.shape, leads_with_layers(path)))

        return jax.tree_util.tree_map_with_path(sharding, arrays)

    def _spec(self, shape: tuple[int, ...], with_layers: bool) -> PartitionSpec:
        parts: list[str | None] = [None] * len(shape)
        first = int(with_layers)
        if self.seeds_lead and shape:
            parts[0] = self._seeds_axis
            first += 1
        fsdp = self.shape.fsdp
        axes = [axis for axis in range(first, len(shape)) if shape[axis] % fsdp == 0]
        if fsdp > 1 and axes and math.prod(shape[first:]) >= self.smallest:
            longest = max(axes, key=lambda axis: (shape[axis], axis))
            parts[longest] = FSDP
        return PartitionSpec(*parts)

    def make(self, init: Callable[[Array], State], key: Array) -> State:
        """The state `init(key)`.

        Where the state is divided, no device ever holds it whole. Otherwise `init` runs as on one
        device, and returns the same bits.
        """
        if self.shape.fsdp == 1:
            return self.spread(init(key))
        made: State = _divided(self, init, key.shape)(key)
        return made

    def spread(self, state: State) -> State:
        """A state where it lies; arrays that are there already stay."""
        return jax.tree.map(self._put, state, self.state(state))

    def holds(self, arrays: Any) -> bool:
        """Whether arrays lie on the mesh; the first tells of all, which is quick."""
        first = next(iter(jax.tree.leaves(arrays)), None)
        sharding = getattr(first, "sharding", None)
        return isinstance(sharding, NamedSharding) and sharding.mesh == self.mesh

    def replicate(self, arrays: Arrays) -> Arrays:
        """Arrays that all processes hold, with a copy on each device."""
        return jax.tree.map(lambda leaf: self._put(leaf, self.replicated), arrays)

    def _put(self, leaf: Any, sharding: NamedSharding) -> Array:
        if isinstance(leaf, Array) and leaf.sharding == sharding:
            return leaf
        if not hosts.together():
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, Array) and not leaf.is_fully_addressable:
            # It lies on the devices of all processes, in another way.
            return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
        if _is_key(leaf):
            bits = self._put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    def rows(self, batch: int) -> np.ndarray | None:
        """The positions in a batch of the examples that this process reads; None for all.

        Devices of this process hold no others.
        """
        if not hosts.together():
            return None
        sharding = NamedSharding(self.mesh, PartitionSpec(EXAMPLES))
        held = np.zeros(batch, bool)
        for index in sharding.addressable_devices_indices_map((batch,)).values():
            assert index is not None
            held[index] = True
        return np.flatnonzero(held)

    def place(self, batch: Arrays) -> Arrays:
        """A batch where a step reads it; the copies are begun, and not waited for.

        Of several processes each has the examples of its `rows` alone.
        """
        if not hosts.together():
            return jax.device_put(batch, self.batch)
        return jax.tree.map(self._placed, batch)

    def _placed(self, local: np.ndarray) -> Array:
        if isinstance(local, Array) and not local.is_fully_addressable:
            return local
        local = np.asarray(local)
        axis = int(self.seeds_lead)
        shape = list(local.shape)
        # All processes hold equally many examples of each of the mesh's rows.
        shape[axis] = self._whole(shape[axis])
        mine = self.rows(shape[axis])
        assert mine is not None

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[axis].indices(shape[axis])
            first = np.searchsorted(mine, start)
            within = slice(first, first + stop - start)
            return local[(*index[:axis], within, *index[axis + 1 :])]

        return jax.make_array_from_callback(tuple(shape), self.batch, part)

    def _whole(self, rows: int) -> int:
        """The examples of a whole batch, of which this process has so many."""
        ways = self.rows(self.ways)
        assert ways is not None
        return rows * self.ways // len(ways)

    def whole(self, batch: Arrays) -> Arrays:
        """A batch that every process holds whole, of which each device gets its share."""
        sharding = NamedSharding(self.mesh, PartitionSpec(EXAMPLES))
        return jax.tree.map(lambda leaf: self._put(leaf, sharding), batch)


def _across_slices(sizes: Sequence[int], devices: Sequence[jax.Device]) -> list[int] | None:
    """How many slices there are along each axis of a mesh; None for devices of one slice.

    A slice is devices with links of their own: TPUs of a pod slice, or the GPUs of a host. Between
    slices there is a slower network, so that the seeds, which exchange nothing, lie across them
    first, then the copies of the state. The devices that divide a state are of several slices only
    where the other axes leave slices over.

    Raises:
      InputError: the slices have different numbers of devices.
    """
    counts = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(counts) == 1:
        return None
    if len(set(counts.values())) > 1:
        raise InputError(
            f"a mesh needs as many devices in each slice or host, got {sorted(counts.values())}."
        )
    rest = len(counts)
    across = []
    for size in sizes:
        across.append(math.gcd(size, rest))
        rest //= across[-1]
    return across


@functools.lru_cache(maxsize=64)
def _divided(
    layout: MeshLayout, init: Callable[[Array], State], shape: tuple[int, ...]
) -> Callable[[Array], State]:
    """`init` of keys of a shape, compiled for where its result lies."""
    keys = jax.eval_shape(lambda: jnp.broadcast_to(jax.random.key(0), shape))
    return jax.jit(init, out_shardings=layout.state(jax.eval_shape(init, keys)))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def gather(arrays: Any) -> Any:
    """Arrays as NumPy's, on every process, wherever they lie; keys stay what they are."""
    return jax.tree.map(_gathered, arrays)


def _gathered(leaf: Any) -> Any:
    if not isinstance(leaf, Array):
        return leaf
    if _is_key(leaf):
        bits = _gathered(jax.random.key_data(leaf))
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)
