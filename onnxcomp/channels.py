"""Which indices of which axes must be removed together.

Every index of every axis of every tensor carries a label; each operator is an equation between
vectors of labels (`channel_rules.py`); union-find makes classes of them, whatever the order. What
is left free are units: sets of (tensor, axis, index) that can only leave together. Units that
touch the same axes of the same tensors form a `ChannelGroup`: the channels between two layers, the
heads of an attention, the width of an MLP, a whole residual stream.

A proof needs no data: a model whose units were cut answers like one where they are zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_equations import Equations, Granularity, Unfollowed
from onnxcomp.channel_lengths import TARGETS, shapes_behind
from onnxcomp.channel_rules import rule_of
from onnxcomp.channel_sweep import Axes, Sweep
from onnxcomp.count_coupling import Heads, own_choices
from onnxcomp.graph import all_nodes, label, subgraphs
from onnxcomp.union_find import Array

INPUT, OUTPUT, BODY = "an input of the model", "an output of the model", "read by a body"


@dataclass(frozen=True)
class Place:
    """An axis that loses indices when units leave.

    Attributes:
        tensor: name of a constant or an activation.
        axis: as ONNX counts it, at least 0.
        units: [length of the axis] the unit that each index belongs to, -1 where to none.
        heads: where each head of the group may lose units of its own, the head by index of the
            axis ``along``, -1 for none.
        along: the axis itself where it is flat, heads times width; another one of the tensor
            where this is the width alone.
    """

    tensor: str
    axis: int
    units: Array
    heads: Array | None = None
    along: int = -1

    def lost(self, removed: Array) -> Array:
        """Which indices leave with the units ``removed``, bool [length].

        Where these are by head, [heads, n], and heads are told by another axis, [its length,
        length].
        """
        if self.heads is None:
            return np.isin(self.units, removed)
        largest = max(self.units.max(), removed.max(initial=0))
        gone = np.zeros((len(removed), int(largest) + 2), bool)  # the last for -1, which stays
        gone[np.arange(len(removed))[:, None], removed] = True
        if self.along != self.axis:
            return np.asarray(gone[self.heads][:, self.units])
        return np.asarray(gone[self.heads, self.units])


@dataclass(frozen=True)
class ChannelGroup:
    """Units of one kind: any of them may leave, each everywhere at once.

    Attributes:
        name: label of the first node that makes a tensor of the group; unique.
        size: number of units.
        span: the most indices that one unit takes of any axis: the width of a head, or 1.
        heads: how many heads, or groups of a Conv, have a unit of each number and may each lose
            others, only equally many; 1 where units are what leaves.
        parameters: elements of constants that leave with each unit, all others staying, [size].
        places: the axes, in the order in which the graph meets them.
    """

    name: str
    size: int
    span: int
    parameters: Array
    places: tuple[Place, ...]
    heads: int = 1

    def __str__(self) -> str:
        """The group and a line for each place, with the indices of the first unit."""
        lines = [f"{self.name}: {self.size} units, {int(self.parameters.sum())} parameters"]
        for place in self.places:
            first = np.flatnonzero(place.units == 0)
            some = ", ".join(map(str, first[:4])) + (", ..." if first.size > 4 else "")
            lines.append(
                f"  {place.tensor} axis {place.axis}: {np.sum(place.units >= 0)} of "
                f"{place.units.size} indices, unit 0 at [{some}]"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Channels:
    """What `find_channels` found.

    Attributes:
        groups: in the order of the graph.
        axes: labels of the axes of every tensor; an empty vector where a length is unknown.
        constants: names of the constants among them.
        root: [labels] the class of each label.
        pinned: by name of a constant and axis, why none of its indices can leave.
        unknown: label of a node -> why its tensors stay as they are.
    """

    groups: tuple[ChannelGroup, ...]
    axes: Mapping[str, Axes]
    constants: frozenset[str]
    root: Array
    pinned: Mapping[tuple[str, int], str]
    unknown: Mapping[str, str]


def find_channels(graph: gs.Graph, granularity: Granularity = "auto") -> Channels:
    """Solves the labels of a graph whose shapes were inferred; nothing is changed.

    Args:
        graph: nodes in order. What bodies of If, Loop and Scan read stays as it is.
        granularity: what shrinks where a flat axis is a product of several that could: ``head``
            the outer one (whole heads or groups of a Conv), ``head_dim`` the inner one, ``auto``
            the one whose classes touch most parameters.
    """
    sweep, unknown = collect(graph)
    weights = _weights(sweep)
    root, reason = sweep.equations.solve(weights, granularity)
    tensors = _order(graph, sweep)
    return Channels(
        groups=_groups(
            graph, sweep, tensors, root, reason, own_choices(graph, sweep, root, reason)
        ),
        axes=sweep.of,
        constants=frozenset(sweep.constants),
        root=root,
        pinned=_pinned(sweep, root, reason),
        unknown=unknown,
    )


def collect(graph: gs.Graph, merged: bool = True) -> tuple[Sweep, dict[str, str]]:
    """The equations of a graph, unsolved; and why the tensors of some nodes stay, by label.

    ``merged`` is as in `Equations`.
    """
    sweep, unknown = Sweep(Equations(merged)), {}
    for tensor in graph.inputs:
        if tensor.shape is not None:
            sweep.of[tensor.name] = sweep.fixed(tensor, INPUT)
    for node in graph.nodes:
        why = _follow(sweep, node)
        if why:
            unknown[label(node)] = why
    for tensor in graph.outputs:
        sweep.pin(tensor, OUTPUT)
    return sweep, unknown


def _follow(sweep: Sweep, node: gs.Node) -> str:
    """Labels the outputs of a node; why its tensors have to stay, or an empty text."""
    rule, why = rule_of(node), ""
    try:
        if rule is None:
            raise Unfollowed(f"no rule for {node.op}")
        for tensor, axes in zip(node.outputs, rule(sweep, node), strict=True):
            if tensor.name:
                sweep.give(tensor, axes)
    except (Unfollowed, IndexError, KeyError, ValueError) as error:
        why = str(error) if isinstance(error, Unfollowed) else f"an unusual {node.op}"
        targets = (t for i, t in enumerate(node.inputs) if (node.op, i) in TARGETS)
        lengths = [tensor for target in targets for tensor in shapes_behind(target)]
        for tensor in (*node.inputs, *_read_by_bodies(node), *lengths):
            sweep.pin(tensor, f"{label(node)}: {why}")
        for tensor in node.outputs:
            if tensor.name and tensor.shape is not None:
                sweep.of[tensor.name] = sweep.fixed(tensor, f"{label(node)}: {why}")
    return why


def _read_by_bodies(node: gs.Node) -> Iterable[gs.Tensor]:
    for _, body in subgraphs(node):
        for inner in all_nodes(body):
            yield from inner.inputs
        yield from body.outputs


def _weights(sweep: Sweep) -> Array:
    """[labels] how many parameters the constants have at each label."""
    total = np.zeros(sweep.equations.count)
    for name in sweep.constants:
        axes = sweep.of[name]
        elements = float(np.prod([labels.size for labels in axes]))
        for labels in axes:
            if labels.size > 1:
                np.add.at(total, labels, elements / labels.size)
    return total


def _order(graph: gs.Graph, sweep: Sweep) -> list[str]:
    """Names of labelled tensors, as nodes read and make them."""
    met = (t.name for node in graph.nodes for t in (*node.inputs, *node.outputs))
    return [name for name in dict.fromkeys(met) if name in sweep.of]


def _groups(
    graph: gs.Graph,
    sweep: Sweep,
    tensors: list[str],
    root: Array,
    reason: Array,
    heads: Mapping[tuple[str, int], Heads],
) -> tuple[ChannelGroup, ...]:
    """Free classes by the set of axes that they touch.

    Activations share vectors of labels, so each vector is looked at once, whoever carries it.
    """
    carriers: dict[int, list[tuple[str, int]]] = {}
    vectors: dict[int, Array] = {}
    for name in tensors:
        for axis, labels in enumerate(sweep.of[name]):
            if labels.size > 1 and (reason[root[labels]] < 0).any():
                vectors[id(labels)] = labels
                carriers.setdefault(id(labels), []).append((name, axis))
    if not vectors:
        return ()
    makers = {t.name: label(node) for node in reversed(graph.nodes) for t in node.outputs}
    taken: dict[str, int] = {}
    found = []
    keys = list(vectors)
    tensors_at = {name: i for i, name in enumerate(tensors)}
    for classes, touched in _kinds([root[labels] for labels in vectors.values()], reason):
        axes = [(name, axis) for i in touched for name, axis in carriers[keys[i]]]
        axes.sort(key=lambda place: tensors_at[place[0]])
        group = _group(axes, classes, root, sweep, makers)
        if group is not None:
            found.append(_with_heads(group, heads))
    found.sort(key=lambda group: tensors_at[group.places[0].tensor])
    return tuple(_renamed(group, taken) for group in found)


def _kinds(vectors: list[Array], reason: Array) -> list[tuple[Array, Array]]:
    """Free classes that touch the same vectors: (classes, numbers of the vectors), sorted."""
    classes = np.concatenate(vectors)
    places = np.repeat(np.arange(len(vectors)), [vector.size for vector in vectors])
    free = reason[classes] < 0
    met = np.unique(classes[free] * len(vectors) + places[free])
    classes, places = np.divmod(met, len(vectors))  # each pair once, by class
    codes = np.random.default_rng(0).integers(0, 2**63, len(vectors), dtype=np.uint64)
    signature = np.zeros(len(reason), np.uint64)  # of the set of places, wrapping around
    np.add.at(signature, classes, codes[places])
    members, first = np.unique(classes, return_index=True)
    _, kind = np.unique(signature[members], return_inverse=True)
    ends = np.append(first, len(met))
    by_kind = np.split(np.argsort(kind, kind="stable"), np.cumsum(np.bincount(kind))[:-1])
    return [(members[some], places[ends[some[0]] : ends[some[0] + 1]]) for some in by_kind]


def _group(
    axes: list[tuple[str, int]],
    classes: Array,
    root: Array,
    sweep: Sweep,
    makers: Mapping[str, str],
) -> ChannelGroup | None:
    """The group of ``classes``, sorted, at ``axes``; None where it holds no parameters."""
    parameters = np.zeros(len(classes), np.int64)
    places, span = [], 1
    known: dict[int, tuple[Array, Array]] = {}
    for name, axis in axes:
        labels = sweep.of[name][axis]
        if id(labels) not in known:
            at = np.searchsorted(classes, root[labels])
            at[at == len(classes)] = 0
            units = np.where(classes[at] == root[labels], at, -1)
            known[id(labels)] = units, np.bincount(units[units >= 0], minlength=len(classes))
        units, counts = known[id(labels)]
        places.append(Place(name, axis, units))
        span = max(span, int(counts.max()))
        if name in sweep.constants:
            others = [other.size for i, other in enumerate(sweep.of[name]) if i != axis]
            parameters += counts * int(np.prod(others, dtype=np.int64))
    if not parameters.any():
        return None
    name = next((makers[name] for name, _ in axes if name in makers), axes[0][0])
    return ChannelGroup(name, len(classes), span, parameters, tuple(places))


def _renamed(group: ChannelGroup, taken: dict[str, int]) -> ChannelGroup:
    """``group`` with a name that no group before it has."""
    taken[group.name] = taken.get(group.name, 0) + 1
    if taken[group.name] == 1:
        return group
    name = f"{group.name}#{taken[group.name]}"
    return dataclasses.replace(group, name=name)


def _with_heads(group: ChannelGroup, heads: Mapping[tuple[str, int], Heads]) -> ChannelGroup:
    """``group`` with the heads, by number, of its places where all of them are told."""
    told = [heads.get((place.tensor, place.axis)) for place in group.places]
    pairs = [(p, h) for p, h in zip(group.places, told, strict=True) if h is not None]
    if len(pairs) < len(told):
        return group
    seen = {
        (id(h.labels), id(p.units)): h.labels[p.units >= 0] if h.along == p.axis else h.labels
        for p, h in pairs
    }
    labels = np.unique(np.concatenate(list(seen.values())))
    if len(labels) < 2 or labels[0] < 0:
        return group
    numbers: dict[int, Array] = {}
    places = []
    for place, head in pairs:
        if id(head.labels) not in numbers:
            at = np.searchsorted(labels, head.labels).clip(max=len(labels) - 1)
            numbers[id(head.labels)] = np.where(labels[at] == head.labels, at, -1)
        own = numbers[id(head.labels)]
        places.append(dataclasses.replace(place, heads=own, along=head.along))
    return dataclasses.replace(group, places=tuple(places), heads=len(labels))


def _pinned(sweep: Sweep, root: Array, reason: Array) -> dict[tuple[str, int], str]:
    """Why axes of weights with no free index at all stay; of vectors nobody asks."""
    found = {}
    for name in sweep.constants:
        axes = sweep.of[name]
        for axis, labels in enumerate(axes):
            if len(axes) > 1 and labels.size > 1:
                why = reason[root[labels]]
                if (why >= 0).all():
                    found[name, axis] = sweep.equations.reasons[int(why[0])]
    return found
