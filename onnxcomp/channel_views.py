"""How labels of channels pass through operators that reshape, reorder or repeat axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import SINGLE, UNKNOWN, Unfollowed
from onnxcomp.channel_lengths import READ, follow, read_axes, sources, written
from onnxcomp.channel_sweep import LARGEST, Axes, Rule, Sweep, integers, is_size, sizes
from onnxcomp.graph import input_at, is_constant
from onnxcomp.lengths import Length, Size, divided, parsed


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
    data, before = sweep.axes(node.inputs[0]), sizes(node.inputs[0])
    after = sizes(node.outputs[0])
    if len(node.inputs) > 1 and node.op == "Reshape":
        ours = written(node.inputs[1])
        if any(is_size(size) and size > 1 and i not in ours for i, size in enumerate(after)):
            raise Unfollowed("its target is computed")
    result: Axes = [UNKNOWN if not is_size(size) else SINGLE for size in after]
    if 0 in before or 0 in after:
        raise Unfollowed("a dimension is 0")
    before, after = (
        [int(size) if is_size(size) else parsed(size) for size in shape]
        for shape in (before, after)
    )
    match = _Match(sweep, data, before, after, result)
    old = [i for i, size in enumerate(before) if size != 1]
    new = [i for i, size in enumerate(after) if size != 1]
    while old and new and before[old[0]] == after[new[0]] and before[old[0]] is not None:
        result[new.pop(0)] = data[old.pop(0)]
    match.stay(*match.from_the_back(old, new), "its Reshape depends on lengths that are unknown")
    return [result]


@dataclass
class _Match:
    """The axes of a Reshape's input and output, and the labels of the output so far."""

    sweep: Sweep
    data: Axes
    before: Sequence[Any]
    after: Sequence[Any]
    result: Axes

    def stay(self, old: Sequence[int], new: Sequence[int], reason: str) -> None:
        """Lets axes stay that nothing can be said of."""
        for i in old:
            self.sweep.equations.pin(self.data[i], reason)
        for i in new:
            self.result[i] = self.sweep.fixed_axis(self.after[i], reason)

    def from_the_back(
        self, old: Sequence[int], new: Sequence[int]
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Matches blocks from the last axes on; what is left of ``old`` and ``new``."""
        before, after = self.before, self.after
        i, j = len(old), len(new)
        while i and j:
            first, start = i - 1, j - 1
            left, right = before[old[first]], after[new[start]]
            while left != right or left is None:
                if first and _is_part(left, right):
                    first -= 1
                    left = None if before[old[first]] is None else left * before[old[first]]
                elif start and _is_part(right, left):
                    start -= 1
                    right = None if after[new[start]] is None else right * after[new[start]]
                else:
                    return old[:i], new[:j]
            self._block(old[first:i], new[start:j])
            i, j = first, start
        return old[:i], new[:j]

    def _block(self, old: Sequence[int], new: Sequence[int]) -> None:
        """Axes whose products are equal."""
        if len(old) == len(new) == 1:
            self.result[new[0]] = self.data[old[0]]
            return
        sides = [[self.before[i] for i in old], [self.after[i] for i in new]]
        atoms = _atoms(*sides)
        if atoms is None:
            self.stay(old, new, "a Reshape that shares no factors")
            return
        equations = self.sweep.equations
        labels = [equations.fresh(n) if isinstance(n, int) else UNKNOWN for n in atoms]
        for i, mine in zip(old, _shared_out(atoms, labels, sides[0]), strict=True):
            equations.factor(self.data[i], mine)
        for i, mine in zip(new, _shared_out(atoms, labels, sides[1]), strict=True):
            self.result[i] = mine[0]
            if len(mine) > 1:
                known = is_size(self.after[i])
                self.result[i] = equations.fresh(self.after[i]) if known else UNKNOWN
                equations.factor(self.result[i], mine)


def _is_part(one: Size | None, whole: Size | None) -> bool:
    """Whether a product may still grow to another."""
    if one is None or whole is None or one == whole:
        return False
    if isinstance(one, int) and isinstance(whole, int):
        return one < whole
    return divided(whole, one) is not None


def _shared_out(atoms: Sequence[Size], labels: Axes, lengths: Sequence[Size]) -> Iterator[Axes]:
    """Labels of the consecutive atoms that multiply to each of ``lengths``."""
    place = 0
    for length in lengths:
        end = place + 1
        while math.prod(atoms[place:end]) != length:
            end += 1
        yield labels[place:end]
        place = end


def _atoms(left: Sequence[Size], right: Sequence[Size]) -> list[Size] | None:
    """The common refinement of two factorizations of a length, None where there is none."""
    ends = {math.prod(side[i:]) for side in (left, right) for i in range(len(side) + 1)}
    ladder = sorted(ends, key=_extent)
    atoms = [divided(high, low) for low, high in itertools.pairwise(ladder)]
    return None if None in atoms else [size for size in reversed(atoms) if size is not None]


def _extent(length: Size) -> tuple[int, int]:
    """Orders products so that factors come before what they are factors of."""
    terms = length.terms if isinstance(length, Length) else (((), length),)
    return max(len(term) for term, _ in terms), sum(factor for _, factor in terms)


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


def filled(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """ConstantOfShape: all indices are alike, so any may leave; `cut` follows in the lengths."""
    result = [
        sweep.equations.fresh(int(size)) if is_size(size) and 0 < size <= LARGEST else UNKNOWN
        for size in sizes(node.outputs[0])
    ]
    follow(sweep, node.inputs[0], result)
    return [result]


def counted(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Range: numbers in a row stay; what it reads are scalars."""
    return [sweep.fixed(node.outputs[0], "Range")]


def tile(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Repeats whole axes; how often may be computed where it is not written as a number."""
    data, repeats = sweep.axes(node.inputs[0]), sources(node.inputs[1])
    if repeats is None:
        raise Unfollowed("its repeats are computed")
    result = []
    for labels, times, size in zip(data, repeats, sizes(node.outputs[0]), strict=True):
        if times == 1:
            result.append(labels)
        elif labels.size == 1 or not isinstance(times, int):
            sweep.equations.pin(labels, "Tile")
            result.append(sweep.fixed_axis(size, "Tile"))
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
    target = input_at(node, 3)
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


def col2im(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Channels [C, *block] at [places] become [C] where the blocks are added up."""
    data, block = sweep.axes(node.inputs[0]), math.prod(integers(node, 2) or [])
    made = sweep.equations.fresh(data[1].size // block)
    sweep.equations.same(data[1], np.repeat(made, block))
    if made.size == 1:
        sweep.equations.pin(data[1], "Col2Im to one channel")
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
    "ConstantOfShape": filled,
    "Range": counted,
    "Tile": tile,
    **dict.fromkeys(("Resize", "Upsample"), resize),
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Col2Im": col2im,
    "Shape": shape,
}
