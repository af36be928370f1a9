"""How labels of channels pass through operators of attention and of masks."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import SINGLE, Unfollowed
from onnxcomp.channel_sweep import Axes, Rule, Sweep, sizes
from onnxcomp.graph import input_at


def attention(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Q [batch, heads, rows, d], K and V [batch, key heads, columns, d]: softmax(Q K^T scale) V.

    Heads of the queries are groups of those of the keys, whose number stays where it is smaller.
    Without a scale of its own the width of the queries is in the result, so it stays. Keys and
    values of the past are joined before theirs.
    """
    query, key, value = (list(sweep.axes(tensor)) for tensor in node.inputs[:3])
    if len(query) != 4:
        raise Unfollowed("its heads are not an axis")
    equations = sweep.equations
    equations.same(query[3], key[3])
    if node.attrs.get("scale") is None:
        equations.pin(query[3], "its width scales Attention")
    heads = equations.same(key[1], value[1])
    if heads.size not in (0, query[1].size):
        equations.pin(heads, "several heads share their keys")
        equations.pin(query[1], "several heads share their keys")
    else:
        equations.same(query[1], heads)
    columns = equations.same(key[2], value[2])
    for labels in (query[2], columns):
        equations.pin(labels, "rows and columns of Attention")
    for index, axes in ((4, key), (5, value)):
        past = input_at(node, index)
        if past is not None:
            for axis in (0, 1, 3):
                equations.same(sweep.axes(past)[axis], axes[axis])
    mask = input_at(node, 3)
    if mask is not None:
        sweep.pin(mask, "a mask of Attention")
        if len(sweep.axes(mask)) > 2 and sweep.axes(mask)[-3].size > 1:
            equations.pin(query[1], "a mask of Attention has heads")
    result = [[query[0], query[1], query[2], value[3]]]
    for axes, tensor in zip((key, value), node.outputs[1:3], strict=False):
        length = sweep.fixed_axis(sizes(tensor)[2], "a cache") if tensor.name else SINGLE
        result.append([axes[0], axes[1], length, axes[3]])
    if len(node.outputs) > 3 and node.outputs[3].name:
        raise Unfollowed("its scores are read")
    return [*result, *[[] for _ in node.outputs[3:]]]


def rotary(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """RotaryEmbedding of [batch, heads, rows, d]: pairs of the width turn by tables that stay."""
    data = sweep.axes(node.inputs[0])
    if len(data) != 4:
        raise Unfollowed("its heads are not an axis")
    sweep.equations.pin(data[3], "RotaryEmbedding turns pairs")
    for tensor in node.inputs[1:]:
        sweep.pin(tensor, "a table of RotaryEmbedding")
    return [data]


def triangle(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Trilu: what is kept depends on the last two axes."""
    data = sweep.axes(node.inputs[0])
    for labels in data[-2:]:
        sweep.equations.pin(labels, "the triangle of Trilu")
    return [data]


def places(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """EyeLike, NonZero, OneHot: what they read stays, and so does what they make."""
    for tensor in node.inputs:
        sweep.pin(tensor, f"read by {node.op}")
    return [sweep.fixed(tensor, f"made by {node.op}") for tensor in node.outputs]


def scatter_elements(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """The indexed axis stays; the others are the same of data, indices and updates if as long."""
    data, indices, updates = (list(sweep.axes(tensor)) for tensor in node.inputs)
    axis = int(node.attrs.get("axis", 0)) % len(data)
    for i, labels in enumerate(data):
        parts = (indices[i], updates[i])
        if i != axis and labels.size and all(part.size == labels.size for part in parts):
            for part in parts:
                sweep.equations.same(labels, part)
            continue
        for part in (labels, *parts):
            sweep.equations.pin(part, "an axis that indices select from")
    return [data]


ATTENTION: dict[str, Rule] = {
    "Attention": attention,
    "RotaryEmbedding": rotary,
    "Trilu": triangle,
    **dict.fromkeys(("EyeLike", "NonZero", "OneHot"), places),
    "ScatterElements": scatter_elements,
}
