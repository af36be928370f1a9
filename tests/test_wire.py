"""Values found in serialized models: protobuf itself is the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import UnsupportedModel
from onnxcomp.wire import find_tensors, read_varint


def nested_model() -> onnx.ModelProto:
    """Tensors in every place that can hold one."""

    def tensor(name: str, size: int = 3) -> TensorProto:
        return numpy_helper.from_array(np.arange(size, dtype=np.float32), name)

    sparse = helper.make_sparse_tensor(
        tensor("values"), helper.make_tensor("indices", TensorProto.INT64, [3], [1, 4, 6]), [9]
    )
    inner = helper.make_graph([], "body", [], [], [tensor("in_body")])
    node = helper.make_node("Op", [], ["y"], domain="d")
    for attribute in (
        helper.make_attribute("t", tensor("in_attribute")),
        helper.make_attribute("ts", [tensor("in_list_0"), tensor("in_list_1")]),
        helper.make_attribute("g", inner),
        helper.make_attribute("gs", [inner, inner]),
        helper.make_attribute("s", sparse),
    ):
        node.attribute.append(attribute)
    function = helper.make_function(
        "d", "F", [], ["z"], [helper.make_node("Op", [], ["z"], t=tensor("in_function"))], []
    )
    graph = helper.make_graph(
        [node], "g", [], [], [tensor("w")], sparse_initializer=[sparse], doc_string="x" * 300
    )
    model = helper.make_model(graph, functions=[function])
    model.training_info.add().algorithm.initializer.append(tensor("in_training"))
    return model


def test_every_place_of_a_tensor_is_known() -> None:
    data = nested_model().SerializeToString()
    found = find_tensors(data)
    names = [data[s : s + n].decode() for s, n in (tensor.name for tensor in found)]
    assert sorted(names) == sorted(
        ["w", "values", "indices", "in_attribute", "in_list_0", "in_list_1"]
        + ["in_body"] * 3
        + ["values", "indices", "in_function", "in_training"]
    )
    assert [n for n, t in zip(names, found, strict=True) if t.initializer] == ["w"]
    for tensor in found:
        parsed = TensorProto.FromString(data[tensor.start : tensor.end])
        assert (tensor.data_type, tensor.dims) == (parsed.data_type, list(parsed.dims))
        if parsed.HasField("raw_data"):
            (values,) = tensor.values
            assert data[values.start : values.end] == parsed.raw_data


def test_the_tensors_of_real_models_are_those_of_protobuf(shared: Path) -> None:
    from onnxcomp.skeleton import every_tensor

    for path in sorted((shared / "kit" / "corpus").glob("*.onnx"))[::4]:
        data = path.read_bytes()
        expected = [(t.name, t.data_type, list(t.dims)) for t in every_tensor(onnx.load(path))]
        found = [
            (data[t.name[0] : sum(t.name)].decode(), t.data_type, t.dims)
            for t in find_tensors(data)
        ]
        assert sorted(found) == sorted(expected), path.name


def test_what_is_no_model_is_refused_in_one_line() -> None:
    data = nested_model().SerializeToString()
    for broken in (b"", b"\x00", b"\xff" * 30, data[:-1], b"\x0b" + data, b"\x08\x01"):
        with pytest.raises(UnsupportedModel, match="not an ONNX model") as caught:
            find_tensors(broken)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedModel, match="2 graphs"):
        find_tensors(
            data + helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()
        )


def test_graphs_within_graphs_end_somewhere() -> None:
    data = b""
    for _ in range(300):  # Graph.node[Node.attribute[Attribute.g = Graph]]
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            data = tag + _length(data) + data
    with pytest.raises(UnsupportedModel, match="deep"):
        find_tensors(b"\x3a" + _length(data) + data)


def _length(data: bytes) -> bytes:
    from onnxcomp.varints import varint

    return varint(len(data))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_models_never_raise_anything_else(data: st.DataObject) -> None:
    model = bytearray(nested_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = find_tensors(bytes(model))
    except UnsupportedModel:
        return
    assert all(0 <= t.start <= t.end <= len(model) for t in tensors)


def test_varints_end_after_64_bits() -> None:
    assert read_varint(b"\xac\x02", 0, 2) == (300, 2)
    with pytest.raises(UnsupportedModel):
        read_varint(b"\x80" * 11 + b"\x01", 0, 12)
