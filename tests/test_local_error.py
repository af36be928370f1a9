"""Estimates of a node's own error against rounding it in numpy."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.local_error import local_sqnr_db
from onnxcomp.testing import graph_of, model_of

RNG = np.random.default_rng(5)
X = RNG.standard_normal((16, 1, 8, 12, 12), np.float32)
SPREAD = np.geomspace(0.2, 5, 8).astype(np.float32).reshape(1, 8, 1, 1)  # of the input channels


def rounded(values: np.ndarray, scale: np.ndarray | float) -> np.ndarray:
    return (np.rint(values / scale) * scale).astype(np.float32)


def per_channel(weights: np.ndarray, axis: int, levels: int = 127) -> np.ndarray:
    others = tuple(i for i in range(weights.ndim) if i != axis)
    return rounded(weights, np.abs(weights).max(axis=others, keepdims=True) / levels)


CASES = {
    "Conv": ("y = Conv <kernel_shape = [3, 3]> (x, w)", (6, 8, 3, 3), 0),
    "depthwise": ("y = Conv <kernel_shape = [3, 3], group = 8> (x, w)", (8, 1, 3, 3), 0),
    "grouped": ("y = Conv <kernel_shape = [1, 1], group = 2> (x, w)", (10, 4, 1, 1), 0),
    "ConvTranspose": ("y = ConvTranspose <kernel_shape = [2, 2]> (x, w)", (8, 5, 2, 2), 1),
    "MatMul": ("y = MatMul (x, w)", (12, 7), 1),
}


@pytest.mark.parametrize("bits", [8, 7])
@pytest.mark.parametrize("case", CASES)
def test_a_layer_is_estimated_to_within_a_decibel(case: str, bits: int) -> None:
    """Both terms count: inputs are rounded to 256 levels, weights per output channel."""
    text, shape, axis = CASES[case]
    weights = RNG.standard_normal(shape).astype(np.float32)
    head = "g (float[N, 8, 12, 12] x) => (float[N, C, H, W] y)"
    graph = graph_of(f"{head} {{ [layer] {text} }}", w=weights)
    samples = X * SPREAD if case != "MatMul" else X
    feeds = [{"x": sample} for sample in samples]
    estimate = local_sqnr_db(graph, {"layer"}, Calibration.from_source(feeds, graph), bits)
    scale = (samples.max() - samples.min()) / 255

    one, two = (
        ort.InferenceSession(model_of(f"{head} {{ {text} }}", w=w).SerializeToString())
        for w in (weights, per_channel(weights, axis, 2 ** (bits - 1) - 1))
    )
    wanted = np.concatenate([one.run(None, feed)[0].ravel() for feed in feeds])
    got = np.concatenate([two.run(None, {"x": rounded(s, scale)})[0].ravel() for s in samples])
    noise = np.square(wanted - got, dtype=np.float64).sum()
    sqnr = 10 * np.log10(np.square(wanted, dtype=np.float64).sum() / noise)
    assert estimate["layer"] == pytest.approx(sqnr, abs=1.0)


def test_operators_without_weights_and_those_without_numbers() -> None:
    graph = graph_of(
        """g (float[N, 8, 12, 12] x) => (float[N, 8, 12, 12] y, float[N, 8, 12, 12] z, int64[4] s) {
            [add] y = Add (x, x)
            [square] z = Mul (x, x)
            [shape] s = Shape (x)
        }"""
    )
    calibration = Calibration.from_source([{"x": sample} for sample in X], graph)
    found = local_sqnr_db(graph, {"add", "square", "shape", "other"}, calibration)
    scale = float(X.max() - X.min()) / 255
    energy = np.square(2 * X, dtype=np.float64).mean()
    assert found.keys() == {"add", "square"}
    ratio = 2 * (scale**2 / 12) / np.square(X, dtype=np.float64).mean()
    assert found["square"] == pytest.approx(-10 * np.log10(ratio), abs=0.01)
    assert found["add"] == pytest.approx(10 * np.log10(energy / (2 * scale**2 / 12)), abs=0.01)
