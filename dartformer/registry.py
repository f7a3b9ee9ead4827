"""Tables that other packages add to by entry points: what is here comes first, what is theirs loads
when asked for."""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from dartformer.errors import InputError, unknown


def names(table: Mapping[str, type], group: str) -> list[str]:
    """Every name of the table, then those of the entry points of `group`."""
    return list(dict.fromkeys([*table, *sorted(entry_points(group=group).names)]))


def find(
    name: str,
    table: Mapping[str, type],
    group: str,
    kind: str,
    refusal: Callable[[object], str],
    field: str = "",
) -> type:
    """The class of that name in the table or among the entry points of `group`.

    Args:
      name: what is looked for.
      table: of this package.
      group: of entry points, such as "dartformer.task".
      kind: what the class is, for messages.
      refusal: why what another package offers is none, as in "is not a dataclass"; "" if it is one.
      field: where the name stands, if that is not `kind`.

    Raises:
      InputError: there is none (with the nearest name), or another package's does not load or is
        something else.
    """
    if name in table:
        return table[name]
    for entry in entry_points(group=group, name=name):
        try:
            found = entry.load()
        except Exception as error:
            raise InputError(
                f"{kind} {name!r}, which is {entry.value}, does not load: {error}"
            ) from error
        reason = refusal(found)
        if reason:
            raise InputError(f"{kind} {name!r}, which is {entry.value}, {reason}.")
        return found
    raise unknown(field or kind, name, names(table, group))
