"""Shapes are inferred without weights, and only where nothing is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from onnxcomp.exporting import to_proto
from onnxcomp.graph import all_graphs
from onnxcomp.importing import from_proto
from onnxcomp.model import load_model, save_model
from onnxcomp.shapes import TensorType, infer_shapes, inferred_types
from onnxcomp.stored import StoredValues
from onnxcomp.testing import graph_of

FLOAT, INT64 = np.dtype(np.float32), np.dtype(np.int64)


def test_gaps_are_filled_and_what_is_known_stays() -> None:
    graph = graph_of(
        """g (float[N, 6] x) => (float y) {
            a = MatMul (x, w)
            s = Shape (a)
            b = Reshape (a, t)
            y = Relu (b)
        }""",
        w=np.zeros((6, 8), np.float32),
        t=np.array([0, 2, -1]),
    )
    tensors = graph.tensors()
    tensors["a"].shape = ["batch", None]
    infer_shapes(graph)
    assert tensors["a"].shape == ["N", 8]
    assert (tensors["s"].dtype, tensors["s"].shape) == (INT64, [2])
    assert (tensors["b"].dtype, tensors["b"].shape) == (FLOAT, ["N", 2, 4])
    tensors["a"].shape = [5, 8]
    infer_shapes(graph)
    assert tensors["a"].shape == [5, 8]


def test_outputs_stay_as_promised() -> None:
    graph = graph_of("g (float[2, 3] x) => (float y) { y = Relu (x) }")
    before = to_proto(graph).SerializeToString()
    infer_shapes(graph)
    assert to_proto(graph).SerializeToString() == before


def test_wrong_claims_of_a_file_are_not_believed() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[1, 9] y) <float[1, 4] a> { a = Neg (x) y = Neg (a) }"""
    )
    (_, types), *_ = inferred_types(from_proto(model))
    assert types["a"] == TensorType(FLOAT, ("N", 4))
    assert types["y"] == TensorType(FLOAT, ("N", 4))


def test_claims_about_custom_operators_are() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "custom": 1]>
        g (float[N, 4] x) => (float y) <float[N, 7] a> { a = custom.Op (x) y = Neg (a) }"""
    )
    (_, types), *_ = inferred_types(from_proto(model))
    assert types["y"] == TensorType(FLOAT, ("N", 7))


def test_bodies_see_what_is_around_them() -> None:
    graph = graph_of(
        """g (bool c, float[N, 4] x) => (float y) {
            a = Relu (x)
            y = If (c) <
                then_branch = t () => (float u) { b = Transpose (a) u = Neg (b) },
                else_branch = e () => (float v) { b = Exp (a) v = Neg (b) }
            >
        }"""
    )
    infer_shapes(graph)
    shapes = [body.tensors()["b"].shape for body in list(all_graphs(graph))[1:]]
    assert shapes == [[4, "N"], ["N", 4]]
    for _, types in inferred_types(graph):
        assert types["a"] == TensorType(FLOAT, ("N", 4))


def test_sizes_below_zero_and_invented_symbols_are_unknown() -> None:
    graph = graph_of("g (float[N, 4] x) => (float y) { a = NonZero (x) y = Cast <to = 1> (a) }")
    graph.inputs[0].shape = [-1, 4]
    (_, types), *_ = inferred_types(graph)
    assert types["x"].shape == (None, 4)
    assert types["a"].shape == (2, None)


def test_large_weights_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = graph_of(
        "g (float[N, 64] x) => (float y) { a = MatMul (x, w) y = Relu (a) }",
        w=np.ones((64, 64), np.float32),
    )
    save_model(graph, tmp_path / "model.onnx", external=True)
    large = load_model(tmp_path / "model.onnx").graph

    def refuse(values: StoredValues) -> None:
        raise AssertionError(f"{values.tensor.name} was read")

    monkeypatch.setattr(StoredValues, "load", refuse)
    infer_shapes(large)
    assert large.tensors()["a"].shape == ["N", 64]


def test_graphs_that_cannot_be_inferred_keep_what_they_say() -> None:
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Concat", ["x", "w"], ["a"], axis=0),
                helper.make_node("MatMul", ["a", "v"], ["y"]),
            ],
            "wrong",
            [helper.make_tensor_value_info("x", 1, [2, 3])],
            [helper.make_tensor_value_info("y", 1, None)],
            [
                numpy_helper.from_array(np.zeros((2, 4), np.float32), "w"),
                numpy_helper.from_array(np.zeros((9, 4), np.float32), "v"),
            ],
        )
    )
    graph = from_proto(model)
    infer_shapes(graph)
    assert isinstance(graph.nodes[0].outputs[0], gs.Variable)
    assert graph.nodes[1].outputs[0].shape is None


def test_shapes_pass_operators_that_onnx_has_no_inference_for() -> None:
    graph = graph_of(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 6, 5] x) => (float[N, 6, M] y) {
            a = GroupNormalization <num_groups = 2> (x, scale, shift)
            b = MeanVarianceNormalization (a) c = Relu (b) y = Conv (c, w) }""",
        **dict.fromkeys(("scale", "shift"), np.ones(6, np.float32)),
        w=np.ones((6, 6, 1), np.float32),
    )

    infer_shapes(graph)

    assert [graph.tensors()[name].shape for name in "abc"] == [["N", 6, 5]] * 3
    assert graph.nodes[0].op == "GroupNormalization"


def test_shapes_pass_what_onnxruntime_fused() -> None:
    graph = graph_of(
        """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[N, 3, 8, 8] x) => (float[N, M] y, float[N, P] z) {
            a = com.microsoft.FusedConv <activation = "Relu", strides = [2, 2]> (x, w)
            b = Flatten (a) c = com.microsoft.FusedGemm <activation = "Relu", transB = 1> (b, g)
            d = com.microsoft.BiasGelu (c, v) y = com.microsoft.FusedMatMul <alpha = 0.5> (d, m)
            e = com.microsoft.FusedMatMul <transB = 1> (d, n) z = Relu (e) }""",
        w=np.ones((4, 3, 2, 2), np.float32),
        g=np.ones((7, 64), np.float32),
        v=np.ones(7, np.float32),
        m=np.ones((7, 5), np.float32),
        n=np.ones((2, 7), np.float32),
    )

    infer_shapes(graph)

    shapes = {name: tensor.shape for name, tensor in graph.tensors().items()}
    assert shapes["a"] == ["N", 4, 4, 4]
    assert shapes["c"] == shapes["d"] == ["N", 7]
    assert shapes["e"] is None  # onnx cannot tell of transposed factors
    assert graph.nodes[0].op == "FusedConv"


@pytest.mark.parametrize(("split", "shape"), [(np.array(1), [3]), (np.array([1, 1]), [3, 1])])
def test_parts_of_a_sequence_have_the_rank_that_onnxruntime_gives_them(
    split: np.ndarray, shape: list[int]
) -> None:
    """onnx ignores keepdims where a split is given; onnxruntime does so for a vector only."""
    graph = graph_of(
        """g (float[3, 2] x) => (float y) {
            parts = SplitToSequence <axis = 1, keepdims = 0> (x, split)
            part = SequenceAt (parts, i)
            y = Relu (part) }""",
        split=split,
        i=np.array(0),
    )
    graph.outputs[0].shape = None
    session = onnxruntime.InferenceSession(to_proto(graph).SerializeToString())
    (y,) = session.run(None, {"x": np.zeros((3, 2), np.float32)})

    infer_shapes(graph)

    assert graph.tensors()["part"].shape == shape == list(y.shape)
