"""Profile: what the found model costs on this device, beside the homogeneous ones."""

from typing import Any

import jax

from dartformer import cost
from dartformer.genotype import Genotype
from dartformer.stages.base import Run
from dartformer.transformer import transformer
from dartformer.workdir import write_json


def profile(run: Run, genotype: Genotype, batch: int = 1, repeats: int = 20) -> dict[str, Any]:
    """Parameters, FLOPs, bytes and measured latency; writes `profile.json`."""
    named = {"found": genotype, **{str(g): g for g in run.space.homogeneous()}}
    rows = []
    for name, one in named.items():
        documents = batch * run.model.inputs
        layers = [cost.attention_cost(run.model, one, l, batch=documents) for l in range(run.model.layers)]
        rows.append({
            "name": name, "genotype": one.to_dict()["layers"],
            "parameters": cost.model_parameters(transformer(run.model, one)),
            "flops": cost.flops(run.model, one, batch=batch),
            "attention_activation_bytes": sum(c.activation_bytes for c in layers),
            "state_bytes": sum(c.state_bytes for c in layers),
            "latency_seconds": cost.forward_latency(run.model, one, batch=batch, repeats=repeats)})
    device = jax.devices()[0]
    data = {"device": f"{device.platform}: {device.device_kind}", "batch": batch, "length": run.model.length,
            "phase": "inference", "dtype": run.model.dtype, "models": rows}
    write_json(run.file("profile.json"), data)
    return data
