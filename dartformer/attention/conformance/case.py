"""What the conformance properties share: one small input with every kind of padding, and what is
computed on it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.attention.base import Attention, Inputs, Params, Shape

FULL, RIGHT, HOLES, EMPTY = range(4)
"""The four examples: no padding; padded at the end; padded at the start and inside; nothing but
padding."""


class Failed(Exception):
    """A property does not hold; the message has the numbers."""


class NotApplicable(Exception):
    """A property has nothing to say about this attention; the message is the reason."""


@functools.cache
def _cheap() -> dict[str, Any]:
    """Options that make compiling several times quicker, as far as this jaxlib knows them."""
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    quicker = {**options, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=quicker).lower().compile()
    except jax.errors.JaxRuntimeError:
        return options
    return quicker


def quick(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for what runs a few times on tiny arrays: compiling is what takes long, so optimise
    less."""
    return jax.jit(function, compiler_options=_cheap(), **options)


def gap(found: Any, wanted: Any) -> float:
    """Largest absolute difference, relative to the largest magnitude of `wanted`; inf if not
    finite."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if not found.size:
        return 0.0
    size = np.abs(wanted).max() or 1.0
    value = np.abs(found - wanted).max() / size
    return float(value) if np.isfinite(value) else float("inf")


def below(value: float, limit: float, what: str) -> str:
    """The sentence `what value (limit)`; raises `Failed` with it unless value <= limit."""
    if not value <= limit:
        raise Failed(f"{what} {value:.3g}, allowed {limit:.3g}")
    return f"{what} {value:.2g}"


def arrays(jaxpr: Any) -> Iterator[int]:
    """Number of elements of every array made or held in `jaxpr`, loops and branches included."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    yield from (int(np.size(c)) for c in getattr(jaxpr, "consts", ()))
    for equation in inner.eqns:
        yield from (
            int(np.prod(v.aval.shape)) for v in equation.outvars if hasattr(v.aval, "shape")
        )
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from arrays(value)


def primitives(jaxpr: Any) -> Iterator[str]:
    """Name of every operation in `jaxpr`, loops and branches included."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from primitives(value)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@dataclass
class Case:
    """One attention and the inputs it is checked on. Arrays are numpy, so that they fit any
    precision mode."""

    attention: Attention
    seed: int
    heads: int
    head_dim: int
    length: int
    tolerance: float

    def __post_init__(self) -> None:
        self.random = self._generator(0)
        self.shape = Shape(
            self.length, self.heads, self.head_dim, self.heads * self.head_dim, batch=4
        )
        traits = self.attention.traits
        self.modes = tuple(
            causal
            for causal, able in ((False, traits.bidirectional), (True, traits.causal))
            if able
        )
        self.reads = sorted(traits.reads)

    def _generator(self, stream: int) -> np.random.Generator:
        """Inputs, parameters and cotangent each have a stream, so that what was asked for first
        changes nothing."""
        return np.random.default_rng([self.seed, stream])

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers, float64."""
        return self.random.standard_normal(shape)

    def keys(self, seed: int = 0) -> Array:
        """The heads' keys `[H]`."""
        return jax.random.split(jax.random.key(self.seed + seed), self.heads)

    @functools.cached_property
    def initial(self) -> Params:
        """Parameters as `init` makes them."""
        init = quick(lambda key: self.attention.init(key, self.shape))
        return jax.tree.map(np.asarray, init(jax.random.key(self.seed)))

    @functools.cached_property
    def params(self) -> Params:
        """Parameters moved off their initial values, where a zero could hide what depends on
        them."""
        random = self._generator(1)
        return jax.tree.map(
            lambda p: p + 0.1 * random.standard_normal(p.shape) if p.dtype.kind == "f" else p,
            self.initial,
        )

    @functools.cached_property
    def inputs(self) -> Inputs:
        """The four examples, `[4, N, H, D]`."""
        n = self.length
        valid = np.ones((4, n), bool)
        valid[RIGHT, 2 * n // 3 :] = False
        valid[HOLES, : n // 8 + 1] = valid[HOLES, n // 2 : n // 2 + 5] = False
        valid[EMPTY] = False
        random = self._generator(2)
        q, k, v = (random.standard_normal((4, n, self.heads, self.head_dim)) for _ in range(3))
        x: Any = random.standard_normal((4, n, self.shape.model_dim))
        return Inputs(q, k, v, x, valid, self.keys())  # type: ignore[arg-type]

    @functools.cached_property
    def cotangent(self) -> np.ndarray:
        """A random direction in the outputs, `[4, N, H, D]`."""
        return self._generator(3).standard_normal((4, self.length, self.heads, self.head_dim))

    def replace(self, where: np.ndarray, scale: float = 10.0) -> Inputs:
        """The inputs with every number at the tokens `where` `[4, N]` changed to another."""
        given = self.inputs

        def change(x: Any) -> np.ndarray:
            other = scale * self.normal(*x.shape)
            return np.where(where.reshape(where.shape + (1,) * (x.ndim - 2)), other, x)

        changed: dict[str, Any] = {n: change(getattr(given, n)) for n in "qkvx"}
        return dataclasses.replace(given, **changed)

    def part(self, rows: slice, tokens: slice, *, valid: bool = True) -> Inputs:
        """Some examples and tokens of the inputs; x only if it is read."""
        parts: dict[str, Any] = {}
        for name in ("q", "k", "v", *["x"][: "x" in self.reads], *["valid"][:valid]):
            parts[name] = np.asarray(getattr(self.inputs, name))[rows, tokens]
        return Inputs(**{"x": None, "valid": None, **parts}, head_keys=self.inputs.head_keys)

    def defined(self, params: Params, inputs: Inputs, causal: bool) -> tuple[Array, Array | None]:
        """The output by definition: weights times v, and the weights; or `reference`, and None."""
        weights = self.attention.weights(params, inputs, causal=causal)
        if (weights is not None) != self.attention.traits.matrix:
            raise Failed(
                f"traits.matrix is {self.attention.traits.matrix}, and weights() is "
                f"{'None' if weights is None else 'an array'}"
            )
        if weights is not None:
            return jnp.einsum("bhnk,bkhd->bnhd", weights, inputs.v), weights
        reference = getattr(self.attention, "reference", None)
        if reference is None:
            raise Failed(
                "traits.matrix is False: `reference(params, inputs, *, causal)` must give the output by "
                "definition"
            )
        return reference(params, inputs, causal=causal), None

    @functools.cached_property
    def _evaluate(self) -> Any:
        def evaluate(
            params: Params, inputs: Inputs, key: Array, causal: bool, train: bool
        ) -> tuple[Array, Any]:
            def loss(parts: Any) -> tuple[Array, Array]:
                out = self.attention(
                    *_join(parts, params, inputs), causal=causal, train=train, key=key
                )
                return jnp.sum(out * self.cotangent), out

            grads, out = jax.grad(loss, has_aux=True)(_split(params, inputs))
            return out, grads

        return quick(evaluate, static_argnums=(3, 4))

    def evaluate(
        self, inputs: Inputs | None = None, *, causal: bool, train: bool = False, key: int = 0
    ) -> tuple[np.ndarray, Any]:
        """Output, and gradients of its product with `cotangent`: ({q, k, v, x}, floating
        parameters)."""
        given = self.inputs if inputs is None else inputs
        return jax.tree.map(
            np.asarray, self._evaluate(self.params, given, jax.random.key(key), causal, train)
        )

    @functools.cached_property
    def results(self) -> dict[bool, tuple[np.ndarray, Any]]:
        """`evaluate` on the inputs, for every mode."""
        return {causal: self.evaluate(causal=causal) for causal in self.modes}

    def forward(self, causal: bool) -> np.ndarray:
        """The output of `results[causal]` alone, without gradients."""
        run = quick(lambda params, inputs: self.attention(params, inputs, causal=causal))
        return np.asarray(run(self.params, self.inputs))

    @functools.cached_property
    def influence(self) -> dict[bool, np.ndarray]:
        """`[H, N, N]` for every mode: the gradient of a random direction of output i by token j (no
        padding)."""
        return {causal: self._influence(self.attention, causal) for causal in self.modes}

    @functools.cached_property
    def expected(self) -> dict[bool, np.ndarray]:
        """`[H, N, N]` bool for every mode: whether output i depends on token j, by definition (no
        padding)."""

        def seen(causal: bool) -> np.ndarray:
            weights = self.definitions[causal][2]
            if weights is None:
                weights = self._influence(
                    lambda p, i, causal: self.defined(p, i, causal)[0], causal
                )
            size = np.abs(weights)
            return size > 1e-12 * size.max()

        return {causal: seen(causal) for causal in self.modes}

    def _influence(self, function: Callable[..., Any], causal: bool) -> np.ndarray:
        """In reverse, which every attention supports that can be trained; forward mode some fused
        ones do not."""

        def gradients(params: Params, inputs: Inputs) -> Array:
            _, pull = jax.vjp(
                lambda given: function(*_join((given, {}), params, inputs), causal=causal),
                _split({}, inputs)[0],
            )

            def one(head: Array, token: Array) -> Array:
                here = (
                    (jnp.arange(self.length) == token)[:, None] & (jnp.arange(self.heads) == head)
                )[None, :, :, None]
                (grads,) = pull(jnp.where(here, self.cotangent[:1], 0.0))
                return (
                    sum(
                        jnp.sum(g[0].reshape(self.length, -1) ** 2, axis=-1) for g in grads.values()
                    )
                    ** 0.5
                )  # [N]

            over_tokens = jax.vmap(one, (None, 0))
            return jax.vmap(over_tokens, (0, None))(jnp.arange(self.heads), jnp.arange(self.length))

        return np.asarray(
            quick(gradients)(self.params, self.part(slice(1), slice(None), valid=False))
        )

    @functools.cached_property
    def definitions(self) -> dict[bool, tuple[np.ndarray, Any, np.ndarray | None]]:
        """As `results`, by definition; and the weights `[H, N, N]` of the example without
        padding."""

        def evaluate(params: Params, inputs: Inputs, causal: bool) -> Any:
            def loss(parts: Any) -> tuple[Array, Any]:
                out, weights = self.defined(*_join(parts, params, inputs), causal)
                return jnp.sum(out * self.cotangent), (
                    out,
                    None if weights is None else weights[FULL],
                )

            grads, (out, weights) = jax.grad(loss, has_aux=True)(_split(params, inputs))
            return out, grads, weights

        run = quick(evaluate, static_argnums=2)
        return {
            causal: jax.tree.map(np.asarray, run(self.params, self.inputs, causal))
            for causal in self.modes
        }


def _split(params: Params, inputs: Inputs) -> tuple[dict[str, Any], Any]:
    """What gradients are taken of: the inputs by name, and the parameters that are floating (others
    None)."""
    parts = {n: jnp.asarray(getattr(inputs, n)) for n in "qkvx" if getattr(inputs, n) is not None}
    return parts, jax.tree.map(
        lambda p: p if jnp.issubdtype(p.dtype, jnp.floating) else None, params
    )


def _join(parts: Any, params: Params, inputs: Inputs) -> tuple[Params, Inputs]:
    """Inverse of `_split`."""
    given, floating = parts
    if floating:
        params = jax.tree.map(lambda p, f: p if f is None else f, params, floating)
    return params, dataclasses.replace(inputs, **given)
