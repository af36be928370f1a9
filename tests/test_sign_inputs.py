"""sign_inputs: levels with the least squared error, and rows of signs as an operator sees them."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.linear_layers import LinearLayer
from onnxcomp.quantization import Array
from onnxcomp.runtime import open_session
from onnxcomp.sign_inputs import SignReader, sign_levels
from onnxcomp.testing import graph_of

CONV = """conv (float[1, 6, 9, 8] x) => (float[1, 10, H, W] y) {
    y = Conv <pads = [1, 0, 1, 2], strides = [2, 1], dilations = [1, 2], group = 2> (x, w)
}"""


def rebuilt(values: Array, levels: Array, slopes: Array) -> Array:
    """The best that signs of values [count] can say of them, with slopes and one offset."""
    made = np.where(values >= levels[:, None], 1.0, -1.0).T @ slopes
    return made + (values - made).mean()


def test_levels_between_clusters_tell_them_apart() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[-4.0, 0.0, 10.0], [1.0, 2.0, 3.0]])
    values = np.repeat(centres, 50, axis=1) + rng.uniform(-0.1, 0.1, (2, 150))
    values -= np.repeat(values.reshape(2, 3, 50).mean(axis=2) - centres, 50, axis=1)
    levels, slopes = sign_levels(rng.permuted(values, axis=1), 2)
    np.testing.assert_allclose(levels, [[-2.0, 1.5], [5.0, 2.5]], atol=1e-6)
    np.testing.assert_allclose(slopes, [[2.0, 0.5], [5.0, 0.5]], atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_one_level_is_near_the_best_of_all(seed: int) -> None:
    values = np.maximum(np.random.default_rng(seed).standard_normal(400), 0)
    levels, slopes = sign_levels(values[None], 1)
    error = np.square(values - rebuilt(values, levels[:, 0], slopes[:, 0])).mean()
    best = min(
        sum(
            np.square(part - part.mean()).sum()
            for part in (values[values < at], values[at <= values])
        )
        for at in np.unique(values)[1:]
    )
    assert error <= best / len(values) * 1.03


def test_more_levels_say_more() -> None:
    values = np.random.default_rng(1).gamma(0.7, size=(3, 500))
    errors = []
    for signs in (1, 2, 3, 5):
        levels, slopes = sign_levels(values, signs)
        assert (np.diff(levels, axis=0) > 0).all()
        made = [rebuilt(values[c], levels[:, c], slopes[:, c]) for c in range(3)]
        errors.append(np.square(values - made).mean())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.15 * errors[0]


def test_a_channel_that_never_changes_has_levels_too() -> None:
    levels, slopes = sign_levels(np.full((1, 20), 3.0), 3)
    assert (levels == 3).all()
    assert (slopes == 0).all()


def test_rows_times_weights_are_the_sums_of_the_operator() -> None:
    rng = np.random.default_rng(2)
    graph = graph_of(CONV, w=rng.standard_normal((10, 3, 3, 2)).astype(np.float32))
    layer = LinearLayer.of(graph.nodes[0])
    x = rng.standard_normal((1, 6, 9, 8)).astype(np.float32)
    reader = SignReader.of(layer, [x], 2)
    session = open_session(graph, threads=1)
    wanted = 0.0
    for level, slope in zip(reader.levels, reader.slopes, strict=True):
        signs = np.where(x >= level.reshape(1, 6, 1, 1), 1, -1) * slope.reshape(1, 6, 1, 1)
        wanted = wanted + session.run({"x": signs.astype(np.float32)})[0]
    rows = reader.inputs(x, 1000, [0])
    assert rows.shape == (1, 2, 2 * 3 * 6, wanted[0, 0].size)
    assert set(np.unique(rows)) == {-1, 0, 1}  # padding adds nothing
    made = np.einsum("god,sgdn->sgon", reader.weights, rows)
    np.testing.assert_allclose(made, reader.outputs(wanted, 1000, [0]), atol=1e-5)
