"""Constants are computed once where that pays, and equal things are kept once."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.exporting import to_proto
from onnxcomp.graph import constants
from onnxcomp.importing import from_proto
from onnxcomp.model import graph_bytes
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of, model_of


def simplify(graph: gs.Graph, feed: Feed | None = None, **options: Any) -> PassReport:
    """Simplifies; the answer may not change by a bit."""
    feeds = [] if feed is None else [feed]
    before = [open_session(graph, optimize=False).run(f) for f in feeds]
    report = PassReport()
    SimplifyGraph(**options).rewrite(graph, PassContext(target=resolve_target()), report)
    for f, expected in zip(feeds, before, strict=True):
        for ours, theirs in zip(open_session(graph, optimize=False).run(f), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    return report


def operators(graph: gs.Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_transposed_weights_take_no_more_bytes() -> None:
    graph = graph_of(
        """g (float[N, 8] x) => (float[N, 4] y) {
            v = Transpose (w)
            k = Mul (v, two)
            y = MatMul (x, k)
        }""",
        w=floats(4, 8),
        two=np.float32(2),
    )
    simplify(graph, {"x": floats(3, 8)})
    assert operators(graph) == ["MatMul"]
    assert graph.nodes[0].inputs[1].name == "k"


def test_slices_joined_in_another_order_fold_together() -> None:
    cuts = {f"c{i}": np.array([i * 64]) for i in range(5)}
    graph = graph_of(
        """g (float[N, 8] x) => (float[N, 256] y) {
            i = Slice (w, c0, c1)
            o = Slice (w, c1, c2)
            f = Slice (w, c2, c3)
            c = Slice (w, c3, c4)
            j = Concat <axis = 0> (o, i, c, f)
            y = Gemm <transB = 1> (x, j)
        }""",
        w=floats(256, 8),
        **cuts,
    )
    before = graph_bytes(graph)
    simplify(graph, {"x": floats(3, 8)})
    assert operators(graph) == ["Gemm"]
    assert graph_bytes(graph) < before


MASK = """g (float[128, 128] x) => (float[128, 128] y) {
    m = ConstantOfShape <value = float[1] {-1.0}> (s)
    t = Trilu (m)
    y = Add (x, t)
}"""


def test_what_one_node_makes_from_little_is_not_stored_unless_asked_for() -> None:
    graph = graph_of(MASK, s=np.array([128, 128]))
    report = simplify(graph, {"x": floats(128, 128)})
    assert operators(graph) == ["ConstantOfShape", "Trilu", "Add"]
    assert "would make the model" in report.skipped["ConstantOfShape:m"]
    graph = graph_of(MASK, s=np.array([128, 128]))
    simplify(graph, {"x": floats(128, 128)}, largest_growth=70_000)
    assert operators(graph) == ["Add"]


@pytest.mark.parametrize(
    "line",
    [
        "k = RandomNormalLike (w)",
        "k = RandomUniform <shape = [4]> ()",
        "k = Bernoulli (w)",
        "k = DequantizeLinear (codes, scale)",
        "k = Identity (k0)",
    ],
)
def test_random_quantized_and_overridable_values_stay(line: str) -> None:
    model = model_of(
        f"g (float[4] x, float[4] k0) => (float[4] y) {{ {line} l = Neg (k) y = Add (x, l) }}",
        w=np.full(4, 0.5, np.float32),
        codes=np.array([1, 2, 3, 4], np.int8),
        scale=np.float32(0.1),
        k0=np.ones(4, np.float32),
    )
    graph = from_proto(model)
    expected = [op for op in operators(graph) if op != "Identity"]
    simplify(graph)
    assert operators(graph) == expected


def test_values_that_onnxruntime_cannot_compute_stay_and_the_rest_folds() -> None:
    graph = graph_of(
        """g (float[4] x) => (float[4] y, float[4] z) {
            a = Neg (w)
            y = Add (x, a)
            bad = Reshape (w, s)
            z = Add (x, bad)
        }""",
        w=np.ones(4, np.float32),
        s=np.array([3], np.int64),
    )
    report = simplify(graph, largest_growth=100)
    assert "cannot be folded" in report.skipped["Reshape:bad"]
    assert operators(graph) == ["Add", "Reshape", "Add"]


def test_nodes_without_readers_go() -> None:
    graph = graph_of(
        """g (float[4] x) => (float[4] y) {
            a = Exp (x)
            b = Sin (a)
            c, d = Split (x)
            y = Neg (x)
        }"""
    )
    report = simplify(graph, {"x": floats(4)})
    assert operators(graph) == ["Neg"]
    assert report.notes == ["fewer nodes: 1 Exp, 1 Sin, 1 Split"]


def test_equal_nodes_are_one_unless_they_are_random_or_outputs() -> None:
    graph = graph_of(
        """g (float[4, 4] x) => (float[4, 4] y, float[4, 4] u, float[4, 4] v, float[4] z) {
            a = Softmax <axis = 1> (x)
            b = Softmax <axis = 1> (x)
            c = Softmax <axis = 0> (x)
            ab = Sub (a, b)
            y = Add (ab, c)
            u = Exp (x)
            v = Exp (x)
            r = RandomUniform <shape = [4]> ()
            s = RandomUniform <shape = [4]> ()
            z = Sub (r, s)
        }"""
    )
    simplify(graph)
    counts = {op: operators(graph).count(op) for op in ("Softmax", "Exp", "RandomUniform")}
    assert counts == {"Softmax": 2, "Exp": 2, "RandomUniform": 2}
    x = floats(4, 4)
    softmax = np.exp(x) / np.exp(x).sum(0, keepdims=True)
    result = open_session(graph).run({"x": x})
    np.testing.assert_allclose(result[0], softmax, rtol=1e-5)
    assert np.abs(result[3]).max() > 0


def test_equal_constants_are_one_and_similar_ones_are_not() -> None:
    w = floats(64, 64)
    almost = w.copy()
    almost[5, 7] += 1
    graph = graph_of(
        """g (float[4, 64] x) => (float[4, 64] y) {
            a = MatMul (x, w0)
            b = Relu (a)
            c = MatMul (b, w1)
            d = Relu (c)
            e = MatMul (d, w2)
            f = Relu (e)
            h = MatMul (f, w3)
            y = Relu (h)
        }""",
        w0=w,
        w1=w.copy(),
        w2=almost,
        w3=w.view(np.int32).view(np.float32).reshape(64, 64),
    )
    simplify(graph, {"x": floats(4, 64)})
    assert sorted(constants(graph)) == ["w0", "w2"]
    assert len(to_proto(graph).graph.initializer) == 2


def test_zeros_of_both_signs_are_different_constants() -> None:
    graph = graph_of(
        "g (float[4] x) => (float[4] y) { a = Div (x, p) b = Div (x, n) y = Max (a, b) }",
        p=np.zeros(4, np.float32),
        n=-np.zeros(4, np.float32),
    )
    simplify(graph, {"x": np.ones(4, np.float32)})
    assert sorted(constants(graph)) == ["n", "p"]


SIZES = """g (float[N, 6, A] x) => (float y) {{
    t = {first}
    s = Shape (t)
    n = Gather (s, {index})
    u = Unsqueeze (n, zero)
    target = Concat <axis = 0> ({order})
    r = Reshape (t, target)
    y = Neg (r)
}}"""


@pytest.mark.parametrize(
    ("first", "index", "order", "target"),
    [
        ("Relu (x)", "zero0", "u, two, rest", [0, 2, -1]),
        ("Relu (x)", "one0", "u, rest", [6, -1]),
        ("Relu (x)", "two0", "rest, u", None),  # two sizes are open
        ("Relu (x)", "two0", "u, four, six", [-1, 4, 6]),
        ("Transpose <perm = [2, 1, 0]> (x)", "two0", "u, two, rest", None),
        ("Transpose <perm = [0, 2, 1]> (x)", "zero0", "u, two, rest", [0, 2, -1]),
    ],
)
def test_targets_computed_from_shapes_become_constants(
    first: str, index: str, order: str, target: list[int] | None
) -> None:
    graph = graph_of(
        SIZES.format(first=first, index=index, order=order),
        zero=np.array([0]),
        zero0=np.array(0),
        one0=np.array(1),
        two0=np.array(2),
        two=np.array([2]),
        four=np.array([4]),
        six=np.array([6]),
        rest=np.array([-1]),
    )
    simplify(graph, {"x": floats(4, 6, 5)})
    reshape = next(node for node in graph.nodes if node.op == "Reshape")
    if target is None:
        assert not isinstance(reshape.inputs[1], gs.Constant)
    else:
        assert reshape.inputs[1].values.tolist() == target
        assert "Shape" not in operators(graph)


def test_certain_sizes_are_constants_and_open_ones_stay_computed() -> None:
    graph = graph_of(
        """g (float[N, 6, 5] x) => (int64[2] known, int64[3] all, int64[1] n) {
            s = Shape <start = 1> (x)
            k = Neg (s)
            known = Neg (k)
            t = Shape (x)
            all = Neg (t)
            n = Slice (t, zero, one)
        }""",
        zero=np.array([0]),
        one=np.array([1]),
    )
    simplify(graph, {"x": floats(4, 6, 5)})
    assert operators(graph).count("Shape") == 1
