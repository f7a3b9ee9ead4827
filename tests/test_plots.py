"""Figures show the numbers that they are given."""

import numpy as np
import pytest

from dartformer.attention import parse
from dartformer.report import plots


def test_matrices_of_weights_and_of_derivatives(compile_quickly):
    """`conv` has no matrix: what is drawn is which tokens its outputs change with."""
    figure = plots.matrices([parse("local(window=1)"), parse("conv(width=3)")], "abcab")
    local, conv = (axes.images[0].get_array() for axes in figure.axes[:2])
    band = abs(np.subtract.outer(range(5), range(5))) <= 1
    np.testing.assert_array_equal(local > 0, band)
    np.testing.assert_allclose(local.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(conv > 0, band)


def test_growth_names_every_line_apart():
    rows = [
        {
            "spec": f"local(window={i})",
            "lengths": [64, 128],
            "ms": [1.0 + i / 100, 2.0 + i / 100],
            "temp_mib": [1.0, 0.0],
        }
        for i in range(12)
    ]
    time, memory = plots.growth(rows).axes
    assert len(time.lines) == 12
    heights = sorted(text.xyann[1] for text in time.texts)
    assert np.diff(heights).min() > 0.02
    assert heights[-1] <= 1
    assert [text.get_text() for text in memory.texts] == [row["spec"] for row in rows]
    assert memory.lines[0].get_ydata() == pytest.approx([1.0])  # no logarithm of nothing
