"""Accelerators that programs can be compiled for without one."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from unittest import mock

from dartformer.errors import InputError, unknown
from dartformer.kernels.target import Target

CUDNN = (9, 10)
"""The version of cuDNN that a GPU which is not here is taken to have."""

# What XLA's compiler for GPUs asks of a device, as a `GpuTargetConfigProto`. The numbers are those of
# NVIDIA's "H100 Tensor Core GPU Architecture" for the SXM5 board: 132 multiprocessors of 128 cores,
# 64 warps, 228 KiB of shared memory and 64 Ki registers each, 50 MiB of L2, 80 GB of HBM3.
H100 = f"""
gpu_device_info {{
  name: "NVIDIA H100 80GB HBM3"  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: 9 minor: 0 }}
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_core: 233472  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800  memory_bandwidth: 3352320000000  device_memory_size: 84942979072
}}
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
"""


@dataclass(frozen=True)
class Device:
    """An accelerator, from its maker's data sheet, and how to compile for it.

    Attributes:
      name: as users write it.
      target: as programs know it; `memory` is what its compiler lets programs fill.
      flops: dense bfloat16 FLOP/s.
      bandwidth: bytes/s of its main memory.
      lowering: the platform that JAX lowers to.
      package: the module that holds its compiler.
      topology: arguments of `jax.experimental.topologies.get_topology_desc`.
      variables: of the environment, which must be set before JAX is imported.
      options: of the compiler.
    """

    name: str
    target: Target
    flops: float
    bandwidth: float
    lowering: str
    package: str
    topology: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def memory(self) -> int:
        """Bytes that a program may fill."""
        assert self.target.memory is not None
        return self.target.memory


# https://cloud.google.com/tpu/docs/v5e. Of its 16 GiB XLA keeps a quarter of one for itself.
TPU_V5E = Device(
    name="tpu-v5e",
    target=Target("tpu", "TPU v5 lite", memory=16_911_433_728),
    flops=197e12,
    bandwidth=819e9,
    lowering="tpu",
    package="libtpu",
    topology={"platform": "tpu", "topology_name": "v5e:2x2"},
    variables={
        # There is no TPU whose metadata could be asked for.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Only a TPU can be used by one process alone.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    },
    # The least effort: a third of the time, and temporaries about a fifth larger, since nothing is
    # kept in the chip's own fast memory.
    options={"optimization_level": "9"},
)

# https://www.nvidia.com/en-us/data-center/h100: the SXM5 board, without sparsity.
GPU_H100 = Device(
    name="h100",
    target=Target("gpu", "NVIDIA H100 80GB HBM3", 9.0, 84_942_979_072),
    flops=989e12,
    bandwidth=3352e9,
    lowering="cuda",
    package="jax_cuda12_plugin",
    topology={
        "platform": "cuda",
        "topology_name": "",
        "target_config": H100,
        "topology": "1x1x1",
    },
)

DEVICES = {device.name: device for device in (TPU_V5E, GPU_H100)}
"""What `--on` knows."""


def device_of(name: str) -> Device:
    """The device of a name. Raises `InputError` for one that is not known, naming those that are."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    return DEVICES[name]


def label(name: str) -> str:
    """What numbers of a device are called that its compiler predicted."""
    return f"predicted for {name}"


def require_compiler(device: Device) -> None:
    """Raise `InputError` where the compiler for a device is not installed."""
    if importlib.util.find_spec(device.package) is None:
        raise InputError(
            f"the compiler for {device.name} is not installed. Install it: "
            f"pip install 'dartformer[aot]'."
        )


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
        "check_cudnn_version": lambda: CUDNN[0] * 10_000 + CUDNN[1] * 100,
        "check_compute_capability": lambda least: target.capability >= float(least),
        "is_cuda_compute_capability_equal": lambda other: target.capability == float(other),
    }
    with contextlib.ExitStack() as patches:
        for name, answer in answers.items():
            patches.enter_context(mock.patch.object(cudnn, name, answer))
        yield
