"""Graph -> ModelProto: the one exporter. What `importing.py` carried beside the graph is put back.

How a constant is written is a function (`store`), so that one exporter serves files with weights
inside, files with external data, sessions that are handed their weights, and shape inference
without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from onnxcomp.graph import (
    Carried,
    EmptyList,
    carried_of,
    constants,
    is_standard,
    node_key,
    opsets,
    subgraphs,
)
from onnxcomp.stored import StoredSparse, StoredValues

Store = Callable[[gs.Constant, str], TensorProto]  # of a constant in a scope, "" outermost
MINIMUM_IR = {13: 7, 15: 8, 19: 9, 21: 10, 23: 11, 25: 12}  # of each opset (onnx/defs versioning)
CUSTOM_OPSET = 1


def inline(constant: gs.Constant, scope: str = "") -> TensorProto:
    """Writes the values into the model; those nobody replaced byte for byte as they came."""
    values = constant._values
    if not isinstance(values, StoredValues):
        return numpy_helper.from_array(np.asarray(constant.values), constant.name)
    if not values.is_external and values.tensor.name == constant.name:
        return values.tensor
    whole = TensorProto()
    whole.CopyFrom(values.tensor)
    whole.name = constant.name
    if values.is_external:
        whole.ClearField("external_data")
        whole.ClearField("data_location")
        whole.raw_data = numpy_helper.from_array(values.load()).raw_data
    return whole


def without_data(constant: gs.Constant, scope: str = "", largest: int = 1024) -> TensorProto:
    """Writes shape and dtype only, and the values of at most ``largest`` elements.

    Shape inference needs the small ones: shapes, axes and indices.
    """
    if np.prod(constant.shape, dtype=np.int64) <= largest:
        return inline(constant)
    data_type = data_type_of(constant.dtype)
    return TensorProto(name=constant.name, data_type=data_type, dims=constant.shape)


def data_type_of(dtype: Any) -> int:
    """The ONNX data type of a numpy (or ml_dtypes) dtype; integers are ONNX types already."""
    if isinstance(dtype, int):
        return dtype
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def to_proto(
    graph: gs.Graph, store: Store = inline, extra_outputs: Iterable[str] = ()
) -> onnx.ModelProto:
    """Writes ``graph`` as a model.

    Args:
        graph: a graph of `from_proto`, or any gs.Graph.
        store: how a constant becomes a TensorProto.
        extra_outputs: names of tensors to add as outputs, for observing them.
    """
    carried = carried_of(graph)
    model = onnx.ModelProto()
    model.CopyFrom(carried.header)
    _Exporter(carried, store).fill(model.graph, graph, "", frozenset())
    known = {tensor.name for tensor in graph.outputs}
    model.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in known
    )
    model.opset_import.extend(opsets(graph))
    domains = {o.domain for o in model.opset_import}
    used = {node.domain for node in _protos(model.graph) if node.domain not in ("", "ai.onnx")}
    model.opset_import.extend(
        helper.make_opsetid(domain, CUSTOM_OPSET) for domain in sorted(used - domains)
    )
    model.ir_version = max(carried.header.ir_version or graph.ir_version or 8, _minimum_ir(model))
    return model


def _minimum_ir(model: onnx.ModelProto) -> int:
    """At least 4, from where initializers need not be inputs."""
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)
    return max([4, *(ir for version, ir in MINIMUM_IR.items() if opset >= version)])


def _protos(graph: onnx.GraphProto) -> Iterable[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _protos(attribute.g)


class _Exporter:
    """Writes one model: ``scope`` is the path of keys in `Carried`, as in `importing._carry`."""

    def __init__(self, carried: Carried, store: Store) -> None:
        self.carried, self.store = carried, store

    def fill(
        self, proto: onnx.GraphProto, graph: gs.Graph, scope: str, outer: frozenset[str]
    ) -> None:
        """Writes a graph or body; ``outer`` are the constants that enclosing graphs write."""
        proto.name = graph.name or "graph"
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        shell = self.carried.graphs.get(scope)
        if shell is not None:
            proto.MergeFrom(shell)
        mine = self._constants(graph, scope, outer)
        defaults = [self.carried.defaults.get(scope + tensor.name) for tensor in graph.inputs]
        for constant in (*mine.values(), *defaults):
            if isinstance(constant, gs.Constant):
                self._write(proto, constant, scope)
        inside = outer | mine.keys()
        for node in graph.nodes:
            self._node(proto.node.add(), node, scope, inside)
        proto.input.extend(self._value(tensor, scope) for tensor in graph.inputs)
        proto.output.extend(self._value(tensor, scope) for tensor in graph.outputs)
        proto.value_info.extend(self._infos(graph, scope))

    def _constants(
        self, graph: gs.Graph, scope: str, outer: frozenset[str]
    ) -> dict[str, gs.Constant]:
        """Constants this graph writes: its own, and those it owns that only bodies read."""
        direct = [t for node in graph.nodes for t in node.inputs] + list(graph.outputs)
        found = {t.name: t for t in direct if isinstance(t, gs.Constant) and t.name not in outer}
        owned = self.carried.owned.get(scope, frozenset())
        if any(True for node in graph.nodes for _ in subgraphs(node)):
            inner = constants(graph).items()
            found |= {name: t for name, t in inner if name in owned and name not in outer}
        return found

    def _write(self, proto: onnx.GraphProto, constant: gs.Constant, scope: str) -> None:
        values = constant._values
        if not isinstance(values, StoredSparse):
            proto.initializer.append(self.store(constant, scope))
            return
        proto.sparse_initializer.append(values.tensor)
        proto.sparse_initializer[-1].values.name = constant.name

    def _node(
        self, proto: onnx.NodeProto, node: gs.Node, scope: str, outer: frozenset[str]
    ) -> None:
        proto.op_type = node.op
        if node.name:
            proto.name = node.name
        if node.domain is not None:
            proto.domain = node.domain
        proto.input.extend(t.name for t in node.inputs)
        proto.output.extend(t.name for t in node.outputs)
        key = node_key(node, scope)
        if key in self.carried.nodes:
            proto.MergeFrom(self.carried.nodes[key])
        for name, value in node.attrs.items():
            if isinstance(value, gs.Graph):
                attribute = proto.attribute.add(name=name, type=AttributeProto.GRAPH)
                self.fill(attribute.g, value, f"{key}/{name}/", outer)
            else:
                proto.attribute.append(_attribute(name, value))

    def _value(self, tensor: gs.Tensor, scope: str) -> onnx.ValueInfoProto:
        """The type of a tensor: as it came where nothing changed, else from the graph."""
        came = self.carried.values.get(scope + tensor.name)
        fresh = value_info(tensor)
        if came is None:
            return fresh
        if not fresh.HasField("type"):  # no tensor, or nothing new is known
            return came
        result = onnx.ValueInfoProto()
        result.CopyFrom(came)
        if _plain(came.type) != fresh.type.SerializeToString(deterministic=True):
            result.type.CopyFrom(fresh.type)
        return result

    def _infos(self, graph: gs.Graph, scope: str) -> Iterable[onnx.ValueInfoProto]:
        """Intermediate types: those that came with the model, and those of custom operators,
        which onnxruntime before 1.21 cannot infer."""
        ends = {t.name for t in (*graph.inputs, *graph.outputs)}
        for node in graph.nodes:
            for tensor in node.outputs:
                if not tensor.name or tensor.name in ends or isinstance(tensor, gs.Constant):
                    continue
                if tensor.dtype is None:
                    continue
                if not is_standard(node) or scope + tensor.name in self.carried.values:
                    yield self._value(tensor, scope)


def _attribute(name: str, value: Any) -> onnx.AttributeProto:
    if isinstance(value, AttributeProto):
        return value
    if isinstance(value, EmptyList) and not value:
        return AttributeProto(name=name, type=AttributeProto.AttributeType.Name(value.kind))
    if isinstance(value, gs.Constant):
        return AttributeProto(name=name, type=AttributeProto.TENSOR, t=inline(value))
    if isinstance(value, (type, np.dtype)):
        value = data_type_of(value)
    if isinstance(value, np.generic):
        value = value.item()
    return helper.make_attribute(name, value)


def value_info(tensor: gs.Tensor) -> onnx.ValueInfoProto:
    """The ValueInfoProto of a tensor as the graph knows it; no type where it is unknown."""
    if tensor.dtype is None or getattr(tensor, "type", "tensor_type") != "tensor_type":
        return onnx.ValueInfoProto(name=tensor.name)
    data_type = data_type_of(tensor.dtype)
    return helper.make_tensor_value_info(tensor.name, data_type, tensor.shape)


def _plain(kind: onnx.TypeProto) -> bytes:
    """A tensor type without denotations, to compare with one made from the graph."""
    bare = onnx.TypeProto()
    bare.CopyFrom(kind)
    bare.ClearField("denotation")
    for dim in bare.tensor_type.shape.dim:
        dim.ClearField("denotation")
    return bytes(bare.SerializeToString(deterministic=True))
