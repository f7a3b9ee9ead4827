"""Records as tables."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any


def frame(records: Sequence[Mapping[str, object]]) -> Any:
    """Records as a DataFrame where pandas is installed, and as they are elsewhere."""
    if importlib.util.find_spec("pandas") is None:
        return list(records)
    import pandas

    return pandas.DataFrame.from_records(list(records))
