"""The device that a program is made for, which decides between kernels.

It is an argument of every choice, so that a program can be made for a device that is not here.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: its name, as `jax.Device.device_kind` has it.
      capability: of a CUDA GPU, such as 9.0; 0 for every other device.
      memory: bytes that programs may fill, or None where they are not known.
    """

    platform: str
    kind: str
    capability: float = 0.0
    memory: int | None = None

    @property
    def accelerated(self) -> bool:
        """Whether it is a GPU or a TPU, which want large operations and have little memory."""
        return self.platform != "cpu"


def of_device(device: jax.Device) -> Target:
    """The target that a device of this process is."""
    capability = 0.0
    if device.platform == "gpu" and "cuda" in device.client.platform_version:
        capability = float(device.compute_capability)
    memory = None
    if device.platform != "cpu":
        statistics = device.memory_stats() or {}
        memory = statistics.get("bytes_limit")
    return Target(device.platform, device.device_kind, capability, memory)


def on_cpu(target: Target | None) -> bool:
    """Whether `target` is a CPU; None for the device of this process."""
    return not (target or here()).accelerated


_elsewhere: ContextVar[bool] = ContextVar("elsewhere", default=False)


@contextlib.contextmanager
def elsewhere() -> Iterator[None]:
    """Inside the block, configs are checked for programs of other processes.

    Their devices are not known, so a kernel that is named is refused only where no device has it."""
    token = _elsewhere.set(True)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def is_elsewhere() -> bool:
    """Whether this is inside the block of `elsewhere`."""
    return _elsewhere.get()


def here() -> Target:
    """The first device of this process, on which programs run where nothing else is said."""
    return of_device(jax.devices()[0])
