"""Labels of channels: what has to be scaled by one factor carries one label.

Every float tensor has an array of labels with the rank of the tensor, whose axes are as long as the
tensor's or 1 where all indices share a label. Operators say which labels are equal; union-find
makes classes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from onnxcomp.union_find import components

Array = npt.NDArray[np.int64]


@dataclass
class Labels:
    """Labels given out so far, and which of them are equal or stand for the factor 1."""

    count: int = 0
    _edges: list[tuple[Array, Array]] = field(default_factory=list)
    _pins: list[tuple[Array, str]] = field(default_factory=list)

    def fresh(self, *shape: int) -> Array:
        """An array of labels that nothing else has."""
        size = int(np.prod(shape, dtype=np.int64))
        found = np.arange(self.count, self.count + size, dtype=np.int64).reshape(shape)
        self.count += size
        return found

    def same(self, one: Array, other: Array) -> Array:
        """Makes two arrays, broadcast to each other, equal; returns the broadcast one."""
        one, other = np.broadcast_arrays(one, other)
        if one is not other:
            self._edges.append((one.ravel(), other.ravel()))
        return one

    def shared(self, labels: Array) -> Array:
        """Makes all of ``labels`` equal; returns one of them, shaped [1, 1, ...]."""
        first = labels.reshape(-1)[:1].reshape((1,) * labels.ndim)
        self.same(labels, first)
        return first

    def pin(self, labels: Array, reason: str) -> None:
        """Lets ``labels`` stand for the factor 1."""
        self._pins.append((np.unique(labels), reason))

    def classes(self) -> tuple[Array, Mapping[int, str]]:
        """For each label the least one of its class, [count], and the reasons of pinned classes."""
        root = np.arange(self.count)
        if self._edges:
            one, other = (np.concatenate(side) for side in zip(*self._edges, strict=True))
            root = components(root, one, other)
        reasons: dict[int, str] = {}
        for labels, reason in self._pins:
            for label in np.unique(root[labels]).tolist():
                reasons.setdefault(label, reason)
        return root, reasons


def compact(labels: Array) -> Array:
    """``labels`` with axes of length 1 where all indices carry the same ones."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis) if labels.shape[axis] else labels
        if labels.shape[axis] > 1 and bool((labels == first).all()):
            labels = first
    return labels
