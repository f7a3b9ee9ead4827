"""Configurations: defaults, files, overrides, and the typed `Config` that the stages read.

A config file is Python with a function `get_config()` that starts from `dartformer.defaults(task)`
and assigns:

    import dartformer

    def get_config():
        config = dartformer.defaults(task="listops")
        config.search.steps = 200
        return config

An unknown field is an error, never a silent new one."""

from dartformer.config.checkpoint import PlacementConfig
from dartformer.config.compat import require_here
from dartformer.config.load import (
    build,
    build_placement,
    checkpoint_defaults,
    defaults,
    editable,
    from_dict,
    is_placement,
    load_any,
    load_config,
    placement_from_dict,
    to_dict,
)
from dartformer.config.overrides import override, split_list
from dartformer.config.places import task_title, without_places
from dartformer.config.sections import Config

__all__ = [
    "Config",
    "PlacementConfig",
    "build",
    "build_placement",
    "checkpoint_defaults",
    "defaults",
    "editable",
    "from_dict",
    "is_placement",
    "load_any",
    "load_config",
    "override",
    "placement_from_dict",
    "require_here",
    "split_list",
    "task_title",
    "to_dict",
    "without_places",
]
