"""What every oracle shares: the example it is run on, how it is differentiated, and the file that
it leaves.

Nothing of dartformer is imported here: an oracle knows the equations of a paper and the names of
our parameters."""

import dataclasses
import importlib.metadata
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "fixtures"
STEP = 1 / 32
"""Inputs are odd multiples of half of it: exact in float32, never zero (where some have a kink),
easy to compress."""


@dataclass
class Example:
    """What an oracle reads: arrays of numpy in float64, or tensors of torch.

    Attributes:
      q, k, v: `[B, N, H, D]`.
      x: `[B, N, E]`.
      params: by our names, every leaf leading with H.
      valid: `[B, N]` bool, False at padding.
      causal: whether token i may read no token after it.
      given: what our implementation draws at random, drawn here instead.
      slopes: `[H]`, of ALiBi, or None.
    """

    q: Any
    k: Any
    v: Any
    x: Any
    params: dict[str, Any]
    valid: Any
    causal: bool
    given: dict[str, np.ndarray]
    slopes: np.ndarray | None = None


@dataclass(frozen=True)
class Oracle:
    """One run of one implementation that is not ours.

    Attributes:
      spec: the attention it is an oracle for, as configs write it.
      run: from an `Example` to the output `[B, N, H, D]`; rows of padded queries may be anything.
      by: what is called, in words.
      packages: those whose versions are recorded.
      differentiate: how the gradients are had, `autograd` or `differences`.
      causal, padding: whether it is run causally, and with padded examples.
      invalid: the padded tokens of each example, where the usual ones do not fit.
      params: shapes of our parameters, or arrays.
      given: what our implementation draws at random, by the name of the function that draws it.
      slopes: of ALiBi for each head, or none.
      scale: standard deviation of the parameters of which only the shape is given.
      sizes: B, N, H, D, E.
    """

    spec: str
    run: Callable[[Example], Any]
    by: str
    packages: tuple[str, ...]
    differentiate: Callable[..., Any]
    causal: bool = False
    padding: bool = True
    invalid: list[tuple[int, ...]] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    given: dict[str, np.ndarray] = field(default_factory=dict)
    slopes: tuple[float, ...] = ()
    scale: float = 0.5
    sizes: tuple[int, int, int, int, int] = (3, 22, 2, 4, 8)


ORACLES: dict[str, Oracle] = {}


def oracle(name: str, spec: str, **options: Any) -> Callable[[Callable], Callable]:
    """Enter the decorated function as the oracle `name`, which is the name of its fixture."""

    def enter(run: Callable) -> Callable:
        if name in ORACLES:
            raise ValueError(f"two oracles are called {name}")
        ORACLES[name] = Oracle(spec, run, **options)
        return run

    return enter


def make(name: str) -> str:
    """Run the oracle `name`, write its fixture, and say how large it is and how it differs from the
    last one."""
    this = ORACLES[name]
    random = np.random.default_rng(zlib.crc32(name.encode()))
    batch, length, heads, width, model = this.sizes

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (np.floor(random.standard_normal(shape) * scale / STEP) + 0.5) * STEP

    arrays = {n: normal(batch, length, heads, width) for n in "qkv"}
    arrays["x"] = normal(batch, length, model)
    for key, given in this.params.items():
        arrays[f"param/{key}"] = (
            normal(*given, scale=this.scale)
            if isinstance(given, tuple)
            else np.asarray(given, np.float64)
        )
    cotangent = normal(batch, length, heads, width)
    valid = np.ones((batch, length), bool)
    if this.invalid is not None:
        for b, tokens in enumerate(this.invalid):
            valid[b, list(tokens)] = False
    elif this.padding:
        valid[1, 2 * length // 3 :] = False
        valid[2, :3] = valid[2, length // 2 : length // 2 + 2] = False

    output, gradients = this.differentiate(this, arrays, valid, cotangent)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in this.packages)
    stored = {
        "spec": this.spec,
        "causal": this.causal,
        "oracle": this.by,
        "versions": versions,
        "valid": valid,
    }
    if this.slopes:
        stored["slopes"] = np.asarray(this.slopes, np.float32)
    stored |= {f"given/{key}": a for key, a in this.given.items()}
    for key, value in (
        arrays
        | {"cotangent": cotangent, "output": output}
        | {f"grad/{key}": g for key, g in gradients.items()}
    ).items():
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: {key} is not finite")
        stored[key] = np.asarray(value, np.float32)
    path = FOLDER / f"{name}.npz"
    change = "new"
    if path.exists():
        with np.load(path, allow_pickle=False) as last:
            same = set(last.files) == set(stored) and all(
                last[k].shape == np.shape(stored[k]) for k in stored
            )
            change = (
                "other arrays"
                if not same
                else "differs by {:.1e}".format(
                    max(
                        np.abs(last[k] - stored[k]).max()
                        for k in stored
                        if np.asarray(stored[k]).dtype.kind == "f"
                    )
                )
            )
    np.savez_compressed(path, **{k: np.asarray(v) for k, v in stored.items()})
    return f"{name:32} {path.stat().st_size:6} bytes, {change}"


def _example(this: Oracle, arrays: dict[str, Any], valid: Any) -> Example:
    params = {
        key.removeprefix("param/"): a for key, a in arrays.items() if key.startswith("param/")
    }
    return Example(
        arrays["q"],
        arrays["k"],
        arrays["v"],
        arrays["x"],
        params,
        valid,
        this.causal,
        this.given,
        np.asarray(this.slopes) if this.slopes else None,
    )


def without_padding(run: Callable[[Example], Any]) -> Callable[[Example], Any]:
    """For oracles of torch without masks: each example on its own, cut down to its valid tokens."""

    def cut(e: Example) -> Any:
        out = e.v.new_zeros(e.v.shape)
        for b, valid in enumerate(e.valid):
            parts = {
                name: getattr(e, name)[b, None, valid] for name in ("q", "k", "v", "x", "valid")
            }
            out[b, valid] = run(dataclasses.replace(e, **parts))[0].to(out.dtype)
        return out

    return cut


def autograd(
    this: Oracle, arrays: dict[str, np.ndarray], valid: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output, zero where the query is padded, and gradients, by torch in float64; none of a
    parameter left unread."""
    import torch

    tensors = {
        key: torch.tensor(a, dtype=torch.float64, requires_grad=True) for key, a in arrays.items()
    }
    mask = torch.tensor(valid)
    out = this.run(_example(this, tensors, mask)).double()
    out = torch.where(mask[:, :, None, None], out, 0.0)
    (out * torch.tensor(cotangent)).sum().backward()
    zero = {key: np.zeros_like(a) for key, a in arrays.items() if key in "qkvx"}
    return out.detach().numpy(), zero | {
        k: t.grad.numpy() for k, t in tensors.items() if t.grad is not None
    }


def differences(
    this: Oracle, arrays: dict[str, np.ndarray], valid: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output, zero where the query is padded, and gradients by central differences of fourth order,
    in float64."""

    def loss() -> tuple[float, np.ndarray]:
        out = np.asarray(this.run(_example(this, arrays, valid)), np.float64)
        out = np.where(valid[:, :, None, None], out, 0.0)
        return float((out * cotangent).sum()), out

    output, gradients = loss()[1], {}
    for key, array in arrays.items():
        gradient, whole = np.zeros_like(array), array.copy()
        array += array**2  # neither a factor nor a shift, which change nothing in some attentions
        read = (loss()[1] != output).any()
        array[...] = whole
        for place in np.ndindex(*array.shape if read else (0,)):
            here, step = array[place], 1e-3
            for times, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
                array[place] = here + times * step
                gradient[place] += weight * loss()[0] / (12 * step)
            array[place] = here
        gradients[key] = gradient
    return output, gradients
