"""Attributes of every kind arrive in the graph and leave it; Constant nodes become constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxcomp.exporting import to_proto
from onnxcomp.importing import from_proto
from onnxcomp.testing import assert_same_answers, model_of, round_trip

ONES = np.ones(3, np.float32)


def with_attribute(attribute: onnx.AttributeProto) -> onnx.ModelProto:
    """One node of a custom domain, which may have any attribute."""
    node = helper.make_node("Anything", ["x"], ["y"], "any", domain="org.example")
    node.attribute.append(attribute)
    model = model_of("m (float[3] x) => (float[3] y) { y = Relu (x) }")
    model.opset_import.add(domain="org.example", version=3)
    model.graph.node[0].CopyFrom(node)
    return model


def sparse(values: list[float], indices: Any, shape: list[int], name: str = "") -> Any:
    return helper.make_sparse_tensor(
        numpy_helper.from_array(np.array(values, np.float32), name),
        numpy_helper.from_array(np.asarray(indices, np.int64), f"{name}.indices"),
        shape,
    )


def attribute_of(kind: str, **fields: Any) -> onnx.AttributeProto:
    return AttributeProto(name="a", type=AttributeProto.AttributeType.Value(kind), **fields)


TENSOR = numpy_helper.from_array(np.arange(3, dtype=np.int64), "inner")
BODY = model_of("g (float[3] u) => (float[3] v) { v = Relu (u) }").graph
ATTRIBUTES = [
    attribute_of("FLOAT", f=1.5),
    attribute_of("INT", i=-7),
    attribute_of("INT", i=2**63 - 1),
    attribute_of("STRING", s=b"text"),
    attribute_of("STRING", s=b""),
    attribute_of("STRING", s=b"\xff\xfe not UTF-8"),
    attribute_of("TENSOR", t=TENSOR),
    attribute_of("GRAPH", g=BODY),
    attribute_of("SPARSE_TENSOR", sparse_tensor=sparse([5], [1], [3], "values")),
    attribute_of("TYPE_PROTO", tp=helper.make_tensor_type_proto(TensorProto.FLOAT, [1, "N"])),
    attribute_of("FLOATS", floats=[1.0, 2.0]),
    attribute_of("INTS", ints=[1, 2]),
    attribute_of("STRINGS", strings=[b"a", b"b"]),
    attribute_of("STRINGS", strings=[b"a", b"\xff"]),
    attribute_of("TENSORS", tensors=[TENSOR, TENSOR]),
    attribute_of("GRAPHS", graphs=[BODY, BODY]),
    attribute_of("SPARSE_TENSORS", sparse_tensors=[sparse([5], [1], [3], "values")]),
    attribute_of("TYPE_PROTOS", type_protos=[helper.make_tensor_type_proto(1, None)]),
    attribute_of("FLOATS"),
    attribute_of("INTS"),
    attribute_of("STRINGS"),
    attribute_of("TENSORS"),
]


@pytest.mark.parametrize("attribute", ATTRIBUTES, ids=lambda a: str(a).replace("\n", " ")[:40])
def test_attributes_of_every_kind_survive(attribute: onnx.AttributeProto) -> None:
    (after,) = round_trip(with_attribute(attribute)).graph.node[0].attribute
    assert after.SerializeToString(deterministic=True) == attribute.SerializeToString(
        deterministic=True
    )


def test_empty_lists_read_as_lists_of_their_type() -> None:
    graph = from_proto(with_attribute(attribute_of("INTS")))
    assert graph.nodes[0].attrs["a"] == []
    copy = graph.copy()
    copy.nodes[0].attrs["a"].append(4)
    assert graph.nodes[0].attrs["a"] == []
    (written,) = to_proto(copy).graph.node[0].attribute
    assert list(written.ints) == [4]


# --- Constant nodes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        (helper.make_attribute("value", numpy_helper.from_array(ONES * 2)), ONES * 2),
        (helper.make_attribute("value_float", 2.5), np.float32(2.5)),
        (helper.make_attribute("value_floats", [2.5, 3.0]), np.array([2.5, 3], np.float32)),
        (helper.make_attribute("value_int", 3), np.int64(3)),
        (helper.make_attribute("value_ints", [3, 4]), np.array([3, 4])),
        (AttributeProto(name="value_ints", type="INTS"), np.zeros(0, np.int64)),
        (AttributeProto(name="value_floats", type="FLOATS"), np.zeros(0, np.float32)),
        (
            AttributeProto(
                name="sparse_value", type="SPARSE_TENSOR", sparse_tensor=sparse([5], [1], [3])
            ),
            np.array([0, 5, 0], np.float32),
        ),
    ],
    ids=lambda a: a.name if isinstance(a, AttributeProto) else "",
)
def test_constant_nodes_become_constants(attribute: Any, expected: np.ndarray[Any, Any]) -> None:
    model = model_of("m (float[3] x) => (float[3] y) { c = Constant () y = Anything (x, c) }")
    model.graph.node[0].attribute.append(attribute)
    graph = from_proto(model)
    assert [node.op for node in graph.nodes] == ["Anything"]
    values = graph.nodes[0].inputs[1].values
    assert (values.dtype, values.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(values, expected)
    written = to_proto(graph).graph
    if attribute.name == "sparse_value":
        assert [t.values.name for t in written.sparse_initializer] == ["c"]
    else:
        assert [t.name for t in written.initializer] == ["c"]


@pytest.mark.parametrize("attribute", [{"value_string": "a"}, {"value_strings": ["a", "b"]}])
def test_constant_nodes_of_strings_stay_nodes(attribute: dict[str, Any]) -> None:
    model = model_of("m (float[3] x) => (float[3] y) { c = Constant () y = Anything (x, c) }")
    model.graph.node[0].attribute.append(helper.make_attribute(*next(iter(attribute.items()))))
    after = round_trip(model).graph
    assert [node.op_type for node in after.node] == ["Constant", "Anything"]
    assert after.node[0].attribute == model.graph.node[0].attribute


def test_a_constant_node_that_is_an_output_stays_a_node() -> None:
    model = model_of("m () => (float[3] c) { c = Constant <value = float[3] {1, 2, 3}> () }")
    after = round_trip(model)
    assert list(after.graph.node) == list(model.graph.node)
    assert_same_answers(model, after, [{}])
