"""Where constant weights are read, and how each is a matrix of output rows and input columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import all_graphs, consumers, is_constant, is_standard, producer
from onnxcomp.quantization import Array

WEIGHTS = {  # inputs that are weights, by operator
    "Conv": (1,),
    "ConvTranspose": (1,),
    "GRU": (1, 2),
    "Gather": (0,),
    "Gemm": (1,),
    "LSTM": (1, 2),
    "MatMul": (1, 0),
    "RNN": (1, 2),
}
QUANTIZED = {
    *("MatMulNBits", "GatherBlockQuantized", "MatMulInteger", "DynamicQuantizeMatMul"),
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "QGemm", "MatMulIntegerToFloat"),
}
MOVERS = {"Concat", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
UNPACKING = {"BitShift", "Cast", "DequantizeLinear", "Mul", "Sub", *MOVERS}
"""What may lie between stored codes and a float weight."""


@dataclass(frozen=True)
class Layout:
    """How an array is a matrix [rows, d], each row what one output is computed with.

    Attributes:
        shape: of the array.
        order: its axes, those of the outputs first.
        outputs: how many of them those are.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    outputs: int

    @property
    def ordered(self) -> tuple[int, ...]:
        """The shape with the axes in ``order``."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def rows(self) -> int:
        """Number of rows of the matrix."""
        return math.prod(self.ordered[: self.outputs])

    @property
    def columns(self) -> int:
        """d of the matrix."""
        return math.prod(self.ordered[self.outputs :])

    @property
    def inverse(self) -> tuple[int, ...]:
        """The order that brings the axes back."""
        return tuple(int(i) for i in np.argsort(self.order))

    def matrix(self, values: Array) -> Array:
        """The array as [rows, d]."""
        return np.ascontiguousarray(values.transpose(self.order).reshape(self.rows, -1))

    def restored(self, matrix: Array) -> Array:
        """[rows, n] as an array whose one input axis has n elements, or the array's own shape."""
        ordered = self.ordered
        if matrix.shape[1] != self.columns:
            ordered = (*ordered[: self.outputs], matrix.shape[1])
        return np.ascontiguousarray(matrix.reshape(ordered).transpose(self.inverse))


@dataclass
class Site:
    """A node that reads a weight.

    Attributes:
        body: the graph or body it is in.
        node: what reads the weight: a layer, or an operator that moves it to one.
        index: of its input.
        layout: of the weight.
        layer: the node that multiplies with the weight or looks rows up in it.
    """

    body: gs.Graph
    node: gs.Node
    index: int
    layout: Layout
    layer: gs.Node


@dataclass
class Weight:
    """A constant and all nodes that multiply with it or look rows up in it.

    Attributes:
        constant: float32.
        sites: the nodes, in the order of the graph.
        others: whether any other node reads it as well.
    """

    constant: gs.Constant
    sites: list[Site] = field(default_factory=list)
    others: bool = False

    @property
    def layout(self) -> Layout:
        """How the weight is a matrix."""
        return self.sites[0].layout

    @property
    def is_product(self) -> bool:
        """Whether all that reads it are MatMul and Gemm, y = x W with one matrix [in, out]."""
        return not self.others and all(
            site.index == 1
            and site.node.op in ("MatMul", "Gemm")
            and not site.node.attrs.get("transA", 0)
            and len(site.layout.shape) == 2
            and site.layout == self.layout
            for site in self.sites
        )

    @property
    def is_table(self) -> bool:
        """Whether all that reads it are lookups of rows of a matrix."""
        return not self.others and all(
            site.node.op == "Gather"
            and site.node.attrs.get("axis", 0) in (0, -len(site.layout.shape))
            and len(site.layout.shape) == 2
            for site in self.sites
        )


def find_weights(graph: gs.Graph) -> list[Weight]:
    """The constant float32 weights of a graph and its bodies."""
    found: dict[int, Weight] = {}
    for body, node in _nodes(graph):
        for index in WEIGHTS.get(node.op, range(len(node.inputs))):
            if index >= len(node.inputs) or _refusal(node, index):
                continue
            layer = node if node.op in WEIGHTS else _layer_behind(node)
            if layer is not None:
                weight = node.inputs[index]
                site = Site(body, node, index, layout_of(node, index), layer)
                found.setdefault(id(weight), Weight(weight)).sites.append(site)
    for weight in found.values():
        mine = {(id(site.node), site.index) for site in weight.sites}
        weight.others = any(
            (id(node), index) not in mine
            for node in consumers(weight.constant)
            for index, tensor in enumerate(node.inputs)
            if tensor is weight.constant
        ) or any(t is weight.constant for g in all_graphs(graph) for t in g.outputs)
    return list(found.values())


def refused_nodes(graph: gs.Graph) -> Iterator[tuple[gs.Node, str]]:
    """Nodes with weights of a kind that cannot be quantized, and why."""
    reached = {id(site.layer) for weight in find_weights(graph) for site in weight.sites}
    for _, node in _nodes(graph):
        if node.op == "Gather" or id(node) in reached:
            continue  # most Gathers pick sizes from shapes
        reasons = [_refusal(node, i) for i in WEIGHTS.get(node.op, ()) if i < len(node.inputs)]
        if reasons and all(reasons):
            yield node, reasons[0]
    for body in all_graphs(graph):
        for node in body.nodes:
            if node.op in QUANTIZED:
                yield node, "quantized already"


def layout_of(node: gs.Node, index: int) -> Layout:
    """How the weight at input ``index`` of a node is a matrix."""
    shape = tuple(int(size) for size in node.inputs[index].shape)
    axes = tuple(range(len(shape)))
    if node.op in MOVERS:
        return Layout(shape, axes, 1 if shape[0] > 1 else len(shape) - 1)
    if node.op in ("Conv", "ConvTranspose", "Gather"):  # of a ConvTranspose rows are inputs
        return Layout(shape, axes, 1)
    last_is_input = node.op in ("LSTM", "GRU", "RNN") or index == 0
    if node.op == "Gemm":
        last_is_input = bool(node.attrs.get("transB", 0))
    if not last_is_input:
        axes = (*axes[:-2], axes[-1], axes[-2])
    return Layout(shape, axes, len(shape) - 1)


def _nodes(graph: gs.Graph) -> Iterator[tuple[gs.Graph, gs.Node]]:
    for body in all_graphs(graph):
        for node in body.nodes:
            if (node.op in WEIGHTS or node.op in MOVERS) and is_standard(node):
                yield body, node


def _layer_behind(mover: gs.Node) -> gs.Node | None:
    """The first layer whose weight is made, by movers of constants alone, of what one returns."""
    waiting, seen = [mover], {id(mover)}
    while waiting:
        node = waiting.pop()
        if not all(is_constant(t) or _is_moved(t) for t in node.inputs if t.name):
            continue
        for tensor in node.outputs:
            for reader in consumers(tensor):
                indices = WEIGHTS.get(reader.op, ()) if reader.op != "MatMul" else (1,)
                if any(tensor is reader.inputs[i] for i in indices if i < len(reader.inputs)):
                    return reader if is_standard(reader) else None
                if reader.op in MOVERS and id(reader) not in seen:
                    seen.add(id(reader))
                    waiting.append(reader)
    return None


def _is_moved(tensor: gs.Tensor) -> bool:
    maker = producer(tensor)
    return maker is not None and maker.op in MOVERS


def _refusal(node: gs.Node, index: int) -> str:
    """Why an input of a node is no weight to quantize; empty for those that are."""
    weight = node.inputs[index]
    if is_constant(weight):
        if weight.dtype != np.float32:
            return f"its weight is {weight.dtype}, not float32"
        return "" if len(weight.shape) >= 2 else "its weight is a vector"
    while (maker := producer(weight)) is not None and maker.op in UNPACKING and maker.inputs:
        weight = maker.inputs[0]
    if is_constant(weight) and np.dtype(weight.dtype).kind != "f":
        return "quantized already"
    if producer(node.inputs[index]) is None and node.op != "MatMul":
        return "its weight is an input of the model, which a caller may replace"
    return "both factors are computed" if node.op == "MatMul" else "its weight is computed"
