"""The process that compiles the steps of a config for a device: see `dartformer.stages.predict`.

The environment must name the device before JAX is imported.
"""

from collections.abc import Iterator
from typing import Any

from dartformer.accelerators.compile import serve
from dartformer.accelerators.devices import device_of
from dartformer.config import load_config
from dartformer.space.genotype import Genotype
from dartformer.stages.predict import predicted


def answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What each step costs."""
    genotypes = {}
    for name, data in request["genotypes"].items():
        genotypes[name] = Genotype.from_dict(data)
    config = load_config(request["config"], request["overrides"])
    for step in predicted(config, genotypes, device_of(request["device"]), request["batch"]):
        yield step.to_dict()


if __name__ == "__main__":
    serve(answers)
