"""Costs of models.

By formula (`analytic`), measured (`measure`), from a saved table (`table`), as prices of every
genotype of a space (`prices`), and the best within a budget (`integer_program`)."""

from dartformer.cost.analytic import (
    attention_cost,
    decodes,
    decoding_flops,
    flops,
    model_parameters,
    parameters,
    training_bytes,
    useful_flops,
)
from dartformer.cost.budget import check_phase
from dartformer.cost.measure import (
    Latency,
    Measured,
    attention,
    decode,
    device,
    latency,
    layer,
    model,
)

__all__ = [
    "Latency",
    "Measured",
    "attention",
    "attention_cost",
    "check_phase",
    "decode",
    "decodes",
    "decoding_flops",
    "device",
    "flops",
    "latency",
    "layer",
    "model",
    "model_parameters",
    "parameters",
    "training_bytes",
    "useful_flops",
]
