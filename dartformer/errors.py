"""What a user can get wrong. The command line prints these as one line and exits with code 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something asked for cannot be done: the message names the value, what is wrong with it, and
    what is allowed."""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a table, with the nearest known name and the whole
    list."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}.")
