"""Rules for operators that only change the shape or the order of elements: fewer do the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import input_at
from onnxcomp.rewriting import Rule, Scope, integers, permutation, same_shape

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")  # same elements in the same order
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")


def is_view(scope: Scope, node: gs.Node) -> bool:
    """Whether a node keeps the elements in order; a Transpose does where it moves but ones."""
    if node.op != "Transpose":
        return node.op in VIEWS and scope.opset >= 5
    order, shape = permutation(scope, node), scope.shape(node.inputs[0])
    if order is None or shape is None or len(order) != len(shape):
        return False
    moved = [axis for axis in order if shape[axis] != 1]
    return moved == sorted(moved)


def merge_views(scope: Scope, node: gs.Node) -> bool:
    """Reshape(view(x))  ->  Reshape(x), for any two operators that only change the shape."""
    inner = scope.maker(node.inputs[0], *VIEWS, "Transpose")
    if inner is None or not is_view(scope, inner) or not is_view(scope, node):
        return False
    source, shape = inner.inputs[0], scope.shape(node.outputs[0])
    if same_shape(scope.shape(source), shape) and scope.replace(node, source):
        return True
    if not scope.feeds_only(inner, node):
        return False
    if not _reshape(scope, node, source):
        return False
    scope.changed(inner)
    return True


def _reshape(scope: Scope, node: gs.Node, source: gs.Tensor) -> bool:
    """Makes ``node`` a Reshape of ``source`` to the shape it has, if at most one size is open."""
    shape = scope.shape(node.outputs[0])
    if shape is None or 0 in shape:
        return False
    target = [size if isinstance(size, int) else -1 for size in shape]
    if target.count(-1) > 1:
        return False
    scope.changed(node)
    sizes = scope.constant(f"{node.outputs[0].name}.shape", np.array(target, np.int64))
    node.op, node.attrs, node.inputs = "Reshape", {}, [source, sizes]
    return True


def transpose_unmerged(scope: Scope, node: gs.Node) -> bool:
    """view(Transpose(Reshape(x)))  ->  view'(Transpose'(x)), where the Reshape merges axes.

    Exporters write attention like this: batch and heads become one axis, and two again.
    """
    transpose = scope.maker(node.inputs[0], "Transpose")
    if transpose is None or not scope.feeds_only(transpose, node) or not is_view(scope, node):
        return False
    merge = scope.maker(transpose.inputs[0], "Reshape")
    if merge is None or not scope.feeds_only(merge, transpose):
        return False
    source, order = merge.inputs[0], permutation(scope, transpose)
    shapes = [scope.static_shape(t) for t in (source, merge.outputs[0], node.outputs[0])]
    if order is None or shapes[0] is None or shapes[1] is None or 0 in (shapes[2] or (0,)):
        return False
    groups = _merged_axes(shapes[0], shapes[1])
    if groups is None:
        return False
    axes = [axis for place in order for axis in groups[place]]
    shape = [shapes[0][axis] for axis in axes]
    result = scope.variable(transpose.outputs[0].name, transpose.outputs[0], shape)
    scope.changed(merge)
    scope.changed(transpose)
    transpose.attrs, transpose.inputs = {"perm": axes}, [source]
    scope.take_output(transpose, transpose.outputs[0], result)
    return _reshape(scope, node, result)


def _merged_axes(before: Sequence[int], after: Sequence[int]) -> list[list[int]] | None:
    """Which axes of ``before`` make up each axis of ``after``; None where one was split."""
    groups: list[list[int]] = []
    axis = 0
    for size in after:
        group: list[int] = []
        while math.prod(before[a] for a in group) < size and axis < len(before):
            group.append(axis)
            axis += 1
        if math.prod(before[a] for a in group) != size:
            return None
        groups.append(group)
    if groups:
        groups[-1] += range(axis, len(before))  # ones are left
    return groups


def reduce_untransposed(scope: Scope, node: gs.Node) -> bool:
    """Reduce(Transpose(x), axes)  ->  Reduce(x, other axes), where the others keep their order."""
    transpose = scope.maker(node.inputs[0], "Transpose")
    if transpose is None or not scope.feeds_only(transpose, node):
        return False
    order, axes = permutation(scope, transpose), _removed_axes(scope, node)
    if order is None or not axes:
        return False
    rank = len(order)
    taken = {order[axis % rank] for axis in axes}
    kept = [axis for axis in order if axis not in taken]
    if kept != sorted(kept):
        return False
    scope.changed(transpose)
    scope.changed(node)
    if node.op == "Gather":
        node.attrs = {**node.attrs, "axis": taken.pop()}
    elif input_at(node, 1) is not None:
        values = np.array(sorted(taken), np.int64)
        node.inputs[1] = scope.constant(f"{node.outputs[0].name}.axes", values)
    else:
        node.attrs = {**node.attrs, "axes": sorted(taken)}
    node.inputs[0] = transpose.inputs[0]
    return True


def _removed_axes(scope: Scope, node: gs.Node) -> list[int] | None:
    """Axes that the output of a node no longer has, None where it keeps them all."""
    if node.op == "Gather":
        return [node.attrs.get("axis", 0)] if scope.rank(node.inputs[1]) == 0 else None
    return None if node.attrs.get("keepdims", 1) else integers(node, 1, "axes")


def merge_transposes(scope: Scope, node: gs.Node) -> bool:
    """Transpose(Transpose(x, p), q)  ->  Transpose(x, p[q])."""
    inner = scope.maker(node.inputs[0], "Transpose")
    if inner is None:
        return False
    first, second = permutation(scope, inner), permutation(scope, node)
    if first is None or second is None:
        return False
    merged = [first[axis] for axis in second]
    if merged == sorted(merged) and scope.replace(node, inner.inputs[0]):
        return True
    if not scope.feeds_only(inner, node):
        return False
    scope.changed(inner)
    scope.changed(node)
    node.inputs[0] = inner.inputs[0]
    node.attrs = {"perm": merged}
    return True


VIEW_RULES: dict[str, list[Rule]] = {
    **{op: [merge_views, transpose_unmerged] for op in VIEWS},
    **{f"Reduce{kind}": [reduce_untransposed] for kind in REDUCTIONS},
    "Gather": [reduce_untransposed],
    "Transpose": [merge_transposes, merge_views],
}
