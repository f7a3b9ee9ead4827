"""Accelerators that programs can be compiled for without one."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

from dartformer.errors import unknown
from dartformer.kernels.target import Target

CUDNN = 91000
"""The version of cuDNN that a GPU which is not here is taken to have: 9.10.0."""


@dataclass(frozen=True)
class Device:
    """An accelerator, from its maker's data sheet.

    Attributes:
      name: as users write it.
      target: as programs know it; `memory` is what its compiler lets programs fill.
      flops: dense bfloat16 FLOP/s.
      bandwidth: bytes/s of its main memory.
      lowering: the platform that JAX lowers to.
    """

    name: str
    target: Target
    flops: float
    bandwidth: float
    lowering: str

    @property
    def memory(self) -> int:
        """Bytes that a program may fill."""
        assert self.target.memory is not None
        return self.target.memory


DEVICES = {
    device.name: device
    for device in (
        # https://cloud.google.com/tpu/docs/v5e. Of its 16 GiB, XLA keeps a quarter of one.
        Device(
            "tpu-v5e", Target("tpu", "TPU v5 lite", memory=16_911_433_728), 197e12, 819e9, "tpu"
        ),
        # https://resources.nvidia.com/en-us-tensor-core: H100 SXM5 80 GB, without sparsity.
        Device(
            "h100",
            Target("gpu", "NVIDIA H100 80GB HBM3", 9.0, 84_942_979_072),
            989e12,
            3352e9,
            "cuda",
        ),
    )
}
"""What `--on` knows."""


def device_of(name: str) -> Device:
    """The device of a name. Raises `InputError` for one that is not known, naming those that are."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    return DEVICES[name]


@contextlib.contextmanager
def described(target: Target) -> Iterator[None]:
    """Within the block JAX traces and lowers cuDNN's attention for `target`, which is not here.

    `jax.nn.dot_product_attention` has no argument for the device: it asks this process for the
    version of cuDNN and for the compute capability of its first GPU. Those three questions are
    answered here from the target. The functions are private to JAX. If a release moves them, this
    raises `ImportError` or `AttributeError`; nothing else in the package depends on them.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    answers = {
        "check_cudnn_version": lambda: CUDNN,
        "check_compute_capability": lambda least: target.capability >= float(least),
        "is_cuda_compute_capability_equal": lambda other: target.capability == float(other),
    }
    with contextlib.ExitStack() as patches:
        for name, answer in answers.items():
            patches.enter_context(mock.patch.object(cudnn, name, answer))
        yield
