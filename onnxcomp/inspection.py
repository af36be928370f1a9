"""What a model is made of: parameters, bytes, MACs, and what each pass could touch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcomp.calibration import Calibration
from onnxcomp.errors import OnnxcompError, UnsupportedModel
from onnxcomp.exporting import data_type_of
from onnxcomp.graph import (
    STANDARD_DOMAINS,
    all_nodes,
    carried_of,
    is_constant,
    label,
    opsets,
    subgraphs,
)
from onnxcomp.kernel_use import KernelUse, kernels_of
from onnxcomp.macs import count_macs, macs_by_node
from onnxcomp.measuring import LARGE
from onnxcomp.model import Model, load_model
from onnxcomp.parameters import count_parameters, external_files, parameters, stored_constants
from onnxcomp.passes import PASSES
from onnxcomp.report import plain
from onnxcomp.signature import InputSpec, Signature, is_free
from onnxcomp.stored import constant_bytes
from onnxcomp.synthetic import Guess, SyntheticInputs

__all__ = ["Inspection", "count_macs", "count_parameters", "inspect"]

SCHEMA = "onnxcomp.inspection/1"


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """An input or output: a size, a symbol or None per axis; no shape where it is not said."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name!r} {self.dtype}, any shape"
        axes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name!r} {self.dtype} [{axes}]"


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """What one node takes.

    Attributes:
        name: label of the node.
        op: its operator type.
        parameters: weights that this node reads, also through nodes that only prepare them. A
            weight with several readers counts for the first.
        bytes: of these in the file, scales and other constants included.
        macs: of one run; None where unknown.
    """

    name: str
    op: str
    parameters: int
    bytes: int
    macs: int | None


@dataclass(frozen=True, kw_only=True)
class OperatorCost:
    """What all nodes of one operator type take; macs is None where any node's are unknown."""

    op: str
    count: int
    parameters: int
    bytes: int
    macs: int | None


@dataclass(frozen=True, kw_only=True)
class PassReach:
    """The nodes that a pass could touch, by label, and how many of each operator type."""

    name: str
    candidates: tuple[str, ...]
    operators: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a model is made of.

    Attributes:
        model: path of the file.
        bytes: of the file and its external data.
        parameters: elements of all float and quantized weights.
        macs: of one run at ``shapes``; None where any node's are unknown.
        unknown_macs: labels of those nodes.
        shapes: of the inputs that macs are counted for.
        assumed: dynamic dimensions, as input[axis] or by symbol -> the size taken for ``macs``.
        opsets: domain -> version; "" is ONNX itself.
        ir_version: of the file.
        producer: who wrote the model.
        inputs, outputs: as a caller sees them; initializers with a default are inputs too.
        external_data: files that hold weights.
        custom_domains: domain -> operator types in use that ONNX does not define.
        functions: local functions of the model.
        subgraphs: "label/attribute" of every If, Loop and Scan body -> its number of nodes.
        metadata: metadata_props of the model.
        operators: largest bytes first.
        layers: all nodes with weights or MACs, largest bytes first.
        passes: what each could touch.
        kernels: what onnxruntime runs in integers and in float, on made-up inputs; None where
            nothing is quantized, the model is too large to be run for that, or does not run.
    """

    model: str
    bytes: int
    parameters: int
    macs: int | None
    unknown_macs: tuple[str, ...]
    shapes: dict[str, list[int]]
    assumed: dict[str, int]
    opsets: dict[str, int]
    ir_version: int
    producer: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    external_data: tuple[str, ...]
    custom_domains: dict[str, list[str]]
    functions: tuple[str, ...]
    subgraphs: dict[str, int]
    metadata: dict[str, str]
    operators: tuple[OperatorCost, ...]
    layers: tuple[LayerCost, ...]
    passes: tuple[PassReach, ...]
    kernels: KernelUse | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the schema's name first; see docs/report.md."""
        return {"schema": SCHEMA, **plain(self)}


def inspect(
    model: str | os.PathLike[str] | Model, *, shapes: Mapping[str, Sequence[int]] | None = None
) -> Inspection:
    """Looks at a model; one that is quantized is run, on made-up inputs.

    Args:
        model: a path or a loaded model.
        shapes: of inputs, for counting MACs; what they leave open is assumed (batch 1).

    Raises:
        UnsupportedModel: the model cannot be read, or ``shapes`` do not fit it.
    """
    model = model if isinstance(model, Model) else load_model(model)
    graph, header = model.graph, carried_of(model.graph).header
    concrete, assumed = input_shapes(graph, shapes or {})
    costs = macs_by_node(graph, concrete)
    layers = _layers(graph, {cost.name: cost.macs for cost in costs})
    unknown = tuple(cost.name for cost in costs if cost.macs is None)
    return Inspection(
        model=str(model.path),
        bytes=model.bytes,
        parameters=count_parameters(graph),
        macs=None if unknown else sum(cost.macs or 0 for cost in costs),
        unknown_macs=unknown,
        shapes=concrete,
        assumed=assumed,
        opsets={o.domain: o.version for o in opsets(graph)},
        ir_version=header.ir_version,
        producer=f"{header.producer_name} {header.producer_version}".strip(),
        inputs=tuple(map(tensor_info, graph.inputs)),
        outputs=tuple(map(tensor_info, graph.outputs)),
        external_data=tuple(str(path) for path in external_files(graph)),
        custom_domains=_custom_domains(graph),
        functions=tuple(f"{f.domain}::{f.name}" for f in header.functions),
        subgraphs={
            f"{label(node)}/{name}": len(body.nodes)
            for node in all_nodes(graph)
            for name, body in subgraphs(node)
        },
        metadata={entry.key: entry.value for entry in header.metadata_props},
        operators=_operators(graph, layers),
        layers=tuple(layer for layer in layers if layer.bytes or layer.macs != 0),
        passes=tuple(_reaches(graph)),
        kernels=None if model.bytes > LARGE else _kernels(graph),
    )


def _kernels(graph: gs.Graph) -> KernelUse | None:
    try:
        for feed in Calibration.from_source(None, graph, limit=1).feeds():
            return kernels_of(graph, feed)
    except OnnxcompError:  # made-up inputs do not suit every model
        return None
    return None


def _reaches(graph: gs.Graph) -> Iterator[PassReach]:
    operators = {label(node): node.op for node in all_nodes(graph)}
    for kind in PASSES:
        names = kind().candidates(graph)
        counts = Counter(operators.get(name, "other") for name in names)
        yield PassReach(
            name=kind.name(), candidates=tuple(names), operators=dict(counts.most_common())
        )


def _layers(graph: gs.Graph, macs: Mapping[str, int | None]) -> list[LayerCost]:
    """All nodes, those of bodies too, largest bytes first."""
    sizes: Counter[int] = Counter()
    weights: Counter[int] = Counter()
    for tensor, roles in stored_constants(graph):
        if roles:
            reader = id(_final_reader(roles[0][0]))
            sizes[reader] += constant_bytes(tensor)
            weights[reader] += parameters(tensor, roles)
    layers = [
        LayerCost(
            name=label(node),
            op=node.op,
            parameters=weights[id(node)],
            bytes=sizes[id(node)],
            macs=macs.get(label(node), 0),
        )
        for node in all_nodes(graph)
    ]
    return sorted(layers, key=lambda layer: (-layer.bytes, -(layer.macs or 0)))


def _final_reader(node: gs.Node) -> gs.Node:
    """Follows nodes that only prepare a weight, such as DequantizeLinear, to who uses it."""
    while all(is_constant(t) or not t.name for t in node.inputs) and len(node.outputs) == 1:
        readers = node.outputs[0].outputs
        if not readers or any(True for _ in subgraphs(node)):
            break
        node = readers[0]
    return node


def _operators(graph: gs.Graph, layers: Sequence[LayerCost]) -> tuple[OperatorCost, ...]:
    groups: dict[str, list[LayerCost]] = {}
    for layer in layers:
        groups.setdefault(layer.op, []).append(layer)
    costs = [
        OperatorCost(
            op=op,
            count=len(group),
            parameters=sum(layer.parameters for layer in group),
            bytes=sum(layer.bytes for layer in group),
            macs=None
            if any(layer.macs is None for layer in group)
            else sum(layer.macs or 0 for layer in group),
        )
        for op, group in groups.items()
    ]
    return tuple(sorted(costs, key=lambda cost: (-cost.bytes, -(cost.macs or 0), cost.op)))


def tensor_info(tensor: gs.Tensor) -> TensorInfo:
    """Name, dtype and shape of an input or output as a person reads them."""
    dtype = "unknown"
    if getattr(tensor, "type", "tensor_type") != "tensor_type":
        dtype = tensor.type.removesuffix("_type")
    elif tensor.dtype is not None:
        dtype = TensorProto.DataType.Name(data_type_of(tensor.dtype)).lower()
    shape = None if tensor.shape is None else tuple(_dim(size) for size in tensor.shape)
    return TensorInfo(name=tensor.name, dtype=dtype, shape=shape)


def _dim(size: object) -> int | str | None:
    if is_free(size):
        return size if isinstance(size, str) and size else None
    return int(str(size))


def _custom_domains(graph: gs.Graph) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for node in all_nodes(graph):
        if node.domain not in STANDARD_DOMAINS:
            found.setdefault(node.domain, set()).add(node.op)
    return {domain: sorted(ops) for domain, ops in sorted(found.items())}


def input_shapes(
    graph: gs.Graph, given: Mapping[str, Sequence[int]]
) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Shapes of all required inputs, and the sizes in them that nobody gave.

    Raises:
        UnsupportedModel: a given shape is of no input, or does not fit it.
    """
    signature = Signature.of(graph)
    names = [spec.name for spec in signature.inputs]
    for name, shape in given.items():
        if name not in names:
            raise UnsupportedModel(f"no input {name!r}; the model takes {', '.join(names)}")
        signature[name].check_shape(tuple(shape), f"the shape given for {name!r}")
    bound = {
        symbol: size
        for name, shape in given.items()
        for symbol, size in zip(signature[name].shape or (), shape, strict=False)
        if isinstance(symbol, str) and symbol
    }
    concrete: dict[str, list[int]] = {}
    assumed: dict[str, int] = {}
    for name, guessed in SyntheticInputs(signature, {}, Guess(), 0).shapes.items():
        if name in given:
            concrete[name] = [int(size) for size in given[name]]
            continue
        dims = signature[name].shape or (None,) * len(guessed)
        concrete[name] = [
            bound.get(str(dim), size) for dim, size in zip(dims, guessed, strict=True)
        ]
        assumed |= _assumed(signature[name], concrete[name], bound)
    return concrete, assumed


def _assumed(spec: InputSpec, shape: Sequence[int], bound: Mapping[str, int]) -> dict[str, int]:
    dims = spec.shape or (None,) * len(shape)
    return {
        str(dim) if isinstance(dim, str) and dim else f"{spec.name}[{axis}]": size
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=True))
        if is_free(dim) and dim not in bound
    }
