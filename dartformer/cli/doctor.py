"""The verb doctor: versions, devices, folders and extras of this installation."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from dartformer._version import __version__
from dartformer.cli.grammar import FAILED_CHECK
from dartformer.machine import compile_cache, xla_flags
from dartformer.machine.printable import printable, printable_json

EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "onnx": (("jax2onnx", "onnxruntime"), "ONNX export"),
    "tensorflow": (("tensorflow",), "export as a TensorFlow SavedModel"),
    "torch": (("torch",), "export as a plain PyTorch module"),
    "hub": (("huggingface_hub",), "`dartformer push` to the Hugging Face hub"),
    "lm-eval": (("lm_eval",), "lm-evaluation-harness on a checkpoint"),
    "wandb": (("wandb",), "logging to Weights & Biases"),
    "mlflow": (("mlflow",), "logging to MLflow"),
    "datasets": (("datasets",), "data sets of the hub: `task.path=hf:OWNER/NAME`"),
    "ray": (("ray",), "`dartformer sweep --engine=ray`"),
    "slurm": (("submitit",), "`dartformer sweep --engine=slurm`"),
    "aot": (("libtpu", "jax_cuda12_plugin"), "`dartformer profile --on`"),
    "notebooks": (("ipykernel", "nbclient"), "what the notebooks of the repository need"),
    "docs": (("mkdocs", "mkdocstrings"), "`make docs`"),
    "test": (("pytest", "ruff", "mypy", "build"), "`make test`"),
}
"""For each extra: the modules it installs, and the ability it adds."""

FAULTY = (xla_flags.Verdict.CRASHES, xla_flags.Verdict.WRONG, xla_flags.Verdict.HANGS)


@dataclass(frozen=True)
class Folder:
    """A folder that dartformer uses, with the free space on its disk."""

    path: str
    exists: bool
    writable: bool
    free_bytes: int
    kept_bytes: int | None
    """Bytes in the folder itself, of a cache; else None."""

    def to_dict(self) -> dict[str, object]:
        data = asdict(self)
        if self.kept_bytes is None:
            del data["kept_bytes"]
        return data

    def __str__(self) -> str:
        notes = [f"{self.free_bytes / 1e9:.1f} GB free"]
        if self.kept_bytes:
            notes.append(f"{self.kept_bytes / 1e6:.0f} MB kept")
        if not self.exists:
            notes.append("created when needed")
        if not self.writable:
            notes.append("NOT WRITABLE")
        return f"{self.path}  ({', '.join(notes)})"


@dataclass(frozen=True)
class Reductions:
    """What XLA's sums on this CPU do without a flag and with the one in use."""

    flag: str
    protection: str
    without_flag: str
    in_use: str


@dataclass(frozen=True)
class Extra:
    """An optional extra: whether all its modules are installed, and what it adds."""

    installed: bool
    adds: str


@dataclass(frozen=True)
class Examination:
    """Everything that `doctor` prints; `problems` is empty for a working installation."""

    versions: dict[str, str | None]
    devices: list[str]
    places: dict[str, Folder]
    reductions: Reductions
    extras: dict[str, Extra]
    problems: list[str]

    def to_dict(self) -> dict[str, object]:
        """The object of `dartformer doctor --json`."""
        places = {}
        for name, folder in self.places.items():
            places[name] = folder.to_dict()
        return {
            "dartformer": __version__,
            "python": _python(),
            "executable": sys.executable,
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            **asdict(self),
            "places": places,
        }


def command(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """Examine the installation and print the result."""
    examination = examine()
    if arguments.json:
        # Without the other modules' imports, since one of their packages may be missing.
        print(printable_json(json.dumps(examination.to_dict(), indent=2)))
    else:
        print(printable(text(examination)))
    if examination.problems:
        return FAILED_CHECK
    return 0


def examine() -> Examination:
    """Look at versions, devices, folders and extras."""
    versions = {}
    for name in needed():
        versions[name] = _version(name)
    # Each probe runs in its own process, so a crash there is a result and not an end.
    reductions = _reductions()
    problems = []
    for name, version in versions.items():
        if version is None:
            problems.append(f"{name} is not installed. `pip install dartformer` installs it.")
    if xla_flags.Verdict(reductions.in_use) in FAULTY:
        problems.append(
            f"sums of jaxlib {versions['jaxlib']} on this CPU: {reductions.in_use}. "
            f"Set XLA_FLAGS={xla_flags.DOTS_ONLY}."
        )
    devices: list[str] = []
    try:
        import jax  # may be what is broken, and the doctor is there to say so

        for device in jax.devices():
            devices.append(f"{device.platform}:{device.id} {device.device_kind}")
    except Exception as error:  # a broken driver can raise nearly anything
        message = " ".join(str(error).split())[:200]
        problems.append(f"JAX finds no device: {type(error).__name__}: {message}")
    return Examination(versions, devices, _places(), reductions, _extras(), problems)


def needed() -> list[str]:
    """The required distributions by dartformer's own metadata, and JAX's compiled part."""
    try:
        requirements = importlib.metadata.requires("dartformer") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was never installed
        return ["jax", "jaxlib"]
    # jaxlib is required by jax, and not by dartformer itself.
    names = ["jaxlib"]
    for requirement in requirements:
        if "extra ==" not in requirement:
            # "numpy>=2,<3" begins with the name of the distribution.
            names.append(re.split(r"[^A-Za-z0-9._-]", requirement)[0])
    return names


def _python() -> str:
    return sys.version.split()[0]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _reductions() -> Reductions:
    # Set by `main` already; this only says what was done.
    protection = xla_flags.protect(may_probe=True)
    flag = ""
    for word in os.environ.get("XLA_FLAGS", "").split():
        if word.startswith(xla_flags.FLAG):
            flag = word
            break
    # Both are shown, because the flag may have become unnecessary with a newer jaxlib.
    without_flag = in_use = xla_flags.probe()
    if flag:
        in_use = xla_flags.probe(flag)
    return Reductions(flag, protection.value, without_flag.value, in_use.value)


def _places() -> dict[str, Folder]:
    data = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    cache = compile_cache.folder()
    return {
        "working folder": _folder(Path.cwd()),
        "compile cache": _folder(cache, _size(cache)),
        "data sets": _folder(Path(data)),
        "temporary files": _folder(Path(tempfile.gettempdir())),
    }


def _folder(path: Path, kept_bytes: int | None = None) -> Folder:
    # A folder that does not exist yet will be created on the disk of its nearest parent.
    nearest = path
    while not nearest.exists():
        nearest = nearest.parent
    return Folder(
        path=str(path),
        exists=path.exists(),
        writable=os.access(nearest, os.W_OK),  # os.access asks without creating anything
        free_bytes=shutil.disk_usage(nearest).free,
        kept_bytes=kept_bytes,
    )


def _size(folder: Path) -> int:
    """The bytes of all files of a folder."""
    total = 0
    for file in folder.rglob("*"):
        if file.is_file():
            total += file.stat().st_size
    return total


def _extras() -> dict[str, Extra]:
    extras = {}
    for name, (modules, adds) in EXTRAS.items():
        # Found and not imported: some take seconds, and a broken one would end the examination.
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        extras[name] = Extra(not missing, adds)
    return extras


def text(examination: Examination) -> str:
    """The examination as `dartformer doctor` prints it."""
    versions = []
    for name, version in examination.versions.items():
        versions.append(f"{name} {version or 'MISSING'}")
    devices = ", ".join(examination.devices) or "none"
    lines = [
        f"dartformer {__version__}, Python {_python()} ({sys.executable})",
        f"{platform.platform()}, {os.cpu_count()} cores",
        "",
        f"devices   {devices}",
        "",
        f"versions  {', '.join(versions)}",
        "",
    ]
    for name, folder in examination.places.items():
        lines.append(f"{name:16}{folder}")
    reductions = examination.reductions
    if reductions.flag:
        lines += [
            "",
            f"XLA flag  {reductions.flag} ({reductions.protection})",
            f"          sums on this CPU: {reductions.in_use} with it, "
            f"{reductions.without_flag} without it",
        ]
    lines.append("")
    lines += _extra_lines(examination.extras)
    lines.append("")
    if examination.problems:
        for problem in examination.problems:
            lines.append(f"PROBLEM: {problem}")
    else:
        lines.append("All required packages are installed.")
    return "\n".join(lines)


def _extra_lines(extras: dict[str, Extra]) -> Iterable[str]:
    for name, extra in extras.items():
        if extra.installed:
            yield f"optional: {name} is installed ({extra.adds})."
        else:
            yield (
                f"optional: {name} is not installed (`pip install 'dartformer[{name}]'` adds "
                f"{extra.adds})."
            )
