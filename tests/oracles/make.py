"""Run oracles and write their fixtures: `python tests/oracles/make.py [NAME ...]`.

See README.md for the environments. The fixtures are committed, and the tests read nothing else.
"""

import argparse
import importlib
import sys

import fixture

FAMILIES = ("by_numpy", "by_torch", "by_lucidrains", "by_transformers", "by_fla")
"""Modules beside this one, each with the oracles of one origin."""


def main() -> None:
    """Import what can be imported here, and make the fixtures asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", help="fixtures to make; all that can be made here if none is named"
    )
    parser.add_argument("--list", action="store_true", help="say what can be made here, and stop")
    arguments = parser.parse_args()
    missing = {}
    for family in FAMILIES:
        try:
            importlib.import_module(family)
        except ModuleNotFoundError as error:
            missing[family] = error.name
    for family, package in missing.items():
        print(f"{family}: not here, for want of {package}", file=sys.stderr)
    unknown = [name for name in arguments.names if name not in fixture.ORACLES]
    if unknown:
        sys.exit(
            f"no oracle here is called {', '.join(unknown)}; there are {', '.join(fixture.ORACLES)}"
        )
    for name in arguments.names or fixture.ORACLES:
        if arguments.list:
            this = fixture.ORACLES[name]
            print(f"{name:32} {this.spec}{', causal' if this.causal else ''}: {this.by}")
        else:
            print(fixture.make(name), flush=True)


if __name__ == "__main__":
    main()
