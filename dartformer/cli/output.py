"""Results as JSON on standard output, in a module that is quick to import."""

import json

from dartformer.machine.printable import printable_json
from dartformer.machine.workdir import jsonable


def print_json(data: object) -> None:
    """Print a result as indented JSON."""
    print(printable_json(json.dumps(jsonable(data), indent=2)))
