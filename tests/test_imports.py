"""Imports go down only, in the order of the design; siblings of a folder import `base`, never their
own `__init__`."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "dartformer"

# From the ground up. What stands on one line may not import one another, save that a module may
# import its own.
FLOORS = [
    ["errors", "_version"],
    ["machine", "registry", "spec", "fields"],
    ["kernels", "engines"],
    ["attention"],
    ["space", "accelerators"],
    ["models"],
    ["nn"],
    ["data"],
    ["strategies", "tasks"],
    ["training", "cost", "derivations"],
    ["results", "statistics", "pretrained"],
    ["config", "diagnostics"],
    ["stages"],
    ["placement", "modules"],
    ["report", "export", "tables"],
    ["api", "fitted", "sweeps"],
    ["fitting"],
    ["sklearn"],
    ["cli"],
    ["__init__"],
    ["__main__", "configs"],
]
# Where less is allowed than what stands below. Strategies see a loss and never a network or an
# example; tasks and data know nothing of attentions.
ONLY = {
    "kernels": {"errors"},
    "engines": {"errors", "machine"},
    "accelerators": {"errors", "machine", "kernels", "attention"},
    "data": {"errors", "machine"},
    "strategies": {"errors", "registry", "spec"},
    "tasks": {"errors", "machine", "registry", "spec", "data"},
}
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}


def imports(file):
    """Modules of ours that a file imports, at the top or inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "dartformer")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module and node.module.split(".")[0] == "dartformer":
                names = [f"{node.module}.{a.name}" for a in node.names]
                for name in names:
                    path = PACKAGE.parent / name.replace(".", "/")
                    yield name if path.with_suffix(".py").exists() or path.is_dir() else node.module


def test_imports_go_down_only():
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        inside = file.relative_to(PACKAGE).with_suffix("").parts
        me = inside[0]
        assert me in FLOOR, f"{me} has no floor: give it one"
        for module in imports(file):
            them = module.split(".")[1] if "." in module else "__init__"
            below = FLOOR[them] < FLOOR[me] and them in ONLY.get(me, FLOOR)
            if them != me and not below:
                wrong.append(f"{'/'.join(inside)} imports {module}")
            if (
                them == me
                and len(inside) > 1
                and inside[1] != "__init__"
                and module == f"dartformer.{me}"
            ):
                wrong.append(f"{'/'.join(inside)} imports its own folder's __init__")
    assert not wrong, "\n".join(wrong)


def module_of(file):
    """The dotted name of a file's module."""
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def circles(graph):
    """The modules that import one another, directly or by way of others: what is left when those
    that import none of the rest are taken away, again and again."""
    graph = dict(graph)
    while free := [name for name, imported in graph.items() if not imported & graph.keys()]:
        for name in free:
            del graph[name]
    return graph


def test_no_modules_import_one_another():
    """Not inside a folder either, where the floors do not see it."""
    graph = {}
    for file in PACKAGE.rglob("*.py"):
        name = module_of(file)
        graph[name] = set(imports(file)) - {name}
    assert not circles(graph), circles(graph)
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}).keys() == {"a", "b", "c"}


def test_every_module_is_on_one_floor():
    names = [name for names in FLOORS for name in names]
    assert len(names) == len(set(names))
    here = {
        p.stem if p.is_file() else p.name
        for p in PACKAGE.iterdir()
        if p.suffix == ".py" or list(p.glob("*.py"))
    }
    assert here == set(names)


def test_every_folder_is_a_package():
    """A folder without `__init__.py` works from a checkout and is missing from the wheel."""
    for file in PACKAGE.rglob("*.py"):
        assert (file.parent / "__init__.py").exists(), file


def test_importing_and_asking_for_help_is_quick():
    """Neither imports JAX or NumPy; the names come when they are asked for, functions before
    modules of their name."""
    code = (
        "import sys, dartformer as df\n"
        "from dartformer.cli.main import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'jax', 'numpy', 'flax', 'rich'} & set(sys.modules), set(sys.modules)\n"
        "import dartformer.models.transformer, dartformer.export.load\n"
        "assert callable(df.export)\n"
        "assert callable(df.transformer) and callable(df.supernet) and df.attention.ATTENTIONS\n"
        "assert all(getattr(df, name) is not None and name in dir(df) for name in df.__all__)\n"
        "assert not hasattr(df, 'nothing')"
    )
    subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", code], check=True, capture_output=True
    )
