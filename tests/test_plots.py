"""Figures show the numbers that they are given."""

import math

import numpy as np
import pytest

from dartformer.attention import parse
from dartformer.errors import InputError
from dartformer.report import plots
from dartformer.report.figure import Figure
from dartformer.report.matrices import Example, matrix


def test_matrices_of_weights_and_of_derivatives(compile_quickly):
    """`conv` has no matrix: what is drawn is which tokens its outputs change with."""
    example = Example.of("abcab", 0)
    attentions = [parse("local(window=1)"), parse("conv(width=3)")]
    local, conv = (matrix(attention, example, causal=False) for attention in attentions)
    band = abs(np.subtract.outer(range(5), range(5))) <= 1
    np.testing.assert_array_equal(local > 0, band)
    np.testing.assert_allclose(local.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(conv > 0, band)
    drawn = plots.matrices(attentions, "abcab").svg
    assert drawn.count('fill="rgb(8, 48, 107)"') >= 2  # the largest weight of each
    assert ">local(window=1)</text>" in drawn


def test_growth_names_every_line_apart():
    names = [f"local(window={i})" for i in range(12)]
    attentions = [
        plots.Growth(name, [64, 128], [1.0 + i / 100, 2.0 + i / 100], [1.0, 0.0])
        for i, name in enumerate(names)
    ]
    heights = plots.spread_out(
        {name: a.ms[-1] for name, a in zip(names, attentions, strict=True)}, 1.0, 2.11
    )
    places = sorted(math.log(height) / math.log(2.11) for height in heights.values())
    assert np.diff(places).min() > 0.02
    assert places[-1] <= 1 + 1e-9
    drawn = plots.growth(attentions).svg
    for name in names:
        assert drawn.count(f">{name}</text>") == 2  # no logarithm of nothing, which has no line


def test_a_figure_is_saved_as_its_ending_says(tmp_path):
    figure = plots.genotype_of([["full", "local(window=2)"]] * 2)
    for ending, start in (("svg", b"<svg"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        figure.save(tmp_path / f"genotype.{ending}")
        assert (tmp_path / f"genotype.{ending}").read_bytes().lstrip().startswith(start)
    assert b"/ToUnicode" in (tmp_path / "genotype.pdf").read_bytes()  # text is text
    assert figure.pixels().dtype == np.uint8
    for wrong in (tmp_path / "a.b", tmp_path / "none" / "a.svg"):
        with pytest.raises(InputError, match="cannot draw to"):
            figure.save(wrong)


def test_bytes_that_xml_refuses_are_replaced():
    drawn = plots.figure(
        {
            "data": {"values": [{"a": "x\x01y"}]},
            "mark": "text",
            "encoding": {"text": {"field": "a"}},
        }
    )
    assert isinstance(drawn, Figure)
    assert "x\ufffdy" in drawn.svg
