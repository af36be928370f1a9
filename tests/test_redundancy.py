"""Operators without effect go, and those that only look like it stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.runtime import open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]


def simplify(graph: gs.Graph) -> list[str]:
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target()), PassReport())
    return [node.op for node in graph.nodes]


def check(
    body: str, expected: list[str], *, output: str = "float[N, 3, 4]", **constants: Any
) -> None:
    """Simplifies Neg -> ``body`` (a -> b) -> Neg."""
    graph = graph_of(
        f"g (float[N, 3, 4] x) => ({output} y) {{ a = Neg (x) {body} y = Neg (b) }}", **constants
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    before = open_session(graph, optimize=False).run({"x": x})[0]
    assert simplify(graph) == ["Neg", *expected, "Neg"]
    np.testing.assert_array_equal(open_session(graph, optimize=False).run({"x": x})[0], before)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("b = Identity (a)", {}),
        ("b = Dropout (a)", {}),
        ("b = Dropout (a, r, t)", {"r": np.float32(0.5), "t": np.array(False)}),
        ("b = Cast <to = 1> (a)", {}),
        ("b = Reshape (a, s)", {"s": ints(-1, 3, 4)}),
        ("b = Reshape (a, s)", {"s": ints(0, 0, -1)}),
        ("b = Transpose <perm = [0, 1, 2]> (a)", {}),
        ("b = Expand (a, s)", {"s": ints(1, 3, 1)}),
        ("b = Tile (a, s)", {"s": ints(1, 1, 1)}),
        ("b = Pad (a, p)", {"p": ints(0, 0, 0, 0, 0, 0)}),
        ("b = Slice (a, s, e, x0, t)", {"s": ints(0), "e": ints(4), "x0": ints(-1), "t": ints(1)}),
        ("b = Slice (a, s, e)", {"s": ints(0), "e": ints(2**63 - 1)}),
        ("b = Concat <axis = 1> (a)", {}),
        ("b = Sum (a)", {}),
        ("b = Max (a)", {}),
        ("b = Add (a, k)", {"k": np.zeros((3, 1), np.float32)}),
        ("b = Add (k, a)", {"k": np.zeros((3, 4), np.float32)}),
        ("b = Sub (a, k)", {"k": np.float32(0)}),
        ("b = Mul (k, a)", {"k": np.ones((1, 1, 4), np.float32)}),
        ("b = Div (a, k)", {"k": np.ones(1, np.float32)}),
        ("b = Pow (a, k)", {"k": np.float32(1)}),
        ("b = Clip (a)", {}),
        ("u = Unsqueeze (a, s) b = Squeeze (u, s)", {"s": ints(1)}),
        ("u = Transpose (a) b = Transpose (u)", {}),
    ],
)
def test_without_effect(body: str, constants: dict[str, Any]) -> None:
    check(body, [], **constants)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("b = Slice (a, s, e, x0, t)", {"s": ints(0), "e": ints(9), "x0": ints(2), "t": ints(2)}),
        ("b = Slice (a, s, e, x0, t)", {"s": ints(3), "e": ints(-9), "x0": ints(2), "t": ints(-1)}),
        ("b = Slice (a, s, e, x0)", {"s": ints(0), "e": ints(3), "x0": ints(2)}),
        ("b = Slice (a, s, e, x0)", {"s": ints(0), "e": ints(100), "x0": ints(0)}),  # N may be 101
        ("b = Add (a, k)", {"k": np.zeros((2, 1, 1, 1), np.float32)}),
        ("b = Add (a, k)", {"k": np.zeros((2, 3, 4), np.float32)}),  # N may be 1
        ("b = Sub (k, a)", {"k": np.float32(0)}),
        ("b = Div (k, a)", {"k": np.float32(1)}),
        ("b = Mul (a, k)", {"k": np.array([1, 1, 1, 2], np.float32)}),
        ("b = Expand (a, s)", {"s": ints(2, 1, 1)}),  # N may be 1
        ("b = Expand (a, s)", {"s": ints(2, 1, 3, 4)}),
        ("b = Tile (a, s)", {"s": ints(1, 2, 1)}),
        ("b = Pad (a, p)", {"p": ints(0, 0, 0, 0, 0, 1)}),
        ("b = Pad (a, p)", {"p": ints(0, 0, -1, 0, 0, 1)}),
        ("b = Reshape (a, s)", {"s": ints(-1, 4, 3)}),
        ("b = Transpose <perm = [0, 2, 1]> (a)", {}),
        ("b = Clip (a, k)", {"k": np.float32(0.5)}),
    ],
)
def test_with_effect(body: str, constants: dict[str, Any]) -> None:
    op = body.split("=")[1].split("(")[0].split("<")[0].strip()
    check(body, [op], output="float", **constants)


def test_dropout_in_training_and_used_masks_stay() -> None:
    graph = graph_of("""g (float[4] x) => (float[4] y, bool[4] m) { y, m = Dropout (x) }""")
    assert simplify(graph) == ["Dropout"]
    graph = graph_of(
        "g (float[4] x) => (float[4] y) { a = Dropout (x, r, t) y = Neg (a) }",
        r=np.float32(0.5),
        t=np.array(True),
    )
    assert simplify(graph) == ["Dropout", "Neg"]


def test_outputs_keep_their_names() -> None:
    graph = graph_of(
        """g (float[4] x) => (float[4] y, float[4] z, float[4] same) {
            a = Neg (x)
            y = Identity (a)
            z = Identity (y)
            same = Identity (x)
        }"""
    )
    assert simplify(graph) == ["Neg", "Identity", "Identity"]
    x = np.arange(4, dtype=np.float32)
    results = open_session(graph).run({"x": x})
    for actual, expected in zip(results, (-x, -x, x), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("low", [None, 0.0, 0.5, -1.0])
def test_relu_before_clip(low: float | None) -> None:
    bounds = "lo" if low is not None else ""
    constants = {"hi": np.float32(0.9)} | ({"lo": np.float32(low)} if low is not None else {})
    expected = ["Relu", "Clip"] if low == -1 else ["Clip"]
    check(f"r = Relu (a) b = Clip (r, {bounds}, hi)", expected, **constants)


def test_relu_behind_what_is_not_negative() -> None:
    check("s = Sigmoid (a) b = Relu (s)", ["Sigmoid"])
    check("s = Tanh (a) b = Relu (s)", ["Tanh", "Relu"])


@pytest.mark.parametrize(
    ("pads", "value", "merged"),
    [
        ([0, 0, 1, 2, 0, 0, 3, 0], 0.0, True),
        ([0, 0, 1, 2, 0, 0, 3, 0], 1.0, False),
        ([0, 1, 1, 2, 0, 0, 3, 0], 0.0, False),
        ([0, 0, -1, 2, 0, 0, 3, 0], 0.0, False),
    ],
)
def test_pads_move_into_conv(pads: list[int], value: float, merged: bool) -> None:
    channels = 2 + pads[1]
    graph = graph_of(
        """g (float[1, 2, 8, 8] x) => (float y) {
            p = Pad (x, pads, value)
            y = Conv <pads = [1, 0, 0, 2], strides = [2, 1]> (p, w)
        }""",
        pads=ints(*pads),
        value=np.float32(value),
        w=np.random.default_rng(0).normal(size=(3, channels, 3, 3)).astype(np.float32),
    )
    x = np.random.default_rng(1).normal(size=(1, 2, 8, 8)).astype(np.float32)
    before = open_session(graph, optimize=False).run({"x": x})[0]
    assert simplify(graph) == (["Conv"] if merged else ["Pad", "Conv"])
    after = open_session(graph, optimize=False).run({"x": x})[0]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "far", "merged"), [("Relu", 1, True), ("Relu", 3, False), ("Neg", 1, False)]
)
def test_pads_move_into_max_pool_where_nothing_is_negative(
    activation: str, far: int, merged: bool
) -> None:
    graph = graph_of(
        f"""g (float[1, 2, 8, 8] x) => (float y) {{
            a = {activation} (x)
            p = Pad (a, pads)
            y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (p)
        }}""",
        pads=ints(0, 0, 0, 0, 0, 0, far, 1),
    )
    x = np.abs(np.random.default_rng(1).normal(size=(1, 2, 8, 8))).astype(np.float32)
    before = open_session(graph, optimize=False).run({"x": x})[0]
    assert simplify(graph) == [activation, *([] if merged else ["Pad"]), "MaxPool"]
    np.testing.assert_array_equal(open_session(graph, optimize=False).run({"x": x})[0], before)
