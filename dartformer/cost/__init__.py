"""What a model costs: by formula (`analytic`), measured (`measure`), from a saved table (`table`),
and put together as prices of every genotype of a space (`prices`)."""

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
from dartformer.cost.measure import (
    Measured,
    attention,
    check_phase,
    device,
    forward_latency,
    latency,
    layer,
    model,
)

__all__ = [
    "Measured",
    "attention",
    "attention_cost",
    "check_phase",
    "decodes",
    "decoding_flops",
    "device",
    "flops",
    "forward_latency",
    "latency",
    "layer",
    "model",
    "model_parameters",
    "parameters",
    "training_bytes",
    "useful_flops",
]
