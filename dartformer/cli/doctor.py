"""Doctor: what is installed here, what it runs on, where it keeps things, and what a missing extra
would add."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from dartformer._version import __version__
from dartformer.machine import compile_cache, xla_flags

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "onnx": (("jax2onnx", "onnxruntime"), "dartformer export --format=onnx"),
    "tensorflow": (("tensorflow",), "dartformer export --format=tensorflow, a SavedModel"),
    "torch": (("torch",), "dartformer export --format=torch, a plain PyTorch module"),
    "hub": (("huggingface_hub",), "dartformer push, to the Hugging Face hub"),
    "wandb": (("wandb",), "--config.log.trackers=wandb, Weights & Biases beside TensorBoard"),
    "mlflow": (("mlflow",), "--config.log.trackers=mlflow, MLflow beside TensorBoard"),
    "notebooks": (("ipykernel", "nbclient"), "to run the notebooks of the repository"),
    "docs": (("mkdocs", "mkdocstrings"), "make docs"),
    "test": (("pytest", "ruff", "mypy", "build"), "make test"),
}
"""For each extra that adds an ability: the modules it brings, and the ability."""


def examine() -> dict[str, Any]:
    """All that is found, as plain data; `problems` is empty where nothing is missing."""
    versions = {name: _version(name) for name in needed()}
    problems = [
        f"{name} is not installed: pip install dartformer brings it."
        for name, v in versions.items()
        if not v
    ]
    reductions = _reductions()
    if reductions["in_use"] in _FAULTY:
        problems.append(
            f"reductions of jaxlib {versions['jaxlib']} on this CPU: {reductions['in_use']}. "
            f"Set XLA_FLAGS={xla_flags.DOTS_ONLY}."
        )
    devices: list[str] = []
    try:
        import jax

        devices = [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()]
    except Exception as error:  # a broken driver shows itself in many ways
        problems.append(
            f"JAX finds no device: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
    cache, data = (
        compile_cache.folder(),
        Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"),
    )
    places = {
        "working folder": Path.cwd(),
        "compile cache": cache,
        "data sets": data,
        "temporary files": Path(tempfile.gettempdir()),
    }
    return {
        "dartformer": __version__,
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions,
        "devices": devices,
        "places": {name: _place(path) for name, path in places.items()},
        "reductions": reductions,
        "extras": {
            name: {
                "installed": all(importlib.util.find_spec(m) is not None for m in modules),
                "adds": adds,
            }
            for name, (modules, adds) in EXTRAS.items()
        },
        "problems": problems,
    }


_FAULTY = (
    xla_flags.Verdict.CRASHES.value,
    xla_flags.Verdict.WRONG.value,
    xla_flags.Verdict.HANGS.value,
)


def _reductions() -> dict[str, str]:
    """What XLA's reductions on this CPU do without a flag and with the one in use, and who chose
    that."""
    protection = xla_flags.protect(may_probe=True)
    words = os.environ.get("XLA_FLAGS", "").split()
    flag = next((word for word in words if word.startswith(xla_flags.FLAG)), "")
    bare = xla_flags.probe()
    in_use = xla_flags.probe(flag) if flag else bare
    return {
        "flag": flag,
        "protection": protection.value,
        "without_flag": bare.value,
        "in_use": in_use.value,
    }


def needed() -> list[str]:
    """The distributions that dartformer requires, by its own metadata, after JAX's compiled
    part."""
    try:
        lines = importlib.metadata.requires("dartformer") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
        return ["jax", "jaxlib"]
    return [
        "jaxlib",
        *(re.split(r"[^A-Za-z0-9._-]", line)[0] for line in lines if "extra ==" not in line),
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _place(path: Path) -> dict[str, Any]:
    """A folder, the bytes in it where it is a cache, and the bytes free on its disk."""
    above = next(p for p in (path, *path.parents) if p.exists())
    kept = (
        sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        if path.name.startswith("compiled-")
        else None
    )
    return {
        "path": str(path),
        "exists": path.exists(),
        "writable": os.access(above, os.W_OK),
        "free_bytes": shutil.disk_usage(above).free,
        **({"kept_bytes": kept} if kept is not None else {}),
    }


def text(found: dict[str, Any]) -> str:
    """What `examine` found, for people."""
    lines = [
        f"dartformer {found['dartformer']}, Python {found['python']} ({found['executable']})",
        f"{found['platform']}, {found['cores']} cores",
        "",
        "devices   " + (", ".join(found["devices"]) or "none"),
        "",
        "versions  " + ", ".join(f"{n} {v or 'MISSING'}" for n, v in found["versions"].items()),
        "",
    ]
    for name, place in found["places"].items():
        notes = [f"{place['free_bytes'] / 1e9:.1f} GB free"]
        notes += [f"{place['kept_bytes'] / 1e6:.0f} MB kept"] if place.get("kept_bytes") else []
        notes += [
            "" if place["exists"] else "made when needed",
            "" if place["writable"] else "NOT WRITABLE",
        ]
        lines.append(f"{name:16}{place['path']}  ({', '.join(filter(None, notes))})")
    reductions = found["reductions"]
    if reductions["flag"]:
        lines += [
            "",
            f"XLA flag  {reductions['flag']} ({reductions['protection']})",
            f"          sums on this CPU: {reductions['in_use']} with it, "
            f"{reductions['without_flag']} without it",
        ]
    lines.append("")
    for name, extra in found["extras"].items():
        state = (
            "installed"
            if extra["installed"]
            else f"missing; pip install 'dartformer[{name}]' enables"
        )
        lines.append(f"extra {name:11}{state}{': ' if extra['installed'] else ' '}{extra['adds']}")
    lines += (
        ["", *(f"PROBLEM: {p}" for p in found["problems"])]
        if found["problems"]
        else ["", "nothing is missing."]
    )
    return "\n".join(lines)
