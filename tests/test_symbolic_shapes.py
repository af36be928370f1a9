"""Shapes with symbols against those that onnxruntime makes."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings

from onnxcomp.exporting import to_proto
from onnxcomp.importing import from_proto
from onnxcomp.lengths import Length, Size
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.symbolic_shapes import infer_symbolic_shapes
from onnxcomp.testing import graph_of
from random_graphs import feed_of, models

SIZES = {f"i{n}": np.array([n]) for n in range(-1, 5)} | {"none": np.array(0), "last": np.array(1)}


def found_shapes(text: str, **constants: np.ndarray) -> dict[str, tuple[Size, ...]]:
    graph = graph_of(text, **constants, **SIZES)
    infer_shapes(graph)
    return infer_symbolic_shapes(graph).shapes


def written(shape: tuple[Size, ...]) -> list[int | str]:
    return [str(size) if isinstance(size, Length) else size for size in shape]


def test_heads_of_any_batch_and_sequence() -> None:
    """As TorchScript writes x.view(n, s, 4, -1) and back, by way of (n * 4, s, d)."""
    shapes = found_shapes(
        """m (float[N, S, 5] x) => (float[N, S, 12] y) {
            a = MatMul (x, w) s = Shape (a) n = Gather (s, none) l = Gather (s, last)
            u = Unsqueeze (n, i0) v = Unsqueeze (l, i0)
            t = Concat <axis = 0> (u, v, i4, d) h = Reshape (a, t)
            p = Transpose <perm = [0, 2, 1, 3]> (h)
            m = Mul (n, i4) t2 = Concat <axis = 0> (m, v, d) f = Reshape (p, t2)
            k = Div (m, i4) t3 = Concat <axis = 0> (k, i4, v, d) g = Reshape (f, t3)
            q = Transpose <perm = [0, 2, 1, 3]> (g) t4 = Concat <axis = 0> (u, v, d)
            y = Reshape (q, t4) }""",
        w=np.ones((5, 12), np.float32),
        d=np.array([-1]),
    )

    assert written(shapes["h"]) == ["N", "S", 4, 3]
    assert written(shapes["f"]) == ["4*N", "S", 3]
    assert written(shapes["g"]) == ["N", 4, "S", 3]


def test_a_cache_is_as_long_as_what_was_and_what_is_new() -> None:
    shapes = found_shapes(
        """m (float[N, P, 4] past, float[N, S, 4] x) => (float[N, Q, 4] y) {
            y = Concat <axis = 1> (past, x) s = Shape (past) p = Slice (s, i1, i2)
            t = Shape (y) q = Slice (t, i1, i2) new = Slice (y, p, q, i1) }"""
    )

    assert written(shapes["y"]) == ["N", "P + S", 4]
    assert written(shapes["new"]) == ["N", "S", 4]


def test_expanding_to_lengths_of_which_minus_one_stays() -> None:
    """As TorchScript writes token.expand(n, -1, -1)."""
    shapes = found_shapes(
        """m (float[N, S, 5] x) => (float[N, Q, 5] y) {
            s = Shape (x) n = Slice (s, i0, i1) t = Concat <axis = 0> (n, minus, minus)
            count = Shape (t) ones = ConstantOfShape <value = int64[1] {1}> (count)
            negative = Mul (ones, minus) same = Equal (t, negative) u = Where (same, ones, t)
            e = Expand (token, u) y = Concat <axis = 1> (e, x) }""",
        token=np.ones((1, 2, 5), np.float32),
        minus=np.array([-1]),
    )

    assert written(shapes["y"]) == ["N", "2 + S", 5]


@pytest.mark.parametrize(("stride", "lengths"), [(1, "-2 + H"), (2, "~0")])
def test_space_under_a_kernel(stride: int, lengths: str) -> None:
    shapes = found_shapes(
        f"""m (float[N, 2, H] x) => (float[N, 3, Q] y) {{
            a = Conv <strides = [{stride}]> (x, w) b = Conv <strides = [{stride}]> (x, w)
            y = Add (a, b) }}""",
        w=np.ones((3, 2, 3), np.float32),
    )

    assert written(shapes["y"]) == ["N", 3, lengths]


def with_all_outputs(graph: gs.Graph) -> onnx.ModelProto:
    model = to_proto(graph)
    ends = {value.name for value in model.graph.output}
    names = dict.fromkeys(name for node in model.graph.node for name in node.output if name)
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in ends)
    return model


@settings(max_examples=25, deadline=None)
@given(models())
def test_shapes_of_random_models_are_those_at_run_time(model: onnx.ModelProto) -> None:
    graph = from_proto(model)
    feed = feed_of(to_proto(graph))
    session = open_session(from_proto(with_all_outputs(graph)))
    names = [value.name for value in with_all_outputs(graph).graph.output]
    ran = {name: np.shape(value) for name, value in zip(names, session.run(feed), strict=True)}
    symbols = {
        size: length
        for tensor in graph.inputs
        for size, length in zip(tensor.shape, feed[tensor.name].shape, strict=True)
        if isinstance(size, str)
    }

    shapes = infer_symbolic_shapes(graph).shapes

    for name in shapes.keys() & ran.keys():
        for size, length in zip(shapes[name], ran[name], strict=True):
            if not isinstance(size, Length):
                assert size == length, name
            elif size.is_symbol:  # one that has no number yet gets it here
                assert symbols.setdefault(str(size), length) == length, name
            elif all(s in symbols for term, _ in size.terms for s in term):
                terms = (f * math.prod(symbols[s] for s in term) for term, f in size.terms)
                assert sum(terms) == length, name
