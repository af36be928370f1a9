"""ModelProto -> Graph, without the losses of graphsurgeon's importer.

graphsurgeon drops doc strings, metadata and attribute kinds it does not know, decodes strings,
reads 4-bit and external tensors wrongly and forgets which scope owns an initializer. What it
would lose is taken out before and put back, or kept in `Carried`.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto, TensorProto, numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnxcomp.errors import UnsupportedModel
from onnxcomp.graph import Carried, Graph, all_graphs

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


class StoredValues(LazyValues):  # type: ignore[misc]
    """The values of an initializer as they lie in the file, read only when somebody looks.

    Attributes:
        tensor: the TensorProto, written again as it is while nobody replaces the values.
        dtype: numpy dtype; bfloat16, float8 and 4-bit types as those of ml_dtypes.
        folder: where the files of external data are.
    """

    def __init__(self, tensor: TensorProto, folder: Path | None) -> None:
        self.tensor = tensor
        self.shape = list(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.nbytes = stored_bytes(tensor.data_type, math.prod(self.shape))
        self.folder = folder

    @property
    def is_external(self) -> bool:
        """Whether the values are in a file of their own."""
        return bool(self.tensor.data_location == TensorProto.EXTERNAL)

    def load(self) -> npt.NDArray[Any]:
        """The values as a read-only array; external ones as a view of the mapped file."""
        array = self._mapped() if self.is_external else numpy_helper.to_array(self.tensor)
        array.flags.writeable = False
        return array

    def _mapped(self) -> npt.NDArray[Any]:
        path, offset, length = external_range(self.tensor, self.folder)
        if length == 0:
            return np.zeros(self.shape, self.dtype)
        if self.tensor.data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
            packed = TensorProto()
            packed.CopyFrom(self.tensor)
            packed.ClearField("external_data")
            packed.data_location = TensorProto.DEFAULT
            packed.raw_data = np.memmap(path, np.uint8, "r", offset, (length,)).tobytes()
            return numpy_helper.to_array(packed)
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        with open(path, "rb") as file:
            pages = mmap.mmap(
                file.fileno(), offset - start + length, access=mmap.ACCESS_READ, offset=start
            )
        count = math.prod(self.shape)
        flat = np.frombuffer(pages, self.dtype, count=count, offset=offset - start)
        return flat.reshape(self.shape)


class StoredSparse(SparseValues):  # type: ignore[misc]
    """A sparse initializer: written again as it is, dense for whoever reads it."""

    def __init__(self, tensor: onnx.SparseTensorProto) -> None:
        self.tensor = tensor
        self.shape = list(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.values.data_type)
        self.nbytes = stored_bytes(tensor.values.data_type, math.prod(tensor.values.dims))

    def load(self) -> npt.NDArray[Any]:
        """The dense array, read-only. Indices are [n] linear or [n, rank] (ONNX IR)."""
        values = numpy_helper.to_array(self.tensor.values)
        indices = numpy_helper.to_array(self.tensor.indices)
        dense = np.zeros(self.shape, self.dtype)
        where = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, self.shape)
        dense[where] = values
        dense.flags.writeable = False
        return dense


def stored_bytes(data_type: int, count: int) -> int:
    """Bytes that ``count`` elements of an ONNX data type take in a file; 0 for strings."""
    if data_type == TensorProto.STRING:
        return 0
    if data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return (count + 1) // 2
    return count * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize)


def external_range(tensor: TensorProto, folder: Path | None) -> tuple[Path, int, int]:
    """Where the values of an external tensor are: (file, offset, bytes).

    Raises:
        UnsupportedModel: the location leaves the model's folder, or the file is missing or short.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location, base = entries.get("location", ""), (folder or Path()).resolve()
    path = (base / location).resolve()
    if not location or not path.is_relative_to(base):
        raise UnsupportedModel(
            f"tensor {tensor.name!r}: external data {location!r} lies outside the model's folder"
        )
    if not path.is_file():
        raise UnsupportedModel(f"tensor {tensor.name!r}: external data file {path} is missing")
    offset = int(entries.get("offset", 0))
    expected = stored_bytes(tensor.data_type, math.prod(tensor.dims))
    length = int(entries.get("length", expected))
    if length != expected or offset < 0 or offset + length > path.stat().st_size:
        raise UnsupportedModel(
            f"tensor {tensor.name!r}: needs {expected} bytes at {offset} of {path.name},"
            f" which has {path.stat().st_size} and declares {length}"
        )
    return path, offset, length


def from_proto(model: onnx.ModelProto, folder: Path | None = None) -> Graph:
    """Makes the graph that passes edit. ``model`` is taken over: do not use it afterwards.

    Args:
        model: a checked model; external data may still be on disk.
        folder: where external data is looked for.

    Raises:
        UnsupportedModel: external data is missing, short or outside ``folder``.
    """
    carried = Carried()
    _carry(model.graph, "", carried, constant_inputs=model.ir_version < 4)
    kept = _take_attributes(model.graph)
    functions = list(model.functions)
    del model.functions[:]
    plain = gs.import_onnx(model)
    _put_attributes(plain, kept)
    for body in all_graphs(plain):
        _store_lazily(body, folder)
        _lift_constant_nodes(body, folder)
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


def _carry(graph: onnx.GraphProto, scope: str, carried: Carried, constant_inputs: bool) -> None:
    """Fills ``carried`` from a graph and its bodies.

    Up to IR 3 every initializer had to be an input and was a constant all the same; from IR 4 an
    input with an initializer has a default that a caller may override, so it is no constant.
    """
    names = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    shell = onnx.GraphProto(doc_string=graph.doc_string or None)
    shell.metadata_props.extend(graph.metadata_props)
    shell.quantization_annotation.extend(graph.quantization_annotation)
    carried.graphs[scope] = shell
    if not constant_inputs:
        overridable = {v.name for v in graph.input} & names
        for tensor in [t for t in graph.initializer if t.name in overridable]:
            carried.defaults[tensor.name] = tensor
            names.discard(tensor.name)
        if overridable:
            kept = [t for t in graph.initializer if t.name not in overridable]
            del graph.initializer[:]
            graph.initializer.extend(kept)
    carried.owned[scope] = frozenset(names)
    for value in (*graph.input, *graph.output, *graph.value_info):
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
                _carry(attribute.g, f"{key}/{attribute.name}/", carried, constant_inputs)


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
    lists = (AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS)
    return attribute.type not in lists or bool(
        attribute.floats or attribute.ints or attribute.strings
    )  # graphsurgeon's exporter cannot tell the type of an empty list


def _put_attributes(graph: gs.Graph, taken: list[list[AttributeProto]]) -> None:
    """Gives the nodes back what `_take_attributes` took, as raw AttributeProtos."""
    remaining = iter(taken)

    def restore(body: gs.Graph) -> None:
        for node in body.nodes:
            raw = next(remaining)
            for value in list(node.attrs.values()):
                if isinstance(value, gs.Graph):
                    restore(value)
            node.attrs.update({attribute.name: attribute for attribute in raw})

    restore(graph)


def _store_lazily(graph: gs.Graph, folder: Path | None) -> None:
    """Swaps graphsurgeon's lazy values for ours, and checks external data once."""
    attributes = (v for n in graph.nodes for v in n.attrs.values() if isinstance(v, gs.Constant))
    for tensor in (*graph.tensors().values(), *attributes):
        values: Any = getattr(tensor, "_values", None)
        if type(values) is LazyValues:
            stored = StoredValues(values.tensor, folder)
            if stored.is_external:
                external_range(stored.tensor, folder)
            tensor.values = stored
        elif type(values) is SparseValues:
            tensor.values = StoredSparse(values.tensor)


def _lift_constant_nodes(graph: gs.Graph, folder: Path | None) -> None:
    """Constant nodes -> constants, so that passes meet one kind of weight.

    Those that are an output of the graph, strings and values of unknown kind stay nodes.
    """
    outputs = {t.name for t in graph.outputs}
    kept = []
    for node in graph.nodes:
        tensor = None
        if node.op == "Constant" and not node.domain and node.outputs[0].name not in outputs:
            tensor = _constant_value(node, folder)
        if tensor is None:
            kept.append(node)
            continue
        result = node.outputs[0]
        node.outputs.clear()
        result.to_constant(np.zeros(0))
        result.values = tensor
    graph.nodes[:] = kept


def _constant_value(node: gs.Node, folder: Path | None) -> LazyValues | npt.NDArray[Any] | None:
    """The values of a Constant node, None where it has to stay a node."""
    (name, value), *others = node.attrs.items() or [("", None)]
    if others or isinstance(value, gs.Node.AttributeRef):
        return None
    name_of_output = node.outputs[0].name
    if isinstance(value, gs.Constant):
        stored = value._values
        if isinstance(stored, StoredValues):
            stored.tensor.name = name_of_output
        return stored
    if isinstance(value, AttributeProto) and value.type == AttributeProto.SPARSE_TENSOR:
        value.sparse_tensor.values.name = name_of_output
        return StoredSparse(value.sparse_tensor)
    if name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    return None
