"""dartformer: which attention should my Transformer use, in which layer, in which head?"""

from dartformer._version import __version__
from dartformer.api import derive, evaluate, export, load, retrain, run_all, search
from dartformer.attention import check, parse, register
from dartformer.config import defaults, load_config
from dartformer.errors import InputError
from dartformer.genotype import Genotype
from dartformer.search_space import SearchSpace
from dartformer.supernet import supernet
from dartformer.transformer import TransformerConfig, transformer

__all__ = [
    "Genotype", "InputError", "SearchSpace", "TransformerConfig", "__version__", "check", "defaults", "derive",
    "evaluate", "export", "load", "load_config", "parse", "register", "retrain", "run_all", "search", "supernet",
    "transformer",
]
