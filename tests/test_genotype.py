"""Genotypes and search spaces: plain data, and the ways between alphas, mixtures and genotypes."""

import numpy as np
import pytest

from dartformer import diagnostics
from dartformer.attention import parse
from dartformer.derivations import Argmax, Trained
from dartformer.errors import InputError
from dartformer.space.genotype import Genotype, parse_candidates
from dartformer.space.search_space import GRANULARITIES, SearchSpace

CANDIDATES = tuple(parse(c) for c in ("full", "local(window=3)", "identity"))


def space(granularity="head"):
    return SearchSpace(CANDIDATES, 3, 4, granularity)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_round_trips(granularity):
    rng = np.random.default_rng(0)
    one = space(granularity)
    for _ in range(20):
        genotype = one.random(rng)
        assert Genotype.from_json(genotype.to_json()) == genotype
        assert one.genotype(one.choice(genotype)) == genotype
        mixture = one.mixture(genotype)
        assert mixture.shape == one.mixture_shape
        assert one.genotype(diagnostics.rows(mixture, one).winner) == genotype
        assert sum(len(heads) for l in range(3) for _, heads in genotype.groups(l)) == 12


@pytest.mark.parametrize(("granularity", "size"), [("model", 3), ("layer", 27), ("head", 3**12)])
def test_the_size_of_a_space(granularity, size):
    assert space(granularity).size == size


def test_text_forms():
    mixed = Genotype((CANDIDATES[:1] * 2, CANDIDATES[1:]))
    assert str(mixed) == "full | local(window=3) x1 + identity x1"
    assert str(Genotype.homogeneous(CANDIDATES[2], 2, 4)) == "identity everywhere (2x4)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "layers": []}',
        '{"format": 1, "layers": []}',
        '{"format": 1, "layers": [["full"], ["full", "full"]]}',
        '{"format": 1, "layers": [[3]]}',
        '{"format": 1, "layers": [["fulll"]]}',
    ],
)
def test_bad_genotypes(text):
    with pytest.raises(InputError):
        Genotype.from_json(text)


def test_bad_spaces():
    with pytest.raises(InputError, match="at least two"):
        parse_candidates(["full"])
    with pytest.raises(InputError, match="holds 'local"):
        parse_candidates(["local(window=3)", "full", "local(3)"])
    with pytest.raises(InputError, match="list of attentions"):
        parse_candidates("full")
    with pytest.raises(InputError, match="not among the candidates"):
        space().choice(Genotype.homogeneous(parse("uniform"), 3, 4))
    with pytest.raises(InputError, match="2x4"):
        space().choice(Genotype.homogeneous(CANDIDATES[0], 2, 4))


def test_ties_are_named():
    mixture = np.zeros((3, 4, 3), np.float32)
    mixture[..., 0], mixture[..., 1] = 0.6, 0.4
    mixture[1, 2] = [0.3, 0.34, 0.36]
    assert Argmax()(Trained(space(), mixture, *[None] * 4)).ties == [
        "layer 1, head 2: identity and local(window=3) are tied (0.36, 0.34)"
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([0.5, 0.51, 0.49], [0.4, 0.41, 0.39], "beats other"),
        ([0.4, 0.41, 0.39], [0.5, 0.51, 0.49], "loses to other"),
        ([0.5, 0.6, 0.4], [0.45, 0.55, 0.35], "and other do not differ significantly"),
        ([0.5], [0.5], "and other do not differ significantly"),
    ],
)
def test_a_winner_is_named_only_beyond_the_noise(ours, theirs, says):
    _, sentence = diagnostics.compare("found", ours, "other", theirs, examples=1000)
    assert sentence.startswith(f"found {says}")


def test_all_candidates_mixed_is_the_supernets_uniform_mixture():
    space = SearchSpace(tuple(map(parse, ("full", "uniform", "identity"))), 2, 2, "head")
    np.testing.assert_allclose(space.mixture(space.mixed()), np.full((2, 2, 3), 1 / 3), rtol=1e-6)
    nested = SearchSpace(tuple(map(parse, ("full", "parallel(members=(full, uniform))"))), 1, 1)
    assert nested.mixed() == Genotype(
        ((parse("parallel(members=(full, uniform), shares=(1.5, 0.5))"),),)
    )
