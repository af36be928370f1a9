"""Labels on indices of axes, and the equations between them.

Every index of every axis of every tensor carries an integer label; indices with equal labels can
only be removed together. Five statements about labels cover ONNX:

- ``same``: two vectors of labels are equal (elementwise operators, contractions);
- ``take``: a vector is a selection from another one (Slice, Split, Gather; Concat joins);
- ``factor``: a flat axis is the product of others (Reshape, groups of a Conv);
- an axis that disappears (reductions) needs no statement;
- ``pin``: labels that have to stay.

A vector of length 0 stands for an axis whose length is unknown: whatever meets it stays. Axes of
length 1 carry the label `ONE`, which is pinned and never linked, because they broadcast.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from onnxcomp.union_find import Array, components

Granularity = Literal["auto", "head", "head_dim"]
SINGLE = np.zeros(1, np.int64)
UNKNOWN = np.zeros(0, np.int64)
FEW = 4  # the first of equally good factors is only taken if it has so many indices
LONE = "an axis of length 1"


class Unfollowed(Exception):
    """What a rule raises where it cannot say how labels pass: the node's tensors stay."""


@dataclass(frozen=True)
class Factor:
    """A flat axis [a * b * ...] is the product of the axes ``parts``, [a], [b] ..., row by row."""

    flat: Array
    parts: tuple[Array, ...]

    def wide(self, part: int) -> Array:
        """The labels of one part at every index of the flat axis."""
        shape = [1] * len(self.parts)
        shape[part] = -1
        sizes = [p.size for p in self.parts]
        return np.broadcast_to(self.parts[part].reshape(shape), sizes).ravel()


@dataclass
class Equations:
    """Labels given out so far and what was said about them.

    Attributes:
        merged: whether all indices of an axis that stays share one label. Where labels only tell
            which indices are the same, they must not.
        chosen: once solved, the factors that shrink, and by which of their parts.
    """

    merged: bool = True
    count: int = 1
    reasons: list[str] = field(default_factory=lambda: [LONE])
    factors: list[Factor] = field(default_factory=list)
    chosen: list[tuple[Factor, int]] = field(default_factory=list)
    _edges: list[tuple[Array, Array]] = field(default_factory=list)
    _pins: list[tuple[Array, int]] = field(default_factory=lambda: [(SINGLE, 0)])
    _codes: dict[str, int] = field(default_factory=lambda: {LONE: 0})

    def fresh(self, size: int) -> Array:
        """Labels that nothing else has, [size]."""
        if size == 1:
            return SINGLE
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def fixed(self, size: int, reason: str) -> Array:
        """Labels of an axis that stays as it is, [size]."""
        if size <= 1:
            return SINGLE if size else UNKNOWN
        if not self.merged:
            return self.fresh(size)
        self.count += 1
        label = np.asarray([self.count - 1])
        self.pin(label, reason)
        return np.broadcast_to(label, (size,))

    def pin(self, labels: Array, reason: str) -> None:
        """Lets ``labels`` stay, for the first reason that is given."""
        code = self._codes.setdefault(reason, len(self.reasons))
        if code == len(self.reasons):
            self.reasons.append(reason)
        self._pins.append((labels, code))

    def same(self, one: Array, other: Array) -> Array:
        """Makes two vectors equal; an axis of length 1 meets any other without a link.

        Raises:
            Unfollowed: the lengths differ.
        """
        if one is other or other.size == 1:
            return one
        if one.size == 1:
            return other
        if one.size == 0 or other.size == 0:
            longer = other if one.size == 0 else one
            self.pin(longer, "it meets an axis of unknown length")
            return longer
        if one.size != other.size:
            raise Unfollowed(f"axes of {one.size} and {other.size} meet")
        self._edges.append((one, other))
        return one

    def take(self, labels: Array, indices: Array) -> Array:
        """A selection; an index that is taken alone has to stay."""
        taken = labels[indices]
        if taken.size == 1:
            self.pin(taken, "an index that is taken alone")
            return SINGLE
        return taken

    def factor(self, flat: Array, parts: Sequence[Array]) -> None:
        """Makes ``flat`` the product of ``parts``; which part may shrink is settled at the end.

        Raises:
            Unfollowed: the lengths do not multiply.
        """
        if any(part.size == 0 for part in (flat, *parts)):
            for labels in (flat, *parts):
                self.pin(labels, "it meets an axis of unknown length")
            return
        if math.prod(part.size for part in parts) != flat.size:
            raise Unfollowed(f"{flat.size} is not the product of {[part.size for part in parts]}")
        long = tuple(part for part in parts if part.size > 1)
        if len(long) == 1:
            self.same(flat, long[0])
        elif long:
            self.factors.append(Factor(flat, long))

    def classes(self) -> Array:
        """The least label of the class of every label, factors apart, [count]."""
        return _joined(np.arange(self.count), self._edges)

    def classes_without(self, factors: Collection[int]) -> Array:
        """The same as found by `solve`, had it not tied the flat axes of some factors, by id."""
        edges = [(f.flat, f.wide(part)) for f, part in self.chosen if id(f) not in factors]
        return _joined(self.classes(), edges)

    def solve(self, weights: Array, granularity: Granularity = "auto") -> tuple[Array, Array]:
        """The class of every label, and the reason of every class that stays.

        Args:
            weights: [count] how many parameters a label stands for.
            granularity: which part of a flat axis shrinks where several could: ``head`` the first,
                ``head_dim`` the last, ``auto`` the one that touches most parameters.

        Returns:
            root: [count] the least label of each class.
            reason: [count] an index into ``reasons``, or -1 where the class may be removed.
        """
        root = self.classes()
        waiting = self.factors
        while waiting:
            reason = self._reasons(root)
            waiting, edges = self._settle(waiting, root, reason >= 0, weights, granularity)
            root = _joined(root, edges)
        return root, self._reasons(root)

    def _reasons(self, root: Array) -> Array:
        least = np.full(self.count, len(self.reasons))
        labels = np.concatenate([labels for labels, _ in self._pins])
        codes = np.repeat([code for _, code in self._pins], [p.size for p, _ in self._pins])
        np.minimum.at(least, root[labels], codes)
        found = least[root]
        return np.where(found == len(self.reasons), -1, found)

    def _settle(
        self,
        waiting: list[Factor],
        root: Array,
        pinned: Array,
        weights: Array,
        granularity: Granularity,
    ) -> tuple[list[Factor], list[tuple[Array, Array]]]:
        """One round: what is clear; if nothing is, a choice where factors meet."""
        options = [_free_parts(factor, root, pinned) for factor in waiting]
        clear = [len(found) < 2 for found in options]
        chosen: dict[int, int | None] = {}
        if any(clear):
            for i, found in enumerate(options):
                if clear[i]:
                    chosen[i] = found[0] if found else None
        else:
            total = np.bincount(root, weights, minlength=self.count)
            chosen |= _choices(waiting, options, root, total, granularity, pinned)
        edges = []
        for i, part in chosen.items():
            factor = waiting[i]
            for j, labels in enumerate(factor.parts):
                if j != part:
                    self.pin(labels, "another factor of its flat axis shrinks, or none can")
            if part is None:
                self.pin(factor.flat, "no factor of the flat axis can shrink")
            else:
                edges.append((factor.flat, factor.wide(part)))
                self.chosen.append((factor, part))
        return [factor for i, factor in enumerate(waiting) if i not in chosen], edges


def _joined(root: Array, edges: Sequence[tuple[Array, Array]]) -> Array:
    if not edges:
        return root
    one, other = (np.concatenate(side) for side in zip(*edges, strict=True))
    return components(root, one, other)


def _free_classes(factor: Factor, root: Array, pinned: Array) -> Array:
    """The classes of its flat axis and its parts that may still be removed."""
    classes = np.concatenate([root[labels] for labels in (factor.flat, *factor.parts)])
    return np.asarray(classes[~pinned[classes]])


def _free_parts(factor: Factor, root: Array, pinned: Array) -> list[int]:
    """Parts of which some index may be removed, the flat axis allowing it.

    Where the axis already repeats along all others, it is that part alone: any other would tie all
    of its indices together.
    """
    sizes = [part.size for part in factor.parts]
    flat = pinned[root[factor.flat]].reshape(sizes)
    free = []
    for i, part in enumerate(factor.parts):
        others = tuple(axis for axis in range(len(sizes)) if axis != i)
        if not (pinned[root[part]] | flat.any(axis=others)).all():
            free.append(i)
    tied = [i for i in free if _is_tied(factor, i, root)]
    return tied if len(tied) == 1 else free


def _is_tied(factor: Factor, part: int, root: Array) -> bool:
    """Whether the flat axis has the same classes at all indices of the other parts."""
    sizes = [p.size for p in factor.parts]
    rows = np.moveaxis(root[factor.flat].reshape(sizes), part, 0).reshape(sizes[part], -1)
    return bool((rows == rows[:, :1]).all())


def _choices(
    waiting: Sequence[Factor],
    options: Sequence[list[int]],
    root: Array,
    total: Array,
    granularity: Granularity,
    pinned: Array,
) -> dict[int, int]:
    """One choice among all factors that meet, and the same for those like it further away.

    Different ones could end in a flat axis whose indices are all tied together.
    """
    near = [_free_classes(factor, root, pinned) for factor in waiting]
    joined = _joined(root, [(found, np.broadcast_to(found[0], found.shape)) for found in near])
    touched = np.zeros(len(root), bool)
    first: dict[int, tuple[tuple[int, ...], int]] = {}
    chosen: dict[int, int] = {}
    for i, factor in enumerate(waiting):
        place, sizes = int(joined[near[i][0]]), tuple(part.size for part in factor.parts)
        if place not in first:
            first[place] = sizes, _choice(factor, options[i], root, total, granularity)
        like, part = first[place]
        if like == sizes and part in options[i] and not touched[near[i]].any():
            chosen[i] = part
            touched[near[i]] = True
    return chosen


def _choice(
    factor: Factor, free: list[int], root: Array, total: Array, granularity: Granularity
) -> int:
    if granularity == "head":
        return free[0]
    if granularity == "head_dim":
        return free[-1]
    reach = [float(total[np.unique(root[factor.parts[i]])].sum()) for i in free]
    best = [i for i, found in zip(free, reach, strict=True) if found == max(reach)]
    if len(best) == 1:
        return best[0]
    if factor.parts[best[0]].size >= FEW:
        return best[0]
    return max(best, key=lambda i: factor.parts[i].size)
