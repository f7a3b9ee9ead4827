"""dartformer: which attention should my Transformer use, in which layer, in which head?

The names below are imported when they are first asked for, so that `import dartformer` and
`dartformer --help` are quick: neither imports JAX."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dartformer._version import __version__
from dartformer.errors import InputError
from dartformer.xla_flags import protect

protect()  # XLA reads its flags when JAX starts its first backend, so this cannot wait

if TYPE_CHECKING:
    from dartformer.api import derive, evaluate, export, load, retrain, run_all, search
    from dartformer.attention import check, parse, register
    from dartformer.config import defaults, load_config
    from dartformer.genotype import Genotype
    from dartformer.search_space import SearchSpace
    from dartformer.supernet import supernet
    from dartformer.transformer import TransformerConfig, transformer

__all__ = [
    "Genotype",
    "InputError",
    "SearchSpace",
    "TransformerConfig",
    "__version__",
    "check",
    "defaults",
    "derive",
    "evaluate",
    "export",
    "load",
    "load_config",
    "parse",
    "register",
    "retrain",
    "run_all",
    "search",
    "supernet",
    "transformer",
]

_HOME = {
    **dict.fromkeys(
        ("derive", "evaluate", "export", "load", "retrain", "run_all", "search"), "api"
    ),
    **dict.fromkeys(("check", "parse", "register"), "attention"),
    **dict.fromkeys(("defaults", "load_config"), "config"),
    "Genotype": "genotype",
    "SearchSpace": "search_space",
    "TransformerConfig": "transformer",
}
"""The module of each public name that is not imported above, but for two functions named as their
module."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        try:
            if not name.startswith("_"):
                return import_module(f"dartformer.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"dartformer.{name}":
                raise
        raise AttributeError(f"module 'dartformer' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"dartformer.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _function(name: str) -> property:
    """The function `name` of the module `name`, which the import system would put in its place."""

    def ignored(package: ModuleType, module: ModuleType) -> None: ...

    return property(lambda package: getattr(import_module(f"dartformer.{name}"), name), ignored)


class _Package(ModuleType):
    """This package, with two functions that are named as the module they stand in."""

    supernet = _function("supernet")
    transformer = _function("transformer")


sys.modules[__name__].__class__ = _Package
