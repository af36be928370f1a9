"""Which operators leave it to each head what it keeps of the axis of its width.

An operator does if it treats the indices of that axis alike, whatever their order, and never lets
an index of one head meet another head. What is summed over has to be zero where it was removed, so
that zeroed weights prove what was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import Unfollowed
from onnxcomp.channel_rules import ELEMENTWISE, UNARY
from onnxcomp.channel_selections import slice_axes
from onnxcomp.channel_sweep import integers


@dataclass(frozen=True)
class HeadAxis:
    """An axis of the width, and the one along which the heads are."""

    width: int
    heads: int


Axes = Mapping[str, Sequence[HeadAxis]]  # by tensor that has such units; none where all is flat
IsZero = Callable[[str], bool]
Check = Callable[[gs.Node, Axes, IsZero], bool]


def keeps_heads_apart(node: gs.Node, axes: Axes, zero: IsZero) -> bool:
    """Whether heads may differ in what they keep, as far as ``node`` can tell.

    Args:
        node: of the graph.
        axes: of its tensors.
        zero: whether a tensor is zero where its weights were zeroed.
    """
    if not any(axes.values()):
        return True
    check = CHECKS.get(node.op)
    return check is not None and check(node, axes, zero)


def _found(node: gs.Node, axes: Axes) -> Iterator[tuple[int, HeadAxis]]:
    """With the ranks of the tensors."""
    for tensor in (*node.inputs, *node.outputs):
        for found in axes.get(tensor.name, ()):
            yield len(tensor.shape), found


def _anyway(node: gs.Node, axes: Axes, zero: IsZero) -> bool:
    """Views: what the labels say is all there is."""
    return True


def _aligned(node: gs.Node, axes: Axes, zero: IsZero) -> bool:
    """Width meets width and heads meet heads."""
    places = {(rank - found.width, rank - found.heads) for rank, found in _found(node, axes)}
    return len(places) == 1


def _matmul(node: gs.Node, axes: Axes, zero: IsZero) -> bool:
    """Heads are a batch; a sum over the width has a factor that is zero."""
    if node.attrs.get("transA") or node.attrs.get("transB"):
        return False
    found = list(_found(node, axes))
    if any(rank - axis.heads < 3 for rank, axis in found):
        return False
    if len({rank - axis.heads for rank, axis in found}) != 1:
        return False
    left, right = node.inputs[:2]
    summed = any(axis.width == len(left.shape) - 1 for axis in axes.get(left.name, ()))
    both = any(axis.width == len(right.shape) - 2 for axis in axes.get(right.name, ()))
    if summed != both or any(rank - axis.width > 2 for rank, axis in found):
        return False
    return not summed or zero(left.name) or zero(right.name)


def _conv(node: gs.Node, axes: Axes, zero: IsZero) -> bool:
    """Only kernels have the width of a group, beside the outputs, and read zeros."""
    data, kernel = node.inputs[:2]
    others = [t for t in (*node.inputs, *node.outputs) if t.name != kernel.name]
    if any(axes.get(tensor.name) for tensor in others):
        return False
    return list(axes[kernel.name]) == [HeadAxis(1, 0)] and (
        node.op == "ConvTranspose" or zero(data.name)
    )


def _axis_apart(default: int) -> Check:
    """Softmax, Concat, Split, Gather: along an axis that is neither the width nor the heads'."""

    def check(node: gs.Node, axes: Axes, zero: IsZero) -> bool:
        data = node.inputs[0]
        axis = int(node.attrs.get("axis", default)) % len(data.shape)
        inputs = [found for t in node.inputs for found in axes.get(t.name, ())]
        return all(axis not in (found.width, found.heads) for found in inputs)

    return check


def _slice(node: gs.Node, axes: Axes, zero: IsZero) -> bool:
    data = node.inputs[0]
    try:
        cut = slice_axes(node, len(data.shape))
    except Unfollowed:
        return False
    inputs = axes.get(data.name, ())
    return all(found.width not in cut and found.heads not in cut for found in inputs)


def _sum(node: gs.Node, axes: Axes, zero: IsZero) -> bool:
    """A sum over the width has nothing but zeros where something left."""
    data = node.inputs[0]
    try:
        reduced = integers(node, 1, "axes") or list(range(len(data.shape)))
    except Unfollowed:
        return False
    gone = {axis % len(data.shape) for axis in reduced}
    over_width = any(found.width in gone for found in axes.get(data.name, ()))
    return zero(data.name) if over_width else node.outputs[0].name in axes


CHECKS: dict[str, Check] = {
    **dict.fromkeys((*UNARY, *ELEMENTWISE), _aligned),
    **dict.fromkeys(("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Shape"), _anyway),
    "Expand": _anyway,
    "MatMul": _matmul,
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose"), _conv),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _axis_apart(-1)),
    **dict.fromkeys(("Concat", "Split", "Gather"), _axis_apart(0)),
    "Slice": _slice,
    **dict.fromkeys(("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2"), _sum),
}
