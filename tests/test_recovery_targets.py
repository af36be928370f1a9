"""What a layer is to make: sums, and the bounds that readers see."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.linear_layers import LinearLayer
from onnxcomp.recovery_targets import Target, target_of
from onnxcomp.testing import graph_of

WEIGHTS = np.ones((4, 4, 1, 1), np.float32)
INF = float("inf")


def layers(text: str, **constants: Any) -> tuple[gs.Graph, dict[str, LinearLayer]]:
    graph = graph_of(
        f"net (float[N, 4, 3, 3] x) => (float[N, 4, 3, 3] y) {{ {text} }}", **constants
    )
    return graph, {n.name: LinearLayer.of(n) for n in graph.nodes if n.op == "Conv"}


@pytest.mark.parametrize(
    ("reader", "low", "high"),
    [
        ("Relu (a)", 0, INF),
        ("Clip (a, zero, six)", 0, 6),
        ("Clip (a, , six)", -INF, 6),
        ("Clip (a, three)", 3, INF),
        ("Clip (a, computed)", -INF, INF),
        ("Tanh (a)", -INF, INF),
        ("Add (a, x)", -INF, INF),
    ],
)
def test_bounds_are_those_of_the_clip_behind(reader: str, low: float, high: float) -> None:
    graph, found = layers(
        f"[one] a = Conv (x, w) computed = ReduceMin <keepdims = 0> (x) y = {reader}",
        w=WEIGHTS,
        zero=np.float32(0),
        six=np.array([6], np.float32),
        three=np.float32(3),
    )
    target = target_of(found["one"], graph.tensors(), set())
    assert (target.low, target.high) == (low, high)
    assert target.is_clipped == (low > -INF or high < INF)


def test_what_is_added_belongs_to_the_target_unless_it_is_still_to_change() -> None:
    graph, found = layers(
        """[one] a = Conv (x, w1) [two] b = Conv (x, w2) s = Add (a, b) r = Relu (s)
        [three] c = Conv (r, w3) y = Add (c, r)""",
        w1=WEIGHTS,
        w2=WEIGHTS + 1,
        w3=WEIGHTS + 2,
    )
    known = graph.tensors()
    waiting = {id(layer.node) for layer in found.values()}
    targets = {}
    for name, layer in found.items():
        waiting.discard(id(layer.node))
        targets[name] = target_of(layer, known, waiting)
    assert targets == {
        "one": Target("a", None, -INF, INF),
        "two": Target("s", "a", 0, INF),
        "three": Target("y", "r", -INF, INF),
    }
    assert target_of(found["three"], {"c": None}, set()).other is None  # the sum is unknown


def test_what_many_read_is_not_cut_off() -> None:
    graph, found = layers("[one] a = Conv (x, w) r = Relu (a) y = Add (r, a)", w=WEIGHTS)
    assert target_of(found["one"], graph.tensors(), set()) == Target("a", None, -INF, INF)
