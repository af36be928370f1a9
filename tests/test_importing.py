"""What graphsurgeon's importer would lose arrives in the graph, and leaves it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

from onnxcomp.exporting import to_proto
from onnxcomp.graph import constants, required_inputs
from onnxcomp.importing import from_proto
from onnxcomp.testing import answers, assert_same_answers, graph_of, model_of, round_trip, small_mlp

ONES = np.ones(3, np.float32)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


# --- metadata and doc strings -----------------------------------------------------------------

IF_TEXT = """m (bool c, float[3] x) => (float[3] y) {
    [choose] y = If (c) <
        then_branch = then_g () => (float[3] a) { [plus] a = Add (x, w) },
        else_branch = else_g () => (float[3] b) { [minus] b = Sub (x, w) }
    >
}"""


def decorated() -> onnx.ModelProto:
    """A model with a doc string and metadata in every place that has one."""
    model = model_of(IF_TEXT, w=ONES)
    model.doc_string, model.domain, model.model_version = "doc of model", "org.example", 7
    model.producer_name, model.producer_version = "producer", "1.2"
    helper.set_model_props(model, {"author": "model"})
    branch = model.graph.node[0].attribute[0].g
    for place in (model.graph, branch, model.graph.node[0], branch.node[0]):
        place.doc_string = f"doc of {place.name}"
        place.metadata_props.add(key="author", value=place.name)
    for value in (*model.graph.input, *model.graph.output, *branch.output):
        value.doc_string = f"doc of {value.name}"
        value.metadata_props.add(key="author", value=value.name)
        value.type.denotation = "TENSOR"
        for dim in value.type.tensor_type.shape.dim:
            dim.denotation = "DATA_FEATURE"
    tensor = model.graph.initializer[0]
    tensor.doc_string = "doc of w"
    tensor.metadata_props.add(key="author", value="w")
    model.graph.quantization_annotation.add(tensor_name="w").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="s"
    )
    return model


def texts(message: Any, found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Every doc string, denotation and metadata entry anywhere in a message, in order."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "denotation", "key", "value", "producer_name", "domain"):
            found.append((field.name, str(value)))
        elif field.message_type is not None:
            for item in (
                value if isinstance(value, (list, tuple)) or hasattr(value, "add") else [value]
            ):
                texts(item, found)
    return found


def test_doc_strings_and_metadata_survive_everywhere() -> None:
    model = decorated()
    before, after = texts(model, []), texts(round_trip(model), [])
    assert sorted(before) == sorted(after)
    assert len(before) >= 30
    assert round_trip(model).model_version == 7


def test_doc_string_of_a_tensor_survives_somebody_reading_its_values() -> None:
    graph = from_proto(decorated())
    assert constants(graph)["w"].values.tolist() == [1, 1, 1]
    (written,) = to_proto(graph).graph.initializer
    assert written.doc_string == "doc of w"


def test_metadata_of_the_node_in_the_else_branch_is_not_given_to_the_then_branch() -> None:
    model = decorated()
    then, other = (attribute.g for attribute in model.graph.node[0].attribute)
    then.node[0].output[0] = then.output[0].name = other.node[0].output[0]
    after = round_trip(model).graph.node[0].attribute
    assert after[0].g.node[0].doc_string == "doc of plus"
    assert not after[1].g.node[0].doc_string


# --- initializers that are inputs -------------------------------------------------------------


def with_weight_as_input(ir_version: int) -> onnx.ModelProto:
    model = model_of("m (float[3] x, float[3] w) => (float[3] y) { y = Mul (x, w) }", w=ONES * 2)
    model.ir_version = ir_version
    model.opset_import[0].version = 9
    return model


def test_up_to_ir_3_initializers_that_are_inputs_are_constants() -> None:
    graph = from_proto(with_weight_as_input(3))
    assert [t.name for t in graph.inputs] == ["x"]
    assert isinstance(graph.nodes[0].inputs[1], gs.Constant)
    after = to_proto(graph)
    assert after.ir_version >= 4, "before IR 4 an initializer has to be an input"
    assert_same_answers(with_weight_as_input(3), after, [{"x": ONES}])


def test_from_ir_4_initializers_that_are_inputs_stay_defaults_of_inputs() -> None:
    graph = from_proto(with_weight_as_input(4))
    assert [t.name for t in graph.inputs] == ["x", "w"]
    assert isinstance(graph.nodes[0].inputs[1], gs.Variable)
    assert [t.name for t in required_inputs(graph)] == ["x"]
    for version in (to_proto(graph), to_proto(graph.copy())):
        assert answers(version, {"x": ONES})["y"].tolist() == [2, 2, 2]
        assert answers(version, {"x": ONES, "w": ONES * 5})["y"].tolist() == [5, 5, 5]
    assert answers(graph, {"x": ONES, "w": ONES * 5})["y"].tolist() == [5, 5, 5]


def test_large_defaults_of_inputs_are_handed_to_sessions() -> None:
    weights = np.arange(8192, dtype=np.float32)
    text = "m (float[8192] x, float[8192] w) => (float[8192] y) { y = Mul (x, w) }"
    graph, x = graph_of(text, w=weights), np.full(8192, 2, np.float32)
    np.testing.assert_array_equal(answers(graph, {"x": x})["y"], weights * 2)
    np.testing.assert_array_equal(answers(graph, {"x": x, "w": x})["y"], x * 2)


# --- types of values --------------------------------------------------------------------------


def test_dims_survive_symbolic_unknown_and_absent() -> None:
    model = model_of("""m (float[N, 3, unk] x, float[] s, float[1, 2] z) => (float[N, 3, unk] y) {
        y = Anything (x, s, z)
    }""")
    model.graph.input[0].type.tensor_type.shape.dim[2].Clear()
    model.graph.input[2].type.tensor_type.ClearField("shape")
    after = round_trip(model).graph
    assert list(after.input) == list(model.graph.input)
    assert list(after.output) == list(model.graph.output)


@pytest.mark.parametrize(
    "kind",
    [
        "seq(float[N])",
        "optional(float[N])",
        "optional(seq(int64[]))",
        "map(int64, float)",
        "map(string, seq(float[N]))",
        "seq(map(int64, float))",
        "sparse_tensor(float[N])",
    ],
)
def test_sequences_optionals_and_maps_survive(kind: str) -> None:
    model = model_of(f"""m ({kind} x, bool c) => ({kind} y) <{kind} inner> {{
        inner = Anything (x)
        y = If (c) <
            then_branch = g () => ({kind} a) {{ a = Identity (inner) }},
            else_branch = h () => ({kind} b) {{ b = Identity (x) }}
        >
    }}""")
    after = round_trip(model)
    assert [list(after.graph.input), list(after.graph.output), list(after.graph.value_info)] == [
        list(model.graph.input),
        list(model.graph.output),
        list(model.graph.value_info),
    ]
    assert after.graph.node[1] == model.graph.node[1]


def test_what_an_output_declares_wins_over_value_info_of_the_same_name() -> None:
    model = model_of("m (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }")
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3]))
    graph = from_proto(copy_of(model))
    assert graph.outputs[0].shape == ["N", 3]
    assert list(to_proto(graph).graph.output) == list(model.graph.output)


def test_a_sequence_answers_as_before() -> None:
    model = model_of("""m (float[4] x) => (seq(float[]) s, float[] last) {
        one = Constant <value_int = -1> ()
        s = SplitToSequence <keepdims = 0> (x)
        last = SequenceAt (s, one)
    }""")
    assert_same_answers(model, round_trip(model), [{"x": np.arange(4, dtype=np.float32)}])


def test_half_precision_models_survive() -> None:
    model = model_of(
        "m (float16[N, 3] x) => (float16[N, 3] y) { y = Mul (x, w) }", w=ONES.astype(np.float16) / 3
    )
    assert_same_answers(model, round_trip(model))


# --- external data in places that are not weights ---------------------------------------------


def test_external_data_of_sparse_tensors_and_functions_is_read_at_once(tmp_path: Path) -> None:
    values = np.array([4, 5], np.float32)
    (tmp_path / "w.bin").write_bytes(values.tobytes())
    model = model_of(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        m (float[2] x) => (float[2] y, float[4] z) { y = local.add (x) z = Identity (w) }
        <domain: "local", opset_import: ["" : 17]>
        add (a) => (b) { c = Constant <value = float[2] {0, 0}> () b = Add (a, c) }"""
    )
    places = helper.make_tensor("places", TensorProto.INT64, [2], [0, 3])
    stored = helper.make_tensor("w", TensorProto.FLOAT, [2], [0, 0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(stored, places, [4]))
    inner = model.functions[0].node[0].attribute[0].t
    for tensor in (inner, model.graph.sparse_initializer[0].values):
        name, data_type, dims = tensor.name, tensor.data_type, list(tensor.dims)
        tensor.CopyFrom(TensorProto(name=name, data_type=data_type, dims=dims))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
    after = to_proto(from_proto(model, tmp_path))
    found = answers(after, {"x": np.zeros(2, np.float32)})
    assert found["y"].tolist() == [4, 5]
    assert found["z"].tolist() == [4, 0, 0, 5]


def test_a_model_without_the_standard_opset_survives() -> None:
    model = small_mlp()
    del model.graph.node[:]
    del model.opset_import[:]
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    model.graph.node.append(
        helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", scale=[2.0] * 16)
    )
    assert list(round_trip(model).opset_import) == list(model.opset_import)
