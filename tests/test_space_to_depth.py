"""Pixels stacked as channels before a Conv: the same answers without the copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.integer_forms import write_integer_forms
from onnxcomp.model import check_graph
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

FOCUS = """g (float[1, 3, 8, 12] x) => (float[1, 5, H, W] y) {{
    top = Slice (x, zero, far, rows, two) bottom = Slice (x, one, far, rows, two)
    a = Slice (top, zero, far, columns, two) b = Slice (bottom, {b_start}, far, columns, {b_step})
    c = Slice (top, one, far, columns, two) d = Slice (bottom, one, far, columns, two)
    blocks = Concat <axis = 1> (a, b, c, d)
    y = Conv <kernel_shape = [3, 3], pads = [1, 0, 1, 1], strides = [1, 2]{conv}> (blocks, w) }}"""


def one(value: int) -> Any:
    return np.array([value], np.int64)


def focus(conv: str = "", b_start: str = "zero", b_step: str = "two") -> gs.Graph:
    weights = np.random.default_rng(0).standard_normal((5, 12, 3, 3), np.float32)
    return graph_of(
        FOCUS.format(conv=conv, b_start=b_start, b_step=b_step),
        w=weights,
        **{"zero": one(0), "one": one(1), "two": one(2), "far": one(2**31 - 1)},
        **{"rows": one(2), "columns": one(-1)},
    )


def to_integers(graph: gs.Graph) -> None:
    infer_shapes(graph)
    write_integer_forms(graph, resolve_target("x86-vnni"), lambda node: True)


def simplify(graph: gs.Graph) -> None:
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target()), PassReport())


Rewrite = Callable[[gs.Graph], None]
REWRITES = pytest.mark.parametrize("rewrite", [to_integers, simplify])


def rewritten(graph: gs.Graph, rewrite: Rewrite) -> tuple[Any, Any, Counter[str]]:
    values = np.random.default_rng(1).standard_normal(graph.inputs[0].shape, np.float32)
    feed = {"x": values}
    before = open_session(graph, threads=1).run(feed)[0]
    rewrite(graph)
    check_graph(graph)
    return before, open_session(graph, threads=1).run(feed)[0], Counter(n.op for n in graph.nodes)


@REWRITES
def test_focus_becomes_one_conv(rewrite: Rewrite) -> None:
    graph = focus()
    want, got, ops = rewritten(graph, rewrite)
    assert ops == {"Conv": 1}
    assert graph.nodes[0].inputs[1].shape == (5, 3, 6, 6)
    assert want.shape == got.shape == (1, 5, 4, 3)
    assert np.allclose(want, got, rtol=1e-4, atol=1e-5)


@REWRITES
def test_space_to_depth_becomes_one_conv(rewrite: Rewrite) -> None:
    weights = np.random.default_rng(0).standard_normal((4, 18, 1, 1), np.float32)
    graph = graph_of(
        """g (float[2, 2, 6, 9] x) => (float[2, 4, 2, 3] y) {
            s = SpaceToDepth <blocksize = 3> (x) y = Conv (s, w) }""",
        w=weights,
    )
    want, got, ops = rewritten(graph, rewrite)
    assert ops == {"Conv": 1}
    assert np.allclose(want, got, rtol=1e-4, atol=1e-5)


@REWRITES
@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(focus(conv=", dilations = [2, 1]"), id="dilated"),
        pytest.param(focus(conv=', auto_pad = "SAME_UPPER"').copy(), id="padded by need"),
        pytest.param(focus(b_start="one"), id="a place twice"),
    ],
)
def test_what_is_not_the_same_convolution_is_left_alone(graph: gs.Graph, rewrite: Rewrite) -> None:
    graph = graph.copy()
    if "auto_pad" in graph.nodes[-1].attrs:
        del graph.nodes[-1].attrs["pads"]
    want, got, ops = rewritten(graph, rewrite)
    assert ops["Concat"] == 1  # simplifying merges equal Slices
    assert np.array_equal(want, got)


@REWRITES
def test_blocks_that_others_read_stay(rewrite: Rewrite) -> None:
    graph = focus()
    tensor = graph.tensors()["blocks"]
    graph.outputs.append(gs.Variable("z", np.float32, (1, 12, 4, 6)))
    graph.nodes.append(gs.Node("Relu", "relu", inputs=[tensor], outputs=[graph.outputs[-1]]))
    assert rewritten(graph, rewrite)[2]["Concat"] == 1


def test_a_weight_that_others_read_is_not_kept_twice() -> None:
    graph = focus()
    conv = graph.nodes[-1]
    other = gs.Variable("other", np.float32, (1, 12, 4, 6))
    graph.inputs.append(other)
    graph.outputs.append(gs.Variable("z", np.float32, (1, 5, 4, 3)))
    graph.nodes.append(gs.Node("Conv", "b", conv.attrs, [other, conv.inputs[1]], graph.outputs[1:]))
    report = PassReport()
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target()), report)
    assert "Concat" in {node.op for node in graph.nodes}
    assert any("used elsewhere" in reason for reason in report.skipped.values())


def test_blocks_of_an_open_batch_and_unknown_size() -> None:
    """The size has to be known: pixels at the end of an odd one would belong to no block."""
    for size, ops in (("8, 12", {"Conv": 1}), ("H0, W0", {"Slice": 6, "Concat": 1, "Conv": 1})):
        graph = focus()
        graph.inputs[0].shape = ["N", 3, *(int(s) if s.isdigit() else s for s in size.split(", "))]
        graph.outputs[0].shape = ["N", 5, "H", "W"]
        simplify(graph)
        assert Counter(node.op for node in graph.nodes) == ops
