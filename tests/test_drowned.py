"""Layers that one scale would drown, by what comes out of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.drowned import gated, root_of_probability, silu
from onnxcomp.model import check_graph
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.placement import plan_static
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]
SPREAD = np.geomspace(300, 0.3, 16, dtype=np.float32)


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def unequal(width: int = 64, spread: Array = SPREAD) -> gs.Graph:
    """A gated stem, a depthwise layer that undoes the spread of its channels, then large layers."""
    return graph_of(
        """g (float[1, 16, 16, 16] x) => (float[1, c, 16, 16] y) {
            [stem] a = Conv (x, w) s = Sigmoid (a) [gate] b = Mul (a, s)
            [depthwise] d = Conv <group = 16, pads = [1, 1, 1, 1]> (b, v)
            [wide] e = Conv (d, u) r = Relu (e) [last] y = Conv (r, t) }""",
        w=normal(16, 16, 1, 1, seed=0) * spread.reshape(16, 1, 1, 1),
        v=normal(16, 1, 3, 3, seed=1) / spread.reshape(16, 1, 1, 1),
        u=normal(width, 16, 1, 1, seed=2),
        t=normal(width, width, 1, 1, seed=3) / width,
    )


def quantized(graph: gs.Graph, **options: Any) -> tuple[PassReport, float]:
    """The report, and the SQNR of the answers in dB."""
    feeds = [{"x": normal(1, 16, 16, 16, seed=10 + i)} for i in range(6)]
    want = np.stack([open_session(graph, threads=1).run(feed)[0] for feed in feeds])
    report, context = PassReport(), PassContext(target=resolve_target("x86-vnni"))
    context = PassContext(target=context.target, calibration=Calibration.from_source(feeds, graph))
    QuantizeStatic(**options).rewrite(graph, context, report)
    check_graph(graph)
    got = np.stack([open_session(graph, threads=1).run(feed)[0] for feed in feeds])
    return report, float(10 * np.log10(np.square(want).sum() / np.square(want - got).sum()))


def test_a_drowned_layer_and_what_makes_its_input_stay_float() -> None:
    report, spared = quantized(unequal())
    assert {"stem", "gate", "depthwise"} <= report.skipped.keys()
    assert "dB" in report.skipped["depthwise"]
    assert "depthwise" in report.skipped["stem"]
    assert {"wide", "last"} <= set(report.changed)
    report, drowned = quantized(unequal(), keep_drowned=False)
    assert {"stem", "gate", "depthwise"} <= set(report.changed)
    assert spared > drowned + 10


def test_what_most_multiplications_are_spent_on_is_not_kept_in_float() -> None:
    report, _ = quantized(unequal(width=8))
    assert {"stem", "depthwise"} <= set(report.changed)


@pytest.mark.parametrize(
    "spread", [np.ones(16, np.float32), np.geomspace(3, 1, 16, dtype=np.float32)]
)
def test_channels_of_like_ranges_keep_their_codes(spread: Array) -> None:
    report, _ = quantized(unequal(spread=spread))
    assert {"stem", "depthwise"} <= set(report.changed)


def test_a_channel_that_never_changes_drowns_nobody() -> None:
    graph = unequal(spread=np.ones(16, np.float32))
    weights, depthwise = graph.tensors()["w"], graph.tensors()["v"]
    silent, loud = weights.values.copy(), depthwise.values.copy()
    silent[3], loud[3] = 0, 1e6
    for tensor, values in ((weights, silent), (depthwise, loud)):
        tensor.values = values
    report, _ = quantized(graph)
    assert {"stem", "depthwise"} <= set(report.changed)


def test_gates_are_found_only_where_nobody_else_reads() -> None:
    graph = graph_of(
        """g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y, float[1, 4, 6, 6] z) {
            a = Conv (x, w) s = Sigmoid (a) b = Mul (s, a)
            c = Conv (b, w) t = Sigmoid (c) d = Mul (c, t) e = Add (c, d)
            f = Conv (e, w) h = HardSigmoid <alpha = 0.25> (f) i = Mul (f, h)
            y = Conv (i, w) z = Conv (d, w) }""",
        w=normal(4, 4, 1, 1, seed=0),
    )
    infer_shapes(graph)
    found = gated(plan_static(graph, resolve_target("x86-vnni"), lambda node: None))
    assert found.keys() == {"a", "f"}
    x = np.linspace(-90, 9, 34)
    assert np.allclose(found["a"](x), x / (1 + np.exp(-x)))
    assert np.allclose(found["f"](x), x * np.clip(0.25 * x + 0.5, 0, 1))


def test_silu_overflows_nowhere() -> None:
    with np.errstate(all="raise"):
        assert np.allclose(silu(np.array([-1e30, 0.0, 1e30])), [0, 0, 1e30], atol=1e5)


def test_probabilities_in_float_are_felt_by_their_roots_and_gates_of_others_not() -> None:
    graph = graph_of(
        """g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y, float[1, 4, 6, 6] z) {
            a = Conv (x, w) b = Conv (a, w) y = Sigmoid (b)
            c = Conv (a, w) s = Sigmoid (c) d = Mul (a, s) z = Conv (d, w) }""",
        w=normal(4, 4, 1, 1, seed=0),
    )
    infer_shapes(graph)
    found = gated(plan_static(graph, resolve_target("x86-vnni"), lambda node: None))
    assert found == {"b": root_of_probability}
    x = np.array([-30.0, -2.0, 0.0, 3.0])
    assert np.allclose(root_of_probability(x) ** 2, 1 / (1 + np.exp(-x)))
