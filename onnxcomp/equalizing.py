"""Equalizes a graph: measures its channels, chooses factors for each group and writes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.blas import one_blas_thread
from onnxcomp.calibration import Calibration
from onnxcomp.equalization import (
    Activation,
    Choice,
    Reader,
    balanced_factors,
    choose_factors,
)
from onnxcomp.graph import Names, label
from onnxcomp.homogeneity import Port
from onnxcomp.quantization import Array
from onnxcomp.rescaling import LAYERS, rescale, weight_rows
from onnxcomp.scale_groups import ScaleGroups, find_groups

KEPT_VALUES = 1 << 15  # of one tensor, if its channels are not too many
FEWEST, MOST = 4, 64  # kept of one channel in one sample, beside its extremes
POOLS = ("AveragePool", "GlobalAveragePool", "ReduceMean")


class ChannelValues:
    """Some values of each channel, its extremes of each sample, and its mean square."""

    def __init__(self, classes: Array, samples: int) -> None:
        """For a tensor with ``classes`` of channels, as in `ScaleGroups`, and so many samples."""
        share = KEPT_VALUES // max(1, classes.size * samples)
        self._picks = min(max(share, FEWEST), MOST)
        self._shape = classes.shape
        self._kept = [axis for axis, size in enumerate(classes.shape) if size > 1]
        self._channels = classes.size
        self._picked: list[Array] = []
        self._weights: list[Array] = []
        self._squares: Array = np.zeros(classes.size)
        self._count = 0
        self._as_expected = True

    def update(self, values: Array) -> None:
        """``values``: of the tensor's rank."""
        if values.ndim != len(self._shape) or any(
            values.shape[axis] != self._shape[axis] for axis in self._kept
        ):
            self._as_expected = False
            return
        if self._kept != [1] or len(values) != 1:  # else there is nothing to move
            values = np.moveaxis(values, self._kept, range(len(self._kept)))
        table = values.reshape(self._channels, -1)
        if table.shape[1] == 0:
            return
        self._squares += np.einsum("ij,ij->i", table, table, dtype=np.float64)
        self._count += table.shape[1]
        step = -(-table.shape[1] // self._picks)
        picked = table[:, step // 2 :: step]
        extremes = np.stack([table.min(axis=1), table.max(axis=1)], axis=1)
        self._as_expected = self._as_expected and bool(np.isfinite(extremes).all())
        self._picked.append(np.concatenate([picked, extremes], axis=1))
        self._weights.append(np.repeat([float(step), 1.0], [picked.shape[1], 2]))

    @property
    def usable(self) -> bool:
        """Whether two samples had values, all finite and of the shape that was inferred."""
        return self._as_expected and len(self._picked) > 1

    @property
    def mean_squares(self) -> Array:
        """Of each channel."""
        return self._squares / max(1, self._count)

    def result(self) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Of every other sample, and of those between: values [channels, count], and how many
        each stands for [count]."""
        return self._half(0), self._half(1)

    def _half(self, which: int) -> tuple[Array, Array]:
        picked, weights = self._picked[which::2], self._weights[which::2]
        return np.concatenate(picked, axis=1, dtype=np.float64), np.concatenate(weights)


@dataclass
class Outcome:
    """What an equalization did.

    Attributes:
        changed: nodes whose constants are new.
        skipped: label -> reason, of layers whose input keeps its scale.
        choices: what was chosen for each group, by name of its first tensor.
    """

    changed: list[gs.Node] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)

    @property
    def equalized(self) -> int:
        """How many groups got factors."""
        return sum(choice.alpha > 0 for choice in self.choices.values())


@one_blas_thread()
def equalize(
    graph: gs.Graph,
    coded: set[str],
    calibration: Calibration | None,
    *,
    samples: int = 32,
    power_of_two: bool = False,
    wanted: Callable[[gs.Node], bool] = lambda node: True,
) -> Outcome:
    """Scales channels so that rounding loses less; the graph computes the same in float.

    Args:
        graph: changed in place; shapes have to be inferred before.
        coded: names of the tensors that will be rounded to 8 bits, one scale each.
        calibration: samples, or None to balance the ranges of the weights alone.
        samples: how many of them to look at.
        power_of_two: only factors that change no bit of the float results.
        wanted: whether the input of a node may be scaled.
    """
    groups = find_groups(graph)
    outcome = Outcome(skipped=_reasons(graph, groups, wanted))
    barred = [p.reads for p in groups.ports if p.reads is not None and not wanted(p.node)]
    barred += [p.makes.ravel() for p in groups.ports if not wanted(p.node)]
    free = groups.is_free(np.arange(groups.count))
    for classes in barred:
        free[classes] = False
    layers = [p for p in groups.ports if p.reads is not None and p.node.op in LAYERS]
    factors = np.ones(groups.count)
    if calibration is None:
        factors = balanced_factors(*_weight_bounds(layers, groups.count), free)
        if power_of_two:
            factors = 2.0 ** np.ceil(np.log2(factors))
    else:
        seen = _observe(graph, groups, layers, coded, calibration, samples)
        measured = Measured(graph, groups, layers, seen)
        for name, members in groups.members.items():
            choice = measured.choose(members, coded, free, power_of_two)
            if choice is None:
                continue
            outcome.choices[name] = choice
            factors *= choice.factors
    outcome.changed = rescale(groups.ports, factors, Names(graph))
    return outcome


def _reasons(
    graph: gs.Graph, groups: ScaleGroups, wanted: Callable[[gs.Node], bool]
) -> dict[str, str]:
    """Why the inputs of layers keep their scale."""
    found = {}
    for node in graph.nodes:
        classes = groups.classes.get(node.inputs[0].name) if node.op in LAYERS else None
        if classes is None or not classes.size:
            continue
        if not wanted(node):
            found[label(node)] = "skipped by an override"
        elif not groups.is_free(classes).any():
            reason = groups.reasons[int(classes.flat[0])]
            found[label(node)] = f"its input keeps its scale: {reason}"
    return found


def _weight_bounds(layers: list[Port], count: int) -> tuple[Array, Array]:
    """The largest weight that makes, and that reads, each class."""
    rows, columns = np.zeros(count), np.zeros(count)
    for port in layers:
        largest = np.abs(weight_rows(port.node)).max(axis=3, initial=0.0)
        np.maximum.at(rows, port.makes, largest.max(axis=2).ravel())
        if port.reads is not None:
            np.maximum.at(columns, port.reads, largest.max(axis=1).ravel())
    return rows, columns


def _observe(
    graph: gs.Graph,
    groups: ScaleGroups,
    layers: list[Port],
    coded: set[str],
    calibration: Calibration,
    samples: int,
) -> dict[str, ChannelValues]:
    members = {name for names in groups.members.values() for name in names}
    names = {port.node.inputs[0].name for port in layers} & members | (coded & members)
    seen = {name: ChannelValues(groups.classes[name], samples) for name in sorted(names)}
    calibration.observe(graph, seen, limit=samples)
    return seen


@dataclass
class Measured:
    """A graph with what the samples show of its channels.

    Attributes:
        graph, groups, layers: the layers are those of the graph that read labelled channels.
        seen: by tensor name.
    """

    graph: gs.Graph
    groups: ScaleGroups
    layers: list[Port]
    seen: Mapping[str, ChannelValues]

    def __post_init__(self) -> None:
        self._squares = {name: v.mean_squares for name, v in self.seen.items() if v.usable}
        self._readers = self._read_layers()
        self._importance = self._felt()

    def choose(
        self, members: list[str], coded: set[str], free: Array, power_of_two: bool
    ) -> Choice | None:
        """Factors for one group; None where nothing is rounded or a value is not finite."""
        found = [name for name in members if name in self.seen]
        if not all(self.seen[name].usable for name in found):
            return None
        activations = [
            self._activation(name) for name in found if name in coded and name in self._importance
        ]
        readers = [r for name in found for r in self._readers.get(name, ())]
        if not activations or not readers:
            return None
        inside = np.zeros(free.shape, bool)
        inside[np.concatenate([self.groups.classes[name].ravel() for name in members])] = True
        return choose_factors(activations, readers, free & inside, power_of_two=power_of_two)

    def _activation(self, name: str) -> Activation:
        (values, weights), (held, held_weights) = self.seen[name].result()
        return Activation(
            classes=self.groups.classes[name].ravel(),
            values=values,
            weights=weights,
            held=held,
            held_weights=held_weights,
            importance=self._importance[name].ravel(),
        )

    def _read_layers(self) -> dict[str, list[Reader]]:
        """By name of the input. An output's error counts against the power of all outputs."""
        readers: dict[str, list[Reader]] = {}
        for port in self.layers:
            name = port.node.inputs[0].name
            if name not in self._squares or port.reads is None:
                continue
            rows = weight_rows(port.node).astype(np.float64)
            classes = port.reads.reshape(rows.shape[0], -1)
            power = self._mean_squares(name, port.reads).reshape(classes.shape)
            output = float(np.einsum("goik,goik,gi->", rows, rows, power))
            reader = Reader(
                classes=classes,
                largest=np.abs(rows).max(axis=3),
                power=power * rows.shape[3],
                importance=1 / output if output > 0 else 0.0,
            )
            readers.setdefault(name, []).append(reader)
        return readers

    def _mean_squares(self, name: str, reads: Array) -> Array:
        """E[x^2] of each input channel of a layer."""
        classes, squares = self.groups.classes[name].ravel(), self._squares[name]
        total = np.bincount(classes, squares, minlength=self.groups.count)
        count = np.maximum(np.bincount(classes, minlength=self.groups.count), 1)
        return np.asarray((total / count)[reads])

    def _felt(self) -> dict[str, Array]:
        """What an error of variance 1 in each channel costs the layers behind, by tensor name.

        It passes from the outputs of operators that keep the channels to their inputs, so that an
        error on a residual stream counts for all who read the stream later.
        """
        felt: dict[str, Array] = {}
        layers = {id(port.node): port for port in self.layers}
        for node in reversed(self.graph.nodes):
            if id(node) in layers:
                self._add_layer(felt, layers[id(node)])
                continue
            made = [t for t in node.outputs if t.name in felt]
            for tensor in made:
                gain = _averaging(node, tensor)
                for source in node.inputs:
                    if source.name in self.groups.classes:
                        self._pass_on(felt, tensor.name, source.name, gain)
        return felt

    def _add_layer(self, felt: dict[str, Array], port: Port) -> None:
        name, rows = port.node.inputs[0].name, weight_rows(port.node).astype(np.float64)
        if name not in self._squares or port.reads is None:
            return
        columns = np.einsum("goik,goik->gi", rows, rows).ravel()
        output = float(columns @ self._mean_squares(name, port.reads))
        if output > 0:
            total = np.bincount(port.reads, columns / output, minlength=self.groups.count)
            own = self.groups.classes[name].ravel()
            alike = np.maximum(np.bincount(own, minlength=self.groups.count), 1)
            self._add(felt, name, total / alike)

    def _pass_on(self, felt: dict[str, Array], made: str, source: str, gain: float) -> None:
        by_class = np.zeros(self.groups.count)
        by_class[self.groups.classes[made].ravel()] = felt[made].ravel() * gain
        self._add(felt, source, by_class)

    def _add(self, felt: dict[str, Array], name: str, by_class: Array) -> None:
        own = self.groups.classes[name]
        felt[name] = felt.get(name, np.zeros(own.shape)) + by_class[own]


def _averaging(node: gs.Node, output: gs.Tensor) -> float:
    """By how much a node that takes means reduces the variance of independent errors."""
    if node.op not in POOLS:
        return 1.0
    before, after = node.inputs[0].shape, output.shape
    known = before is not None and after is not None
    if not known or not all(isinstance(size, int) for size in [*before[1:], *after[1:]]):
        return 1.0
    return float(np.prod(after[1:]) / max(1, np.prod(before[1:])))
