"""How labels of channels pass through operators that select from axes, join or pad them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import Unfollowed
from onnxcomp.channel_sweep import Axes, Rule, Sweep, integers, is_size, sizes
from onnxcomp.graph import input_at, is_constant
from onnxcomp.union_find import Array

INDEXED = "an axis that indices select from"


def concat(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Joins along one axis; the others are the same."""
    several = [sweep.axes(tensor) for tensor in node.inputs]
    axis = int(node.attrs["axis"]) % len(several[0])
    result = list(several[0])
    for axes in several[1:]:
        for i, labels in enumerate(axes):
            if i != axis:
                result[i] = sweep.equations.same(result[i], labels)
    parts = [axes[axis] for axes in several]
    if any(labels.size == 0 for labels in parts):
        for labels in parts:
            sweep.equations.pin(labels, "it is joined to an axis of unknown length")
        result[axis] = sweep.fixed_axis(sizes(node.outputs[0])[axis], "joined")
    else:
        result[axis] = np.concatenate(parts)
    return [result]


def split(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Cuts one axis; `cut` follows in the lengths."""
    data = sweep.axes(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(data)
    lengths = [sizes(tensor)[axis] for tensor in node.outputs]
    if not all(map(is_size, lengths)) or sum(lengths) != data[axis].size:
        raise Unfollowed("its lengths are unknown")
    ends = np.cumsum(lengths)
    parts = [
        sweep.equations.take(data[axis], np.arange(end - n, end))
        for n, end in zip(lengths, ends, strict=True)
    ]
    return [[*data[:axis], part, *data[axis + 1 :]] for part in parts]


def slice_axes(node: gs.Node, rank: int) -> dict[int, tuple[int, int, int]]:
    """(start, end, step) by axis.

    Raises:
        Unfollowed: a bound is computed at run time.
    """
    starts, ends = integers(node, 1, "starts") or [], integers(node, 2, "ends") or []
    axes = integers(node, 3, "axes") or list(range(len(starts)))
    steps = integers(node, 4) or [1] * len(starts)
    bounds = zip(starts, ends, steps, strict=True)
    return {axis % rank: bound for axis, bound in zip(axes, bounds, strict=True)}


def sliced(length: int, start: int, end: int, step: int) -> Array:
    """The indices that a Slice takes of an axis: Python's, a step of -1 included."""
    if step < 0 and end < -length:
        return np.arange(length)[start::step]
    return np.arange(length)[start:end:step]


def slice_(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Takes a range of indices; along axes of unknown length nothing is known."""
    data = list(sweep.axes(node.inputs[0]))
    try:
        bounds = slice_axes(node, len(data))
    except Unfollowed:
        axes = integers(node, 3, "axes")
        if axes is None or input_at(node, 3) is None:
            raise
        for axis in axes:
            sweep.equations.pin(data[axis], "a range that is computed")
            data[axis] = sweep.fixed_axis(sizes(node.outputs[0])[axis], "a range")
        return [data]
    for axis, (start, end, step) in bounds.items():
        if data[axis].size == 0:
            data[axis] = sweep.fixed_axis(sizes(node.outputs[0])[axis], "a range")
        elif data[axis].size > 1:
            taken = sliced(data[axis].size, start, end, step)
            if taken.size == 0:
                raise Unfollowed("it takes nothing")
            data[axis] = sweep.equations.take(data[axis], taken)
    return [data]


def gather(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Constant indices are a selection, of their own shape; computed ones leave the axis as is."""
    data, indices = sweep.axes(node.inputs[0]), node.inputs[1]
    axis = int(node.attrs.get("axis", 0)) % len(data)
    if not is_constant(indices):
        sweep.equations.pin(data[axis], INDEXED)
        return [[*data[:axis], *sweep.axes(indices), *data[axis + 1 :]]]
    chosen = np.asarray(indices.values)
    if data[axis].size == 0 or data[axis].size == 1:
        middle = [sweep.fixed_axis(size, INDEXED) for size in chosen.shape]
    else:
        taken = sweep.equations.take(data[axis], chosen.ravel())
        middle = [taken] if chosen.ndim == 1 else [sweep.equations.fresh(n) for n in chosen.shape]
        if chosen.ndim > 1:
            sweep.equations.factor(taken, middle)
    return [[*data[:axis], *middle, *data[axis + 1 :]]]


def gather_elements(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """The indexed axis stays; the others are those of the data where their lengths agree."""
    data, places = sweep.axes(node.inputs[0]), sweep.axes(node.inputs[1])
    axis = int(node.attrs.get("axis", 0)) % len(data)
    result = []
    for i, (mine, theirs) in enumerate(zip(data, places, strict=True)):
        if i != axis and mine.size == theirs.size and mine.size:
            result.append(sweep.equations.same(mine, theirs))
            continue
        sweep.equations.pin(mine, INDEXED)
        sweep.equations.pin(theirs, INDEXED)
        result.append(theirs)
    return [result]


def grid_sample(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """X [N, C, *space] at the places of a grid [N, *made, rank] is [N, C, *made]."""
    data, grid = sweep.axes(node.inputs[0]), sweep.axes(node.inputs[1])
    for labels in (*data[2:], grid[-1]):
        sweep.equations.pin(labels, INDEXED)
    return [[sweep.equations.same(data[0], grid[0]), data[1], *grid[1:-1]]]


def roi_align(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """X [N, C, H, W] in regions [R, ...] is [R, C, h, w]."""
    data, regions = sweep.axes(node.inputs[0]), sweep.axes(node.inputs[1])
    for labels in (data[0], *data[2:], *regions[1:]):
        sweep.equations.pin(labels, INDEXED)
    for tensor in node.inputs[2:]:
        sweep.equations.same(regions[0], sweep.axes(tensor)[0])
    space = [sweep.fixed_axis(size, INDEXED) for size in sizes(node.outputs[0])[2:]]
    return [[regions[0], data[1], *space]]


def top_k(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """The largest along one axis, which stays."""
    data = sweep.axes(node.inputs[0])
    axis = int(node.attrs.get("axis", -1)) % len(data)
    sweep.equations.pin(data[axis], INDEXED)
    best = sweep.fixed_axis(sizes(node.outputs[0])[axis], INDEXED)
    return [[*data[:axis], best, *data[axis + 1 :]] for _ in node.outputs]


def gather_nd(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """The indexed axes stay, the trailing ones carry."""
    data, indices = sweep.axes(node.inputs[0]), node.inputs[1]
    batch, shape = int(node.attrs.get("batch_dims", 0)), sizes(indices)
    if not is_size(shape[-1]):
        raise Unfollowed("how many axes are indexed is unknown")
    places = sweep.axes(indices)
    for labels in (*data[: batch + shape[-1]], *places):
        sweep.equations.pin(labels, INDEXED)
    return [[*places[:-1], *data[batch + shape[-1] :]]]


def scatter_nd(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """The indexed axes stay, the trailing ones of data and updates are the same."""
    data, shape = list(sweep.axes(node.inputs[0])), sizes(node.inputs[1])
    updates = sweep.axes(node.inputs[2])
    if not is_size(shape[-1]):
        raise Unfollowed("how many axes are indexed is unknown")
    for labels in (*data[: shape[-1]], *updates[: len(shape) - 1]):
        sweep.equations.pin(labels, INDEXED)
    trailing = zip(data[shape[-1] :], updates[len(shape) - 1 :], strict=True)
    for i, (mine, theirs) in enumerate(trailing, shape[-1]):
        data[i] = sweep.equations.same(mine, theirs)
    return [data]


def pad(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """New channels are free, `cut` follows in the pads; new indices of other axes stay.

    Modes other than constant copy from their neighbours.
    """
    data, pads = sweep.axes(node.inputs[0]), integers(node, 1, "pads")
    if pads is None:
        raise Unfollowed("no pads")
    axes = integers(node, 3) or list(range(len(data)))
    equations, result = sweep.equations, list(data)
    for i, axis in enumerate(axes):
        begin, end = pads[i], pads[i + len(axes)]
        labels = data[axis]
        if begin == end == 0:
            continue
        size = sizes(node.outputs[0])[axis]
        if min(begin, end) < 0 or node.attrs.get("mode", "constant") != "constant":
            equations.pin(labels, "Pad")
            result[axis] = sweep.fixed_axis(size, "Pad")
        elif labels.size <= 1:
            result[axis] = sweep.fixed_axis(size, "Pad")
        else:
            several = begin + end + 2  # a single label would be that of lone axes
            outer = equations.fresh(several) if axis == 1 else equations.fixed(several, "Pad")
            result[axis] = np.concatenate([outer[:begin], labels, outer[begin : begin + end]])
    return [result]


SELECTIONS: dict[str, Rule] = {
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "GridSample": grid_sample,
    **dict.fromkeys(("RoiAlign", "MaxRoiPool"), roi_align),
    "TopK": top_k,
    "ScatterND": scatter_nd,
    "Pad": pad,
}
