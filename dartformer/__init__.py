"""dartformer: which attention should my Transformer use, in which layer, in which head?

The names below are imported when they are first asked for, so that `import dartformer` and
`dartformer --help` are quick: neither imports JAX."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dartformer._version import __version__
from dartformer.errors import InputError
from dartformer.machine.xla_flags import protect

protect()  # XLA reads its flags when JAX starts its first backend, so this cannot wait

if TYPE_CHECKING:
    from dartformer.api import (
        derive,
        evaluate,
        export,
        load,
        place,
        probe,
        race,
        retrain,
        run_all,
        search,
    )
    from dartformer.attention import check, parse
    from dartformer.config import checkpoint_defaults, defaults, load_config
    from dartformer.export.generate import generate
    from dartformer.fitted import FitResult
    from dartformer.fitting import fit
    from dartformer.models.sizes import TransformerConfig
    from dartformer.models.supernet import inherit, supernet
    from dartformer.models.transformer import transformer
    from dartformer.modules.places import replace
    from dartformer.pretrained import load_pretrained, save_pretrained
    from dartformer.registry import register
    from dartformer.space.genotype import Genotype
    from dartformer.space.search_space import SearchSpace
    from dartformer.stages.lengths import evaluate_at_lengths
    from dartformer.tables import load_table
    from dartformer.training.callbacks import Stopped

__all__ = [
    "FitResult",
    "Genotype",
    "InputError",
    "SearchSpace",
    "Stopped",
    "TransformerConfig",
    "__version__",
    "check",
    "checkpoint_defaults",
    "defaults",
    "derive",
    "evaluate",
    "evaluate_at_lengths",
    "export",
    "fit",
    "generate",
    "inherit",
    "load",
    "load_config",
    "load_pretrained",
    "load_table",
    "parse",
    "place",
    "probe",
    "race",
    "register",
    "replace",
    "retrain",
    "run_all",
    "save_pretrained",
    "search",
    "supernet",
    "transformer",
]

_HOME = {
    **dict.fromkeys(
        (
            "derive",
            "evaluate",
            "export",
            "place",
            "probe",
            "race",
            "retrain",
            "run_all",
            "search",
        ),
        "api",
    ),
    **dict.fromkeys(("check", "parse"), "attention"),
    **dict.fromkeys(("checkpoint_defaults", "defaults", "load_config"), "config"),
    # Without the stages: what they need to train is not needed to predict.
    "load": "export.load",
    "generate": "export.generate",
    "FitResult": "fitted",
    "fit": "fitting",
    "Stopped": "training.callbacks",
    "Genotype": "space.genotype",
    "SearchSpace": "space.search_space",
    "TransformerConfig": "models.sizes",
    "load_pretrained": "pretrained",
    "save_pretrained": "pretrained",
    "register": "registry",
    "replace": "modules.places",
    "evaluate_at_lengths": "stages.lengths",
    "load_table": "tables",
    "inherit": "models.supernet",
    "supernet": "models.supernet",
    "transformer": "models.transformer",
}
"""The module of each public name that is imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"dartformer.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return import_module(f"dartformer.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"dartformer.{name}":
                raise
    raise AttributeError(f"module 'dartformer' has no attribute {name!r}")


class _Package(ModuleType):
    """This package, whose public functions stay when a module of their name is imported.

    Python sets `dartformer.export` to the folder `export` as soon as anything in it is imported.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
