"""ModelProto -> Graph, without the losses of graphsurgeon's importer.

graphsurgeon drops doc strings, metadata and attribute kinds it does not know, decodes strings,
reads 4-bit and external tensors wrongly and forgets which scope owns an initializer. What it
would lose is taken out before and put back, or kept in `Carried`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnxcomp.graph import Carried, EmptyList, Graph, is_standard, scoped_graphs
from onnxcomp.stored import StoredConstant, StoredSparse, StoredValues, external_range

_GRAPHSURGEON_READS = {
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.TENSOR,
    AttributeProto.GRAPH,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
    AttributeProto.STRINGS,
}
_LISTS = (AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS)


def tensors_of(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """The initializers and tensor attributes of a graph and its bodies."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("g"):
                yield from tensors_of(attribute.g)


def from_proto(model: onnx.ModelProto, folder: Path | None = None) -> Graph:
    """Makes the graph that passes edit. ``model`` is taken over: do not use it afterwards.

    Args:
        model: a checked model; external data may still be on disk.
        folder: where external data is looked for.

    Raises:
        UnsupportedModel: external data is missing, short or outside ``folder``.
    """
    carried = Carried()
    _read_buried(model, folder)
    _carry(model.graph, "", carried, folder, constant_inputs=model.ir_version < 4)
    kept = _take_attributes(model.graph)
    functions = list(model.functions)
    del model.functions[:]
    plain = gs.import_onnx(model)
    _put_attributes(plain, kept)
    for scope, body in list(scoped_graphs(plain)):
        _store_lazily(body, folder)
        lifted = _lift_constant_nodes(body, folder)
        carried.owned[scope] = carried.owned.get(scope, frozenset()) | lifted
    graph = Graph(
        nodes=list(plain.nodes),
        inputs=list(plain.inputs),
        outputs=list(plain.outputs),
        name=plain.name,
        doc_string=plain.doc_string,
        opset=plain.opset,
        import_domains=[onnx.helper.make_opsetid(o.domain, o.version) for o in model.opset_import],
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        ir_version=model.ir_version,
    )
    model.ClearField("graph")
    model.ClearField("opset_import")
    model.functions.extend(functions)
    carried.header = model
    graph.carried = carried
    return graph


def _read_buried(model: onnx.ModelProto, folder: Path | None) -> None:
    """Reads external data of what does not become constants of the graph, rare and small.

    Tensors of functions, of sparse tensors and of lists of tensors or graphs.
    """
    for tensor in _buried(model.graph.node, model.graph.sparse_initializer):
        _read(tensor, folder)
    for function in model.functions:
        for tensor in _buried(function.node, (), functions=True):
            _read(tensor, folder)


def _read(tensor: TensorProto, folder: Path | None) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        values = StoredValues(tensor, folder).load()
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _buried(
    nodes: Iterable[onnx.NodeProto],
    sparse: Iterable[onnx.SparseTensorProto],
    functions: bool = False,
) -> Iterator[TensorProto]:
    for pair in sparse:
        yield from (pair.values, pair.indices)
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        if attribute.type in _GRAPHSURGEON_READS - {AttributeProto.GRAPH} and not functions:
            continue
        yield from attribute.tensors
        yield from _buried((), [attribute.sparse_tensor, *attribute.sparse_tensors])
        if functions and attribute.HasField("t"):
            yield attribute.t
        for graph in attribute.graphs:
            yield from tensors_of(graph)
        for graph in (attribute.g, *attribute.graphs):
            yield from graph.initializer if functions else ()
            yield from _buried(graph.node, graph.sparse_initializer, functions)


def _carry(
    graph: onnx.GraphProto,
    scope: str,
    carried: Carried,
    folder: Path | None,
    constant_inputs: bool,
) -> None:
    """Fills ``carried`` from a graph and its bodies.

    Up to IR 3 every initializer had to be an input and was a constant all the same; from IR 4 an
    input with an initializer has a default that a caller may override, so it is no constant.
    """
    shell = onnx.GraphProto()
    shell.metadata_props.extend(graph.metadata_props)
    shell.quantization_annotation.extend(graph.quantization_annotation)
    carried.graphs[scope] = shell
    if scope or not constant_inputs:
        _carry_defaults(graph, scope, carried, folder)
    names = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    carried.owned[scope] = frozenset(names)
    _keep_declared(graph)
    for value in (*graph.value_info, *graph.output, *graph.input):
        carried.values[scope + value.name] = value
    for node in graph.node:
        key = scope + next((name for name in node.output if name), "")
        extras = onnx.NodeProto(doc_string=node.doc_string or None, overload=node.overload or None)
        extras.metadata_props.extend(node.metadata_props)
        extras.device_configurations.extend(node.device_configurations)
        if extras.ByteSize():
            carried.nodes[key] = extras
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _carry(attribute.g, f"{key}/{attribute.name}/", carried, folder, constant_inputs)


def _carry_defaults(
    graph: onnx.GraphProto, scope: str, carried: Carried, folder: Path | None
) -> None:
    """Takes the initializers of overridable inputs out, which graphsurgeon takes for constants."""
    overridable = {value.name for value in graph.input}
    kept = [t for t in graph.initializer if t.name not in overridable]
    if len(kept) == len(graph.initializer):
        return
    for tensor in graph.initializer:
        if tensor.name in overridable:
            carried.defaults[scope + tensor.name] = _stored_constant(tensor, folder)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _stored_constant(tensor: TensorProto, folder: Path | None) -> StoredConstant:
    values = StoredValues(tensor, folder)
    if values.is_external:
        external_range(tensor, folder)
    return StoredConstant(tensor.name, values)


def _keep_declared(graph: onnx.GraphProto) -> None:
    """Drops value_info of inputs and outputs: what they declare themselves is the signature."""
    declared = {v.name for v in (*graph.input, *graph.output) if v.type.ByteSize()}
    if any(value.name in declared for value in graph.value_info):
        kept = [value for value in graph.value_info if value.name not in declared]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _take_attributes(graph: onnx.GraphProto) -> list[list[AttributeProto]]:
    """Removes attributes that graphsurgeon would lose or crash on; per node, in import order."""
    taken = []
    for node in graph.node:
        mine = [a for a in node.attribute if not _survives(a)]
        rest = [a for a in node.attribute if _survives(a)]
        copies = [AttributeProto.FromString(a.SerializeToString()) for a in mine]
        if mine:
            kept = [AttributeProto.FromString(a.SerializeToString()) for a in rest]
            del node.attribute[:]
            node.attribute.extend(kept)
        taken.append(copies)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                taken += _take_attributes(attribute.g)
    return taken


def _survives(attribute: AttributeProto) -> bool:
    if attribute.type not in _GRAPHSURGEON_READS:
        return False
    strings = attribute.strings if attribute.type == AttributeProto.STRINGS else [attribute.s]
    try:
        for text in strings:
            text.decode()
    except UnicodeDecodeError:
        return False
    empty = not (attribute.floats or attribute.ints or attribute.strings)
    return attribute.type not in _LISTS or not empty  # an empty list has lost its type


def _put_attributes(graph: gs.Graph, taken: list[list[AttributeProto]]) -> None:
    """Gives the nodes back what `_take_attributes` took, as raw AttributeProtos."""
    remaining = iter(taken)

    def restore(body: gs.Graph) -> None:
        for node in body.nodes:
            raw = next(remaining)
            for value in list(node.attrs.values()):
                if isinstance(value, gs.Graph):
                    restore(value)
            for attribute in raw:
                empty = attribute.type in _LISTS and not attribute.strings
                node.attrs[attribute.name] = EmptyList(attribute.type) if empty else attribute

    restore(graph)


def _store_lazily(graph: gs.Graph, folder: Path | None) -> None:
    """Swaps graphsurgeon's lazy values for ours, and checks external data once."""
    attributes = (v for n in graph.nodes for v in n.attrs.values() if isinstance(v, gs.Constant))
    for tensor in (*graph.tensors().values(), *attributes):
        values: Any = getattr(tensor, "_values", None)
        if type(values) is LazyValues:
            tensor.values = _stored_constant(values.tensor, folder)._values
        elif type(values) is SparseValues:
            tensor.values = StoredSparse(values.tensor)
        if isinstance(tensor, gs.Constant):
            tensor.__class__ = StoredConstant


def _lift_constant_nodes(graph: gs.Graph, folder: Path | None) -> frozenset[str]:
    """Constant nodes -> constants, so that passes meet one kind of weight; names of these.

    Those that are an output of the graph, and those of value_string(s), stay nodes.
    """
    outputs = {t.name for t in graph.outputs}
    kept, lifted = [], set()
    for node in graph.nodes:
        values = None
        if node.op == "Constant" and is_standard(node) and node.outputs[0].name not in outputs:
            values = _constant_value(node, folder)
        if values is None:
            kept.append(node)
            continue
        result = node.outputs[0]
        node.outputs.clear()
        result.to_constant(np.zeros(0))
        result.__class__ = StoredConstant
        result.values = values
        lifted.add(result.name)
    graph.nodes[:] = kept
    return frozenset(lifted)


def _constant_value(node: gs.Node, folder: Path | None) -> LazyValues | npt.NDArray[Any] | None:
    """The values of a Constant node, None where it has to stay a node."""
    if len(node.attrs) != 1:
        return None
    name, value = next(iter(node.attrs.items()))
    if isinstance(value, gs.Constant):
        stored = value._values
        if isinstance(stored, StoredValues):
            stored.tensor.name = node.outputs[0].name
        return stored
    if isinstance(value, AttributeProto) and value.type == AttributeProto.SPARSE_TENSOR:
        return StoredSparse(value.sparse_tensor)
    kinds = {"float": np.float32, "floats": np.float32, "int": np.int64, "ints": np.int64}
    kind = kinds.get(name.removeprefix("value_"))
    return None if kind is None else np.asarray(value, kind)
