"""What a graph holds is written where it belongs and as it came."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.exporting import to_proto, without_data
from onnxcomp.graph import Names, constants
from onnxcomp.importing import from_proto
from onnxcomp.testing import (
    answers,
    assert_same_answers,
    graph_of,
    model_of,
    round_trip,
    small_convnet,
)

READS_W = "m () => (float[3] y) { y = Anything (w) }"
ONES = np.ones(3, np.float32)


# --- constants of every type ------------------------------------------------------------------

DTYPES = [
    *(np.dtype(kind) for kind in "?bBhHiIqQefdFD"),
    *(
        np.dtype(getattr(ml_dtypes, name))
        for name in (
            *("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"),
            *("float8_e8m0fnu", "float4_e2m1fn", "int4", "uint4", "int2", "uint2"),
            *("float6_e2m3fn", "float6_e3m2fn"),
        )
        if hasattr(ml_dtypes, name) and ("float6" not in name or hasattr(TensorProto, "FLOAT6E2M3"))
    ),
]


def some_values(dtype: np.dtype[Any], count: int) -> np.ndarray[Any, Any]:
    signs = np.array([1, 0, 1, 1, 0, 1, 1], np.int8)
    return np.resize(signs, count).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3)], ids=str)
def test_constants_of_every_type_are_read_and_written(
    dtype: np.dtype[Any], shape: tuple[int, ...]
) -> None:
    wanted = some_values(dtype, int(np.prod(shape))).reshape(shape)
    model = model_of(READS_W, w=wanted)
    graph = from_proto(model_copy(model))
    (constant,) = constants(graph).values()
    values = constant.values
    assert (values.dtype, values.shape) == (wanted.dtype, wanted.shape)
    assert values.tobytes() == wanted.tobytes()
    assert not values.flags.writeable
    assert list(to_proto(graph).graph.initializer) == list(model.graph.initializer)
    graph.nodes[0].inputs[0] = gs.Constant("w", np.array(wanted))  # made by a pass
    assert list(to_proto(graph).graph.initializer) == list(model.graph.initializer)


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.kind != "c"], ids=str)
def test_values_in_typed_fields_are_read_and_written_as_they_came(dtype: np.dtype[Any]) -> None:
    wanted = some_values(dtype, 7)
    data_type = helper.np_dtype_to_tensor_dtype(dtype)
    tensor = helper.make_tensor("w", data_type, [7], wanted.astype(np.float64).tolist())
    assert not tensor.HasField("raw_data")
    model = model_of(READS_W)
    model.graph.initializer.append(tensor)
    graph = from_proto(model)
    assert constants(graph)["w"].values.tobytes() == wanted.tobytes()
    assert list(to_proto(graph).graph.initializer) == [tensor]


def model_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def test_strings_survive() -> None:
    words = np.array(["a", "", "Grüße"], object)
    graph = from_proto(model_of(READS_W, w=words))
    assert constants(graph)["w"].values.tolist() == words.tolist()
    graph.nodes[0].inputs[0] = gs.Constant("w", words)
    (written,) = to_proto(graph).graph.initializer
    assert numpy_helper.to_array(written).tolist() == words.tolist()


def test_arrays_of_any_layout_are_written_by_their_values() -> None:
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    for array in (grid.T, grid[:, ::2], np.asfortranarray(grid)):
        graph = gs.Graph([gs.Node("Identity", inputs=[gs.Constant("w", array)])])
        (written,) = to_proto(graph).graph.initializer
        np.testing.assert_array_equal(numpy_helper.to_array(written), array)


def test_without_data_keeps_shapes_and_the_values_of_small_constants() -> None:
    graph = graph_of(READS_W.replace("(w)", "(w, v)"), w=np.ones((40, 40), np.float16), v=ONES)
    large, small = to_proto(graph, without_data).graph.initializer
    assert (large.data_type, list(large.dims)) == (TensorProto.FLOAT16, [40, 40])
    assert not large.raw_data
    np.testing.assert_array_equal(numpy_helper.to_array(small), ONES)


# --- sparse initializers ----------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.sets(st.integers(0, 23), min_size=0, max_size=9),
    st.sampled_from(["raw", "typed"]),
    st.booleans(),
    st.sampled_from([TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8]),
)
def test_sparse_initializers_are_read_dense_and_written_sparse(
    places: set[int], field: str, linear: bool, data_type: int
) -> None:
    flat = np.array(sorted(places), np.int64)
    indices = flat if linear else np.stack(np.unravel_index(flat, (2, 3, 4)), 1)
    numbers = np.arange(1, len(flat) + 1)
    dense = np.zeros(24, helper.tensor_dtype_to_np_dtype(data_type))
    dense[flat] = numbers
    tensors = [("w", data_type, numbers), ("i", TensorProto.INT64, indices)]
    values, where = (
        helper.make_tensor(name, kind, array.shape, array.flatten().tolist())
        if field == "typed"
        else numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(kind)), name)
        for name, kind, array in tensors
    )
    model = model_of(READS_W)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, [2, 3, 4]))
    wanted = model.graph.sparse_initializer[0].SerializeToString()
    graph = from_proto(model)
    read = constants(graph)["w"].values
    assert read.dtype == dense.dtype
    np.testing.assert_array_equal(read, dense.reshape(2, 3, 4))
    written = to_proto(graph).graph
    assert [t.SerializeToString() for t in written.sparse_initializer] == [wanted]
    assert not written.initializer
    constants(graph)["w"].name = "v"
    assert to_proto(graph).graph.sparse_initializer[0].values.name == "v"


# --- functions --------------------------------------------------------------------------------


def test_local_functions_with_attributes_survive() -> None:
    model = model_of("""<ir_version: 8, opset_import: ["" : 17, "local" : 1],
            metadata_props: ["k" : "v"]>
        m (float[N, 3] x) => (float[N, 3] y) { [call] y = local.scaled <factor = 2.5> (x) }
        <domain: "local", opset_import: ["" : 17], doc_string: "scales">
        scaled <factor> (a) => (b) {
            c = Constant <value_float: float = @factor> ()
            b = Mul (a, c)
        }""")
    after = round_trip(model)
    assert list(after.functions) == list(model.functions)
    assert_same_answers(model, after)


# --- names and places -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("m (float[3] x) => (float[3] x) { }", {}),
        ("m (float[3] x) => (float[3] w) { }", {"w": ONES}),
        ("m (float[3] x) => (float[3] y, float[3] w) { y = Mul (x, w) }", {"w": ONES * 2}),
        ("m (float[3] x) => (float[3] y, float[3] x) { y = Neg (x) }", {}),
        ("m (float[3] x) => (float[3] y) { z = Neg (x) y = Neg (z) }", {}),
        ("m (float[3] x) => (float[3] y) { y = Clip (x, , top) }", {"top": np.float32(2)}),
        ("m (float[N] x) => (float[N] y, int64[N] at) { y, , at = Unique <sorted = 1> (x) }", {}),
    ],
)
def test_unusual_graphs_answer_as_before(text: str, weights: dict[str, Any]) -> None:
    model = model_of(text, **weights)
    after = round_trip(model)
    assert_same_answers(model, after)
    assert [node.name for node in after.graph.node] == [node.name for node in model.graph.node]
    assert list(after.graph.output) == list(model.graph.output)


def test_nodes_of_the_same_name_stay_two() -> None:
    model = model_of("m (float[3] x) => (float[3] y) { [same] z = Neg (x) [same] y = Neg (z) }")
    assert list(round_trip(model).graph.node) == list(model.graph.node)


def test_tensors_without_elements_answer_as_before() -> None:
    empty = np.zeros((2, 0), np.float32)
    model = model_of("m (float[2, 0] x) => (float[2, 0] y) { y = Add (x, w) }", w=empty)
    assert_same_answers(model, round_trip(model), [{"x": empty}])


def test_exporting_twice_gives_the_same_bytes_and_leaves_the_opsets_alone() -> None:
    model = small_convnet()
    model.opset_import.add(domain="org.example", version=1)
    graph = from_proto(model)
    graph.nodes.append(
        gs.Node("Odd", domain="org.other", inputs=[graph.inputs[0]], outputs=[gs.Variable("odd")])
    )
    first = to_proto(graph)
    assert [(o.domain, o.version) for o in first.opset_import] == [
        ("", 17),
        ("org.example", 1),
        ("org.other", 1),
    ]
    assert len(graph.import_domains) == 2
    assert to_proto(graph).SerializeToString() == first.SerializeToString()


def test_types_of_custom_operators_are_written_for_old_runtimes() -> None:
    graph = graph_of("m (float[3] x) => (float[3] y) { y = Relu (x) }")
    made = gs.Variable(Names(graph).fresh("made"), np.dtype(np.float32), [3])
    graph.nodes.insert(
        0, gs.Node("Odd", domain="org.other", inputs=[graph.inputs[0]], outputs=[made])
    )
    graph.nodes[1].inputs[0] = made
    (info,) = to_proto(graph).graph.value_info
    assert info == helper.make_tensor_value_info("made", TensorProto.FLOAT, [3])


def test_a_newer_opset_raises_the_ir_version_and_nothing_lowers_it() -> None:
    model = model_of("m (float[3] x) => (float[3] y) { y = Relu (x) }")
    for opset, came, wanted in ((17, 8, 8), (17, 10, 10), (21, 8, 10), (19, 3, 9), (9, 3, 4)):
        model.opset_import[0].version, model.ir_version = opset, came
        assert to_proto(from_proto(model_copy(model))).ir_version == wanted


def test_extra_outputs_are_added_once() -> None:
    graph = graph_of("m (float[3] x) => (float[3] y) { z = Relu (x) y = Neg (z) }")
    proto = to_proto(graph, extra_outputs=["z", "y"])
    assert [value.name for value in proto.graph.output] == ["y", "z"]
    assert answers(proto, {"x": -ONES})["z"].tolist() == [0, 0, 0]
