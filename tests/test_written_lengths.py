"""What is written of computed targets, and what stays computed."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, is_constant, remove_unused
from onnxcomp.runtime import open_session
from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import graph_of
from onnxcomp.written_lengths import write_lengths

INTEGERS = {f"i{n}": np.array([n]) for n in range(5)} | {"whole": np.array([2**63 - 1])}


def written(text: str, **constants: np.ndarray) -> gs.Graph:
    graph = graph_of(text, **constants, **INTEGERS)
    infer_shapes(graph)
    write_lengths(graph, Names(graph))
    remove_unused(graph)
    return graph


def target(graph: gs.Graph, name: str, index: int = 1) -> list[object]:
    """The parts of a target: numbers, or the operator that computes one."""
    node = next(n for n in graph.nodes if n.outputs[0].name == name)
    tensor = node.inputs[index]
    if is_constant(tensor):
        return list(tensor.values.tolist())
    parts = tensor.inputs[0].inputs
    return [p.values.item() if is_constant(p) else p.inputs[0].op for p in parts]


HEADS = """m (float[N, S, 12] x) => (float[A, S, 3] y) {
    s = Shape (x) n = Slice (s, i0, i1) l = Slice (s, i1, i2)
    t = Concat <axis = 0> (n, l, i4, i3) h = Reshape (x, t)
    p = Transpose <perm = [0, 2, 1, 3]> (h) m = Mul (n, i4)
    t2 = Concat <axis = 0> (m, l, i3) y = Reshape (p, t2) }"""


def test_lengths_that_stay_in_place_are_copied_and_others_stay_computed() -> None:
    graph = written(HEADS)

    assert target(graph, "h") == [0, 0, 4, 3]
    assert target(graph, "y") == ["Mul", "Slice", 3]
    x = np.arange(120, dtype=np.float32).reshape(2, 5, 12)
    (found,) = open_session(graph).run({"x": x})
    expected = x.reshape(2, 5, 4, 3).transpose(0, 2, 1, 3).reshape(8, 5, 3)
    np.testing.assert_array_equal(found, expected)


def test_a_target_where_zero_means_zero_is_written_too() -> None:
    """As torch.export writes every view."""
    graph = written(HEADS.replace("Reshape (", "Reshape <allowzero = 1> ("))

    assert target(graph, "h") == [0, 0, 4, 3]
    assert [n.attrs.get("allowzero", 0) for n in graph.nodes if n.op == "Reshape"] == [0, 1]
    assert target(graph, "y") == ["Mul", "Slice", 3]


def test_half_of_a_known_width_is_a_number() -> None:
    """As TorchScript writes rotate_half: x[..., : x.shape[-1] // 2]."""
    graph = written(
        """m (float[N, S, 12] x) => (float[N, S, Q] y) {
            s = Shape (x) d = Slice (s, i2, i3) h = Div (d, i2) z = Slice (x, i0, h, i2)
            y = Neg (z) }"""
    )

    node = next(n for n in graph.nodes if n.op == "Slice")
    assert node.inputs[2].values.tolist() == [6]
    assert [n.op for n in graph.nodes] == ["Slice", "Neg"]


def test_a_weight_behind_an_identity_is_no_length() -> None:
    graph = written(
        """m (float[N, 3] x) => (float[N, 3] y) { w = Identity (scale) y = Mul (x, w) }""",
        scale=np.asarray([0.5, 1.5, 2.5], np.float32),
    )

    assert [node.op for node in graph.nodes] == ["Identity", "Mul"]
