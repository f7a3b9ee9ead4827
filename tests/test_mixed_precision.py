"""`model.dtype="bfloat16"`: what `TransformerConfig` says stays float32 does, in every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dartformer import config as configs
from dartformer.space.genotype import Genotype
from dartformer.stages import search
from dartformer.stages.study import Study
from dartformer.training.step import begin, plain_step, training_loss

WIDE = {
    *("exp", "exp2", "expm1", "log", "log1p", "logistic"),
    *("rsqrt", "sqrt", "erf", "cumsum", "cumprod", "cummax", "cumlogsumexp"),
    *("reduce_max", "argmax", "reduce_prod", "triangular_solve"),
}
"""Operations of softmax, norms, recurrences and losses; an activation needs none of them here."""


@pytest.fixture
def study(tiny):
    candidates = ("full", "local(window=2)", "linear", "retention", "gated_delta", "ssd")
    values = {"model.dtype": "bfloat16", "space.candidates": candidates}
    configs.override(tiny, values)
    return Study(tiny)


def equations(jaxpr):
    """All equations of a program, those within others too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, (list, tuple)) else [value]:
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def dtypes(variables):
    """The types of the numbers that are not whole."""
    found = {str(variable.aval.dtype) for variable in variables}
    return {name for name in found if name.startswith(("float", "bfloat"))}


def narrow(jaxpr, table):
    """What is computed in bfloat16 and should not be; `table` is the shape of the embeddings."""
    for equation in equations(jaxpr):
        name = equation.primitive.name
        if name in WIDE and "bfloat16" in dtypes([*equation.invars, *equation.outvars]):
            yield name
        if name == "scan":
            first = equation.params["num_consts"]
            carry = equation.invars[first : first + equation.params["num_carry"]]
            if "bfloat16" in dtypes(carry):
                yield "state of a scan"
        if name == "scatter-add" and equation.outvars[0].aval.shape == table:
            assert dtypes(equation.outvars) == {"float32"}


def check(step, state, batch, study):
    """Of a step: the types of its state, of its metrics and of what it computes."""
    after, metrics = jax.eval_shape(step, state, batch)
    for tree in (state, after, metrics):
        numbers = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, np.inexact)]
        assert numbers
        assert {leaf.dtype for leaf in numbers} == {np.dtype("float32")}
    jaxpr = jax.make_jaxpr(step)(state, batch).jaxpr
    assert list(narrow(jaxpr, (study.model.vocabulary, study.model.model_dim))) == []
    products = [e for e in equations(jaxpr) if e.primitive.name == "dot_general"]
    assert any(dtypes(e.invars) == {"bfloat16"} for e in products)  # it is mixed indeed


def test_a_search_step_keeps_in_float32_what_the_field_names(study):
    (group,) = search.groups(study)
    step, state = search.step_of(study, group), search.initial(study, group)
    assert state.alphas.dtype == jnp.float32
    check(step, state, next(search.stream(study, group)), study)


def test_a_training_step_keeps_in_float32_what_the_field_names(study):
    (group,) = search.groups(study)
    batch = next(search.stream(study, group))[0]
    first, second = study.space.candidates[:3], study.space.candidates[3:]
    for heads in zip(first, second, strict=True):
        genotype = Genotype((heads,) * study.model.layers)
        program = study.program(genotype)
        state = begin(program.network, program.optimizer, 0)
        check(plain_step(program.network, program.optimizer, study.metric), state, batch, study)
        gradient = jax.eval_shape(
            jax.grad(training_loss(program.network), has_aux=True),
            state.weights,
            None,
            batch,
            state.key,
        )[0]
        assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}
