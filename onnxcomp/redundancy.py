"""Rules that remove operators which change nothing, or which their neighbour can do as well."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.exporting import data_type_of
from onnxcomp.graph import input_at
from onnxcomp.rewriting import (
    Rule,
    Scope,
    broadcasts_into,
    integers,
    permutation,
    same_shape,
    small_values,
)
from onnxcomp.views import VIEWS, is_view

FOREVER = 2**31 - 1  # from here an end of Slice means "to the end", whatever the size


def remove_noop(scope: Scope, node: gs.Node) -> bool:
    """y = f(x) with f the identity  ->  x."""
    position = _NOOPS[node.op](scope, node)
    if position is None or any(t.name and t.outputs for t in node.outputs[1:]):
        return False
    if any(scope.is_output(t) for t in node.outputs[1:]):
        return False
    return scope.replace(node, node.inputs[position])


def _always(scope: Scope, node: gs.Node) -> int | None:
    return 0


def _single(scope: Scope, node: gs.Node) -> int | None:
    return 0 if len(node.inputs) == 1 else None


def _dropout(scope: Scope, node: gs.Node) -> int | None:
    training = input_at(node, 2)
    values = small_values(training)
    return 0 if training is None or (values is not None and not values.any()) else None


def _cast(scope: Scope, node: gs.Node) -> int | None:
    return 0 if scope.data_type(node.inputs[0]) == data_type_of(node.attrs["to"]) else None


def _view(scope: Scope, node: gs.Node) -> int | None:
    same = same_shape(scope.shape(node.inputs[0]), scope.shape(node.outputs[0]))
    return 0 if same else None


def _transpose(scope: Scope, node: gs.Node) -> int | None:
    order = permutation(scope, node)
    if order is not None and order == sorted(order):
        return 0
    return _view(scope, node) if is_view(scope, node) else None


def _expand(scope: Scope, node: gs.Node) -> int | None:
    target = small_values(input_at(node, 1))
    if target is None:
        return None
    return (
        0 if broadcasts_into([int(size) for size in target], scope.shape(node.inputs[0])) else None
    )


def _tile(scope: Scope, node: gs.Node) -> int | None:
    repeats = small_values(input_at(node, 1))
    return 0 if repeats is not None and (repeats == 1).all() else None


def _pad(scope: Scope, node: gs.Node) -> int | None:
    pads = integers(node, 1, "pads")
    return 0 if pads is not None and not any(pads) else None


def _slice(scope: Scope, node: gs.Node) -> int | None:
    starts, ends = integers(node, 1, "starts"), integers(node, 2, "ends")
    shape = scope.shape(node.inputs[0])
    if starts is None or ends is None or shape is None:
        return None
    axes, steps = integers(node, 3, "axes"), integers(node, 4, "steps")
    if (axes is None and input_at(node, 3)) or (steps is None and input_at(node, 4)):
        return None
    whole = all(
        start == 0 and (end >= FOREVER or (isinstance(size, int) and end >= size))
        for start, end, size in zip(
            starts, ends, [shape[axis] for axis in axes or range(len(starts))], strict=True
        )
    )
    return 0 if whole and all(step == 1 for step in steps or []) else None


def _neutral(value: float, *positions: int) -> Callable[[Scope, gs.Node], int | None]:
    """A binary operator that keeps x when the other input, at ``positions``, is ``value``."""

    def check(scope: Scope, node: gs.Node) -> int | None:
        for position in positions:
            values = small_values(node.inputs[position])
            other = 1 - position
            if values is None or values.dtype.kind in "OSU" or not (values == value).all():
                continue
            if broadcasts_into(values.shape, scope.shape(node.inputs[other])):
                return other
        return None

    return check


def _clip(scope: Scope, node: gs.Node) -> int | None:
    free = not node.attrs and input_at(node, 1) is None and input_at(node, 2) is None
    return 0 if free and scope.opset >= 11 else None


def _relu(scope: Scope, node: gs.Node) -> int | None:
    return 0 if scope.maker(node.inputs[0], "Relu", "Sigmoid", "Softmax") else None


_NOOPS: dict[str, Callable[[Scope, gs.Node], int | None]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    **dict.fromkeys(VIEWS, _view),
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Slice": _slice,
    **dict.fromkeys(("Concat", "Sum", "Max", "Min", "Mean"), _single),
    "Add": _neutral(0, 0, 1),
    "Sub": _neutral(0, 1),
    "Mul": _neutral(1, 0, 1),
    "Div": _neutral(1, 1),
    "Pow": _neutral(1, 1),
    "Clip": _clip,
    "Relu": _relu,
}


def merge_clip(scope: Scope, node: gs.Node) -> bool:
    """Clip(Relu(x), low, high)  ->  Clip(x, max(low, 0), high)."""
    if scope.opset < 11:
        return False
    inner = scope.maker(node.inputs[0], "Relu")
    if inner is None or not scope.feeds_only(inner, node):
        return False
    low = input_at(node, 1)
    values = small_values(low)
    if low is not None and (values is None or values < 0):
        return False
    if low is None:
        kind = scope.data_type(node.inputs[0])
        high = small_values(input_at(node, 2))
        if high is None or kind is None:
            return False
        zero = scope.constant(f"{node.outputs[0].name}.min", np.zeros((), high.dtype))
        node.inputs = [inner.inputs[0], zero, node.inputs[2]]
    else:
        node.inputs[0] = inner.inputs[0]
    scope.changed(inner)
    scope.changed(node)
    return True


def pad_inside(scope: Scope, node: gs.Node) -> bool:
    """Conv(Pad(x, zeros))  ->  Conv(x) with those pads of its own.

    So for MaxPool, which pads with -inf, where x is not negative and no window is all padding.
    """
    pad = scope.maker(node.inputs[0], "Pad")
    if pad is None or not scope.feeds_only(pad, node):
        return False
    if node.op == "MaxPool" and scope.maker(pad.inputs[0], "Relu", "Sigmoid") is None:
        return False
    pads = integers(pad, 1, "pads")
    fill = small_values(input_at(pad, 2))
    filled = input_at(pad, 2) is not None and (fill is None or fill.any())
    if pads is None or filled or pad.attrs.get("value") or input_at(pad, 3) is not None:
        return False
    if pad.attrs.get("mode", "constant") != "constant" or min(pads, default=0) < 0:
        return False
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    rank = len(pads) // 2
    outer = pads[:2] + pads[rank : rank + 2]
    if rank < 3 or any(outer):
        return False
    spatial = pads[2:rank] + pads[rank + 2 :]
    own = node.attrs.get("pads")
    if own is None or node.attrs.get("auto_pad") == "VALID":
        own = [0] * len(spatial)
    attrs = {name: value for name, value in node.attrs.items() if name != "auto_pad"}
    together = [a + b for a, b in zip(own, spatial, strict=True)]
    if node.op == "MaxPool" and max(together) >= min(node.attrs["kernel_shape"]):
        return False
    node.attrs = attrs | {"pads": together}
    scope.changed(pad)
    scope.changed(node)
    node.inputs[0] = pad.inputs[0]
    return True


REDUNDANCY_RULES: dict[str, list[Rule]] = {op: [remove_noop] for op in _NOOPS}
REDUNDANCY_RULES["Clip"].append(merge_clip)
REDUNDANCY_RULES |= {"Conv": [pad_inside], "MaxPool": [pad_inside]}
