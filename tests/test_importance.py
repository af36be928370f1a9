"""What each channel counts, against the energy that its error has behind the layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.importance import Importance, importances
from onnxcomp.placement import plan_static
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def told(graph: gs.Graph) -> dict[str, Importance]:
    infer_shapes(graph)
    return importances(plan_static(graph, resolve_target("x86-vnni"), lambda node: None))


def felt(graph: gs.Graph, shape: tuple[int, ...], axis: int) -> Array:
    """The energy at the output of noise in each channel of x, of mean 1."""
    session, zero = open_session(graph, threads=1), np.zeros(shape, np.float32)
    base, energies = session.run({"x": zero})[0], []
    for channel in range(shape[axis]):
        noise = np.zeros(shape, np.float32)
        place = [slice(None)] * len(shape)
        place[axis] = channel
        noise[tuple(place)] = normal(*noise[tuple(place)].shape, seed=channel)
        energies.append(float(np.square(session.run({"x": noise})[0] - base).sum()))
    return np.asarray(energies) / np.mean(energies)


def test_channels_of_a_conv_count_as_much_as_their_noise_comes_through() -> None:
    weights = normal(6, 4, 3, 3, seed=0) * np.float32([4, 1, 0.2, 2]).reshape(1, 4, 1, 1)
    graph = graph_of(
        """g (float[1, 4, 24, 24] x) => (float[1, 6, 24, 24] y) {
            y = Conv <pads = [1, 1, 1, 1]> (x, w) }""",
        w=weights,
    )
    found = told(graph)["x"]
    assert found.axis == 1
    assert np.allclose(found.weights, felt(graph, (1, 4, 24, 24), 1), rtol=0.2)
    assert np.isclose(found.weights.mean(), 1)


def test_features_of_a_product_lie_on_the_last_axis() -> None:
    graph = graph_of(
        "g (float[1, 32, 5] x) => (float[1, 32, 7] y) { y = MatMul (x, w) }",
        w=normal(5, 7, seed=0) * np.float32([3, 1, 0.1, 1, 2]).reshape(5, 1),
    )
    found = told(graph)["x"]
    assert found.axis == -1
    assert np.allclose(found.weights, felt(graph, (1, 32, 5), 2), rtol=0.3)


def test_sums_pooling_and_concat_pass_on_what_depthwise_layers_tell() -> None:
    graph = graph_of(
        """g (float[1, 8, 8, 8] x) => (float[1, c, h, v] y) {
            a = Conv (x, w) b = Conv (x, w) s = Add (a, b) p = MaxPool <kernel_shape = [2, 2]> (s)
            d = Conv (x, k) q = MaxPool <kernel_shape = [2, 2]> (d) e = Concat <axis = 1> (p, q)
            y = Conv <group = 24> (e, v) }""",
        w=normal(8, 8, 1, 1, seed=0),
        k=normal(16, 8, 1, 1, seed=1),
        v=np.arange(1, 25, dtype=np.float32).reshape(24, 1, 1, 1),
    )
    found = told(graph)
    want = np.square(np.arange(1, 25))
    assert np.allclose(found["e"].weights, want / want.mean())
    for name, part in (("a", want[:8]), ("s", want[:8]), ("p", want[:8]), ("d", want[8:])):
        assert np.allclose(found[name].weights, part / part.mean())


def test_channels_that_no_layer_reads_still_count_a_little() -> None:
    weights = np.zeros((4, 3, 1, 1), np.float32)
    weights[:, 0] = 1
    graph = graph_of(
        "g (float[1, 3, 4, 4] x) => (float[1, 4, 4, 4] y) { y = Conv (x, w) }", w=weights
    )
    assert np.allclose(told(graph)["x"].weights, [3, 1e-3, 1e-3], rtol=0.01)
