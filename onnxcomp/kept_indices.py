"""What is left of the axes of every tensor once units of channels have gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.channels import Channels
from onnxcomp.union_find import Array


@dataclass(frozen=True)
class ByHead:
    """What is left of an axis where it depends on the index of another axis.

    Attributes:
        along: the other axis.
        indices: [length of ``along`` after it was cut, n], ascending for each.
    """

    along: int
    indices: Array

    @property
    def size(self) -> int:
        """The length that the axis is left with."""
        return int(self.indices.shape[1])

    def take(self, values: Array, axis: int) -> Array:
        """``values``, all other axes cut, with only these of ``axis``."""
        shape = [1] * values.ndim
        shape[self.along], shape[axis] = self.indices.shape
        indices = self.indices if self.along < axis else self.indices.T
        return np.take_along_axis(values, indices.reshape(shape), axis)


Left = Array | ByHead | None  # of an axis the indices that are left, None: all
Kept = dict[str, tuple[Left, ...]]  # by tensor


def composed(first: Kept, second: Kept) -> Kept:
    """What is left after two cuts, as indices of before both."""
    result = dict(first)
    for name, axes in second.items():
        earlier = first.get(name, (None,) * len(axes))
        result[name] = tuple(
            _both(before, after, axes) for before, after in zip(earlier, axes, strict=True)
        )
    return result


def _both(before: Left, after: Left, axes: Sequence[Left]) -> Left:
    """Of one axis, from the second cut of all ``axes`` of the tensor."""
    if before is None or (after is None and not isinstance(before, ByHead)):
        return after if before is None else before
    if isinstance(before, ByHead):
        rows = _rows(before, axes).indices
        if isinstance(after, ByHead):
            return ByHead(before.along, np.take_along_axis(rows, after.indices, 1))
        return ByHead(before.along, rows if after is None else rows[:, after])
    if isinstance(after, ByHead):
        return ByHead(after.along, before[after.indices])
    return before if after is None else np.asarray(before[after])


def _rows(left: ByHead, axes: Sequence[Left]) -> ByHead:
    """Of the heads that are left after a cut of all ``axes``."""
    rows = axes[left.along]
    return ByHead(left.along, left.indices[rows]) if isinstance(rows, np.ndarray) else left


def taken(values: Array, axes: Sequence[Left]) -> Array:
    """What is left of ``values``."""
    for axis, left in enumerate(axes):
        if left is not None and not isinstance(left, ByHead):
            values = np.take(values, left, axis)
    for axis, left in enumerate(axes):
        if isinstance(left, ByHead):
            values = left.take(values, axis)
    return values


def kept_after(channels: Channels, removed: Mapping[str, Array]) -> Kept:
    """What is left of every axis that loses indices.

    Args:
        channels: the groups.
        removed: name of a group -> units that leave, [n]; [heads, n] for one with heads.
    """
    gone = np.zeros(len(channels.root), bool)  # classes
    for group in channels.groups:
        units = removed.get(group.name)
        if units is not None and units.size and units.ndim == 1:
            place = group.places[0]
            labels = channels.axes[place.tensor][place.axis]
            gone[channels.root[labels[np.isin(place.units, units)]]] = True
    kept = _without(channels, gone)
    for name, masks in _lost_by_head(channels, removed).items():
        lefts = list(kept.get(name, (None,) * len(channels.axes[name])))
        for axis, (mask, along) in masks.items():
            before = lefts[axis]
            if isinstance(before, np.ndarray):
                mask = mask | ~np.isin(np.arange(mask.shape[-1]), before)
            if along == axis:
                lefts[axis] = np.flatnonzero(~mask)
            else:
                count = mask.shape[1] - int(mask[0].sum())
                lefts[axis] = ByHead(along, np.argsort(mask, axis=1, kind="stable")[:, :count])
        kept[name] = tuple(
            _rows(left, lefts) if isinstance(left, ByHead) else left for left in lefts
        )
    return kept


def _without(channels: Channels, gone: Array) -> Kept:
    """What is left once classes have gone, [labels] bool by class."""
    lost = gone[channels.root]  # [labels]
    kept: Kept = {}
    cache: dict[int, Array | None] = {}  # many activations share their vectors of labels
    for name, axes in channels.axes.items():
        for labels in axes:
            if id(labels) not in cache:
                left = np.flatnonzero(~lost[labels])
                cache[id(labels)] = None if left.size == labels.size else left
        if any(cache[id(labels)] is not None for labels in axes):
            kept[name] = tuple(cache[id(labels)] for labels in axes)
    return kept


def _lost_by_head(
    channels: Channels, removed: Mapping[str, Array]
) -> dict[str, dict[int, tuple[Array, int]]]:
    """By tensor and axis what leaves, as `Place.lost` has it, and the axis that tells the head."""
    found: dict[str, dict[int, tuple[Array, int]]] = {}
    cache: dict[tuple[int, int, bool], Array] = {}  # many places share their units
    for group in channels.groups:
        units = removed.get(group.name)
        if units is None or units.ndim == 1 or not units.size:
            continue
        for place in group.places:
            key = id(place.units), id(place.heads), place.along == place.axis
            if key not in cache:
                cache[key] = place.lost(units)
            axes = found.setdefault(place.tensor, {})
            others = axes[place.axis][0] if place.axis in axes else False
            axes[place.axis] = cache[key] | others, place.along
    return found
