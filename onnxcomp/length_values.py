"""What small tensors of integers hold that a graph computes from shapes: numbers and symbols.

A value is an array of objects: an int, a bool, a `Length`, or None where nothing is known. So numpy
itself selects, joins and reorders; only arithmetic asks what it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxcomp.graph import input_at, is_constant
from onnxcomp.lengths import Length, Size, divided, symbol
from onnxcomp.rewriting import small_values

Value = npt.NDArray[Any]
Shape = tuple[Size, ...]
LARGEST = 64  # elements; shapes, axes and pads have a few
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, np.float32, np.float64)


@dataclass
class Known:
    """Shapes and values by tensor name, as far as they are certain."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)

    def opaque(self, *key: Any) -> Length:
        """The same symbol for the same key."""
        return symbol(self.names.setdefault(key, f"~{len(self.names)}"))

    def shape(self, tensor: gs.Tensor) -> Shape | None:
        """Of any tensor, constants included."""
        if is_constant(tensor):
            return tuple(int(size) for size in tensor.shape)
        return self.shapes.get(tensor.name)

    def value(self, tensor: gs.Tensor | None) -> Value | None:
        """Of a small tensor."""
        if tensor is None:
            return None
        if not is_constant(tensor):
            return self.values.get(tensor.name)
        values = small_values(tensor, LARGEST)
        return None if values is None else np.asarray(values).astype(object)

    def integers(self, tensor: gs.Tensor | None) -> list[int] | None:
        """The elements where all are numbers."""
        value = self.value(tensor)
        flat = None if value is None else value.ravel().tolist()
        if flat is None or not all(isinstance(size, (int, float)) for size in flat):
            return None
        return [int(size) for size in flat]


Evaluate = Callable[[Known, gs.Node], Value | None]


def evaluate(known: Known, node: gs.Node) -> Value | None:
    """The value of a node's only output; None where it is large or nothing is known."""
    rule = VALUES.get(node.op)
    if rule is None or len(node.outputs) != 1:
        return None
    try:
        found = rule(known, node)
    except (IndexError, TypeError, ValueError, ZeroDivisionError):
        return None
    return found if found is not None and found.size <= LARGEST else None


def array(elements: Sequence[Any]) -> Value:
    """A vector of objects."""
    result = np.empty(len(elements), object)
    result[:] = elements
    return result


def _shape(known: Known, node: gs.Node) -> Value | None:
    shape = known.shape(node.inputs[0])
    if shape is None:
        return None
    return array(shape[node.attrs.get("start", 0) : node.attrs.get("end")])


def _size(known: Known, node: gs.Node) -> Value | None:
    shape = known.shape(node.inputs[0])
    return None if shape is None else np.asarray(math.prod(shape), object)


def _first(known: Known, node: gs.Node) -> Value | None:
    return known.value(node.inputs[0])


def _cast(known: Known, node: gs.Node) -> Value | None:
    value, kind = known.value(node.inputs[0]), node.attrs["to"]
    if kind in FLOATS:
        return _each(lambda x: float(x) if isinstance(x, int) else x, value)
    return _each(lambda x: int(x) if isinstance(x, float) else x, value)


def _floor(known: Known, node: gs.Node) -> Value | None:
    return _each(_down, known.value(node.inputs[0]))


def _down(number: Any) -> Any:
    return float(math.floor(number)) if isinstance(number, float) else number


def _gather(known: Known, node: gs.Node) -> Value | None:
    value, indices = known.value(node.inputs[0]), small_values(node.inputs[1], LARGEST)
    if value is None or indices is None:
        return None
    taken = np.empty(indices.shape, object)
    taken[...] = np.take(value, indices, node.attrs.get("axis", 0))
    return taken


def _slice(known: Known, node: gs.Node) -> Value | None:
    value = known.value(node.inputs[0])
    bounds = [known.integers(input_at(node, index)) for index in (1, 2)]
    if value is None or None in bounds:
        return None
    starts, ends = (bound or [] for bound in bounds)
    axes = known.integers(input_at(node, 3)) or range(len(starts))
    steps = known.integers(input_at(node, 4)) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -LARGEST else end
        value = value[(slice(None),) * (axis % value.ndim) + (slice(start, stop, step),)]
    return value


def _concat(known: Known, node: gs.Node) -> Value | None:
    parts = []
    for tensor in node.inputs:
        part, shape = known.value(tensor), known.shape(tensor)
        if part is None and shape is not None and len(shape) == 1 and isinstance(shape[0], int):
            part = array([None] * min(shape[0], LARGEST + 1))
        if part is None:
            return None
        parts.append(part)
    return np.concatenate(parts, node.attrs["axis"])


def _reshape(known: Known, node: gs.Node) -> Value | None:
    value = known.value(node.inputs[0])
    target = known.integers(input_at(node, 1))
    return None if value is None or target is None else value.reshape(target)


def _squeeze(known: Known, node: gs.Node) -> Value | None:
    value = known.value(node.inputs[0])
    return None if value is None else value.reshape(() if value.size == 1 else -1)


def _unsqueeze(known: Known, node: gs.Node) -> Value | None:
    value = known.value(node.inputs[0])
    if value is None:
        return None
    axes = known.integers(input_at(node, 1)) or node.attrs.get("axes")
    return np.expand_dims(value, tuple(axes))


def _transpose(known: Known, node: gs.Node) -> Value | None:
    value = known.value(node.inputs[0])
    return None if value is None else value.transpose(node.attrs.get("perm"))


def _constant_of_shape(known: Known, node: gs.Node) -> Value | None:
    sizes = known.integers(node.inputs[0])
    if sizes is None or math.prod(sizes) > LARGEST:
        return None
    value = getattr(node.attrs.get("value"), "values", np.zeros(1, np.float32))
    if value.dtype.kind == "f":  # data, not lengths
        return None
    return np.full(sizes, value.ravel()[0].item(), object)


def _expand(known: Known, node: gs.Node) -> Value | None:
    value, sizes = known.value(node.inputs[0]), known.integers(node.inputs[1])
    if value is None or sizes is None or math.prod(sizes) > LARGEST:
        return None
    return np.broadcast_to(value, np.broadcast_shapes(value.shape, tuple(sizes)))


def _range(known: Known, node: gs.Node) -> Value | None:
    bounds = [known.integers(tensor) for tensor in node.inputs]
    if None in bounds:
        return None
    (start,), (end,), (step,) = (bound or [] for bound in bounds)
    found = range(start, end, step)
    return None if len(found) > LARGEST else array(list(found))


def _product(known: Known, node: gs.Node) -> Value | None:
    value = known.value(node.inputs[0])
    if value is None or any(size is None for size in value.ravel()):
        return None
    total = np.asarray(math.prod(value.ravel().tolist()), object)
    return total.reshape(1) if node.attrs.get("keepdims", 1) else total


def _arithmetic(apply: Callable[[Known, Any, Any], Any]) -> Evaluate:
    def rule(known: Known, node: gs.Node) -> Value | None:
        one, other = (known.value(tensor) for tensor in node.inputs)
        if one is None or other is None:
            return None
        pairs = np.broadcast(one, other)
        result = np.empty(pairs.shape, object)
        result[...] = array(
            [None if a is None or b is None else apply(known, a, b) for a, b in pairs]
        ).reshape(pairs.shape)
        return result

    return rule


def _times(known: Known, one: Any, other: Any) -> Any:
    if any(isinstance(x, Length) for x in (one, other)):
        one, other = (
            int(x) if isinstance(x, float) and x.is_integer() else x for x in (one, other)
        )
        if any(isinstance(x, float) for x in (one, other)):
            return known.opaque("scaled", str(one), str(other))
    return one * other


def _over(known: Known, one: Any, other: Any) -> Any:
    if any(isinstance(x, float) for x in (one, other)):
        return one / other  # a TypeError for lengths: nothing is known
    exact = divided(one, other)
    if exact is not None:
        return exact
    if isinstance(one, int) and isinstance(other, int):
        return int(one / other)  # ONNX truncates
    return known.opaque("floor", str(one), str(other))


def _rest(known: Known, one: Any, other: Any) -> Any:
    return one % other if isinstance(one, int) and isinstance(other, int) else None


def _equal(known: Known, one: Any, other: Any) -> bool | None:
    if one == other:
        return True
    several = [x for x in (one, other) if isinstance(x, Length)]
    negative = any(not isinstance(x, Length) and x < 0 for x in (one, other))
    return None if several and not (negative and several[0].is_symbol) else False


def _extreme(known: Known, one: Any, other: Any) -> Any:
    return one if one == other else None


def _where(known: Known, node: gs.Node) -> Value | None:
    values = [value for tensor in node.inputs if (value := known.value(tensor)) is not None]
    if len(values) < 3:
        return None
    rows = np.broadcast(*values)
    picked = [None if which is None else (a if which else b) for which, a, b in rows]
    return array(picked).reshape(rows.shape)


def _each(apply: Callable[[Any], Any], value: Value | None) -> Value | None:
    if value is None:
        return None
    return array([apply(x) for x in value.ravel()]).reshape(value.shape)


VALUES: dict[str, Evaluate] = {
    "Shape": _shape,
    "Size": _size,
    "Cast": _cast,
    "Identity": _first,
    "Floor": _floor,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Range": _range,
    "ReduceProd": _product,
    "Add": _arithmetic(lambda _, a, b: a + b),
    "Sub": _arithmetic(lambda _, a, b: a - b),
    "Mul": _arithmetic(_times),
    "Div": _arithmetic(_over),
    "Mod": _arithmetic(_rest),
    "Equal": _arithmetic(_equal),
    **dict.fromkeys(("Max", "Min"), _arithmetic(_extreme)),
    "Where": _where,
}
