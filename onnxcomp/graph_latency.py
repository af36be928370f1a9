"""How long a graph takes as a function of what is kept of its channel groups.

Layers with weights take most of the time: each is measured alone, at a few lengths of the channels
that it reads and makes, and interpolated in between. Products of activations and convolutions in
groups are measured once and follow their MACs. What is left of the time of the whole model is
shared out over all other nodes by the elements that they write and their MACs; where the layers
alone take longer than the model, all are taken to be faster in it by the same factor. So it is
assumed that layers are as fast alone as among others, or all slower alike, and that an element of
the rest takes as long wherever it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channels import Channels
from onnxcomp.concrete_shapes import is_known, with_concrete_shapes
from onnxcomp.graph import is_constant, is_standard, label
from onnxcomp.graph_resources import Lengths
from onnxcomp.layer_latency import Layer, LayerLatency
from onnxcomp.macs import Shape, macs_by_node
from onnxcomp.resources import Resource, Table
from onnxcomp.shapes import TensorType

CONVOLUTIONS = ("Conv", "ConvTranspose")
MEASURED = (*CONVOLUTIONS, "Gemm", "MatMul")
FREE = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant")
MACS_PER_ELEMENT = 16  # that take as long as writing an element, outside measured layers


@dataclass(frozen=True)
class Axis:
    """Channels of a layer that may become fewer.

    Attributes:
        ends: (number of an input, its axis) where their number stands; the first is the weights'.
        is_group: whether it is the attribute ``group``, too.
    """

    ends: tuple[tuple[int, int], ...]
    is_group: bool = False


def latency_of(
    graph: gs.Graph,
    channels: Channels,
    shapes: Mapping[str, Sequence[int]],
    layer_latency: LayerLatency,
    total_ms: float | None = None,
) -> Resource:
    """Milliseconds of one run.

    Args:
        graph: the one that ``channels`` were found in.
        channels: its groups.
        shapes: of the inputs, all sizes known.
        layer_latency: measures layers, or remembers them.
        total_ms: of the whole model, which the result then gives when all is kept; None counts
            the measured layers only.
    """
    lengths = Lengths(channels)
    known, types = with_concrete_shapes(graph, shapes)
    macs = {cost.name: cost.macs or 0 for cost in macs_by_node(graph, shapes, lengths)}
    parts, rest = [Resource(terms=())], []
    for node in known.nodes:
        layer, count = _layer(node, types[id(known)]), macs.get(label(node), 0)
        table = None if layer is None else _table(node, layer, lengths, layer_latency)
        if layer is None:
            rest += [count, *_written(node, types[id(known)], lengths)]
        elif table is not None:
            parts.append(Resource(terms=(table,)))
        else:
            (ms,) = layer_latency.measure([layer])
            parts.append(_scaled(lengths.resource([count], ""), ms))
    if total_ms is not None:
        alone = sum(part.value() for part in parts)
        faster = min(1.0, total_ms / alone) if alone else 1.0
        parts = [_scaled(part, faster * part.value()) for part in parts]
        parts.append(_scaled(lengths.resource(rest, ""), total_ms - faster * alone))
    terms = tuple(term for part in parts for term in part.terms)
    return Resource(terms=terms, constant=sum(part.constant for part in parts), unit="ms")


def _layer(node: gs.Node, types: Mapping[str, TensorType]) -> Layer | None:
    """A node as it can be measured; None for operators that are not, or not in float32."""
    inputs = [tensor for tensor in node.inputs if tensor.name]
    if node.op not in MEASURED or not is_standard(node) or len(inputs) < len(node.inputs):
        return None
    shapes = [_shape(tensor, types) for tensor in inputs]
    dtypes = [t.dtype if is_constant(t) or t.dtype else types[t.name].dtype for t in inputs]
    fed = tuple(i for i, tensor in enumerate(inputs) if not is_constant(tensor))
    if not fed or None in shapes or any(dtype != np.float32 for dtype in dtypes):
        return None
    sizes = tuple(shape for shape in shapes if shape is not None)
    return Layer(op=node.op, attributes=dict(node.attrs), shapes=sizes, fed=fed)


def _shape(tensor: gs.Tensor, types: Mapping[str, TensorType]) -> Shape | None:
    if is_constant(tensor):
        return tuple(map(int, tensor.shape))
    found = types.get(tensor.name)
    if found is None or not is_known(found):
        return None
    return tuple(int(str(size)) for size in found.shape or ())


def _axes(node: gs.Node) -> list[Axis]:
    """What a layer with constant weights reads and makes; nothing for other layers."""
    weights = node.inputs[1]
    if not is_constant(weights):
        return []
    transposed = bool(node.attrs.get("transB"))
    groups = int(node.attrs.get("group", 1))
    if node.op == "Conv" and groups > 1:
        depthwise = groups == int(weights.shape[0])
        return [Axis(((1, 0), (0, 1), (2, 0)), is_group=True)] if depthwise else []
    if node.op in CONVOLUTIONS and groups == 1:
        made = 0 if node.op == "Conv" else 1
        return [Axis(((1, 1 - made), (0, 1))), Axis(((1, made), (2, 0)))]
    if node.op == "Gemm":
        read = 0 if node.attrs.get("transA") else 1
        return [Axis(((1, int(transposed)), (0, read))), Axis(((1, 1 - transposed), (2, -1)))]
    if node.op == "MatMul" and len(weights.shape) == 2:
        return [Axis(((1, 0), (0, -1))), Axis(((1, 1),))]
    return []


def _table(
    node: gs.Node, layer: Layer, lengths: Lengths, layer_latency: LayerLatency
) -> Table | None:
    """Times of a layer over the axes that may shrink; None where it has none of them."""
    axes, sizes, longest = [], [], []
    for axis in _axes(node):
        number, at = axis.ends[0]
        length = layer.shapes[number][at]
        size = lengths.size(node.inputs[number], at, length)
        if size.parts:
            axes.append(axis)
            sizes.append(size)
            longest.append(length)
    if not axes:
        return None

    def layer_at(*cut: int) -> Layer:
        shapes = [list(shape) for shape in layer.shapes]
        attributes = dict(layer.attributes)
        for axis, full, length in zip(axes, longest, cut, strict=True):
            for number, at in axis.ends:
                if number < len(shapes) and shapes[number] and shapes[number][at] == full:
                    shapes[number][at] = length
            if axis.is_group:
                attributes["group"] = length
        cuts = tuple(tuple(shape) for shape in shapes)
        return Layer(op=layer.op, attributes=attributes, shapes=cuts, fed=layer.fed)

    block = layer_latency.block if layer.op in CONVOLUTIONS else 1
    knots, values = layer_latency.grid(layer_at, longest, multiple=block)
    step = block if block > 1 else 0
    return Table(sizes=tuple(sizes), knots=knots, values=values, step=step)


def _written(node: gs.Node, types: Mapping[str, TensorType], lengths: Lengths) -> Iterator[int]:
    """The elements of a node's outputs, counted like MACs."""
    for tensor in node.outputs if node.op not in FREE else ():
        shape = _shape(tensor, types)
        if shape is not None:
            yield MACS_PER_ELEMENT * math.prod(lengths(tensor, shape))


def _scaled(resource: Resource, value: float) -> Resource:
    """``resource`` times what makes it ``value`` when all is kept; a constant where it is 0."""
    total = resource.value()
    if not total:
        return Resource(terms=(), constant=value)
    return resource.times(value / total)
