"""Each weight that gets codes is fitted to its inputs, or says why it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp import coding_inputs, weight_grams
from onnxcomp.calibration import Calibration
from onnxcomp.coding_plan import CodingPlan
from onnxcomp.testing import graph_of

HEAD = '<ir_version: 8, opset_import: ["" : 13]>'


def normal(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def correlated(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    """Channels, axis 1, that one common cause moves."""
    return normal(seed, *shape) + 3 * normal(seed + 1000, shape[0], 1, *shape[2:])


def plan_of(text: str, samples: int = 32, **weights: np.ndarray[Any, Any]) -> CodingPlan:
    graph = graph_of(f"{HEAD} {text}", **weights)
    shape = [int(size) for size in graph.inputs[0].shape]
    feeds = [{"x": correlated(seed, *shape)} for seed in range(samples)]
    return CodingPlan(graph, Calibration.from_source(feeds, graph))


def gain(plan: CodingPlan) -> float:
    """Noise at the outputs of codes fitted to inputs, over that of nearest codes, same steps."""
    (weight,) = plan.weights
    step = 0.5 * float(weight.values.std())
    fitted = plan.noise.shares({weight.name: weight.at(step).values})
    weight._inputs = None
    return float(fitted[0] / plan.noise.shares({weight.name: weight.at(step).values})[0])


@pytest.mark.parametrize("stride", [1, 2])
def test_a_transposed_convolution_is_fitted_to_its_channels(stride: int) -> None:
    text = f"""net (float[1,16,6,6] x) => (float[1,24,a,b] y) {{
        y = ConvTranspose<strides = [{stride},{stride}]>(x, w) }}"""
    plan = plan_of(text, w=normal(1, 16, 24, 2, 2))
    assert plan.rounded == {}
    assert gain(plan) < 0.7


def test_a_wide_convolution_is_fitted_to_its_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (weight_grams, coding_inputs):
        monkeypatch.setattr(module, "WIDEST", 100)
    text = """net (float[1,16,6,6] x) => (float[1,24,4,4] y) { y = Conv(x, w) }"""
    plan = plan_of(text, w=normal(1, 24, 16, 3, 3))
    assert plan.rounded == {}
    (weight,) = plan.weights
    assert weight.gram is not None
    assert weight.gram.shape == (16, 16)
    assert gain(plan) < 0.7


@pytest.mark.parametrize(
    ("text", "shape", "reason"),
    [
        ("y = ConvTranspose<group = 2>(x, w)", (16, 12, 2, 2), "grouped ConvTranspose"),
        ("f = Flatten(x)\n y = MatMul(f, w)", (576, 24), "products of its 576 inputs"),
        ("y = Add(x, w)", (1, 16, 6, 6), "no layer multiplies with it"),
    ],
)
def test_weights_that_are_rounded_to_the_nearest_codes_say_why(
    text: str, shape: tuple[int, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (weight_grams, coding_inputs):
        monkeypatch.setattr(module, "WIDEST", 100)
    plan = plan_of(f"net (float[1,16,6,6] x) => (float y) {{ {text} }}", w=normal(1, *shape))
    (said,) = plan.rounded.values()
    assert reason in said


def test_without_samples_all_are_rounded_to_the_nearest_codes() -> None:
    graph = graph_of(
        f"{HEAD} net (float[1,16] x) => (float[1,24] y) {{ y = MatMul(x, w) }}", w=normal(1, 16, 24)
    )
    plan = CodingPlan(graph, Calibration.from_source(None, graph, limit=4))
    assert plan.rounded == {"w": "no samples were given"}
