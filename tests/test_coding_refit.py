"""Biases give back what codes take from the means of outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.coding_plan import CodingPlan
from onnxcomp.coding_quantizer import CodedWeight
from onnxcomp.coding_refit import Bias, bias_of, refitted
from onnxcomp.testing import graph_of
from onnxcomp.weight_sites import Layout, find_weights

HEAD = '<ir_version: 8, opset_import: ["" : 13]>'


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_the_shift_is_what_outputs_lose_on_average() -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((6, 4, 3, 3)).astype(np.float32)
    codes = rng.integers(-2, 3, weights.shape).astype(np.int32)
    coded = CodedWeight(codes, np.asarray([0.5], np.float32))
    x = rng.standard_normal((50, 2, 36)) + rng.standard_normal((2, 36))  # of two groups
    bias = Bias("b", x.mean(axis=0))
    error = (weights - coded.values).reshape(2, 3, 36)
    wanted = np.einsum("god,ngd->ngo", error, x).mean(axis=0).reshape(-1)
    found = bias.shift(weights, coded, Layout(weights.shape, (0, 1, 2, 3), 1))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("y = Gemm(x, w, b)", "b"),
        ("y = Gemm<beta = 2.0>(x, w, b)", None),
        ("p = MatMul(x, w)\n y = Add(p, b)", "b"),
        ("p = MatMul(x, w)\n y = Add(b, p)", "b"),
        ("p = MatMul(x, w)\n q = Add(p, b)\n y = Mul(q, p)", None),
        ("p = MatMul(x, w)\n q = Add(p, b)\n y = Mul(q, b)", None),
        ("y = MatMul(x, w)", None),
    ],
)
def test_a_bias_is_added_to_all_of_a_layer_and_to_nothing_else(
    text: str, wanted: str | None
) -> None:
    graph = graph_of(
        f"{HEAD} net (float[2,4] x) => (float[2,5] y) {{ {text} }}",
        w=normal(0, 4, 5),
        **({"b": normal(1, 5)} if "b" in text.split("MatMul")[-1] else {}),
    )
    (weight,) = find_weights(graph)
    assert bias_of(graph, weight) == wanted


def test_vectors_that_nothing_shifts_stay() -> None:
    vectors = {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}
    found = refitted(vectors, {"b": np.asarray([1.5, 2.5])})
    assert found["a"] is vectors["a"]
    np.testing.assert_array_equal(found["b"], np.asarray([1.5, 2.5], np.float32))
    assert found["b"].dtype == np.float32


def test_a_plan_takes_the_biases_that_leave_less_error() -> None:
    """Inputs far from zero: coarse codes shift the means, and only biases can take that back."""
    graph = graph_of(
        f"{HEAD} net (float[1,8,10,10] x) => (float[1,96,8,8] y) {{ y = Conv(x, w, b) }}",
        w=normal(0, 96, 8, 3, 3) * 0.1,
        b=normal(1, 96),
    )
    feeds = [{"x": normal(seed, 1, 8, 10, 10) + np.float32(4)} for seed in range(32)]
    plan = CodingPlan(graph, Calibration.from_source(feeds, graph))
    codes = plan.at(plan.level_for(20.0))
    without = {**codes, **{name: _exact(values) for name, values in plan.vectors.items()}}
    assert np.abs(codes["b"].values - plan.vectors["b"]).max() > 0.01
    share = float(plan.noise.shares(_values(codes)).max())
    assert share < 0.9 * float(plan.noise.shares(_values(without)).max())


def _exact(values: np.ndarray[Any, Any]) -> CodedWeight:
    step = float(np.abs(values).max()) / 2**22
    return CodedWeight(np.rint(values / step).astype(np.int32), np.asarray([step], np.float32))


def _values(codes: dict[str, CodedWeight]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: coded.values for name, coded in codes.items()}
