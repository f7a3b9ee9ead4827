"""A genotype as source: it runs, and computes what the genotype says."""

import ast
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartformer import attention
from dartformer.attention.base import Inputs
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype

ROWS = [["full", "local(window=2)"], ["full", "full"], ["local(window=0)", "local(window=5)"]]


def genotype_of(rows):
    return Genotype(tuple(tuple(map(attention.parse, row)) for row in rows))


def module(text, folder):
    """The source as a user would have it: a file that is imported."""
    file = folder / "pasted.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("pasted", file)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def lines(text):
    """Lines of code, without the list of attentions and blank ones."""
    inside = text.partition("class ")[2]
    return [line for line in inside.splitlines() if line.strip()]


def test_flax_runs(tmp_path):
    nnx = pytest.importorskip("flax.nnx")
    pytest.importorskip("dartformer.nn")
    genotype = genotype_of(ROWS)
    text = genotype.to_source()
    assert len(lines(text)) <= 10
    layers = module(text, tmp_path).Attentions(8, rngs=nnx.Rngs(0), causal=True).layers
    assert len(layers) == 3
    x = jax.random.normal(jax.random.key(0), (2, 7, 8))
    for layer, row in zip(layers, genotype.layers, strict=True):
        assert layer.row == row
        assert layer(x).shape == x.shape


@pytest.mark.parametrize("causal", [False, True])
def test_torch_computes_the_definition(tmp_path, causal):
    torch = pytest.importorskip("torch")
    genotype = genotype_of(ROWS)
    text = genotype.to_source("torch")
    made = module(text, tmp_path)
    x = np.random.default_rng(0).normal(size=(2, 7, 8)).astype(np.float32)
    for row, windows in zip(genotype.layers, made.WINDOWS, strict=True):
        layer = made.Attention(8, windows)
        with torch.no_grad():
            qkv = layer.qkv(torch.tensor(x)).view(2, 7, 3, 2, 4).numpy()
            y = layer(torch.tensor(x), causal=causal)
            heads = []
            for head, kind in enumerate(row):
                q, k, v = (jnp.array(qkv[:, :, i, head : head + 1]) for i in range(3))
                inputs = Inputs(q, k, v, jnp.array(x), jnp.ones((2, 7), bool))
                heads.append(np.array(kind({}, inputs, causal=causal, train=False, key=None)))
            mixed = np.concatenate(heads, 2).reshape(2, 7, 8)
            expected = layer.out(torch.tensor(mixed))
        np.testing.assert_allclose(y.numpy(), expected.numpy(), atol=1e-5)


TYPES = st.sampled_from(["full", "local(window=3)", "linear", "performer", "sink", "identity"])


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.lists(st.lists(TYPES, min_size=n, max_size=n), min_size=1)
    )
)
def test_any_genotype_is_source(rows):
    """The list in it says the same genotype; PyTorch refuses in one line what it has no call for."""
    genotype = genotype_of(rows)
    tree = ast.parse(genotype.to_source("flax"))
    listed = next(node.value for node in tree.body if isinstance(node, ast.Assign))
    value = eval(ast.unparse(listed), {})
    assert genotype_of(value) == genotype
    attentions = {kind.split("(")[0] for row in rows for kind in row}
    if attentions <= {"full", "local"}:
        ast.parse(genotype.to_source("torch"))
        return
    with pytest.raises(InputError, match="scaled_dot_product_attention") as caught:
        genotype.to_source("torch")
    assert "\n" not in str(caught.value)


def test_another_framework_is_refused():
    with pytest.raises(InputError, match="unknown framework 'tensorflow'"):
        genotype_of(ROWS).to_source("tensorflow")
