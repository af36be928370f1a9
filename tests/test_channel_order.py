"""Channels change places and the model answers as before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.channel_order import Scores, alike_together, can_be_ordered
from onnxcomp.channels import find_channels
from onnxcomp.graph import constants, replace_constants
from onnxcomp.quantization import Array
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.sparsity import Pattern, magnitude
from onnxcomp.testing import graph_of

CHAIN = """<ir_version: 8, opset_import: ["" : 17]>
chain (float[N, 8] x) => (float[N, 8] z) {
    a = Gemm <transB = 1> (x, W, c)
    b = Relu (a)
    z = MatMul (b, V)
}"""
# A stream that a Pad widens, a depthwise Conv, a normalization, groups, and what is laid flat.
NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
network (float[1, 4, 6, 6] x) => (float[1, 10] z)
<int64[8] pads = {0, 4, 0, 0, 0, 4, 0, 0}> {
    a = Conv <pads = [1, 1, 1, 1]> (x, A)
    b = Conv <pads = [1, 1, 1, 1]> (a, B, biases)
    c = Add (a, b)
    wide = Pad (c, pads)
    d = Conv <pads = [1, 1, 1, 1], group = 8> (c, D)
    e = BatchNormalization (d, scale, shift, mean, variance)
    f = Conv (e, F)
    g = Relu (f)
    h = Add (wide, g)
    i = Conv (h, J)
    j = Conv <group = 2> (i, I)
    k = Conv (j, K)
    l = GlobalAveragePool (k)
    m = Flatten (l)
    z = Gemm (m, Z)
}"""


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def network() -> gs.Graph:
    weights = {"A": normal(0, 8, 4, 3, 3), "B": normal(1, 8, 8, 3, 3), "D": normal(2, 8, 1, 3, 3)}
    weights |= {"F": normal(3, 16, 8, 1, 1), "I": normal(4, 16, 8, 1, 1), "Z": normal(5, 12, 10)}
    vectors = {
        name: normal(6 + i, 8) for i, name in enumerate(["biases", "scale", "shift", "mean"])
    }
    weights |= {"J": normal(11, 16, 16, 1, 1), "K": normal(13, 12, 16, 1, 1)}
    weights |= {"variance": np.abs(normal(12, 8)) + 0.5}
    return graph_of(NETWORK, **weights, **vectors)


def scores_of(graph: gs.Graph, names: str, outputs: int = 0, inputs: int = 1) -> dict[str, Scores]:
    found = constants(graph)
    blocks = {outputs: 4, inputs: 4}
    return {name: Scores(magnitude(np.asarray(found[name].values)), blocks) for name in names}


def test_answers_stay() -> None:
    graph = network()
    infer_shapes(graph)
    channels = find_channels(graph)
    made = alike_together(graph, channels, scores_of(graph, "ABFIJK") | scores_of(graph, "Z", 1, 0))
    assert {"A", "B", "D", "F", "J", "K", "Z", "biases", "scale", "variance"} <= made.keys()
    before = {name: np.asarray(c.values) for name, c in constants(graph).items()}
    for name, values in made.items():
        assert not np.array_equal(values, before[name])
        np.testing.assert_array_equal(np.sort(values.ravel()), np.sort(before[name].ravel()))
    twin = graph.copy()
    replace_constants(twin, {n: gs.Constant(f"{n}.ordered", v) for n, v in made.items()})
    feed = {"x": normal(20, 1, 4, 6, 6)}
    wanted, found = (open_session(g, threads=1).run(feed)[0] for g in (graph, twin))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_groups_of_a_conv_stay_together() -> None:
    graph = network()
    infer_shapes(graph)
    for group in find_channels(graph).groups:
        if any(place.tensor == "I" for place in group.places):
            assert not can_be_ordered(group)


def test_large_and_small_channels_part() -> None:
    """Every other channel of the middle is loud: four of them make a block, not two."""
    loud = np.tile([1.0, 0.1], 8)
    first, second = normal(0, 16, 8) * loud[:, None], normal(1, 16, 8) * loud[:, None]
    weights: dict[str, Any] = {"W": first.astype(np.float32), "V": second.astype(np.float32)}
    graph = graph_of(CHAIN, **weights, c=loud.astype(np.float32))
    infer_shapes(graph)
    scores = scores_of(graph, "W", 0, 1) | scores_of(graph, "V", 1, 0)
    made = alike_together(graph, find_channels(graph), scores)
    np.testing.assert_allclose(made["c"], np.repeat([1.0, 0.1], 8), rtol=1e-6)
    pattern = Pattern.named("4x4")
    for old, new in ((first, made["W"]), (second.T, made["V"].T)):
        kept = [pattern.mask(magnitude(w), 0.5) for w in (old, new)]
        gone = [np.square(w)[~mask].sum() for w, mask in zip((old, new), kept, strict=True)]
        assert gone[1] < 0.1 * gone[0]


@pytest.mark.parametrize("block", [0, 1])
def test_without_blocks_nothing_moves(block: int) -> None:
    graph = network()
    infer_shapes(graph)
    plain = {n: Scores(s.values, {0: block}) for n, s in scores_of(graph, "ABF").items()}
    assert alike_together(graph, find_channels(graph), plain) == {}
