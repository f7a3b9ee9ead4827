"""The memory that a config needs at least: what no machine has is refused before anything is built.

These are lower bounds, so that nothing that would run is refused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dartformer.config.sections import Config
from dartformer.errors import InputError
from dartformer.machine import memory
from dartformer.models.sizes import TransformerConfig
from dartformer.training.optimizer import Optimizer

LARGEST = 2**45
"""Bytes that no machine has, 32 TiB."""

LARGEST_VOCABULARY = 2**20
"""Tokens. The largest vocabularies in use have a million (XLM-V, arXiv:2301.10472), and every token
has a name, which takes time to make."""


LARGEST_LENGTH = 2**20
"""Tokens of an example: the longest contexts in use are a million."""


class Need(NamedTuple):
    """Memory that a config cannot do without.

    Attributes:
      subject: what needs it, in words.
      size: bytes.
      fields: what to lower, in words.
    """

    subject: str
    size: int
    fields: str


def check(config: Config) -> None:
    """Raise `InputError` for sizes that are too large for any machine."""
    task = config.task.built
    # Lengths first: some tasks have a token for each place, and spell them all to count them.
    _require_few(config, "tokens in an example", task.length, LARGEST_LENGTH)
    _require_few(config, "tokens in its vocabulary", task.vocabulary, LARGEST_VOCABULARY)
    _require_few(config, "classes", task.classes, LARGEST_VOCABULARY)
    for need in needs(config):
        if need.size > LARGEST:
            raise InputError(
                f"{need.subject} at least {memory.in_units(need.size)} of memory, which no machine "
                f"has. Lower {need.fields}."
            )


def _require_few(config: Config, subject: str, count: int, most: int) -> None:
    if count <= most:
        return
    size = memory.in_units(4 * count * config.model.model_dim)
    raise InputError(
        f"the task {config.task.name} has {count:,} {subject}, and dartformer supports at most "
        f"{most:,}. Their embeddings alone would take {size}. Lower the options of the task."
    )


def require_here(config: Config) -> None:
    """Raise `InputError` for sizes that are too large for the memory of this machine."""
    for need in needs(config):
        require_memory(need)


def require_memory(need: Need) -> None:
    """Raise `InputError` where this machine lacks the memory."""
    available = _available()
    if available and need.size > available:
        raise InputError(
            f"out of memory: {need.subject} at least {memory.in_units(need.size)}, and this "
            f"machine has {memory.in_units(available)}. Lower {need.fields}."
        )


def _available() -> int:
    """Bytes of the devices of this process together; 0 where they are unknown."""
    total = 0
    for device in jax.local_devices():
        if device.platform == "cpu":
            return memory.installed()
        statistics = device.memory_stats() or {}
        total += statistics.get("bytes_limit", 0)
    return total


def needs(config: Config) -> list[Need]:
    """What the model, its batches and generated examples need."""
    sizes = config.transformer
    optimizer, sets = config.retrain.optimizer, 1
    if config.search.strategy.built.traits.supernet:
        optimizer = config.search.weights
        if config.search.projections == "separate":
            sets = len(config.space.candidates)
    weights = weight_bytes(sizes, sets) * _copies(optimizer)
    training = activation_bytes(sizes, config.data.part_size)
    evaluation = activation_bytes(sizes, config.data.eval_batch_size)
    return [
        Need(
            "the weights and the state of their optimizer need",
            weights,
            "model.layers, model.heads, model.head_dim, model.model_dim, model.mlp_dim, the length "
            "or the vocabulary of the task",
        ),
        Need(
            "a batch needs",
            training,
            "data.batch_size, the length of the task or model.model_dim, or raise data.accumulate",
        ),
        Need(
            "a batch of evaluation needs",
            evaluation,
            "data.eval_batch_size, the length of the task or model.model_dim",
        ),
        Need(
            "the examples of the task need",
            _example_bytes(config),
            "task.train, task.valid, task.test or the length of the task",
        ),
    ]


def weight_bytes(sizes: TransformerConfig, sets: int = 1) -> int:
    """Bytes of the parameters, without those that attentions have beside their projections.

    `sets` is the number of projections in a layer."""
    width, inner = sizes.model_dim, sizes.heads * sizes.head_dim
    kept = inner // sizes.sharing  # of keys, and of values
    matrices = 2
    if sizes.gated_mlp:
        matrices = 3
    layer = sets * 2 * width * (inner + kept) + matrices * width * sizes.mlp_dim
    inputs = width * (sizes.features or sizes.vocabulary)
    outputs = sizes.pooled * sizes.classes
    if sizes.tie_embeddings or sizes.classifier == "none":
        outputs = 0
    if sizes.classifier == "mlp":
        outputs = sizes.pooled * sizes.mlp_dim
    if sizes.positions == "learned":
        inputs += width * sizes.tokens
    # Parameters are float32 at least.
    return max(4, _itemsize(sizes)) * (sizes.layers * layer + inputs + outputs)


def activation_bytes(sizes: TransformerConfig, batch: int) -> int:
    """Bytes of the residual stream `[B, N, E]`, or of the logits of a loss where they are more."""
    stream = batch * sizes.inputs * sizes.tokens * sizes.model_dim * _itemsize(sizes)
    if not sizes.labels_tokens:
        return stream
    positions = sizes.logits_size(batch, sizes.tokens) or sizes.tokens
    return max(stream, 4 * batch * positions * sizes.classes)  # logits are float32 at least


def _itemsize(sizes: TransformerConfig) -> int:
    return np.dtype(jnp.dtype(sizes.dtype)).itemsize


def _copies(optimizer: Optimizer) -> int:
    """The weights and what an optimizer keeps for each: Adam's two moments, the trace of SGD."""
    if optimizer.name == "sgd":
        return 2
    return 3


def _example_bytes(config: Config) -> int:
    """Bytes of the examples of a generated task, whose options say how many there are."""
    options = config.task.options
    count = 0
    for part in ("train", "valid", "test"):
        size = options.get(part)
        if part == "train" and options.get("endless"):
            continue
        # Of the user's own files, options of these names are paths.
        if isinstance(size, int):
            count += size
    # A token takes a byte at least.
    return count * config.task.built.length
