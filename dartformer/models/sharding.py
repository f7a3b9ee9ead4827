"""Attention on several devices: each computes the examples that it holds.

XLA divides a program among devices by rules of its own, and at the loops, gathers and transforms
of many attentions it collects the whole batch on every device. No attention mixes examples, so
none of it is needed.
"""

import dataclasses
from collections.abc import Callable

import jax
from jax import Array
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from dartformer.attention.base import Inputs, Params

DATA, FSDP = "data", "fsdp"
"""Axes of a mesh: devices with copies of the weights, and devices that divide the weights."""

EXAMPLES = (DATA, FSDP)
"""The axes of a mesh among whose devices the examples of a batch are divided."""

OF_EXAMPLES = ("q", "k", "v", "x", "valid", "start", "query_valid")
"""The arrays of `Inputs` that lead with the batch."""

Mix = Callable[[Params, Inputs, Array | None], Array]
"""(parameters, inputs, key of noise) to an array that leads with the batch."""


def by_examples(mix: Mix, params: Params, inputs: Inputs, key: Array | None) -> Array:
    """`mix(params, inputs, key)`, on each device of the mesh for the examples that it holds.

    The mesh is that of `jax.set_mesh`. Without the axes `EXAMPLES` in it, or where they do not
    divide the batch, this is a plain call. With `key` each device draws noise of its own, so that
    dropout within attention is another sample of the same noise than on one device.
    """
    mesh = divided_by(inputs.q.shape[0])
    if mesh is None:
        return mix(params, inputs, key)

    def on_device(params: Params, inputs: Inputs, key: Array | None) -> Array:
        if key is not None:
            key = jax.random.fold_in(key, jax.lax.axis_index(EXAMPLES))
        return mix(params, inputs, key)

    share = PartitionSpec(EXAMPLES)
    run = jax.shard_map(
        on_device,
        in_specs=(PartitionSpec(), _specs(inputs), PartitionSpec()),
        out_specs=share,
        # Several kernels cannot say which devices hold equal values.
        check_vma=False,
    )
    result: Array = run(params, inputs, key)
    return result


def divided_by(batch: int) -> AbstractMesh | None:
    """The mesh whose devices share a batch of so many examples; None where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if not set(EXAMPLES) <= set(mesh.axis_names) or AxisType.Manual in mesh.axis_types:
        return None
    if batch % (mesh.shape[DATA] * mesh.shape[FSDP]):
        return None
    return mesh


def pinned(x: Array) -> Array:
    """`x`, which leads with the batch, with each example where the batch has it.

    Weights that devices divide leave XLA a choice: to collect the weights of a layer, or to send
    its activations around. Between pinned activations it collects the weights.
    """
    mesh = divided_by(x.shape[0])
    if mesh is None or mesh.shape[FSDP] == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(EXAMPLES))


def _specs(inputs: Inputs) -> Inputs:
    """For each array of `inputs`, how devices share it."""
    specs: dict[str, PartitionSpec] = {}
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        if field.name in OF_EXAMPLES and value is not None:
            specs[field.name] = PartitionSpec(EXAMPLES)
        elif isinstance(value, Array):
            specs[field.name] = PartitionSpec()
    return dataclasses.replace(inputs, **specs)  # type: ignore[arg-type]
