"""Removed channels in the names of the ORIGINAL model, whatever was rewritten on the way.

Activations keep their names from pass to pass. So what was cut from them is marked on the labels
of the original graph, and its own equations say which of its constants it takes along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import Factor
from onnxcomp.channel_preparation import prepare
from onnxcomp.channel_sweep import is_size
from onnxcomp.channels import collect
from onnxcomp.folded_ties import Copies, unlisted, untie
from onnxcomp.graph import Graph, is_constant, producer
from onnxcomp.head_tracing import RemovedByHead, lost_by_head, uneven
from onnxcomp.shapes import infer_shapes
from onnxcomp.union_find import Array

Losses = dict[tuple[str, int], Array]  # tensor and axis -> indices that it lost
NOBODY = -1
STATISTICS = ("LayerNormalization", "LpNormalization", "MeanVarianceNormalization")


@dataclass(frozen=True)
class Removed:
    """What left the original model with one group.

    Attributes:
        places: axes that lost indices.
        by_head: axes of which each head lost others.
    """

    places: tuple[RemovedPlace, ...]
    by_head: tuple[RemovedByHead, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report; without the key where no heads differ."""
        found: dict[str, Any] = {"places": [place.as_dict() for place in self.places]}
        if self.by_head:
            found["by_head"] = [place.as_dict() for place in self.by_head]
        return found


@dataclass(frozen=True)
class RemovedPlace:
    """Indices that an axis of the original model lost.

    Attributes:
        tensor: its name in the original model.
        axis: as ONNX counts it, at least 0.
        indices: of the original axis, ascending, [n].
        constant: whether it is an initializer or an activation.
    """

    tensor: str
    axis: int
    indices: Array
    constant: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            "tensor": self.tensor,
            "axis": self.axis,
            "indices": self.indices.tolist(),
            "constant": self.constant,
        }


def trace(
    original: gs.Graph,
    losses: Sequence[Losses],
    made_of: gs.Graph | None = None,
    removed: Sequence[Mapping[str, Any]] = (),
) -> list[Removed]:
    """For each group the places of the original model that its removed units stood at.

    Weights that were standardized before anything left of them are listed as what was standardized:
    what they are made of still counts in their means and norms.

    Args:
        original: not changed.
        losses: of each group, what axes of a graph that was made from it lost.
        made_of: that graph before it lost them; lengths may be known there that the original
            computes.
        removed: entries of reports on what left before that.
    """
    twin: Graph = original.copy()
    infer_shapes(twin)
    copies: Copies = {}
    if made_of is not None:
        _adopt_shapes(twin, made_of)
        copies = untie(twin, made_of)
    origins = prepare(twin)
    sweep, _ = collect(twin, merged=False)
    root = sweep.equations.classes()
    made = {tensor.name for node in twin.nodes for tensor in node.outputs}
    seen = [{place: x for place, x in lost.items() if place[0] in made} for lost in losses]
    owner, unsized = _owners(seen, _gone(removed), sweep.of, root)
    _through_factors(sweep.equations.factors, root, owner)
    whole = set() if made_of is None else _standardized(twin, made_of)
    own = unlisted(copies, sweep.of, owner[root])
    listed = {name: axes for name, axes in sweep.of.items() if name not in own}
    axes_of = {name: axes for name, axes in listed.items() if name not in whole}
    found = _places(axes_of, sweep.constants, origins, owner[root], len(losses))
    for number, place in unsized:
        found[number] += (place,)
    factors = sweep.equations.factors
    heads = lost_by_head(listed, sweep.constants, factors, root, owner, len(losses))
    pairs = zip(found, heads, strict=True)
    return [Removed(places, tuple(by_head)) for places, by_head in pairs]


def _owners(
    losses: Sequence[Losses],
    gone: Mapping[tuple[str, int], Sequence[int]],
    axes_of: Mapping[str, Sequence[Array]],
    root: Array,
) -> tuple[Array, list[tuple[int, RemovedPlace]]]:
    """The group with which each class left, and by group what left axes without labels."""
    owner = np.full(len(root), NOBODY)
    unsized: list[tuple[int, RemovedPlace]] = []
    for number, lost in enumerate(losses):
        for (name, axis), indices in lost.items():
            if not len(indices):
                continue
            axes = axes_of.get(name)
            indices = _as_they_were(indices, gone.get((name, axis), []))
            if axes is None or axes[axis].size == 0:  # of a length that only the result tells
                unsized.append((number, RemovedPlace(name, axis, indices, False)))
            elif axes[axis].size > indices.max():
                owner[root[axes[axis][indices]]] = number
    return owner, unsized


def _gone(removed: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[int]]:
    """By tensor and axis the indices that left before, ascending."""
    gone: dict[tuple[str, int], list[int]] = {}
    for place in (place for entry in removed for place in entry.get("places", ())):
        gone.setdefault((place["tensor"], place["axis"]), []).extend(place["indices"])
    return {key: sorted(set(indices)) for key, indices in gone.items()}


def _as_they_were(indices: Array, gone: Sequence[int]) -> Array:
    """Indices of an axis that lost ``gone`` as indices of the whole axis."""
    if not len(gone):
        return indices
    left = np.setdiff1d(np.arange(indices.max() + len(gone) + 1), gone)
    return np.asarray(left[indices])


def _adopt_shapes(graph: gs.Graph, other: gs.Graph) -> None:
    """Names keep denoting the same values, so what one graph knows of a shape holds in both."""
    known = other.tensors()
    for node in graph.nodes:
        for tensor in node.outputs:
            shape = known[tensor.name].shape if tensor.name in known else None
            if tensor.shape is None:
                tensor.shape = None if shape is None else list(shape)
            elif shape is not None and len(shape) == len(tensor.shape):
                pairs = zip(tensor.shape, shape, strict=True)
                tensor.shape = [b if is_size(b) and not is_size(a) else a for a, b in pairs]


def _standardized(graph: gs.Graph, made_of: gs.Graph) -> set[str]:
    """Constants, and what is computed of them, whose statistics were constant in ``made_of``."""
    made = {tensor.name for node in made_of.nodes for tensor in node.outputs}
    computed: set[str] = set()
    waiting: list[gs.Tensor] = []
    for node in graph.nodes:
        if not all(is_constant(t) or t.name in computed or not t.name for t in node.inputs):
            continue
        names = {tensor.name for tensor in node.outputs}
        computed |= names
        if (node.op.startswith("Reduce") or node.op in STATISTICS) and not names & made:
            waiting += node.inputs
    found: set[str] = set()
    while waiting:
        tensor = waiting.pop()
        if tensor.name not in found:
            found.add(tensor.name)
            maker = producer(tensor)
            waiting += [] if maker is None else maker.inputs
    return found


def _through_factors(factors: Sequence[Factor], root: Array, owner: Array) -> None:
    """An index of a part has left where all that it makes has; and the other way round."""
    while True:
        before = owner.copy()
        for factor in factors:
            sizes = [part.size for part in factor.parts]
            flat = owner[root[factor.flat]].reshape(sizes)
            own = {part for part, _, _ in uneven(factor, flat.ravel())}
            for i, part in enumerate(factor.parts):
                if i in own:  # a choice of each head, if by chance the same for some index
                    continue
                others = tuple(axis for axis in range(len(sizes)) if axis != i)
                whole = flat.min(axis=others) > NOBODY
                left = np.where(whole, flat.max(axis=others), NOBODY)
                owner[root[part]] = np.maximum(owner[root[part]], left)
                shape = [1] * len(sizes)
                shape[i] = -1
                flat = np.maximum(flat, owner[root[part]].reshape(shape))
            owner[root[factor.flat]] = np.maximum(owner[root[factor.flat]], flat.ravel())
        if np.array_equal(before, owner):
            return


def _places(
    axes: Mapping[str, Sequence[Array]],
    constants: Mapping[str, Any],
    origins: Mapping[str, str],
    owner: Array,
    count: int,
) -> list[tuple[RemovedPlace, ...]]:
    """By group; a copy of a constant stands for the one that it was copied from."""
    found: list[dict[tuple[str, int], Array]] = [{} for _ in range(count)]
    for name, vectors in axes.items():
        for axis, labels in enumerate(vectors):
            mine = owner[labels]
            for number in np.unique(mine[mine > NOBODY]).tolist():
                key = origins.get(name, name), axis
                indices = np.flatnonzero(mine == number)
                known = found[number].get(key, indices[:0])
                found[number][key] = np.union1d(known, indices)
    return [
        tuple(
            RemovedPlace(name, axis, indices, name in constants)
            for (name, axis), indices in places.items()
        )
        for places in found
    ]
