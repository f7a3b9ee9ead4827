"""Data parallelism: the devices of this process share the examples of each batch.

Weights, alphas and optimizer are the same on every device; XLA adds up the gradients. A step
computes what it does on one device, up to rounding."""

from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dartformer.errors import InputError
from dartformer.models.sharding import EXAMPLES

State = TypeVar("State")
Batch = TypeVar("Batch")


def device_count(requested: int, batch_size: int, available: int | None = None) -> int:
    """How many devices share a batch.

    Args:
      requested: `data.devices`; 0 for as many available ones as divide the batch.
      batch_size: examples in a batch.
      available: devices of this process; None: as many as JAX has.

    Raises:
      InputError: there are fewer, or they do not divide the batch.
    """
    if available is None:
        available = jax.local_device_count()
    if requested < 0 or requested > available:
        raise InputError(
            f"data.devices must be 0 (all that divide the batch) to {available}, the number of "
            f"devices here, got {requested}."
        )
    if requested and batch_size % requested:
        raise InputError(
            f"data.devices = {requested} cannot share a batch of {batch_size} equally: "
            f"data.batch_size must be a multiple."
        )
    if requested:
        return requested
    # Shares must be equal, since XLA splits an axis only into parts of one size.
    count = available
    while batch_size % count:
        count -= 1
    return count


@dataclass(frozen=True)
class DataParallel:
    """Where the arrays of a step `(state, batch)` are.

    Attributes:
      count: number of devices, at least 2.
      axis: the axis of the examples in the arrays of a batch.
    """

    count: int
    axis: int = 0

    @property
    def replicated(self) -> NamedSharding:
        """Of the state: a copy on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        """Of a batch: its share of the examples on each device."""
        before = [None] * self.axis  # axes before that of the examples are not split
        return NamedSharding(self.mesh, PartitionSpec(*before, EXAMPLES))

    @property
    def mesh(self) -> Mesh:
        """The devices, in one row."""
        return Mesh(np.array(jax.local_devices()[: self.count]), (EXAMPLES,))

    def place(self, state: State, batch: Batch) -> tuple[State, Batch]:
        """Move both to their devices; arrays that are there already stay."""
        return jax.device_put(state, self.replicated), jax.device_put(batch, self.sharded)


def data_parallel(requested: int, batch_size: int, axis: int = 0) -> DataParallel | None:
    """How devices share a batch; None for one device."""
    count = device_count(requested, batch_size)
    if count == 1:
        return None
    return DataParallel(count, axis)
