"""What left of the width of each head, in the names of the original model.

`tracing` finds the indices that left of flat axes, heads times width. Where heads lost different
ones, an axis of the width alone, as in [batch, heads, length, width] or in the kernel of a grouped
Conv, has no one list of indices: it has one for each head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.channel_equations import Factor
from onnxcomp.union_find import Array


@dataclass(frozen=True)
class RemovedByHead:
    """Indices that an axis of the original model lost, others for each head.

    Attributes:
        tensor: its name in the original model.
        axis: of the width.
        along: the axis that tells the head.
        heads: [length of ``along``] the head of each of its indices.
        indices: of the original axis, for each head; none of a head that left itself.
        constant: whether it is an initializer or an activation.
    """

    tensor: str
    axis: int
    along: int
    heads: Array
    indices: tuple[Array, ...]
    constant: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            "tensor": self.tensor,
            "axis": self.axis,
            "along": self.along,
            "heads": self.heads.tolist(),
            "indices": [lost.tolist() for lost in self.indices],
            "constant": self.constant,
        }


def lost_by_head(
    axes: Mapping[str, Sequence[Array]],
    constants: Mapping[str, Any],
    factors: Sequence[Factor],
    root: Array,
    owner: Array,
    count: int,
) -> list[list[RemovedByHead]]:
    """For each group the axes of the width of heads that lost different indices.

    Args:
        axes: labels of the axes of all tensors.
        constants: those of them that are constant.
        factors: flat axes and what they are products of.
        root: [labels] the class of each.
        owner: by class the number of the group that lost it, or -1.
        count: of groups.
    """
    found: list[list[RemovedByHead]] = [[] for _ in range(count)]
    ragged = _ragged(factors, root, owner)
    if not ragged:
        return found
    heads_of: dict[bytes, list[Factor]] = {}
    for factor in factors:
        heads_of.setdefault(root[factor.flat].tobytes(), []).append(factor)
    for name, vectors in axes.items():
        keys = [root[labels].tobytes() for labels in vectors]
        for axis, key in enumerate(keys):
            told = set()  # heads that repeat may be read as what they repeat, too
            for outer, number, indices in ragged.get(key, ()):
                for along, other in enumerate(keys):
                    heads = _heads(other, outer, vectors[along].size, heads_of, root)
                    if along != axis and heads is not None and number not in told:
                        told.add(number)
                        lost = RemovedByHead(name, axis, along, heads, indices, name in constants)
                        found[number].append(lost)
    return found


def _ragged(
    factors: Sequence[Factor], root: Array, owner: Array
) -> dict[bytes, list[tuple[bytes, int, tuple[Array, ...]]]]:
    """By the classes of a width: those of its heads, the group, the indices that each lost."""
    found: dict[bytes, list[tuple[bytes, int, tuple[Array, ...]]]] = {}
    seen: set[tuple[bytes, bytes, int]] = set()
    for factor in factors:
        flat = owner[root[factor.flat]]
        for part, outer, rows in uneven(factor, flat):
            key, heads = (root[factor.parts[i]].tobytes() for i in (part, outer))
            for number in np.unique(rows[rows >= 0]).tolist():
                indices = tuple(np.flatnonzero(row == number) for row in rows)
                counts = {len(lost) for lost in indices} - {0}
                if (key, heads, number) not in seen and len(counts) == 1:
                    seen.add((key, heads, number))
                    found.setdefault(key, []).append((heads, number, indices))
    return found


def uneven(factor: Factor, flat: Array) -> Iterator[tuple[int, int, Array]]:
    """(width, heads, groups that lost indices, [heads, width]) where heads lost different ones.

    Args:
        factor: the flat axis and its parts.
        flat: [length] the number of the group that lost an index of the flat axis, or -1.
    """
    sizes = [part.size for part in factor.parts]
    cube = flat.reshape(sizes)
    for part in range(1, len(sizes)):
        for outer in range(part):
            rest = tuple(i for i in range(len(sizes)) if i not in (part, outer))
            rows = cube.max(axis=rest)
            if (cube.min(axis=rest) != rows).any():
                continue
            left = rows[(rows < 0).any(axis=1)]  # heads that are still there
            if len(left) > 1 and (left != left[0]).any():
                yield part, outer, np.where((rows < 0).any(axis=1)[:, None], rows, -1)


def _heads(
    key: bytes, outer: bytes, length: int, factors: Mapping[bytes, Sequence[Factor]], root: Array
) -> Array | None:
    """The head of each index of an axis, None where it does not tell."""
    if key == outer:
        return np.arange(length)
    for factor in factors.get(key, ()):
        for i, part in enumerate(factor.parts):
            if root[part].tobytes() == outer:
                numbers = [np.arange(p.size) for p in factor.parts]
                return Factor(factor.flat, tuple(numbers)).wide(i)
    return None
