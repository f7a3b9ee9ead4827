"""The tables of plug-ins: what dartformer brings, what `register` adds, what packages offer.

Another package joins in by an entry point of the kind's group. It is imported when its name is
first looked up: listing the names imports nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from dartformer.errors import InputError, unknown

T = TypeVar("T")

# As in entry points, "module:attribute". Each table stands with its kind, on a floor above this
# one, and is imported only when somebody registers something of that kind.
TABLES = {
    "attention": "dartformer.attention:ATTENTIONS",
    "strategy": "dartformer.strategies:STRATEGIES",
    "derivation": "dartformer.derivations:DERIVATIONS",
    "extra": "dartformer.strategies:EXTRAS",
    "hypergradient": "dartformer.strategies:HYPERGRADIENTS",
    "task": "dartformer.tasks:TASKS",
    "format": "dartformer.export.formats:FORMATS",
    "tracker": "dartformer.training.trackers:TRACKERS",
    "family": "dartformer.pretrained:FAMILIES",
}


class Registry(Mapping[str, T]):
    """The entries of one kind by name: built-in ones, then registered ones, then entry points."""

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, T],
        *,
        group: str,
        requirement: str,
        fits: Callable[[Any], bool],
    ):
        """A table.

        Args:
          kind: what an entry is called in messages, such as "attention".
          builtin: the entries of this package, in the order in which they are listed.
          group: of the entry points, such as "dartformer.attention".
          requirement: what an entry must be, to end the sentence "X must be ...".
          fits: whether an object meets the requirement.

        `registered` holds what `register` added and the entry points that were loaded.
        """
        self.kind = kind
        self.builtin = builtin
        self.group = group
        self.requirement = requirement
        self.fits = fits
        self.registered: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Add `entry` under `name`, and return it. Adding the same entry again changes nothing.

        Raises:
          InputError: the name is taken or is not an identifier, or the entry is of the wrong kind.
        """
        # A text such as "mine(window=4)" is parsed as Python, where only an identifier is a name.
        if not name.isidentifier():
            raise InputError(f"{self.kind} name {name!r} must be an identifier, such as 'my_own'.")
        present = self.builtin.get(name) or self.registered.get(name)
        if present is entry:
            return entry
        if present is not None:
            title = getattr(present, "__qualname__", present)
            raise InputError(f"{self.kind} {name!r} is already registered, as {title}.")
        if not self.fits(entry):
            raise InputError(f"{self.kind} {name!r} must be {self.requirement}; got {entry!r}.")
        self.registered[name] = entry
        return entry

    def find(self, name: str, field: str = "") -> T:
        """The entry of that name.

        Args:
          name: what to look up.
          field: the config field that holds the name, for the message; by default the kind.

        Raises:
          InputError: the name is unknown, or its entry point does not load.
        """
        try:
            return self[name]
        except KeyError:  # `Mapping` wants this error, and a user wants the names there are
            raise unknown(field or self.kind, name, self) from None

    def names(self) -> list[str]:
        """Every name in the order of listings; imports no other package."""
        points = self._entry_points()
        names = [*self.builtin]
        for name in self.registered:
            # A loaded entry point is registered too, and keeps its place among the entry points.
            if name not in points:
                names.append(name)
        return [*names, *sorted(points)]

    def __getitem__(self, name: str) -> T:
        if name in self.builtin:
            return self.builtin[name]
        if name in self.registered:
            return self.registered[name]
        point = self._entry_points()[name]
        # Imported only now, because other packages may take seconds, or need what is not installed.
        try:
            entry = point.load()
        except Exception as error:  # whatever another package's import may raise
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.kind} {name!r} (entry point {point.value}) does not load: {reason}"
            ) from error
        return self.register(name, entry)

    def __contains__(self, name: object) -> bool:
        return name in self.builtin or name in self.registered or name in self._entry_points()

    def __iter__(self) -> Iterator[str]:
        # Loaded entry points come before the scan for others, which takes 10 ms with 150 packages
        # and would slow down the search for the name of an attention.
        yield from self.builtin
        yield from self.registered
        for name in sorted(self._entry_points()):
            if name not in self.registered:
                yield name

    def __len__(self) -> int:
        return len(self.names())

    def _entry_points(self) -> dict[str, EntryPoint]:
        """The entry points of the group by name; `InputError` where two packages use one name."""
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            first = points.setdefault(point.name, point)
            # Metadata that is on the path twice repeats an entry point as it is: no conflict.
            if point.name in self.builtin or first.value != point.value:
                raise InputError(
                    f"{self.kind} {point.name!r} (entry point {point.value}) is already "
                    f"registered: uninstall the package that offers it, or rename it there."
                )
        return points


def table(kind: str) -> Registry[Any]:
    """The table of a kind, such as "attention"; `InputError` for an unknown kind."""
    if kind not in TABLES:
        raise unknown("kind", kind, TABLES)
    module, attribute = TABLES[kind].split(":")
    entries: Registry[Any] = getattr(import_module(module), attribute)
    return entries


def register(kind: str, name: str, entry: T) -> T:
    """Make a plug-in known in this process: `register("attention", "mine", Mine)`.

    Args:
      kind: "attention", "strategy", "derivation", "extra", "hypergradient", "task", "format",
        "tracker" or "family".
      name: what configs call it, an identifier.
      entry: the class; for a format, a `dartformer.export.formats.Format`; for a family of
        checkpoints, a `dartformer.pretrained.Family`.

    Returns:
      `entry`. Registering it again under the same name changes nothing.

    Raises:
      InputError: the kind is unknown, the name is taken or is not an identifier, or the entry is
        not of that kind.
    """
    return table(kind).register(name, entry)


def is_dataclass_type(entry: object) -> bool:
    """Whether an object is a class decorated with `@dataclass`."""
    return isinstance(entry, type) and dataclasses.is_dataclass(entry)
