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

from onnxcomp.graph import Carried, carried_of, constants, opsets, subgraphs
from onnxcomp.importing import StoredSparse, StoredValues

Store = Callable[[gs.Constant, str], TensorProto]  # of a constant in a scope, "" outermost
MINIMUM_IR = {13: 7, 15: 8, 19: 9, 21: 10, 23: 11, 25: 12}  # of each opset (onnx/defs versioning)
CUSTOM_OPSET = 1


def inline(constant: gs.Constant, scope: str = "") -> TensorProto:
    """Writes the values into the model; those nobody touched byte for byte as they came."""
    values = constant._values
    if isinstance(values, StoredValues) and not values.is_external:
        if values.tensor.name == constant.name:
            return values.tensor
        renamed = TensorProto()
        renamed.CopyFrom(values.tensor)
        renamed.name = constant.name
        return renamed
    return numpy_helper.from_array(np.asarray(constant.values), constant.name)


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
    model.graph.CopyFrom(_Exporter(carried, store).graph(graph, "", frozenset()))
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

    def graph(self, graph: gs.Graph, scope: str, outer: frozenset[str]) -> onnx.GraphProto:
        """A graph or body; ``outer`` are the constants that enclosing graphs write."""
        proto = onnx.GraphProto(name=graph.name or "graph")
        shell = self.carried.graphs.get(scope)
        if shell is not None:
            if shell.doc_string:
                proto.doc_string = shell.doc_string
            proto.metadata_props.extend(shell.metadata_props)
            proto.quantization_annotation.extend(shell.quantization_annotation)
        mine = self._constants(graph, scope, outer)
        self._write_constants(proto, mine, scope)
        for tensor in graph.inputs:
            if not scope and tensor.name in self.carried.defaults:
                proto.initializer.append(self.carried.defaults[tensor.name])
        inside = outer | mine.keys()
        proto.node.extend(self._node(node, scope, inside) for node in graph.nodes)
        proto.input.extend(self._value(tensor, scope) for tensor in graph.inputs)
        proto.output.extend(self._value(tensor, scope) for tensor in graph.outputs)
        proto.value_info.extend(self._infos(graph, scope))
        return proto

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

    def _write_constants(
        self, proto: onnx.GraphProto, mine: dict[str, gs.Constant], scope: str
    ) -> None:
        for constant in mine.values():
            if isinstance(constant._values, StoredSparse):
                proto.sparse_initializer.append(constant._values.tensor)
            else:
                proto.initializer.append(self.store(constant, scope))

    def _node(self, node: gs.Node, scope: str, outer: frozenset[str]) -> onnx.NodeProto:
        proto = onnx.NodeProto(
            op_type=node.op,
            name=node.name or None,  # None: the field stays absent, as it came
            domain=node.domain or None,
            input=[t.name for t in node.inputs],
            output=[t.name for t in node.outputs],
        )
        key = scope + next((t.name for t in node.outputs if t.name), "")
        if key in self.carried.nodes:
            proto.MergeFrom(self.carried.nodes[key])
        for name, value in node.attrs.items():
            proto.attribute.append(self._attribute(name, value, key, outer))
        return proto

    def _attribute(
        self, name: str, value: Any, key: str, outer: frozenset[str]
    ) -> onnx.AttributeProto:
        if isinstance(value, AttributeProto):
            return value
        if isinstance(value, gs.Graph):
            body = self.graph(value, f"{key}/{name}/", outer)
            return AttributeProto(name=name, type=AttributeProto.GRAPH, g=body)
        if isinstance(value, gs.Constant):
            return AttributeProto(name=name, type=AttributeProto.TENSOR, t=inline(value))
        if isinstance(value, (type, np.dtype)):
            value = data_type_of(value)
        if isinstance(value, np.generic):
            value = value.item()
        return helper.make_attribute(name, value)

    def _value(self, tensor: gs.Tensor, scope: str) -> onnx.ValueInfoProto:
        """The type of a tensor: as it came where nothing changed, else from the graph."""
        came = self.carried.values.get(scope + tensor.name)
        fresh = value_info(tensor)
        if came is None:
            return fresh
        if fresh is None or came.type.WhichOneof("value") != "tensor_type":
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
                custom = node.domain not in ("", "ai.onnx", None) and tensor.dtype is not None
                if custom or scope + tensor.name in self.carried.values:
                    yield self._value(tensor, scope)


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
