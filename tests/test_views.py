"""Chains of reshapes and transposes: fewer nodes, the same elements in the same places."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.runtime import open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of


def simplify(graph: gs.Graph, x: np.ndarray[Any, Any]) -> list[str]:
    """Operators after simplifying; the answer may not change by a bit."""
    before = open_session(graph, optimize=False).run({"x": x})[0]
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target()), PassReport())
    np.testing.assert_array_equal(open_session(graph, optimize=False).run({"x": x})[0], before)
    return [node.op for node in graph.nodes]


def numbered(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_chain_means_the_same(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    x = numbered(*shape)
    lines, constants, last = [], {}, "x"
    for step in range(data.draw(st.integers(2, 5))):
        name = f"t{step}"
        kind = data.draw(
            st.sampled_from(["Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze"])
        )
        if kind == "Transpose":
            order = data.draw(st.permutations(range(len(shape))))
            lines.append(f"{name} = Transpose <perm = {list(order)}> ({last})")
            shape = [shape[axis] for axis in order]
        elif kind == "Flatten":
            axis = data.draw(st.integers(0, len(shape)))
            lines.append(f"{name} = Flatten <axis = {axis}> ({last})")
            shape = [int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))]
        elif kind == "Squeeze":
            lines.append(f"{name} = Squeeze ({last})")
            shape = [size for size in shape if size != 1]
        elif kind == "Unsqueeze":
            axis = data.draw(st.integers(0, len(shape)))
            constants[f"c{step}"] = np.array([axis])
            lines.append(f"{name} = Unsqueeze ({last}, c{step})")
            shape.insert(axis, 1)
        else:
            cut = data.draw(st.integers(0, len(shape)))
            shape = [int(np.prod(shape[:cut])), *shape[cut:]]
            constants[f"c{step}"] = np.array(shape)
            lines.append(f"{name} = Reshape ({last}, c{step})")
        last = name
        if not shape:
            break
    dims = ", ".join(str(size) for size in x.shape)
    graph = graph_of(
        f"g (float[{dims}] x) => (float y) {{ {' '.join(lines)} y = Neg ({last}) }}", **constants
    )
    assert len(simplify(graph, x)) <= len(lines) + 1


def test_two_views_are_one_and_back_is_none() -> None:
    graph = graph_of(
        """g (float[N, 6] x) => (float y) {
            a = Unsqueeze (x, one)
            b = Reshape (a, target)
            y = Relu (b)
        }""",
        one=np.array([1]),
        target=np.array([-1, 2, 3]),
    )
    assert simplify(graph, numbered(5, 6)) == ["Reshape", "Relu"]
    assert graph.nodes[0].inputs[1].values.tolist() == [-1, 2, 3]
    graph = graph_of(
        """g (float[N, 6] x) => (float y) {
            a = Unsqueeze (x, one)
            b = Squeeze (a, one)
            y = Relu (b)
        }""",
        one=np.array([1]),
    )
    assert simplify(graph, numbered(5, 6)) == ["Relu"]


def test_a_transpose_that_moves_ones_is_a_view() -> None:
    graph = graph_of(
        """g (float[N, 6, 7] x) => (float y) {
            a = Unsqueeze (x, axis)
            b = Transpose <perm = [0, 3, 1, 2]> (a)
            y = Relu (b)
        }""",
        axis=np.array([3]),
    )
    assert simplify(graph, numbered(2, 6, 7)) == ["Reshape", "Relu"]


def test_two_transposes_are_one_and_the_inner_one_stays_for_others() -> None:
    text = """g (float[2, 3, 4] x) => (float y OTHER) {
        a = Transpose <perm = [1, 2, 0]> (x)
        b = Transpose <perm = [1, 0, 2]> (a)
        y = Relu (b)
    }"""
    graph = graph_of(text.replace("OTHER", ""))
    assert simplify(graph, numbered(2, 3, 4)) == ["Transpose", "Relu"]
    assert graph.nodes[0].attrs["perm"] == [2, 1, 0]
    graph = graph_of(text.replace("OTHER", ", float a"))
    assert simplify(graph, numbered(2, 3, 4)) == ["Transpose", "Transpose", "Relu"]


def test_attention_as_torch_writes_it_transposes_once() -> None:
    graph = graph_of(
        """g (float[2, 5, 12] x) => (float[2, 3, 4, 5] y) {
            h = Reshape (x, heads)
            t = Transpose <perm = [0, 2, 1, 3]> (h)
            m = Reshape (t, merged)
            u = Transpose <perm = [0, 2, 1]> (m)
            s = Reshape (u, split)
            y = Neg (s)
        }""",
        heads=np.array([2, 5, 3, 4]),
        merged=np.array([-1, 5, 4]),
        split=np.array([2, 3, 4, 5]),
    )
    assert simplify(graph, numbered(2, 5, 12)) == ["Reshape", "Transpose", "Neg"]
    assert graph.nodes[1].attrs["perm"] == [0, 2, 3, 1]


@pytest.mark.parametrize(
    ("last", "merged"),
    [
        ("y = ReduceMean <axes = [1], keepdims = 0> (a)", True),
        ("y = ReduceMean <axes = [-2], keepdims = 0> (a)", True),
        ("y = ReduceMax <axes = [0, 1], keepdims = 0> (a)", True),
        ("y = ReduceSum <keepdims = 0> (a, axes)", True),
        ("y = Gather <axis = 1> (a, two)", True),
        ("y = ReduceMean <axes = [1]> (a)", False),
        ("y = ReduceMean <axes = [0], keepdims = 0> (a)", False),
        ("y = ReduceMean <keepdims = 0> (a)", False),
        ("y = Gather <axis = 1> (a, several)", False),
    ],
)
def test_what_removes_the_moved_axis_needs_no_transpose(last: str, merged: bool) -> None:
    graph = graph_of(
        f"g (float[3, 4, 5] x) => (float y) {{ a = Transpose <perm = [0, 2, 1]> (x) {last} }}",
        axes=np.array([1]),
        two=np.array(2),
        several=np.array([2, 0]),
    )
    assert ("Transpose" in simplify(graph, numbered(3, 4, 5))) is not merged
