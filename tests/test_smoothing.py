"""Factors of input channels: exact in float, and better in integers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.graph import Names, sort_nodes
from onnxcomp.smoothing import Products, choose_factors, smooth_inputs
from onnxcomp.testing import assert_same_answers, graph_of

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return np.asarray(RANDOM.standard_normal(shape), np.float32)


def product_error(rows: Array, weights: Array, factors: Array) -> float:
    """Mean squared error with codes of 8 bits, a scale for each row and each column."""

    def rounded(values: Array, axis: int) -> Array:
        step = np.abs(values).max(axis=axis, keepdims=True) / 127
        return np.rint(values / step) * step

    codes = rounded(rows / factors, 1) @ rounded(weights * factors[:, None], 0)
    return float(np.square(codes - rows @ weights).mean())


def test_a_large_channel_is_divided() -> None:
    rows, weights = normal(50, 40), normal(40, 30)
    rows[:, 7] = 60 + rows[:, 7]

    factors, _ = choose_factors(rows, weights, "row")

    assert factors.argmax() == 7
    assert factors.min() == 1
    ones = np.ones(40)
    assert product_error(rows, weights, factors) < product_error(rows, weights, ones) / 10


def test_even_channels_stay_as_they_are() -> None:
    assert (choose_factors(normal(50, 40), normal(40, 30))[0] == 1).all()


def test_channels_without_weights_or_values_do_no_harm() -> None:
    rows, weights = normal(50, 40), normal(40, 30)
    rows[:, :21] = 0
    weights[30:] = 0

    factors, _ = choose_factors(rows, weights)

    assert np.isfinite(factors).all()
    assert (factors >= 1).all()


def test_rows_get_scales_of_their_own_where_one_would_drown_the_others() -> None:
    rows = np.asarray(RANDOM.uniform(-1, 1, (50, 40)), np.float32)  # of about one size
    weights = normal(40, 30)

    assert choose_factors(rows, weights)[1] == "tensor"
    rows[3] *= 50
    assert choose_factors(rows, weights)[1] == "row"
    assert choose_factors(rows, weights, "tensor")[1] == "tensor"


TEXT = """g (float[n, 40] x) => (float[n, 30] y, float[n, 30] z, float[n, 40] r) {
    norm = LayerNormalization <axis = -1> (x, gain, shift)
    [first] y = MatMul (norm, v)
    [second] z = Gemm <transB = 1> (norm, w)
    r = OTHER
}"""


def uneven(other: str) -> gs.Graph:
    """Two products of one normalization whose channel 5 is large; OTHER reads it or does not."""
    gain = np.ones(40, np.float32)
    gain[5] = 40
    constants = {"gain": gain, "shift": normal(40), "v": normal(40, 30), "w": normal(30, 40)}
    return graph_of(TEXT.replace("OTHER", other), **constants)


def smoothed(graph: gs.Graph, samples: Calibration | None = None) -> int:
    nodes = [node for node in graph.nodes if node.op in ("MatMul", "Gemm")]
    groups = [Products(graph, nodes[0].inputs[0], nodes)]
    count, _ = smooth_inputs(groups, graph, Names(graph), samples, 100, lambda done, total: None)
    sort_nodes(graph)
    return count


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize(("other", "added"), [("Neg (x)", 0), ("Add (x, norm)", 1)])
def test_nothing_changes_in_float(other: str, added: int, sampled: bool) -> None:
    graph = uneven(other)
    before = graph.copy()
    feeds = [{"x": normal(6, 40)} for _ in range(20)]

    count = smoothed(graph, Calibration.from_source(feeds, graph) if sampled else None)

    assert count == 1
    assert_same_answers(before, graph, feeds[:3], min_sqnr_db=100)
    assert Counter(node.op for node in graph.nodes)["Mul"] == added  # else in the normalization
    assert {"v.smoothed", "w.smoothed"} <= graph.tensors().keys()


def test_inputs_that_nothing_is_known_of_are_left_alone() -> None:
    graph = graph_of(
        "g (float[n, 40] x) => (float[n, 30] y) { y = MatMul (x, w) }", w=normal(40, 30)
    )

    assert smoothed(graph) == 0
