"""Lengths: a trained model on test examples that are longer than those it was trained on."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dartformer.attention import to_text
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.models.transformer import transformer
from dartformer.space.genotype import Genotype
from dartformer.stages.retrain import Model
from dartformer.tasks.base import Task
from dartformer.training.evaluate import Evaluator, Scores
from dartformer.training.metric import of_task

COUNTS = ("train", "valid")
"""Numbers of examples that have no influence on the test part."""


def evaluate_at_lengths(model: Model, lengths: Sequence[int]) -> dict[int, Scores]:
    """The test scores of a trained model at several values of `task.length`, its own or others.

    Everything but the length is as in training: a longer example of recall has as many pairs and
    more tokens between them. As in `evaluate`, test is read, so choose nothing by these scores.

    Args:
      model: from `retrain`.
      lengths: values of the task's option `length`.

    Returns:
      For each length the loss and the metric of the task.

    Raises:
      InputError: where the task has no such option or refuses a length, or where the model cannot
        read another length than its own.
    """
    for length in lengths:
        if length != model.shape.length:
            require_any_length(model.shape, model.genotype)
    scores = {}
    for length in lengths:
        scores[length] = _at_length(model, length)
    return scores


def _at_length(model: Model, length: int) -> Scores:
    task = _task_of(model, length)
    shape = dataclasses.replace(model.shape, length=task.length)
    data = model.config.data
    evaluator = Evaluator(
        transformer(shape, model.genotype),
        data.eval_batch_size,
        of_task(task, model.config.metric),
        data.buckets,
    )
    return evaluator(model.weights, task.load(data.dir or None)["test"])


def _task_of(model: Model, length: int) -> Task:
    """The task at another length, with a training part as small as can be."""
    task: Any = model.task  # a dataclass, which the protocol cannot say
    options = [field.name for field in dataclasses.fields(task) if field.init]
    if "length" not in options:
        raise InputError(
            f"the task {model.config.task.name} has no option length, so its examples have no "
            f"other length. Use a task with the option, such as recall."
        )
    changes = {"length": length}
    for name in COUNTS:
        # Nothing is trained: at eight times the length these parts would only take memory. Tasks
        # that read files have texts of these names.
        if name in options and isinstance(getattr(task, name), int):
            changes[name] = 1
    longer: Task = dataclasses.replace(task, **changes)
    if (longer.vocabulary, longer.classes) != (task.vocabulary, task.classes):
        raise InputError(
            f"the task {model.config.task.name} has other tokens or labels at length {length}, "
            f"which the model does not know. Use a task whose tokens do not depend on its length."
        )
    return longer


def require_any_length(shape: TransformerConfig, genotype: Genotype) -> None:
    """Raise `InputError` where parameters of a model belong to a length."""
    if shape.positions == "learned":
        raise InputError(
            "model.positions='learned' does not work at other lengths, because there is a row for "
            "each position of training alone. Train with 'none', 'rotary', 'alibi' or 'sinusoidal'."
        )
    for heads in genotype.layers:
        for attention in heads:
            if attention.traits.fixed_length:
                raise InputError(
                    f"{to_text(attention)} does not work at other lengths, because it has "
                    f"parameters for one length only. Use another attention."
                )
