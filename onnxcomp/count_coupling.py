"""Where heads, or groups of a Conv, only have to lose equally many channels, not the same ones.

A flat axis [heads * width] that shrinks in its width keeps the same number of indices of each head:
a Reshape and the `group` of a Conv ask for no more. Which ones they are is each head's own matter
as long as no tensor has the width without the heads, and no operator lets one head meet another or
looks at the order within the width: then the width of each head may be permuted alone, and removing
the last indices after that is removing each head's own choice.

So every element that belongs to such a unit has a pair of labels, its unit and its head. On a flat
axis the index tells both; on the axis of the width, as in [batch, heads, length, width] or in the
kernel of a grouped Conv, the head is told by another axis of the same tensor. Rotary embeddings, a
scale of all heads, a residual sum with another order: there the same index leaves everywhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import Factor
from onnxcomp.channel_sweep import Sweep
from onnxcomp.head_operators import HeadAxis, keeps_heads_apart
from onnxcomp.union_find import Array, components
from onnxcomp.zero_flow import stays_zero

NONE = -1


@dataclass(frozen=True)
class Heads:
    """What head the indices of an axis belong to.

    Attributes:
        along: the axis that tells; the axis itself where it is flat.
        labels: [length of ``along``] of the heads, the same everywhere in a group, or -1.
    """

    along: int
    labels: Array


def own_choices(
    graph: gs.Graph, sweep: Sweep, root: Array, reason: Array
) -> dict[tuple[str, int], Heads]:
    """By tensor and axis the heads, where units of each may leave on their own.

    Args:
        graph: that ``sweep`` went over.
        sweep: solved.
        root: [labels] its classes.
        reason: [labels] why a class stays, -1 where it is free.
    """
    found = [
        _Loose(factor, part, tuple(outer))
        for factor, part in sweep.equations.chosen
        for outer in [_by_length(factor, part, root)]
        if outer and (reason[root[factor.parts[part]]] < 0).any()
    ]
    while found:
        search = _Search(graph, sweep, root, found)
        failed = search.failures()
        if not failed:
            return search.heads
        tried = [loose.next() if i in failed else loose for i, loose in enumerate(found)]
        found = [loose for loose in tried if loose.outer]
    return {}


def _by_length(factor: Factor, part: int, root: Array) -> list[int]:
    """Parts before the one that shrinks that may be its heads, the longest and innermost first."""
    able = [i for i in range(part) if np.unique(root[factor.parts[i]]).size == factor.parts[i].size]
    return sorted(able, key=lambda i: (factor.parts[i].size, i), reverse=True)


@dataclass(frozen=True)
class _Loose:
    """A chosen factor whose flat axis keeps equally many of each head.

    Attributes:
        part: the width.
        outer: what may be the heads, the likeliest first: of [3, heads, width] not the 3.
    """

    factor: Factor
    part: int
    outer: tuple[int, ...]

    @property
    def width(self) -> Array:
        return self.factor.parts[self.part]

    @property
    def heads(self) -> Array:
        return self.factor.parts[self.outer[0]]

    def next(self) -> _Loose:
        """With the next guess."""
        return dataclasses.replace(self, outer=self.outer[1:])


@dataclass
class _Search:
    """Whether all ``loose`` factors may leave the choice to the heads; which ones may not.

    Attributes:
        clusters: [loose] factors that shrink by the same units succeed or fail together.
        heads: by tensor and axis.
    """

    graph: gs.Graph
    sweep: Sweep
    root: Array
    loose: Sequence[_Loose]
    heads: dict[tuple[str, int], Heads] = field(default_factory=dict)

    def failures(self) -> set[int]:
        """Numbers of factors that have to couple their indices, as far as it is seen by now."""
        self._label()
        outer = {
            i for i, loose in enumerate(self.loose) if self.flat[self.apart[loose.width]].any()
        }
        if outer:  # axes that are flat and the width of a larger flat one: that one ties
            return outer
        bad = set(self._without_heads())
        if not bad:
            self._share_heads()
            bad = set(self._by_operators())
        return {i for i, cluster in enumerate(self.clusters) if cluster in bad}

    def _label(self) -> None:
        """Classes when the loose factors tie nothing, and what is known of each."""
        equations, count = self.sweep.equations, self.sweep.equations.count
        free = {id(loose.factor) for loose in self.loose}
        self.apart = equations.classes_without(free)
        widths = [self.root[loose.width] for loose in self.loose]
        firsts = np.repeat([mine[0] for mine in widths], [mine.size for mine in widths])
        cluster = components(np.arange(count), firsts, np.concatenate(widths))
        self.clusters = [int(cluster[self.root[loose.width[0]]]) for loose in self.loose]
        self.cluster = np.full(count, NONE)  # by class
        self.flat, self.wide = np.zeros(count, bool), np.zeros(count, bool)  # by class apart
        self.head = np.full(count, NONE)  # by class apart of a flat index
        for loose, number in zip(self.loose, self.clusters, strict=True):
            self.cluster[self.root[loose.width]] = number
            self.flat[self.apart[loose.factor.flat]] = True
            self.wide[self.apart[loose.width]] = True

    def _without_heads(self) -> Iterator[int]:
        """Clusters of tensors that have a width and not one axis of its heads."""
        told = _Told(self)
        self._told: list[tuple[str, int, int, list[Array]]] = []
        for name, axes in self.sweep.of.items():
            for axis, labels in enumerate(axes):
                for cluster in told.widths(labels):
                    where = [b for b in range(len(axes)) if b != axis and told(axes[b], cluster)]
                    if len(where) != 1:
                        yield cluster
                        continue
                    readings = told(axes[where[0]], cluster)
                    self.heads[name, axis] = Heads(where[0], readings[0])
                    self._told.append((name, axis, cluster, readings))

    def _share_heads(self) -> None:
        """Heads of a cluster are the same where one flat index or one axis has both labels."""
        pairs: dict[int, list[tuple[Array, Array]]] = {}
        flats: dict[int, list[Array]] = {}
        for loose, cluster in zip(self.loose, self.clusters, strict=True):
            flat = self.apart[loose.factor.flat]
            heads = self.apart[loose.factor.wide(loose.outer[0])]
            pairs.setdefault(cluster, []).append((flat, heads))
            flats.setdefault(cluster, []).append(flat)
        for cluster, readings in {id(r): (c, r) for _, _, c, r in self._told}.values():
            pairs[cluster] += [(readings[0], other) for other in readings]
        same = {}
        for cluster, found in pairs.items():
            one, other = (np.concatenate(side) for side in zip(*found, strict=True))
            labels, numbers = np.unique(np.concatenate([one, other]), return_inverse=True)
            joined = components(np.arange(len(labels)), *np.split(numbers, [one.size]))
            same[cluster] = labels, labels[joined]
            flat = np.concatenate(flats[cluster])
            self.head[flat] = labels[joined][np.searchsorted(labels, flat)]
        for name, axis, cluster, readings in self._told:
            labels, heads = same[cluster]
            where = self.heads[name, axis].along
            found_heads = heads[np.searchsorted(labels, readings[0])]
            self.heads[name, axis] = Heads(where, found_heads)
        seen: dict[int, Array | None] = {}
        for name, axes in self.sweep.of.items():
            for axis, labels in enumerate(axes):
                if id(labels) not in seen:
                    found = self.head[self.apart[labels]]
                    seen[id(labels)] = found if (found != NONE).any() else None
                mine = seen[id(labels)]
                if mine is not None and (name, axis) not in self.heads:
                    self.heads[name, axis] = Heads(axis, mine)

    def _by_operators(self) -> Iterator[int]:
        """Clusters that some operator does not leave to the heads."""
        carried = self._carried()
        zeroed = [
            (name, cluster)
            for name in self.sweep.constants.keys() & carried.keys()
            for cluster, axes in carried[name].items()
            if all(self.heads[name, axis].along == axis for axis in axes)
        ]
        zero = stays_zero(self.graph, carried, zeroed)
        for node in self.graph.nodes:
            for cluster in {
                c for t in (*node.inputs, *node.outputs) for c in carried.get(t.name, ())
            }:
                axes = {
                    tensor.name: [
                        HeadAxis(axis, self.heads[tensor.name, axis].along)
                        for axis in carried[tensor.name][cluster]
                        if self.heads[tensor.name, axis].along != axis
                    ]
                    for tensor in (*node.inputs, *node.outputs)
                    if cluster in carried.get(tensor.name, {})
                }
                if not keeps_heads_apart(node, axes, lambda name: (name, cluster) in zero):  # noqa: B023
                    yield cluster

    def _carried(self) -> dict[str, dict[int, list[int]]]:
        """By tensor and cluster the axes on which its units are."""
        found: dict[str, dict[int, list[int]]] = {}
        for name, axis in self.heads:
            clusters = np.unique(self.cluster[self.root[self.sweep.of[name][axis]]])
            for cluster in clusters[clusters != NONE].tolist():
                found.setdefault(name, {}).setdefault(cluster, []).append(axis)
        return found


class _Told:
    """What the labels of an axis tell of the heads of a cluster."""

    def __init__(self, search: _Search) -> None:
        self._search = search
        self._of: dict[int, set[int]] = {}  # cluster -> labels of its heads
        for loose, cluster in zip(search.loose, search.clusters, strict=True):
            self._of.setdefault(cluster, set()).update(search.apart[loose.heads].tolist())
        self._factors: dict[bytes, list[Factor]] = {}
        for factor in search.sweep.equations.factors:
            self._factors.setdefault(search.apart[factor.flat].tobytes(), []).append(factor)
        self._widths: dict[int, list[int]] = {}
        self._read: dict[tuple[bytes, int], list[Array]] = {}

    def widths(self, labels: Array) -> list[int]:
        """Clusters of which an axis has the width."""
        if id(labels) not in self._widths:
            search = self._search
            mine = labels[search.wide[search.apart[labels]]]
            found = np.unique(search.cluster[search.root[mine]])
            self._widths[id(labels)] = found[found != NONE].tolist()
        return self._widths[id(labels)]

    def __call__(self, labels: Array, cluster: int) -> list[Array]:
        """The heads of the indices of an axis, in all ways that it can be read.

        Axes with equal labels get one list: as many layers may read a stream as there are ways.
        """
        key = self._search.apart[labels].tobytes(), cluster
        if key not in self._read:
            self._read[key] = list(self._readings(labels, self._of[cluster]))
        return self._read[key]

    def _readings(self, labels: Array, heads: set[int]) -> Iterator[Array]:
        if labels.size < 2:
            return
        apart = self._search.apart
        if heads.issuperset(apart[labels].tolist()):
            yield apart[labels]
        for factor in self._factors.get(apart[labels].tobytes(), ()):
            for i, part in enumerate(factor.parts):
                if heads.issuperset(apart[part].tolist()):
                    yield apart[factor.wide(i)]
