"""Operators that select from axes: what may leave behind them, and what is left equals zeroed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.channel_preparation import prepare
from onnxcomp.channels import find_channels
from onnxcomp.cutting import cut
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import graph_of

RNG = np.random.default_rng(0)
BETWEEN = """<ir_version: 8, opset_import: ["" : 18]>
m (float[2, 3, 6, 6] x, {inputs}) => (float[{rows}, 2, P, Q] y) {{
    a = Conv (x, w1) {steps} y = Conv (b, w2) }}"""
CASES: dict[str, tuple[str, str, str, dict[str, list[int]]]] = {
    "GridSample": ("float[2, 4, 5, 2] g", "2", "b = GridSample (a, g)", {}),
    "RoiAlign": (
        "float[3, 4] g",
        "3",
        "b = RoiAlign <output_height = 2, output_width = 3> (a, g, image)",
        {"image": [0, 1, 1]},
    ),
    "MaxRoiPool": ("float[3, 5] g", "3", "b = MaxRoiPool <pooled_shape = [2, 3]> (a, g)", {}),
    "TopK": ("float[1] g", "2", "b, i = TopK (a, four)", {"four": [4]}),
    "Col2Im": (
        "float[1] g",
        "2",
        "r = Reshape (a, flat) b = Col2Im (r, image, block)",
        {"flat": [2, 8, 36], "image": [7, 7], "block": [2, 2]},
    ),
}


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def answer(text: str, feed: dict[str, Any], **constants: Any) -> np.ndarray[Any, Any]:
    (found,) = open_session(graph_of(text, **constants)).run(feed)
    return np.asarray(found)


@pytest.mark.parametrize("op", CASES)
def test_channels_pass_through(op: str) -> None:
    """A cut equals weights that are zero where they were cut."""
    inputs, rows, steps, sizes = CASES[op]
    text = BETWEEN.format(inputs=inputs, rows=rows, steps=steps)
    weights = {"w1": normal(8, 3, 1, 1), "w2": normal(2, 2 if op == "Col2Im" else 8, 1, 1)}
    constants = {name: np.asarray(values) for name, values in sizes.items()}
    graph = graph_of(text, **weights, **constants)
    infer_shapes(graph)
    prepare(graph)
    shape = next(tensor.shape for tensor in graph.inputs if tensor.name == "g")
    feed = {"x": normal(2, 3, 6, 6), "g": np.abs(normal(*shape))}

    channels = find_channels(graph)

    (group,) = channels.groups
    assert channels.unknown == {}
    zeroed = dict(weights)
    for place in group.places:
        if place.tensor in zeroed:
            lost = (slice(None),) * place.axis + (place.units == 1,)
            zeroed[place.tensor] = zeroed[place.tensor].copy()
            zeroed[place.tensor][lost] = 0
    expected = answer(text, feed, **zeroed, **constants)
    cut(graph, channels, {group.name: np.array([1])})
    (found,) = open_session(graph).run(feed)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_channels_that_are_only_padding_may_leave() -> None:
    """As where a residual network widens without a Conv: x + padded(x)."""
    text = """m (float[2, 3, 6, 6] x) => (float[2, 2, 6, 6] y) {
        a = Conv (x, w1) p = Pad (a, pads) b = Conv (a, w2) c = Add (p, b) d = Relu (c)
        y = Conv (d, w3) }"""
    weights = {"w1": normal(4, 3, 1, 1), "w2": normal(9, 4, 1, 1), "w3": normal(2, 9, 1, 1)}
    pads = np.array([0, 2, 0, 0, 0, 3, 0, 0])
    graph = graph_of(text, **weights, pads=pads)
    infer_shapes(graph)
    feed = {"x": normal(2, 3, 6, 6)}

    channels = find_channels(graph)

    sizes = {group.size: group.name for group in channels.groups}
    assert sorted(sizes) == [4, 5]  # what was there, and what is new
    zeroed = {name: value.copy() for name, value in weights.items()}
    zeroed["w1"][2] = zeroed["w2"][:, 2] = 0
    for place in (1, 4, 7):  # new, of the first Conv, and new
        zeroed["w2"][place] = zeroed["w3"][:, place] = 0
    expected = answer(text, feed, **zeroed, pads=pads)
    cut(graph, channels, {sizes[4]: np.array([2]), sizes[5]: np.array([1, 3])})
    assert graph.nodes[1].inputs[1].values.tolist() == [0, 1, 0, 0, 0, 2, 0, 0]
    (found,) = open_session(graph).run(feed)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
