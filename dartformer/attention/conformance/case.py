"""What the conformance properties share: a small input with all kinds of padding, and results."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.typing import ArrayLike

from dartformer.attention.base import Attention, Inputs, Params, Shape

FULL, RIGHT, HOLES, EMPTY = range(4)
"""The four examples.

They have no padding, padding at the end, padding at the start and inside, and nothing but padding.
"""


SHORT = 17
"""A length for which outputs are also computed apart."""

EXACT = 1e-12
"""Allowed where two computations should do the same operations, in float64."""


Parts = tuple[dict[str, Array], Params]
"""What gradients are taken by: inputs by name, and floating parameters with None for others."""


Program = ClosedJaxpr | Jaxpr
"""A traced program, with or without its constants."""


class Failed(Exception):
    """A property does not hold; the message has the numbers."""


class NotApplicable(Exception):
    """A property does not apply to this attention; the message is the reason."""


class Gradients(NamedTuple):
    """Gradients of the product of an output with `Case.cotangent`.

    Attributes:
      inputs: by q, k, v, x, each under its name.
      params: by the floating parameters; None in place of others.
    """

    inputs: dict[str, np.ndarray]
    params: Params


@functools.cache
def _cheap() -> dict[str, Any]:
    """Options that make compiling several times quicker, as far as this jaxlib has them."""
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    quicker = {**options, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda: 0, compiler_options=quicker).lower().compile()
    except jax.errors.JaxRuntimeError:
        return options
    return quicker


def quick(function: Callable[..., Any], **options: Any) -> Any:
    """`jax.jit` for what runs a few times on tiny arrays: compiling takes the time, not running."""
    return jax.jit(function, compiler_options=_cheap(), **options)


def gap(value: ArrayLike, reference: ArrayLike) -> float:
    """Largest absolute difference, relative to the largest magnitude of `reference`.

    Infinite if a number is not finite.
    """
    value = np.asarray(value, np.float64)
    reference = np.asarray(reference, np.float64)
    if not value.size:
        return 0.0
    size = np.abs(reference).max() or 1.0
    difference = np.abs(value - reference).max() / size
    if not np.isfinite(difference):
        return float("inf")
    return float(difference)


def below(value: float, limit: float, text: str) -> str:
    """The sentence `text value`; raises `Failed` with the limit unless value <= limit."""
    if not value <= limit:  # NaN fails too
        raise Failed(f"{text} {value:.3g}, allowed {limit:.3g}")
    return f"{text} {value:.2g}"


def finite(tree: Any) -> bool:
    """Whether all numbers of all arrays in `tree` are finite."""
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def arrays(jaxpr: Program) -> Iterator[int]:
    """Number of elements of every array made or held in `jaxpr`, loops and branches included."""
    for constant in getattr(jaxpr, "consts", ()):
        yield int(np.size(constant))
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        for variable in equation.outvars:
            if hasattr(variable.aval, "shape"):
                yield int(np.prod(variable.aval.shape))
        for inner in _inner(equation):
            yield from arrays(inner)


def primitives(jaxpr: Program) -> Iterator[str]:
    """Name of every operation in `jaxpr`, loops and branches included."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation.primitive.name
        for inner in _inner(equation):
            yield from primitives(inner)


def _inner(equation: JaxprEqn) -> Iterator[Program]:
    """The programs inside an equation, such as the body of a loop."""
    values = list(equation.params.values())
    for value in jax.tree.leaves(values, is_leaf=_is_jaxpr):
        if _is_jaxpr(value):
            yield value


def _is_jaxpr(value: object) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@dataclass
class Case:
    """One attention and the inputs it is checked on.

    Arrays are numpy: they fit any precision mode.
    """

    attention: Attention
    seed: int
    heads: int
    head_dim: int
    length: int
    tolerance: float

    def __post_init__(self) -> None:
        self.random = self._generator(0)
        width = self.heads * self.head_dim
        self.shape = Shape(self.length, self.heads, self.head_dim, width, batch=4)
        traits = self.attention.traits
        modes = []  # of `causal`
        if traits.bidirectional:
            modes.append(False)
        if traits.causal:
            modes.append(True)
        self.modes = tuple(modes)
        self.reads = sorted(traits.reads)
        self._first_tokens: dict[bool, np.ndarray] = {}

    @property
    def rounding(self) -> float:
        """Tolerance where two programs should compute the same, apart from the order of sums."""
        return max(EXACT, self.tolerance)

    def _generator(self, stream: int) -> np.random.Generator:
        """Inputs, parameters and cotangent each have a stream: their order changes nothing."""
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
        """Parameters moved off their initial values, where a zero could hide a dependence."""
        random = self._generator(1)

        def moved(p: np.ndarray) -> np.ndarray:
            if p.dtype.kind != "f":
                return p
            return p + 0.1 * random.standard_normal(p.shape)

        return jax.tree.map(moved, self.initial)

    @functools.cached_property
    def inputs(self) -> Inputs:
        """The four examples, `[4, N, H, D]`."""
        n = self.length
        valid = np.ones((4, n), bool)
        valid[RIGHT, 2 * n // 3 :] = False
        valid[HOLES, : n // 8 + 1] = False
        valid[HOLES, n // 2 : n // 2 + 5] = False
        valid[EMPTY] = False
        random = self._generator(2)
        size = (4, n, self.heads, self.head_dim)
        q = random.standard_normal(size)
        k = random.standard_normal(size)
        v = random.standard_normal(size)
        # Padding is not zero: an attention that reads it must show.
        x: Any = random.standard_normal((4, n, self.shape.model_dim))
        return Inputs(q, k, v, x, valid, self.keys())  # type: ignore[arg-type]

    @property
    def valid(self) -> np.ndarray:
        """Which tokens of the four examples exist, `[4, N]` bool."""
        return np.asarray(self.inputs.valid)

    @functools.cached_property
    def cotangent(self) -> np.ndarray:
        """A random direction in the outputs, `[4, N, H, D]`."""
        return self._generator(3).standard_normal((4, self.length, self.heads, self.head_dim))

    @functools.cached_property
    def alone(self) -> Callable[[Params, Inputs], Array]:
        """(parameters, inputs) -> the causal output of each row without its padding.

        It is in the places of the tokens, and compiled once for all properties.
        """

        def output(params: Params, inputs: Inputs) -> Array:
            order = jnp.argsort(~jnp.asarray(inputs.mask), axis=1, stable=True)
            arrays: dict[str, Any] = {}
            for name in ("q", "k", "v", "x", "valid"):
                array = getattr(inputs, name)
                if array is not None:
                    index = order.reshape(*order.shape, *(1,) * (array.ndim - 2))
                    array = jnp.take_along_axis(jnp.asarray(array), index, axis=1)
                arrays[name] = array
            out = self.attention(params, dataclasses.replace(inputs, **arrays), causal=True)
            back = jnp.argsort(order, axis=1)
            return jnp.take_along_axis(out, back[:, :, None, None], axis=1)

        compiled: Callable[[Params, Inputs], Array] = quick(output)
        return compiled

    def tokens_from(self, start: int) -> np.ndarray:
        """The tokens from `start` on, in each example, `[4, N]` bool."""
        return np.broadcast_to(np.arange(self.length) >= start, (4, self.length))

    def replace(self, tokens: np.ndarray, scale: float = 10.0) -> Inputs:
        """The inputs with every number at the `tokens` `[4, N]` changed to another."""

        def changed(x: Array) -> np.ndarray:
            new = scale * self.normal(*x.shape)
            trailing = (1,) * (x.ndim - 2)
            return np.where(tokens.reshape(*tokens.shape, *trailing), new, x)

        arrays = {}
        for name in "qkvx":
            arrays[name] = changed(getattr(self.inputs, name))
        return with_arrays(self.inputs, arrays)

    def part(self, rows: slice, tokens: slice, *, valid: bool = True) -> Inputs:
        """Some examples and tokens of the inputs; x only if it is read."""
        parts: dict[str, Any] = {"x": None, "valid": None}
        names = ["q", "k", "v"]
        if "x" in self.reads:
            names.append("x")
        if valid:
            names.append("valid")
        for name in names:
            parts[name] = np.asarray(getattr(self.inputs, name))[rows, tokens]
        return Inputs(**parts, head_keys=self.inputs.head_keys)

    def defined(self, params: Params, inputs: Inputs, causal: bool) -> tuple[Array, Array | None]:
        """The output by definition: weights times v, and the weights; or `reference`, and None."""
        matrix = self.attention.traits.matrix
        weights = self.attention.weights(params, inputs, causal=causal)
        if matrix and weights is None:
            raise Failed("traits.matrix is True, but weights() returns None")
        if not matrix and weights is not None:
            raise Failed("traits.matrix is False, but weights() returns an array")
        if weights is not None:
            return jnp.einsum("bhnk,bkhd->bnhd", weights, inputs.v), weights
        reference = getattr(self.attention, "reference", None)
        if reference is None:
            raise Failed(
                "traits.matrix is False, so it needs a method reference(params, inputs, *, causal) "
                "that returns the output by definition"
            )
        return reference(params, inputs, causal=causal), None

    @functools.cached_property
    def _evaluate(self) -> Any:
        def evaluate(
            params: Params, inputs: Inputs, key: Array, causal: bool, train: bool
        ) -> tuple[Array, Gradients]:
            def loss(parts: Parts) -> tuple[Array, Array]:
                joined = _join(parts, params, inputs)
                out = self.attention(*joined, causal=causal, train=train, key=key)
                return jnp.sum(out * self.cotangent), out

            grads, out = jax.grad(loss, has_aux=True)(_split(params, inputs))
            return out, Gradients(*grads)

        return quick(evaluate, static_argnums=(3, 4))

    def evaluate(
        self, inputs: Inputs | None = None, *, causal: bool, train: bool = False, key: int = 0
    ) -> tuple[np.ndarray, Gradients]:
        """Output, and gradients of its product with `cotangent`."""
        if inputs is None:
            inputs = self.inputs
        result = self._evaluate(self.params, inputs, jax.random.key(key), causal, train)
        return jax.tree.map(np.asarray, result)

    def output(self, inputs: Inputs | None = None, **options: Any) -> np.ndarray:
        """The output of `evaluate`."""
        return self.evaluate(inputs, **options)[0]

    @functools.cached_property
    def results(self) -> dict[bool, tuple[np.ndarray, Gradients]]:
        """`evaluate` on the inputs, for every mode."""
        return {causal: self.evaluate(causal=causal) for causal in self.modes}

    def forward(self, causal: bool) -> np.ndarray:
        """The output of `results[causal]` alone, without gradients."""
        run = quick(lambda params, inputs: self.attention(params, inputs, causal=causal))
        return np.asarray(run(self.params, self.inputs))

    def first_tokens(self, causal: bool) -> np.ndarray:
        """Output for `SHORT` tokens of the example without padding, `[1, SHORT, H, D]`."""
        if causal not in self._first_tokens:
            run = quick(lambda params, inputs: self.attention(params, inputs, causal=causal))
            inputs = self.part(slice(1), slice(SHORT), valid=False)
            self._first_tokens[causal] = np.asarray(run(self.params, inputs))
        return self._first_tokens[causal]

    @functools.cached_property
    def influence(self) -> dict[bool, np.ndarray]:
        """How far output i depends on token j, `[H, N, N]` for every mode.

        It is the gradient of a random direction of output i by token j, without padding.
        """
        return {causal: self._influence(self.attention, causal) for causal in self.modes}

    @functools.cached_property
    def expected(self) -> dict[bool, np.ndarray]:
        """Whether output i depends on token j by definition, `[H, N, N]` bool for every mode.

        Without padding.
        """
        return {causal: self._depends(causal) for causal in self.modes}

    def _depends(self, causal: bool) -> np.ndarray:
        weights = self.definitions[causal][2]
        if weights is None:
            weights = self._influence(lambda p, i, causal: self.defined(p, i, causal)[0], causal)
        size = np.abs(weights)
        return size > 1e-12 * size.max()  # less is rounding in float64

    def _influence(self, function: Callable[..., Any], causal: bool) -> np.ndarray:
        """`influence` of `function`, in reverse mode.

        Every attention that can be trained supports it; some fused ones have no forward mode.
        """
        tokens, heads = jnp.arange(self.length), jnp.arange(self.heads)

        def gradients(params: Params, inputs: Inputs) -> Array:
            def output(parts: dict[str, Array]) -> Array:
                return function(*_join((parts, {}), params, inputs), causal=causal)

            # One forward pass for the gradients of all outputs.
            _, pull = jax.vjp(output, _split({}, inputs)[0])

            def one_output(head: Array, token: Array) -> Array:
                """The gradient of output `token` of `head` by each token, `[N]`."""
                chosen = (tokens == token)[:, None] & (heads == head)  # [N, H]
                # A random direction: a sum over D could cancel.
                direction = jnp.where(chosen[None, :, :, None], self.cotangent[:1], 0.0)
                (grads,) = pull(direction)
                squares = jnp.zeros(self.length)
                for grad in grads.values():
                    numbers = grad[0].reshape(self.length, -1)
                    squares = squares + jnp.sum(numbers**2, axis=-1)
                return squares**0.5

            over_tokens = jax.vmap(one_output, (None, 0))
            return jax.vmap(over_tokens, (0, None))(heads, tokens)

        inputs = self.part(slice(1), slice(None), valid=False)
        return np.asarray(quick(gradients)(self.params, inputs))

    @functools.cached_property
    def definitions(self) -> dict[bool, tuple[np.ndarray, Gradients, np.ndarray | None]]:
        """`results` by definition, with the weights `[H, N, N]` of the example without padding."""

        def evaluate(
            params: Params, inputs: Inputs, causal: bool
        ) -> tuple[Array, Gradients, Array | None]:
            def loss(parts: Parts) -> tuple[Array, tuple[Array, Array | None]]:
                out, weights = self.defined(*_join(parts, params, inputs), causal)
                if weights is not None:
                    weights = weights[FULL]
                return jnp.sum(out * self.cotangent), (out, weights)

            grads, (out, weights) = jax.grad(loss, has_aux=True)(_split(params, inputs))
            return out, Gradients(*grads), weights

        run = quick(evaluate, static_argnums=2)
        definitions = {}
        for causal in self.modes:
            result = run(self.params, self.inputs, causal)
            definitions[causal] = jax.tree.map(np.asarray, result)
        return definitions


def _split(params: Params, inputs: Inputs) -> Parts:
    """The parts of parameters and inputs that gradients are taken by."""
    parts = {}
    for name in "qkvx":
        value = getattr(inputs, name)
        if value is not None:
            parts[name] = jnp.asarray(value)

    # Integer parameters, such as tables of indices, have no gradient.
    def floating(p: Array) -> Array | None:
        if jnp.issubdtype(p.dtype, jnp.floating):
            return p
        return None

    return parts, jax.tree.map(floating, params)


def _join(parts: Parts, params: Params, inputs: Inputs) -> tuple[Params, Inputs]:
    """Inverse of `_split`."""
    arrays, floating = parts

    def joined(p: Array, new: Array | None) -> Array:
        if new is None:
            return p
        return new

    if floating:
        params = jax.tree.map(joined, params, floating)
    return params, with_arrays(inputs, arrays)


def with_arrays(inputs: Inputs, arrays: Mapping[str, Any]) -> Inputs:
    """`inputs` with some of its arrays replaced, by name."""
    return dataclasses.replace(inputs, **arrays)
