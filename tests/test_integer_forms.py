"""Equal forms: the same answers, under the names the runtime's kernels are found by."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.fusion import optimized_operators
from onnxcomp.integer_forms import write_integer_forms
from onnxcomp.model import check_graph
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of, same_bits

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def rewritten(
    graph: gs.Graph, target: str = "x86-vnni", wanted: bool = True
) -> tuple[Array, Array, Counter[str]]:
    """The answers before and after, and the operators after."""
    feed = {
        tensor.name: normal(*[size if isinstance(size, int) else 2 for size in tensor.shape])
        for tensor in graph.inputs
    }
    before = open_session(graph, threads=1).run(feed)[0]
    infer_shapes(graph)
    write_integer_forms(graph, resolve_target(target), lambda node: wanted)
    check_graph(graph)
    return before, open_session(graph, threads=1).run(feed)[0], Counter(n.op for n in graph.nodes)


def conv_around(body: str, **constants: Any) -> gs.Graph:
    text = f"""g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {{
        c = Conv (x, w) {body} y = Conv (m, w) }}"""
    return graph_of(text, w=normal(4, 4, 1, 1), **constants)


def test_hard_swish_is_a_gated_product() -> None:
    want, got, ops = rewritten(conv_around("m = HardSwish (c)"))
    assert np.allclose(want, got, rtol=1e-5, atol=1e-6)
    assert ops == {"Conv": 2, "HardSigmoid": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("target", "wanted", "body"),
    [
        ("qdq-generic", True, "m = HardSwish (c)"),
        ("x86-vnni", False, "m = HardSwish (c)"),
        ("x86-vnni", True, "e = Exp (c) h = HardSwish (e) m = Neg (h)"),
    ],
)
def test_hard_swish_is_kept(target: str, wanted: bool, body: str) -> None:
    want, got, ops = rewritten(conv_around(body), target, wanted)
    assert same_bits(want, got)
    assert ops["HardSwish"] == 1


@pytest.mark.parametrize("sides", ["half, a", "a, half"])
@pytest.mark.parametrize("last", ["h, k", "k, h"])
def test_gelu_in_the_order_of_new_exports_is_fused_and_equal_to_the_bit(
    sides: str, last: str
) -> None:
    body = f"""h = MatMul (x, w) d = Div (h, root) e = Erf (d) a = Add (e, one)
        k = Mul ({sides}) g = Mul ({last}) y = MatMul (g, w2)"""
    text = f"g (float[N, L, 8] x) => (float[N, L, 8] y) {{ {body} }}"
    constants = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    weights = {"w": normal(8, 16), "w2": normal(16, 8)}
    graph = graph_of(text, **weights, **constants)
    assert optimized_operators(graph)["Erf"] == 1
    twin = graph_of(text, **weights, **constants)
    infer_shapes(twin)
    write_integer_forms(twin, resolve_target("x86-vnni"), lambda node: True)
    feed = {"x": normal(2, 3, 8)}
    unfused = [open_plain(g).run(None, feed)[0] for g in (graph, twin)]
    assert same_bits(*unfused)
    assert optimized_operators(twin)["Erf"] == 0


def open_plain(graph: gs.Graph) -> Any:
    """A session without any fusion."""
    import onnxruntime as ort

    from onnxcomp.exporting import to_proto

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(to_proto(graph).SerializeToString(), options)


@pytest.mark.parametrize("other", ["k = Mul (third, a)", "k = Mul (half, a) z = Neg (k)"])
def test_what_only_resembles_gelu_is_kept(other: str) -> None:
    text = f"""g (float[N, 8] x) => (float[N, 8] y{", float[N, 8] z" if "z" in other else ""}) {{
        d = Div (x, root) e = Erf (d) a = Add (e, one) {other} y = Mul (x, k) }}"""
    constants = {"root": 2**0.5, "one": 1, "half": 0.5, "third": 1 / 3}
    used = {k: np.float32(v) for k, v in constants.items() if k in text}
    graph = graph_of(text, **used)
    order = [[t.name for t in n.inputs] for n in graph.nodes]
    want, got, _ = rewritten(graph)
    assert same_bits(want, got)
    assert [[t.name for t in n.inputs] for n in graph.nodes] == order


@pytest.mark.parametrize("attributes", ["alpha = 0.5", "beta = 3.0", "transA = 1, alpha = 2.0"])
def test_a_gemm_has_its_factors_in_its_constants(attributes: str) -> None:
    shape = "16, 2" if "transA" in attributes else "2, 16"
    text = f"g (float[{shape}] x) => (float[2, 8] y) {{ y = Gemm <{attributes}> (x, w, b) }}"
    graph = graph_of(text, w=normal(16, 8), b=normal(8))
    want, got, ops = rewritten(graph)
    assert np.allclose(want, got, rtol=1e-5, atol=1e-5)
    assert ops["Gemm"] == 1
    gemm = next(n for n in graph.nodes if n.op == "Gemm")
    assert not gemm.attrs.keys() & {"alpha", "beta", "transA"}


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("p = Mul (x, x) m = ReduceMean <axes = [-1]> (p) y = Add (m, x)", True),
        ("a = Add (x, x) m = ReduceMean <axes = [-1]> (a) y = Sub (a, m)", True),
        ("a = Conv (x, w) m = ReduceMean <axes = [2]> (a) y = Mul (m, x)", False),
    ],
)
def test_a_mean_over_features_is_no_pooling(body: str, kept: bool) -> None:
    constants = {"w": normal(5, 5, 1)} if "w" in body else {}
    graph = graph_of(f"g (float[N, 5, 6] x) => (float[N, 5, 6] y) {{ {body} }}", **constants)
    want, got, ops = rewritten(graph)
    assert np.allclose(want, got, rtol=1e-5, atol=1e-6)
    assert ("GlobalAveragePool" not in ops) is kept
