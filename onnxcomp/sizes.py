"""Sizes that a graph computes from shapes: what is certain of them becomes constant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.exporting import data_type_of
from onnxcomp.graph import input_at
from onnxcomp.rewriting import Rule, Scope, permutation, small_values

ELEMENTWISE = (
    *("Abs", "BatchNormalization", "Cast", "Clip", "Dropout", "Elu", "Erf", "Exp", "Gelu"),
    *("HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Neg", "Relu", "Sigmoid", "Softmax"),
    *("Softplus", "Sqrt", "Tanh", "InstanceNormalization", "LayerNormalization"),
)  # whose first input has the shape of the output
BATCHED = ("AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "MaxPool")  # keep axis 0


def fold_shapes(scope: Scope, node: gs.Node) -> bool:
    """Shapes, and what is taken from them, become constants where the sizes are certain."""
    if node.op in ("Reshape", "Expand") or scope.is_output(node.outputs[0]):
        return False
    sizes = known_sizes(scope, node.outputs[0])
    if sizes is None or not all(isinstance(size, int) for size in sizes):
        return False
    shape = scope.static_shape(node.outputs[0])
    if shape is None or math.prod(shape) != len(sizes):
        return False
    kind = scope.data_type(node.outputs[0])
    if kind is None or data_type_of(np.int64) != kind:
        return False
    values = np.array(sizes, np.int64).reshape(shape)
    return scope.replace(node, gs.Constant(node.outputs[0].name, values))


def simplify_target(scope: Scope, node: gs.Node) -> bool:
    """Reshape(x, computed sizes)  ->  Reshape(x, constant), with 0 for a size that x has there.

    One size that is not known otherwise becomes -1: it follows from the others.
    """
    target = input_at(node, 1)
    if target is None or isinstance(target, gs.Constant) or node.attrs.get("allowzero", 0):
        return False
    sizes = known_sizes(scope, target)
    if sizes is None:
        return False
    data = scope.shape(node.inputs[0])
    result = []
    for place, size in enumerate(sizes):
        if isinstance(size, SizeOf) and _copies(scope, size, node.inputs[0], data, place):
            size = 0
        result.append(size if isinstance(size, int) else -1)
    if result.count(-1) > 1:
        return False
    scope.changed(node)
    node.inputs[1] = scope.constant(f"{node.outputs[0].name}.shape", np.array(result, np.int64))
    return True


@dataclass(frozen=True)
class SizeOf:
    """The size of one axis of a tensor, known only when the model runs."""

    tensor: str
    axis: int
    symbol: str | None


Size = int | SizeOf | None


def _copies(
    scope: Scope, size: SizeOf, data: gs.Tensor, shape: Sequence[object] | None, place: int
) -> bool:
    """Whether 0 at ``place`` of a Reshape's target, "as in the data", means ``size``."""
    if shape is None or place >= len(shape):
        return False
    if _origin(scope, data, place) == (size.tensor, size.axis):
        return True
    promised = {d for t in scope.root.inputs for d in t.shape or () if isinstance(d, str)}
    return shape[place] == size.symbol and size.symbol in promised


def _origin(scope: Scope, tensor: gs.Tensor, axis: int) -> tuple[str, int]:
    """The tensor and axis whose size the size of ``axis`` certainly is, as far up as it goes."""
    while True:
        node = scope.maker(tensor, *ELEMENTWISE, *BATCHED, "Transpose")
        if node is None or (node.op in BATCHED and axis > 0):
            return tensor.name, axis
        if node.op == "Transpose":
            order = permutation(scope, node)
            if order is None:
                return tensor.name, axis
            axis = order[axis]
        tensor = node.inputs[0]


def known_sizes(scope: Scope, tensor: gs.Tensor, depth: int = 16) -> list[Size] | None:
    """The elements of a small integer tensor as far as they are certain; None where nothing is."""
    values = small_values(tensor, 64)
    if values is not None:
        return [int(v) for v in values.reshape(-1)] if values.dtype.kind == "i" else None
    node = scope.maker(tensor, *_SIZES)
    shape = scope.static_shape(tensor)
    unknown: list[Size] | None = None
    if shape is not None and len(shape) <= 1 and math.prod(shape) <= 64:
        unknown = [None] * math.prod(shape)
    if node is None or depth == 0:
        return unknown
    found: list[Size] | None = _SIZES[node.op](scope, node, depth - 1)
    return found if found is not None else unknown


def _of_shape(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    shape = scope.shape(node.inputs[0])
    if shape is None:
        return None
    data = node.inputs[0]
    sizes: list[Size] = [
        size if isinstance(size, int) else SizeOf(*_origin(scope, data, axis), size)
        for axis, size in enumerate(shape)
    ]
    return sizes[node.attrs.get("start", 0) : node.attrs.get("end", len(sizes))]


def _of_same(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    return known_sizes(scope, node.inputs[0], depth)


def _of_cast(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    if data_type_of(node.attrs["to"]) not in (data_type_of(np.int64), data_type_of(np.int32)):
        return None
    return known_sizes(scope, node.inputs[0], depth)


def _of_gather(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    sizes, indices = known_sizes(scope, node.inputs[0], depth), small_values(node.inputs[1], 64)
    if sizes is None or indices is None or scope.rank(node.inputs[0]) != 1:
        return None
    if not ((indices >= -len(sizes)) & (indices < len(sizes))).all():
        return None
    return [sizes[int(index)] for index in indices.reshape(-1)]


def _of_slice(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    sizes = known_sizes(scope, node.inputs[0], depth)
    ranges = [small_values(input_at(node, index), 1) for index in (1, 2)]
    step = small_values(input_at(node, 4), 1) if input_at(node, 4) else np.ones(1, np.int64)
    if sizes is None or scope.rank(node.inputs[0]) != 1 or step is None:
        return None
    if any(value is None or value.size != 1 for value in ranges) or int(step.reshape(-1)[0]) != 1:
        return None
    start, end = (int(value.reshape(-1)[0]) for value in ranges if value is not None)
    return sizes[start:end]


def _of_concat(scope: Scope, node: gs.Node, depth: int) -> list[Size] | None:
    parts = [known_sizes(scope, tensor, depth) for tensor in node.inputs]
    if any(part is None for part in parts) or scope.rank(node.outputs[0]) != 1:
        return None
    return [size for part in parts if part is not None for size in part]


_SIZES = {
    "Shape": _of_shape,
    "Gather": _of_gather,
    "Slice": _of_slice,
    "Concat": _of_concat,
    "Cast": _of_cast,
    **dict.fromkeys(("Identity", "Squeeze", "Unsqueeze", "Reshape"), _of_same),
}
SHAPE_RULES: dict[str, list[Rule]] = {op: [fold_shapes] for op in _SIZES} | {
    "Reshape": [simplify_target]
}
