"""Shapes where a graph computes them from symbolic lengths of its inputs.

onnx's inference forgets a length as soon as arithmetic touches it, and the rank of what is reshaped
or expanded to it; exporters of dynamic batches and sequences write little else. Here one walk over
the graph follows lengths as polynomials of symbols. What inference found stays, and names a length
that nothing is known of after its tensor and axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.einsum_equations import einsum_axes
from onnxcomp.graph import input_at, is_standard
from onnxcomp.length_values import Known, Shape, Value, evaluate
from onnxcomp.lengths import Length, Size, divided, symbol
from onnxcomp.symbolic_selections import SELECTIONS
from onnxcomp.symbolic_space import SPACE

Rule = Callable[[Known, gs.Node], Sequence[Shape | None]]


def infer_symbolic_shapes(graph: gs.Graph) -> Known:
    """Fills shapes of activations in as far as they follow; symbolic lengths as text.

    Equal texts are equal lengths. Bodies of control flow are left alone.
    """
    known = Known()
    for tensor in graph.inputs:
        _take(known, tensor, None)
    ends = {tensor.name for tensor in graph.outputs}
    for node in graph.nodes:
        found = _followed(known, node)
        for tensor, shape in zip(node.outputs, found, strict=False):
            _take(known, tensor, shape)
            if tensor.name in known.shapes and tensor.name not in ends:
                tensor.shape = [_written(size) for size in known.shapes[tensor.name]]
        value = evaluate(known, node) if is_standard(node) else None
        if value is not None:
            known.values[node.outputs[0].name] = value
            known.shapes.setdefault(node.outputs[0].name, value.shape)
    return known


def _followed(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    rule = SHAPES.get(node.op) if is_standard(node) else None
    nothing = [None] * len(node.outputs)
    if rule is None or any(
        known.shape(tensor) is None for tensor in node.inputs[:1] if tensor.name
    ):
        return nothing
    try:
        return rule(known, node)
    except (IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return nothing


def _take(known: Known, tensor: gs.Tensor, found: Shape | None) -> None:
    """What inference says and what was found here, together; numbers beat symbols."""
    stated = tensor.shape
    if not tensor.name or (stated is None and found is None):
        return
    if stated is None or (found is not None and len(found) != len(stated)):
        stated = [None] * len(found or ())
    sizes: list[Size] = []
    for axis, size in enumerate(stated):
        mine = None if found is None else found[axis]
        if isinstance(size, (int, np.integer)):
            sizes.append(int(size))
        elif mine is not None:
            sizes.append(mine)
        else:
            sizes.append(symbol(size or f"{tensor.name}[{axis}]"))
    known.shapes[tensor.name] = tuple(sizes)


def _written(size: Size) -> int | str:
    return str(size) if isinstance(size, Length) else size


# --- one row an operator --------------------------------------------------------------------------


def _same(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    return [known.shape(node.inputs[0])] * len(node.outputs)


def _first(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    return [known.shape(node.inputs[0]), *[None] * (len(node.outputs) - 1)]


def _broadcast(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shapes = [known.shape(tensor) for tensor in node.inputs if tensor.name]
    return [_wide(known, node, shapes)]


def _wide(known: Known, node: gs.Node, shapes: Sequence[Shape | None]) -> Shape | None:
    """Shapes aligned at the back; two different symbols give a new one."""
    if any(shape is None for shape in shapes):
        return None
    rank = max(len(shape or ()) for shape in shapes)
    result: list[Size] = []
    for place in range(-rank, 0):
        sizes = {shape[place] for shape in shapes if shape is not None and len(shape) >= -place}
        sizes -= {1}
        numbers = [size for size in sizes if isinstance(size, int)]
        if numbers:
            result.append(numbers[0])
        elif len(sizes) > 1:
            result.append(known.opaque(node.outputs[0].name, place))
        else:
            result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def _matmul(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    left, right = (known.shape(tensor) for tensor in node.inputs[:2])
    if left is None or right is None:
        return [None]
    batch = _wide(known, node, [left[:-2], right[:-2]]) or ()
    return [(*batch, *left[:-1][-1:], *(right[-1:] if len(right) > 1 else ()))]


def _gemm(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    left, right = (known.shape(tensor) for tensor in node.inputs[:2])
    if left is None or right is None:
        return [None]
    rows, columns = (node.attrs.get(name, 0) for name in ("transA", "transB"))
    return [(left[1 if rows else 0], right[0 if columns else 1])]


def _attention(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    query, value = known.shape(node.inputs[0]), known.shape(node.inputs[2])
    rest: list[Shape | None] = [None] * (len(node.outputs) - 1)
    if query is None or value is None or len(query) != 4:
        return [None, *rest]
    return [(*query[:3], value[3]), *rest]


def _transpose(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shape = known.shape(node.inputs[0]) or ()
    order = node.attrs.get("perm") or range(len(shape))[::-1]
    return [tuple(shape[axis] for axis in order)]


def _axes(known: Known, node: gs.Node, index: int = 1) -> list[int] | None:
    """Axes as an input or, in older operator sets, an attribute; None where neither is there."""
    if input_at(node, index) is not None:
        found = known.integers(node.inputs[index])
        if found is None:
            raise ValueError("computed axes")
        return found
    stated = node.attrs.get("axes")
    return None if stated is None else list(stated)


def _squeeze(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shape, axes = known.shape(node.inputs[0]) or (), _axes(known, node)
    if axes is None:
        if any(isinstance(size, Length) for size in shape):
            return [None]
        return [tuple(size for size in shape if size != 1)]
    gone = {axis % len(shape) for axis in axes}
    return [tuple(size for axis, size in enumerate(shape) if axis not in gone)]


def _unsqueeze(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shape, axes = list(known.shape(node.inputs[0]) or ()), _axes(known, node) or []
    rank = len(shape) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        shape.insert(axis, 1)
    return [tuple(shape)]


def _reshape(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    before, target = known.shape(node.inputs[0]), known.value(node.inputs[1])
    if before is None or target is None:
        return [None]
    name = node.outputs[0].name
    after: list[Size] = []
    for axis, size in enumerate(target.tolist()):
        copied = size == 0 and not node.attrs.get("allowzero", 0)
        found = before[axis] if copied else size
        after.append(known.opaque(name, axis) if found is None else found)
    if -1 in after:
        place = after.index(-1)
        others = math.prod(size for size in after if size != -1)
        rest = divided(math.prod(before), others)
        after[place] = known.opaque(name, place) if rest is None else rest
    return [tuple(after)]


def _flatten(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shape = known.shape(node.inputs[0]) or ()
    axis = node.attrs.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def _expand(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    target = known.value(node.inputs[1])
    if target is None:
        return [None]
    return [_wide(known, node, [known.shape(node.inputs[0]), _stated(known, node, target)])]


def _filled(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    """ConstantOfShape: the shape is the value."""
    target = known.value(node.inputs[0])
    if target is None:
        return [None]
    return [_stated(known, node, target)]


def _stated(known: Known, node: gs.Node, target: Value) -> Shape:
    """A target as a shape: what is not known of it has a symbol of its own."""
    name = node.outputs[0].name
    return tuple(known.opaque(name, i) if s is None else s for i, s in enumerate(target.tolist()))


def _concat(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shapes = [known.shape(tensor) for tensor in node.inputs]
    if any(shape is None for shape in shapes):
        return [None]
    result: list[Any] = list(shapes[0] or ())
    axis = node.attrs["axis"] % len(result)
    for place in range(len(result)):
        sizes = [shape[place] for shape in shapes if shape is not None]
        numbers = [size for size in sizes if isinstance(size, int)]
        result[place] = numbers[0] if numbers else sizes[0]
        if place == axis:
            result[place] = sum(sizes)
    return [tuple(result)]


def _einsum(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    """The same letter, the same length."""
    shapes = [known.shape(tensor) for tensor in node.inputs]
    given = [shape for shape in shapes if shape is not None]
    if len(given) < len(shapes):
        return [None]
    terms, result = einsum_axes(node.attrs["equation"], [len(shape) for shape in given])
    sizes: dict[str, Size] = {}
    for term, shape in zip(terms, given, strict=True):
        sizes |= {name: size for name, size in zip(term, shape, strict=True) if size != 1}
    return [tuple(sizes.get(letter, 1) for letter in result)]


def _reduce(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    shape, axes = known.shape(node.inputs[0]) or (), _axes(known, node)
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return [shape]
    gone = {axis % len(shape) for axis in axes or range(len(shape))}
    if node.attrs.get("keepdims", 1):
        return [tuple(1 if axis in gone else size for axis, size in enumerate(shape))]
    return [tuple(size for axis, size in enumerate(shape) if axis not in gone)]


def _recurrent(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    data, weights = known.shape(node.inputs[0]), known.shape(node.inputs[2])
    if data is None or weights is None or node.attrs.get("layout", 0):
        return [None] * len(node.outputs)
    last = (weights[0], data[1], weights[2])
    return [(data[0], *last), last, last][: len(node.outputs)]


ALIKE = (
    *("Abs", "Acos", "Asin", "Atan", "Cast", "Ceil", "Celu", "Clip", "Cos", "CumSum", "Elu", "Erf"),
    *("Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization"),
    *("IsInf", "IsNaN", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "Mish", "Neg", "Not"),
    *("GroupNormalization", "Hardmax", "RMSNormalization", "Reciprocal", "Relu", "RotaryEmbedding"),
    *("Round", "ScatterElements", "ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "Sin"),
    *("Softmax", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu", "Trilu"),
)
WITH_MORE = ("BatchNormalization", "Dropout", "LayerNormalization")  # outputs of other shapes
BINARY = (
    *("Add", "And", "BitwiseAnd", "BitwiseOr", "Div", "Equal", "Greater", "GreaterOrEqual", "Less"),
    *("LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum"),
    *("Where", "Xor"),
)
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")

SHAPES: dict[str, Rule] = {
    **dict.fromkeys(ALIKE, _same),
    **dict.fromkeys(WITH_MORE, _first),
    **dict.fromkeys(BINARY, _broadcast),
    **dict.fromkeys([f"Reduce{kind}" for kind in REDUCTIONS], _reduce),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **SELECTIONS,
    **SPACE,
    "MatMul": _matmul,
    "Attention": _attention,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Expand": _expand,
    "ConstantOfShape": _filled,
    "Concat": _concat,
}
