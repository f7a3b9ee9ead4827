"""The process that compiles for a device: a request as JSON from standard input, a line for each step.

See `dartformer.stages.predict`. The environment must name the device before JAX is imported.
"""

import json
import sys

from dartformer.accelerators.devices import device_of
from dartformer.config import load_config
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype
from dartformer.stages.predict import predicted


def main() -> None:
    """Answer the request."""
    request = json.load(sys.stdin)
    genotypes = {}
    try:
        for name, data in request["genotypes"].items():
            genotypes[name] = Genotype.from_dict(data)
        config = load_config(request["config"], request["overrides"])
        for step in predicted(config, genotypes, device_of(request["device"]), request["batch"]):
            print(json.dumps(step.to_dict()), flush=True)
    except InputError as error:
        print(json.dumps({"refused": str(error)}), flush=True)


if __name__ == "__main__":
    main()
