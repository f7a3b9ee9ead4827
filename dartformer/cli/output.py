"""Results as JSON on standard output, in a module that is quick to import."""

import json

from dartformer.machine.workdir import jsonable


def print_json(data: object) -> None:
    """Print a result as indented JSON."""
    print(json.dumps(jsonable(data), indent=2))
