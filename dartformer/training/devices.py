"""Data parallelism: the examples of a batch shared out among the devices of this process.

Everything else, weights, alphas, optimiser, is the same on every device; XLA adds up the gradients.
A step is that of one device, up to rounding."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dartformer.errors import InputError


def how_many(asked: int, batch_size: int, there: int | None = None) -> int:
    """How many devices share a batch.

    Args:
      asked: `data.devices`: as many as that, or 0 for as many as there are and divide the batch.
      batch_size: examples in a batch.
      there: devices of this process; None: as many as JAX has.

    Raises:
      InputError: there are fewer, or they do not divide the batch.
    """
    there = jax.local_device_count() if there is None else there
    if asked < 0 or asked > there:
        raise InputError(
            f"data.devices must be 0 (all that divide the batch) to {there}, the number of devices here, "
            f"got {asked}."
        )
    if asked and batch_size % asked:
        raise InputError(
            f"data.devices = {asked} cannot share a batch of {batch_size} equally: data.batch_size must "
            f"be a multiple."
        )
    return asked or max(n for n in range(1, there + 1) if batch_size % n == 0)


@dataclass(frozen=True)
class Shared:
    """What is where, of a step `(state, batch)`.

    Attributes:
      count: devices, at least 2.
      axis: that of the examples in the arrays of a batch.
    """

    count: int
    axis: int = 0

    @property
    def everywhere(self) -> NamedSharding:
        """Of what each device has a copy of."""
        return NamedSharding(self._mesh, PartitionSpec())

    @property
    def parts(self) -> NamedSharding:
        """Of a batch."""
        return NamedSharding(self._mesh, PartitionSpec(*[None] * self.axis, "examples"))

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(jax.local_devices()[: self.count]), ("examples",))

    def place(self, state: Any, batch: Any) -> tuple[Any, Any]:
        """Both where they belong; what is there already stays."""
        return jax.device_put(state, self.everywhere), jax.device_put(batch, self.parts)


def shared(asked: int, batch_size: int, axis: int = 0) -> Shared | None:
    """How a step's arrays are shared out; None for one device."""
    count = how_many(asked, batch_size)
    return Shared(count, axis) if count > 1 else None
