"""The output of an attention in another Python process, as after a restart or on another host.

That process is started once, with another seed of Python's string hashes, and answers until this
one ends. Classes, fields and arrays go through pipes as JSON; nothing is pickled.
"""

import atexit
import base64
import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from dartformer.attention.conformance.case import Case, Failed

HASH_SEED = "20"
"""Of the other process; this one's is random, unless somebody has set it."""


def output_elsewhere(case: Case, causal: bool) -> np.ndarray:
    """`case.results[causal][0]` as another process computes it; raises `Failed` if it cannot."""
    request = {
        "path": sys.path,
        "attention": _as_json(case.attention),
        "case": [case.seed, case.heads, case.head_dim, case.length, case.tolerance],
        "causal": causal,
    }
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        _process.cache_clear()  # the next request starts another one
        raise Failed(f"another process exited with status {process.wait()} while computing it")
    answer = json.loads(line)
    if "error" in answer:
        raise Failed(f"another process cannot compute it: {answer['error']}")
    numbers = np.frombuffer(base64.b64decode(answer["out"]))
    return numbers.reshape(answer["shape"])


def _as_json(value: object) -> Any:
    """A field as JSON.

    An attention becomes its class and fields, a tuple a list under the key "tuple"; other values
    stay.
    """
    if dataclasses.is_dataclass(value):
        cls: Any = type(value)
        fields = {}
        for field in dataclasses.fields(cls):
            if field.init:
                fields[field.name] = _as_json(getattr(value, field.name))
        return {"module": cls.__module__, "class": cls.__qualname__, "fields": fields}
    if isinstance(value, tuple):
        return {"tuple": [_as_json(item) for item in value]}
    return value


def _from_json(value: Any) -> Any:
    """Inverse of `_as_json`."""
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_from_json(item) for item in value["tuple"])
    cls: Any = importlib.import_module(value["module"])
    for name in value["class"].split("."):
        cls = getattr(cls, name)
    fields = {name: _from_json(field) for name, field in value["fields"].items()}
    return cls(**fields)


@functools.cache
def _process() -> subprocess.Popen[str]:
    """The other process."""
    program = f"import sys; sys.path[:] = {sys.path!r}\nimport {__name__} as p; p.serve()"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": HASH_SEED, "JAX_PLATFORMS": "cpu"},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )

    def end() -> None:
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()

    atexit.register(end)
    return process


def serve() -> None:
    """Answer requests until there are no more: one line of JSON for each."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an attention prints must not mix with the answers
    for line in sys.stdin:
        try:
            answer = _answer(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    sys.path[:] = request["path"]
    with jax.enable_x64(True):
        case = Case(_from_json(request["attention"]), *request["case"])
        out = np.ascontiguousarray(case.forward(request["causal"]))
    encoded = base64.b64encode(out.tobytes()).decode()
    return {"out": encoded, "shape": out.shape}
