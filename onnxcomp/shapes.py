"""Shapes and dtypes of all tensors, from onnx's shape inference on a copy without weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto

from onnxcomp.exporting import to_proto, without_data
from onnxcomp.graph import STANDARD_DOMAINS, subgraphs

log = logging.getLogger(__name__)

Dim = int | str | None  # size, symbol, unknown
UNINFERRED = ("GroupNormalization", "MeanVarianceNormalization", "SimplifiedLayerNormalization")
MICROSOFT = "com.microsoft"  # onnxruntime's own operators
ALIKE = {
    *((MICROSOFT, op) for op in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")),
    *((MICROSOFT, f"Skip{kind}LayerNormalization") for kind in ("", "Simplified")),
}
FUSED = {(MICROSOFT, f"Fused{op}"): op for op in ("Conv", "Gemm", "MatMul")}


@dataclass(frozen=True)
class TensorType:
    """What is known of a tensor.

    Attributes:
        dtype: numpy dtype, or the ONNX number of a type that numpy lacks; None where unknown.
        shape: one entry a dimension; None where the rank is unknown.
    """

    dtype: Any
    shape: tuple[Dim, ...] | None


def infer_shapes(graph: gs.Graph) -> None:
    """Fills dtypes and dimensions of intermediate tensors where they are unknown.

    What the graph already says stays, and so do inputs and outputs, of bodies too: they are
    promises to a caller. Types that inference cannot find stay unknown; nothing is raised.
    """
    for body, types in inferred_types(graph):
        ends = {tensor.name for tensor in (*body.inputs, *body.outputs)}
        for node in body.nodes:
            for tensor in node.outputs:
                found = types.get(tensor.name)
                if found is None or tensor.name in ends or not isinstance(tensor, gs.Variable):
                    continue
                if tensor.dtype is None:
                    tensor.dtype = found.dtype
                tensor.shape = _merged(tensor.shape, found.shape)


def inferred_types(graph: gs.Graph) -> list[tuple[gs.Graph, dict[str, TensorType]]]:
    """Types by tensor name, for ``graph`` and then for every body in it, with what it sees outside.

    They follow from the inputs alone: a shape that the file states for another tensor is believed
    only where a custom operator makes it, because exporters leave wrong ones behind and
    onnxruntime merely warns of them. Constants are left out: they know their own types.
    """
    model = to_proto(graph, without_data)
    _forget_types(model.graph)
    _stand_in(model.graph)
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:  # a graph that inference cannot digest may run all the same
        log.debug("shape inference failed: %s", error)
    return list(_read(graph, model.graph, {}))


def _forget_types(graph: onnx.GraphProto) -> None:
    custom = {name for n in graph.node if n.domain not in STANDARD_DOMAINS for name in n.output}
    kept = [value for value in graph.value_info if value.name in custom]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    _forget_shapes(value for value in graph.output if value.name not in custom)
    for _, body in _bodies(graph):
        _forget_shapes(body.input)
        _forget_types(body)


def _stand_in(graph: onnx.GraphProto) -> None:
    """Puts in what has the same shape where onnx cannot tell, for onnxruntime's operators too."""
    scalars = {tensor.name for tensor in graph.initializer if not tensor.dims}
    for node in graph.node:
        ours = node.domain in STANDARD_DOMAINS
        if node.op_type == "SplitToSequence" and node.input[-1] in scalars and _drops_axis(node):
            del node.input[1:]  # onnx keeps the axis of parts of a given length, unlike onnxruntime
        if node.op_type in UNINFERRED if ours else (node.domain, node.op_type) in ALIKE:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.output[1:], node.attribute[:]
        elif (node.domain, node.op_type) in FUSED and not _is_transposed(node):
            node.op_type, node.domain = FUSED[node.domain, node.op_type], ""
            known = onnx.defs.get_schema(node.op_type).attributes
            own = [attribute for attribute in node.attribute if attribute.name in known]
            del node.input[3:], node.attribute[:]
            node.attribute.extend(own)
    for _, body in _bodies(graph):
        _stand_in(body)


def _drops_axis(node: onnx.NodeProto) -> bool:
    return any(attribute.name == "keepdims" and not attribute.i for attribute in node.attribute)


def _is_transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "FusedMatMul" and any(
        attribute.i for attribute in node.attribute if attribute.name.startswith("trans")
    )


def _forget_shapes(values: Iterable[onnx.ValueInfoProto]) -> None:
    for value in values:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def _bodies(graph: onnx.GraphProto) -> Iterator[tuple[tuple[int, str], onnx.GraphProto]]:
    for index, node in enumerate(graph.node):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield (index, attribute.name), attribute.g


def _read(
    graph: gs.Graph, proto: onnx.GraphProto, outer: Mapping[str, TensorType]
) -> Iterator[tuple[gs.Graph, dict[str, TensorType]]]:
    """Pairs a graph and its bodies with what was inferred for each."""
    values = (*proto.input, *proto.output, *proto.value_info)
    own = {v.name: _type(v.type) for v in values if v.type.HasField("tensor_type")}
    yield graph, {**outer, **own}
    inner = dict(_bodies(proto))
    for index, node in enumerate(graph.nodes):
        for name, body in subgraphs(node):
            yield from _read(body, inner[index, name], {**outer, **own})


def _type(kind: onnx.TypeProto) -> TensorType:
    tensor = kind.tensor_type
    dtype: Any = None
    if tensor.elem_type:
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except (KeyError, TypeError):
            dtype = tensor.elem_type
    shape = tuple(_dim(dim) for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    return TensorType(dtype, shape)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    invented = dim.dim_param.startswith("unk__")  # by the inference; the next one counts anew
    return None if invented or not dim.dim_param else dim.dim_param


def _merged(known: Any, found: tuple[Dim, ...] | None) -> Any:
    """``known`` with its gaps filled; sizes beat symbols."""
    if found is None or (known is not None and len(known) != len(found)):
        return known
    if known is None:
        return list(found)
    return [
        old if isinstance(old, int) or new is None else new
        for old, new in zip(known, found, strict=True)
    ]
