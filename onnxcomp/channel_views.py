"""How labels of channels pass through operators that reshape, reorder or repeat axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import SINGLE, UNKNOWN, Unfollowed
from onnxcomp.channel_lengths import READ, follow, read_axes
from onnxcomp.channel_sweep import Axes, Rule, Sweep, given, integers, is_size, sizes
from onnxcomp.graph import is_constant


def transpose(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """The same axes in another order."""
    data = sweep.axes(node.inputs[0])
    order = node.attrs.get("perm") or range(len(data))[::-1]
    return [[data[axis] for axis in order]]


def squeeze(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Drops axes of length 1."""
    data, axes = sweep.axes(node.inputs[0]), integers(node, 1, "axes")
    if axes is None:
        if any(labels.size == 0 for labels in data):
            raise Unfollowed("its axes depend on lengths that are unknown")
        return [[labels for labels in data if labels.size != 1]]
    gone = {axis % len(data) for axis in axes}
    return [[labels for i, labels in enumerate(data) if i not in gone]]


def unsqueeze(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Adds axes of length 1."""
    data, axes = list(sweep.axes(node.inputs[0])), integers(node, 1, "axes") or []
    rank = len(data) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data.insert(axis, SINGLE)
    return [data]


def reshape(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Reshape, Flatten: a flat axis is the product of those that it becomes or comes from.

    Axes are matched from both ends, symbols by name; between them blocks of equal products. Where
    both sides of a block have several axes, all are products of common atoms, if there are such.

    Raises:
        Unfollowed: its target is computed, so nothing could follow in it.
    """
    if len(node.inputs) > 1 and not is_constant(node.inputs[1]):
        raise Unfollowed("its target is computed")
    data, before = sweep.axes(node.inputs[0]), sizes(node.inputs[0])
    after = sizes(node.outputs[0])
    result: Axes = [UNKNOWN if not is_size(size) else SINGLE for size in after]
    if 0 in before or 0 in after:
        raise Unfollowed("a dimension is 0")
    old = [i for i, size in enumerate(before) if size != 1]
    new = [i for i, size in enumerate(after) if size != 1]
    while old and new and before[old[0]] == after[new[0]] and before[old[0]] is not None:
        result[new.pop(0)] = data[old.pop(0)]
    last = _from_the_back(sweep, data, before, after, old, new, result)
    for i in old[: last[0]]:
        sweep.equations.pin(data[i], "its Reshape depends on lengths that are unknown")
    for i in new[: last[1]]:
        result[i] = sweep.fixed_axis(after[i], "its Reshape depends on lengths that are unknown")
    return [result]


def _from_the_back(
    sweep: Sweep,
    data: Axes,
    before: Sequence[Any],
    after: Sequence[Any],
    old: Sequence[int],
    new: Sequence[int],
    result: Axes,
) -> tuple[int, int]:
    """Matches blocks from the last axes on; how many of ``old`` and ``new`` are left."""
    i, j = len(old), len(new)
    while i and j:
        first, start = i - 1, j - 1
        left, right = before[old[first]], after[new[start]]
        while left != right or left is None:
            known = is_size(left) and is_size(right)
            if known and left < right and first:
                first -= 1
                left = left * before[old[first]] if is_size(before[old[first]]) else None
            elif known and left > right and start:
                start -= 1
                right = right * after[new[start]] if is_size(after[new[start]]) else None
            else:
                return i, j
        _block(sweep, data, before, after, old[first:i], new[start:j], result)
        i, j = first, start
    return i, j


def _block(
    sweep: Sweep,
    data: Axes,
    before: Sequence[Any],
    after: Sequence[Any],
    old: Sequence[int],
    new: Sequence[int],
    result: Axes,
) -> None:
    if len(old) == len(new) == 1:
        result[new[0]] = data[old[0]]
        return
    sides = [[int(before[i]) for i in old], [int(after[i]) for i in new]]
    atoms = _atoms(*sides)
    if atoms is None:
        for i in old:
            sweep.equations.pin(data[i], "a Reshape that shares no factors")
        for i in new:
            result[i] = sweep.fixed_axis(after[i], "a Reshape that shares no factors")
        return
    labels = [data[old[0]]] if len(old) == 1 else [sweep.equations.fresh(size) for size in atoms]
    if len(old) == 1:
        labels = [sweep.equations.fresh(size) for size in atoms]
    for side, lengths in zip((old, new), sides, strict=True):
        parts = list(labels)
        for i, length in zip(side, lengths, strict=True):
            mine = [parts.pop(0)]
            while math.prod(part.size for part in mine) < length:
                mine.append(parts.pop(0))
            if side is old:
                sweep.equations.factor(data[i], mine)
            elif len(mine) == 1:
                result[i] = mine[0]
            else:
                result[i] = sweep.equations.fresh(length)
                sweep.equations.factor(result[i], mine)


def _atoms(left: Sequence[int], right: Sequence[int]) -> list[int] | None:
    """The common refinement of two factorizations of a number, None where there is none."""
    ends = {math.prod(side[i:]) for side in (left, right) for i in range(len(side) + 1)}
    ladder = sorted(ends)
    if any(high % low for low, high in itertools.pairwise(ladder)):
        return None
    return [high // low for low, high in itertools.pairwise(ladder)][::-1]


def expand(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Axes of length 1 are repeated: the new indices are free; `cut` follows in the target."""
    data, after = sweep.axes(node.inputs[0]), sizes(node.outputs[0])
    result: Axes = [SINGLE] * (len(after) - len(data)) + list(data)
    for i, size in enumerate(after):
        if result[i].size == 1 and size != 1:
            free = is_size(size)
            result[i] = sweep.equations.fresh(size) if free else sweep.fixed_axis(size, "Expand")
    if not is_constant(node.inputs[1]):
        follow(sweep, node.inputs[1], result)
    return [result]


def tile(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Repeats whole axes."""
    data, repeats = sweep.axes(node.inputs[0]), integers(node, 1) or []
    result = []
    for labels, times in zip(data, repeats, strict=True):
        if times != 1 and labels.size == 1:
            result.append(sweep.fixed_axis(times, "Tile"))
        else:
            result.append(np.tile(labels, times))
    return [result]


def resize(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Axes whose length stays carry."""
    data, before, after = (
        sweep.axes(node.inputs[0]),
        sizes(node.inputs[0]),
        sizes(node.outputs[0]),
    )
    crops = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    result = []
    for labels, old, new in zip(data, before, after, strict=True):
        if old == new and is_size(old) and not crops:
            result.append(labels)
        else:
            sweep.equations.pin(labels, "Resize")
            result.append(sweep.fixed_axis(new, "Resize"))
    target = given(node, 3)
    if target is not None and not is_constant(target):
        follow(sweep, target, result)
    return [result]


def depth_to_space(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Channels [b, b, C] (DCR) or [C, b, b] (CRD) become [C] at b x b places."""
    data, block = sweep.axes(node.inputs[0]), int(node.attrs["blocksize"]) ** 2
    made = sweep.equations.fresh(data[1].size // block)
    crd = node.attrs.get("mode", "DCR") == "CRD"
    sweep.equations.same(data[1], np.repeat(made, block) if crd else np.tile(made, block))
    if made.size == 1:
        sweep.equations.pin(data[1], "DepthToSpace to one channel")
    return [[data[0], made, *_moved_space(sweep, node, data)]]


def space_to_depth(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Channels [C] at b x b places become [b, b, C]."""
    data, block = sweep.axes(node.inputs[0]), int(node.attrs["blocksize"]) ** 2
    made = np.tile(data[1], block)
    return [[data[0], made, *_moved_space(sweep, node, data)]]


def _moved_space(sweep: Sweep, node: gs.Node, data: Axes) -> Axes:
    for labels in data[2:]:
        sweep.equations.pin(labels, f"space of {node.op}")
    after = sizes(node.outputs[0])[2:]
    return [sweep.fixed_axis(size, f"space of {node.op}") for size in after]


def shape(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Lengths that are read at run time stay, as far as it is seen which ones are."""
    data = sweep.axes(node.inputs[0])
    read = range(len(data))[node.attrs.get("start", 0) : node.attrs.get("end")]
    for axis in read_axes(node.outputs[0], list(read)):
        sweep.equations.pin(data[axis], READ)
    return [[SINGLE if len(read) == 1 else sweep.fixed_axis(len(read), "a shape")]]


VIEWS: dict[str, Rule] = {
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    **dict.fromkeys(("Reshape", "Flatten"), reshape),
    "Expand": expand,
    "Tile": tile,
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Shape": shape,
}
