"""Which constants of a graph are weights, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcomp.exporting import data_type_of
from onnxcomp.graph import all_graphs, all_nodes, carried_of, is_constant
from onnxcomp.stored import StoredSparse, StoredValues

_CODES = frozenset(
    {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4}
    | {TensorProto.INT16, TensorProto.UINT16}
)
# Inputs that say how codes are meant, and are no weights: scales and zero points.
_SCALES: Mapping[str, frozenset[int]] = {
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), frozenset({1, 2})),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), frozenset({1, 2, 4, 5, 6, 7})),
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "MatMulNBits"), frozenset({2, 3})),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), frozenset({1, 2, 4, 5, 6, 7})),
    "DynamicQuantizeMatMul": frozenset({2, 3}),
    "MatMulIntegerToFloat": frozenset({2, 3, 4, 5}),
    "DynamicQuantizeLSTM": frozenset({8, 9, 10, 11}),
    "QGemm": frozenset({1, 2, 4, 5, 7, 8}),
}
_DEQUANTIZED = {("DequantizeLinear", 0), ("QLinearConv", 8), ("QGemm", 6)}  # int32 is codes here


def count_parameters(graph: gs.Graph) -> int:
    """Elements of all float and quantized weights: no scales, zero points, shapes or indices.

    Of a sparse weight the stored elements count.
    """
    return sum(parameters(tensor, roles) for tensor, roles in stored_constants(graph))


Role = tuple[gs.Node, int]  # read by a node at an input


def stored_constants(graph: gs.Graph) -> Iterator[tuple[gs.Constant, list[Role]]]:
    """Every stored constant once, with its readers: branches may use one name for two tensors."""
    found: dict[tuple[str, int], tuple[gs.Constant, list[Role]]] = {}
    for node in all_nodes(graph):
        for index, tensor in enumerate(node.inputs):
            if is_constant(tensor):
                key = (tensor.name, id(tensor._values))
                found.setdefault(key, (tensor, []))[1].append((node, index))
    for body in all_graphs(graph):
        for tensor in body.outputs:
            if is_constant(tensor):
                found.setdefault((tensor.name, id(tensor._values)), (tensor, []))
    for tensor in carried_of(graph).defaults.values():
        found.setdefault((tensor.name, id(tensor._values)), (tensor, []))
    yield from found.values()


def parameters(tensor: gs.Constant, roles: Sequence[Role]) -> int:
    """Elements of a constant that is a weight to any of its readers, else 0."""
    weighty = [r for r in roles if r[1] not in _SCALES.get(r[0].op, frozenset())]
    data_type = data_type_of(tensor.dtype)
    codes = data_type == TensorProto.INT32 and any((n.op, i) in _DEQUANTIZED for n, i in roles)
    if (roles and not weighty) or not (_is_weight(data_type) or codes):
        return 0
    if isinstance(tensor._values, StoredSparse):
        return math.prod(map(int, tensor._values.tensor.values.dims))
    packed = [n.attrs for n, i in weighty if (n.op, i) == ("MatMulNBits", 1)]
    return int(packed[0]["N"] * packed[0]["K"]) if packed else math.prod(map(int, tensor.shape))


def _is_weight(data_type: int) -> bool:
    name = TensorProto.DataType.Name(data_type)
    return data_type in _CODES or name == "DOUBLE" or "FLOAT" in name


def external_files(graph: gs.Graph) -> list[Path]:
    """The files in which weights of ``graph`` still lie."""
    found: dict[Path, None] = {}
    for tensor, _ in stored_constants(graph):
        values = tensor._values
        if isinstance(values, StoredValues) and values.is_external:
            location = {entry.key: entry.value for entry in values.tensor.external_data}
            found[(values.folder or Path()) / location["location"]] = None
    return list(found)
