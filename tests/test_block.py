"""Options of the block: norms, biases, feed-forward, rotary base, gates, tied heads, chunked losses.

A naive model in NumPy, float64, is the oracle of the forward pass."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dartformer
from dartformer import config as configs
from dartformer import cost
from dartformer.attention import parse
from dartformer.attention.conformance.case import quick
from dartformer.config import capacity
from dartformer.errors import InputError
from dartformer.models.sizes import BLOCK, TransformerConfig, TransformerOptions, without_defaults
from dartformer.models.supernet import inherit, supernet
from dartformer.models.transformer import label_scores, transformer
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.training.metric import ACCURACY, Metric
from dartformer.training.optimizer import Optimizer, build
from dartformer.training.step import begin, plain_step

B, N, V = 2, 9, 11

# Every option of the block, with what it needs beside it.
OPTIONS = {
    "rms": {"norm": "rms"},
    "rms-eps": {"norm": "rms", "norm_eps": 0.1},
    "layer-eps": {"norm_eps": 0.1},
    "after": {"norm_place": "after"},
    "after-rms": {"norm_place": "after", "norm": "rms"},
    "embed-norm": {"embed_norm": True},
    "qkv-bias": {"qkv_bias": True},
    "out-bias": {"out_bias": True},
    "no-mlp-bias": {"mlp_bias": False},
    "no-head-bias": {"head_bias": False},
    "gelu": {"activation": "gelu"},
    "silu": {"activation": "silu"},
    "relu": {"activation": "relu"},
    "gated": {"gated_mlp": True, "activation": "silu"},
    "gated-biases": {"gated_mlp": True, "mlp_bias": True},
    "theta": {"positions": "rotary", "rope_theta": 50.0},
    "nope": {"positions": "rotary", "nope_layers": (1,)},
    "shared-gain": {"qk_norm": True, "qk_norm_shared": True, "kv_heads": 2},
    "offset": {"position_offset": 2},
    "types": {"token_types": 2},
    "tied": {"tie_embeddings": True, "head_bias": False},
    "tied-bias": {"tie_embeddings": True},
    "gate": {"output_gate": "silu"},
    "sigmoid-gate": {"output_gate": "sigmoid", "kv_heads": 1},
    "conv": {"short_conv": 4, "kv_heads": 2},
    "chunk": {"logits_chunk": 2},
    "no-classifier": {"classifier": "none", "classes": 10},
}


def sizes(**changes):
    return TransformerConfig(
        **{
            "vocabulary": V,
            "classes": V,
            "length": N,
            "layers": 2,
            "heads": 4,
            "head_dim": 4,
            "model_dim": 10,
            "mlp_dim": 7,
            "pooling": "none",
            "causal": True,
            "branch_norm": False,
            **changes,
        }
    )


FULL = Genotype.homogeneous(parse("full"), 2, 4)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    valid = np.arange(N) < np.array([[N], [6]])
    tokens = np.where(valid, rng.integers(1, V, (B, N)), 0)
    labels = np.where(valid, rng.integers(1, V - 1, (B, N)), -1)
    return {"tokens": tokens, "valid": valid, "label": labels}


def some_weights(net, seed=0):
    """Weights of which none is where training starts: a gain of one would be no gain."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    return jax.tree.map(lambda w: 0.5 * rng.standard_normal(w.shape).astype(w.dtype), shapes)


# The oracle.


def naive_norm(config, weights, x):
    if config.norm == "rms":
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)
        return x / scale * weights["scale"]
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_eps)
    return centred / deviation * weights["scale"] + weights["bias"]


def naive_dense(weights, x):
    return x @ weights["kernel"] + weights.get("bias", 0)


def naive_act(config, x):
    if config.activation == "relu":
        return np.maximum(x, 0)
    if config.activation == "silu":
        return x / (1 + np.exp(-x))
    if config.activation == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def naive_rotated(config, x):
    """Head by head, pair by pair."""
    n, _, d = x.shape
    out = np.zeros_like(x)
    for t in range(n):
        for i in range(d // 2):
            angle = t * config.rope_theta ** (-2 * i / d)
            a, b = x[t, :, i], x[t, :, i + d // 2]
            out[t, :, i] = a * np.cos(angle) - b * np.sin(angle)
            out[t, :, i + d // 2] = b * np.cos(angle) + a * np.sin(angle)
    return out


def naive_conv(x, valid, kernel):
    out = np.zeros_like(x)
    for t in range(len(x)):
        for j in range(len(kernel)):
            if t >= j and valid[t - j]:
                out[t] += kernel[j] * x[t - j]
    return out / (1 + np.exp(-out))


def naive_heads(config, layer, weights, x, valid):
    """Causal softmax attention of one example `[N, E]`."""
    projected = []
    for name in "qkv":
        y = np.einsum("ne,ehd->nhd", x, weights[name]) + weights.get(f"{name}_bias", 0)
        if config.short_conv:
            y = naive_conv(y, valid, weights[f"{name}_conv"])
        if config.qk_norm and name != "v":
            scale = np.sqrt((y**2).mean(-1, keepdims=True) + config.norm_eps)
            y = y / scale * weights[f"{name}_norm"]
        if config.positions == "rotary" and name != "v" and layer not in config.nope_layers:
            y = naive_rotated(config, y)
        projected.append(y)
    q, k, v = projected
    out = np.zeros_like(q)
    for h in range(config.heads):
        shared = h // config.sharing
        scores = q[:, h] @ k[:, shared].T / np.sqrt(config.head_dim)
        allowed = np.tril(np.ones_like(scores, dtype=bool)) & valid
        p = np.exp(np.where(allowed, scores, -np.inf))
        out[:, h] = p / p.sum(-1, keepdims=True) @ v[:, shared]
    out[~valid] = 0
    if config.output_gate != "none":
        gate = np.einsum("ne,ehd->nhd", x, weights["gate"])
        sigmoid = 1 / (1 + np.exp(-gate))
        out = out * (sigmoid if config.output_gate == "sigmoid" else gate * sigmoid)
    return np.einsum("nhd,hde->ne", out, weights["o"])


def naive(config, weights, tokens, valid):
    """Logits of one example, by the definitions."""
    x = weights["embed"]["embedding"][tokens]
    if config.positions == "learned":
        x = x + weights["positions"][config.position_offset :][: len(tokens)]
    if config.token_types:
        x = x + weights["types"][0]
    if config.embed_norm:
        x = naive_norm(config, weights["embed_norm"], x)
    for layer, block in weights["blocks"].items():

        def mixed(x, layer=layer, block=block):
            y = naive_heads(config, layer, block["mixer"]["projections"][0], x, valid)
            return y + block.get("out_bias", 0)

        def fed(x, block=block):
            up = naive_dense(block["up"], x)
            if config.gated_mlp:
                return naive_dense(
                    block["down"], naive_act(config, naive_dense(block["gate"], x)) * up
                )
            return naive_dense(block["down"], naive_act(config, up))

        if config.norm_place == "after":
            x = naive_norm(config, block["norm_mixer"], x + mixed(x))
            x = naive_norm(config, block["norm_mlp"], x + fed(x))
        else:
            x = x + mixed(naive_norm(config, block["norm_mixer"], x))
            x = x + fed(naive_norm(config, block["norm_mlp"], x))
    if config.norm_place == "before":
        x = naive_norm(config, weights["norm"], x)
    if config.classifier == "none":
        return x
    if config.tie_embeddings:
        return x @ weights["embed"]["embedding"].T + weights.get("head_bias", 0)
    return naive_dense(weights["head"], x)


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_those_of_the_definitions(name):
    config, example = sizes(**OPTIONS[name]), batch()
    net = transformer(config, FULL)
    weights = some_weights(net)
    found = np.asarray(quick(net.apply)(weights, example["tokens"], example["valid"]))
    wide = jax.tree.map(lambda w: w.astype(np.float64), weights)
    for row, tokens, valid in zip(found, example["tokens"], example["valid"], strict=True):
        want = naive(config, wide, tokens, valid)
        np.testing.assert_allclose(row[valid], want[valid], atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", sorted(OPTIONS.keys() - {"chunk"}))
def test_no_option_is_ignored(name):
    """With the same weights, where the shapes are the same, or with other shapes."""
    config, example = sizes(**OPTIONS[name]), batch()
    # What an option needs beside it is not what is tested.
    kept = {}
    for field, value in OPTIONS[name].items():
        if field not in BLOCK or field in ("qk_norm", "positions"):
            kept[field] = value
    if name == "no-classifier":
        kept["classifier"] = "linear"
    plain = sizes(**kept)
    nets = [transformer(c, FULL) for c in (config, plain)]
    weights = [some_weights(net) for net in nets]
    shapes = [jax.tree.map(jnp.shape, w) for w in weights]
    if shapes[0] != shapes[1]:
        return
    outputs = []
    for net, w in zip(nets, weights, strict=True):
        outputs.append(net.apply(w, example["tokens"], example["valid"]))
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4


def steps_once(config):
    net = transformer(config, FULL)
    state = begin(net, build(Optimizer(), 10), 0)
    step = quick(plain_step(net, build(Optimizer(), 10)))
    before = state.weights
    state, metrics = step(state, batch())
    assert bool(metrics["finite"])
    return before, state.weights


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains(name):
    """One step from the initial weights moves every array that a gradient reaches."""
    before, after = steps_once(sizes(**OPTIONS[name]))
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), before, after)
    still = [path for path, m in jax.tree_util.tree_leaves_with_path(moved) if not m]
    # A bias of keys shifts all scores of a query alike, which softmax cannot see.
    still = [path for path in still if "k_bias" not in str(path)]
    assert not still


def combination(draw):
    """Options of several kinds together."""
    changes = {}
    for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=6)):
        changes.update(OPTIONS[name])
    if "rope_theta" in changes or "nope_layers" in changes:
        changes.pop("position_offset", None)
    if changes.get("classifier") == "none":
        changes.pop("tie_embeddings", None)
    if changes.get("tie_embeddings"):
        changes.pop("classes", None)
    return changes


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.composite(combination)(), st.sampled_from(["shared", "separate"]))
def test_a_one_hot_supernet_is_the_derived_model(changes, projections):
    config, example = sizes(**changes), batch()
    candidates = ("full", "local(window=2)", "identity")
    granularity = "head"
    if projections == "separate":
        granularity = "layer"
    space = SearchSpace(tuple(map(parse, candidates)), 2, 4, granularity)
    net = supernet(config, space, projections)
    weights = some_weights(net)
    choice = np.array([[1, 0, 2, 0], [0, 1, 1, 2]])
    if granularity == "layer":
        choice = np.array([[1], [0]])
    genotype = space.genotype(choice)
    derived = transformer(config, genotype)
    inherited = inherit(weights, space, genotype)
    shapes = jax.eval_shape(derived.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, inherited) == jax.tree.map(jnp.shape, shapes)
    arrays = (example["tokens"], example["valid"])
    want = quick(net.apply)(weights, *arrays, space.mixture(genotype))
    found = quick(derived.apply)(inherited, *arrays)
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())


def test_layers_that_differ_are_not_one_loop():
    """A scan would rotate all layers or none."""
    changes = {"positions": "rotary", "nope_layers": (2,), "layers": 3}
    space = SearchSpace((parse("full"), parse("uniform")), 3, 4, "layer")
    example, found = batch(), []
    for scan in (0, 1):
        net = supernet(sizes(scan=scan, **changes), space)
        weights = some_weights(net)
        mixture = space.mixture(space.genotype(np.zeros((3, 1), int)))
        found.append(net.apply(weights, example["tokens"], example["valid"], mixture))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_a_short_convolution_reads_no_later_token_and_no_padding():
    config = sizes(short_conv=3)
    net = transformer(config, FULL)
    weights, example = some_weights(net), batch()
    tokens, valid = example["tokens"], example["valid"]
    base = net.apply(weights, tokens, valid)
    changed = tokens.copy()
    changed[0, 5] = 1 + changed[0, 5] % (V - 1)
    moved = np.abs(np.asarray(net.apply(weights, changed, valid) - base)).max(-1)
    assert moved[0, :5].max() == 0
    assert moved[0, 5] > 0
    padding = tokens.copy()
    padding[1, 6:] = 3
    same = np.asarray(net.apply(weights, padding, valid))
    np.testing.assert_array_equal(same[1, :6], np.asarray(base)[1, :6])


# Logits and losses in parts.


@pytest.mark.parametrize("size", [1, 2, 4, 8, N])
@pytest.mark.parametrize("tied", [False, True])
def test_a_loss_in_parts_is_the_loss_of_all(size, tied):
    example = batch()
    arrays = (example["tokens"], example["valid"], example["label"])
    found = []
    for chunk in (0, size):
        net = transformer(sizes(logits_chunk=chunk, tie_embeddings=tied), FULL)
        weights = some_weights(net)

        def loss(weights, net=net):
            losses = label_scores(net, ACCURACY.losses, weights, *arrays)
            return ACCURACY.batch_mean(losses, example["label"])[0], losses

        found.append(jax.value_and_grad(loss, has_aux=True)(weights))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def largest_array(function, *arguments):
    """Numbers of the largest array of a program, inner ones included."""
    largest = 0

    def visit(jaxpr):
        nonlocal largest
        for equation in jaxpr.eqns:
            for variable in equation.outvars:
                largest = max(largest, math.prod(getattr(variable.aval, "shape", ())))
            for value in equation.params.values():
                for inner in jax.tree.leaves(value, is_leaf=lambda v: hasattr(v, "eqns")):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return largest


def test_no_array_of_tokens_by_vocabulary():
    """Of 50,000 words, forward and backward; where the logits are small all are computed at once."""
    large = sizes(vocabulary=50_000, classes=50_000, length=512, model_dim=8, tie_embeddings=True)
    net = transformer(large, FULL)
    weights = jax.eval_shape(net.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((8, 512), jnp.int32)
    valid = jax.ShapeDtypeStruct((8, 512), jnp.bool_)

    def loss(weights, tokens, valid):
        losses = label_scores(net, ACCURACY.losses, weights, tokens, valid, tokens)
        return losses.loss.sum()

    # A few parts of 64 MiB at most, and tables of 50,000 x 8.
    most = largest_array(jax.grad(loss), weights, tokens, valid)
    assert most <= 2**24 < 8 * 512 * 50_000
    assert large.logits_size(8, 512) == 40
    assert sizes().logits_size(32, N) == 0
    assert sizes(pooling="last").logits_size(10**9, N) == 0


def test_capacity_counts_logits_in_parts():
    large = sizes(vocabulary=50_000, classes=50_000, length=4096)
    assert capacity.activation_bytes(large, 64) <= 2**26
    assert capacity.activation_bytes(sizes(), 64) == 4 * 64 * N * V


# Costs.


def parameters(**changes):
    return cost.model_parameters(transformer(sizes(**changes), FULL))


def test_what_options_cost_in_parameters_and_flops():
    base, full = sizes(), parse("full")
    count = parameters()
    added = {
        "rms": -5 * 10,
        "after": -2 * 10,
        "embed-norm": 2 * 10,
        "qkv-bias": 2 * 3 * 16,
        "out-bias": 2 * 10,
        "no-mlp-bias": -2 * (7 + 10),
        "no-head-bias": -V,
        "gated": 2 * (10 * 7 + 7),
        "offset": 2 * 10,
        "types": 2 * 10,
        "tied": -(10 * V + V),
        "tied-bias": -10 * V,
        "gate": 2 * 10 * 16,
        "gelu": 0,
    }
    for name, difference in added.items():
        assert parameters(**OPTIONS[name]) - count == difference, name
    genotype = Genotype.homogeneous(full, 2, 4)
    flops = {}
    for name, changes in OPTIONS.items():
        flops[name] = cost.flops(sizes(**changes), genotype) - cost.flops(base, genotype)
    assert flops["gated"] == 2 * N * 2 * 10 * 7
    assert flops["gate"] == 2 * N * 2 * 10 * 16
    assert flops["tied"] == flops["rms"] == flops["after"] == 0
    assert flops["no-classifier"] == -N * 2 * 10 * V
    wide = cost.flops(sizes(short_conv=4), genotype) - cost.flops(base, genotype)
    assert wide == 2 * N * 2 * 4 * 3 * 16


def test_capacity_is_a_lower_bound_of_the_parameters():
    for changes in OPTIONS.values():
        assert capacity.weight_bytes(sizes(**changes)) <= 4 * parameters(**changes)


# Configs.


REFUSED = [
    ({"norm": "batch"}, "unknown model.norm 'batch'"),
    ({"norm_place": "middle"}, "unknown model.norm_place"),
    ({"norm_eps": 0.0}, r"model.norm_eps must be between 0 and 1, got 0\.0"),
    ({"norm_eps": float("nan")}, "model.norm_eps must be between"),
    ({"activation": "swish"}, "unknown model.activation 'swish'"),
    (
        {"rope_theta": 500.0},
        "model.rope_theta=500.0 has no effect without model.positions='rotary'",
    ),
    ({"rope_theta": 0.5, "positions": "rotary"}, "model.rope_theta must be above 1"),
    ({"rope_theta": float("inf"), "positions": "rotary"}, "model.rope_theta must be above 1"),
    ({"nope_layers": (0,)}, "model.nope_layers=.* has no effect"),
    ({"nope_layers": (2,), "positions": "rotary"}, "must be numbers from 0 to 1, got 2"),
    ({"qk_norm_shared": True}, "has no effect without model.qk_norm=True"),
    (
        {"position_offset": 2, "positions": "none"},
        "has no effect without model.positions='learned'",
    ),
    ({"position_offset": -1}, "must be a whole number of at least 0, got -1"),
    ({"short_conv": 1}, "model.short_conv must be from 2 to 64, or 0 for none, got 1"),
    ({"short_conv": 65}, "model.short_conv must be from 2 to 64"),
    ({"output_gate": "tanh"}, "unknown model.output_gate"),
    (
        {"tie_embeddings": True, "classes": 3},
        "because the task has 3 classes and a vocabulary of 11",
    ),
    ({"tie_embeddings": True, "features": 2}, "because the task's tokens are numbers"),
    ({"tie_embeddings": True, "classifier": "mlp"}, "the classifier is 'mlp'"),
    ({"classifier": "none"}, "gives vectors of 10 numbers, and the task has 11 classes"),
    ({"logits_chunk": 2, "pooling": "last"}, "has no effect without a label for each token"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_is_one_line(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        sizes(**changes)
    assert "\n" not in str(caught.value)


def test_gains_that_heads_share_need_one_attention_of_separate_projections():
    config = dartformer.defaults("recall", preset="qwen3")
    configs.override(config, {"search.projections": "separate", "space.granularity": "head"})
    with pytest.raises(InputError, match=r"model\.qk_norm_shared=True does not work with"):
        configs.build(config)
    space = SearchSpace((parse("full"), parse("identity")), 2, 4, "head")
    weights = some_weights(supernet(sizes(qk_norm=True, qk_norm_shared=True), space, "separate"))
    with pytest.raises(InputError, match="heads that share the gain of their q/k norm must have"):
        inherit(weights, space, space.genotype(np.array([[0, 1, 1, 1], [0, 0, 0, 0]])))


def test_defaults_of_the_block_are_those_of_older_workdirs():
    """Fingerprints and tables of latencies leave them out, and a config without them is the same."""
    plain = configs.to_dict(configs.build(dartformer.defaults("listops")))
    older = {**plain, "model": without_defaults(plain["model"])}
    assert set(plain["model"]) - set(older["model"]) == set(BLOCK)
    assert configs.to_dict(configs.from_dict(older)) == plain
    changed = {**plain["model"], "norm": "rms", "nope_layers": [1]}
    assert {"norm", "nope_layers"} <= set(without_defaults(changed))


def test_flags_read_the_lists_of_the_block():
    config = dartformer.defaults("recall", preset="llama")
    configs.override(config, {"model.nope_layers": "0,1"})
    assert configs.build(config).model.nope_layers == (0, 1)
    with pytest.raises(InputError, match=r"model\.nope_layers"):
        configs.override(config, {"model.nope_layers": "a"})


@pytest.mark.parametrize("preset", ["gpt2", "bert", "llama", "qwen3"])
@pytest.mark.parametrize("task", ["listops", "recall"])
def test_a_preset_is_one_line(preset, task):
    built = configs.build(dartformer.defaults(task, preset=preset))
    plain = configs.build(dartformer.defaults(task))
    assert (built.model.layers, built.model.heads) == (plain.model.layers, plain.model.heads)
    assert dataclasses.replace(built, model=plain.model, space=plain.space) == plain
    norms = {"gpt2": "layer", "bert": "layer", "llama": "rms", "qwen3": "rms"}
    assert built.model.norm == norms[preset]
    assert (built.model.norm_place == "after") == (preset == "bert")
    assert built.model.qk_norm_shared == (preset == "qwen3")
    assert "full" in built.space.candidates


def test_the_options_are_all_here():
    tested = set()
    for changes in OPTIONS.values():
        tested |= changes.keys()
    assert set(BLOCK) <= tested
    assert all(hasattr(TransformerOptions, name) for name in BLOCK)


def test_the_metric_of_a_batch_is_the_mean_of_its_labels():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((B, N, V)), jnp.float32)
    labels = batch()["label"]
    metric = Metric("accuracy", "accuracy", class_weights=tuple(range(1, V + 1)))
    one, other = (
        metric.batch_loss(logits, labels),
        metric.batch_mean(metric.losses(logits, labels), labels),
    )
    np.testing.assert_array_equal(one[0], other[0])
