"""Milliseconds of blocks and models on a device that is not here, predicted by its compiler.

They are rooflines: the least time at the device's FLOP/s and bandwidth. No time is measured.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax

from dartformer.accelerators.compile import GaveUp, Process, TooLarge, estimate
from dartformer.accelerators.devices import device_of
from dartformer.cost import measure
from dartformer.errors import InputError
from dartformer.models.sizes import TransformerConfig
from dartformer.space.genotype import Genotype

PROCESS = "dartformer.cost.predict_process"


class Predictor:
    """Rooflines by the compiler for a device, in a process that starts when first asked.

    Args:
      device: a name of `dartformer.accelerators.devices.DEVICES`.
    """

    def __init__(self, device: str):
        self.device = device_of(device)
        self._process: Process | None = None
        self._known: dict[str, float] = {}

    def seconds(
        self,
        config: TransformerConfig,
        genotype: Genotype,
        *,
        whole: bool,
        batch: int,
        length: int,
        phase: str,
    ) -> float:
        """Of the first block of a genotype, or of the whole model.

        Raises `InputError` where the program does not fit the device, or its compiler gives up.
        """
        request = {
            "device": self.device.name,
            "config": _plain(config),
            "genotype": genotype.to_dict(),
            "whole": whole,
            "batch": batch,
            "length": length,
            "phase": phase,
        }
        key = repr(request)
        if key not in self._known:
            if self._process is None:
                self._process = Process(self.device, PROCESS)
            (answer,) = self._process.ask(request)
            self._known[key] = answer["seconds"]
        return self._known[key]

    def close(self) -> None:
        """End its process."""
        if self._process is not None:
            self._process.close()
            self._process = None


def _plain(config: TransformerConfig) -> dict[str, Any]:
    """A config as JSON."""
    fields = dataclasses.asdict(config)
    del fields["target"]
    return fields


# In the other process.


def answers(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The roofline of one program."""
    device = device_of(request["device"])
    fields = {**request["config"], "target": device.target}
    fields["nope_layers"] = tuple(fields["nope_layers"])
    config = TransformerConfig(**fields)
    genotype = Genotype.from_dict(request["genotype"])
    of = measure.model_program
    if not request["whole"]:
        of = measure.block_program
    program = of(config, genotype, request["batch"], request["length"], request["phase"])
    subject = f"a batch of {request['batch']} in the phase {request['phase']}"
    try:
        found = estimate(device, program.function, *program.arguments)
    except TooLarge:
        raise InputError(
            f"{subject} of {genotype} does not fit {device.name}. Use a smaller batch."
        ) from None
    except GaveUp as error:
        raise InputError(f"the compiler for {device.name} gave up: {error}") from None
    yield {"seconds": found.roofline_ms / 1e3, "jax": jax.__version__}
