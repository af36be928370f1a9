"""What a model's outputs lose when a few units of one group go: measured, a group at a time.

Layers that lose alike at their outputs do not matter alike: what one makes may be a small part of a
sum, or be amplified on its way. The units' readers are refitted and read zeros in their places, so
that no shape changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.gram import Array
from onnxcomp.graph import Names, consumers, producer
from onnxcomp.held_out import is_held
from onnxcomp.linear_layers import LinearLayer, reason_against
from onnxcomp.pruning import Part
from onnxcomp.runtime import open_session

SAMPLES = 32  # held back from the fits
FEWEST = 4
RUNS = 2048  # for all groups
LOSS = 0.02  # of the readers' energy, about so much is tried
FAR = 8.0  # a ratio counts as at most so many times the typical one, and no less than its inverse
SCALINGS = ("Softmax", "LogSoftmax", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


class OutputEffects:
    """The outputs of a graph over a few samples, and of the graph without some units."""

    def __init__(
        self, graph: gs.Graph, samples: Calibration, limit: int | None, groups: int
    ) -> None:
        """For so many ``groups``; ``graph`` must not change meanwhile."""
        self._graph = graph
        self._names = list(dict.fromkeys(before_softmax(tensor) for tensor in graph.outputs))
        held = (feed for index, feed in enumerate(samples.feeds(limit)) if is_held(index))
        count = min(SAMPLES, max(FEWEST, RUNS // max(1, groups)))
        self._feeds = list(itertools.islice(held, count))
        self._wanted = list(self._run(graph)) if len(self._feeds) >= FEWEST else []
        if self._wanted:
            floats = [z.dtype.kind == "f" for z in self._wanted[0]]
            self._names = list(itertools.compress(self._names, floats))
            self._wanted = [list(itertools.compress(values, floats)) for values in self._wanted]

    def loss(self, parts: Sequence[Part], gone: Array) -> float | None:
        """E|z - z'|^2 as a share of the variance of z, the mean over outputs z.

        Args:
            parts: all layers that read the units.
            gone: the units that leave.

        Returns:
            None where a reader cannot be refitted, or outputs are no numbers or differ in shape.
        """
        graph = self._graph.copy()
        return self.loss_of(graph) if _refit(graph, parts, gone) else None

    def loss_of(self, graph: gs.Graph) -> float | None:
        """As `loss`, of a changed copy of the graph."""
        if not self._wanted or not self._names:
            return None
        squares = np.zeros(len(self._names))
        for wanted, found in zip(self._wanted, self._run(graph), strict=True):
            if any(np.shape(z) != np.shape(other) for z, other in zip(wanted, found, strict=True)):
                return None
            squares += [_energy(z - other) for z, other in zip(wanted, found, strict=True)]
        spreads = np.asarray([_spread(values) for values in zip(*self._wanted, strict=True)])
        if not np.isfinite(squares).all() or not (spreads > 0).any():
            return None
        return float(np.mean(squares[spreads > 0] / spreads[spreads > 0]))

    def _run(self, graph: gs.Graph) -> Iterator[list[Array]]:
        session = open_session(graph, extra_outputs=self._names)
        for feed in self._feeds:
            values = session.run(feed, self._names)
            yield [np.asarray(z) for z in values]


def share_at(costs: Array) -> int:
    """How many units to remove so that about LOSS is lost; 0 where no number costs anything."""
    known = np.flatnonzero(costs[:-1] > 0)
    if not len(known):
        return 0
    return int(known[np.argmin(np.abs(np.log(costs[known] / LOSS)))])


def weights_of(ratios: Sequence[float | None]) -> list[float]:
    """What the outputs lose for what readers lose; of groups not measured what is typical."""
    known = [ratio for ratio in ratios if ratio is not None and ratio > 0]
    typical = float(np.median(known)) if known else 1.0
    found = [typical if ratio is None else ratio for ratio in ratios]
    return [min(max(ratio, typical / FAR), typical * FAR) for ratio in found]


def _refit(graph: gs.Graph, parts: Sequence[Part], gone: Array) -> bool:
    """Fits the readers without the units; False where one cannot be."""
    readers = {t.name: node for node in graph.nodes for t in node.inputs}
    names = Names(graph)
    for constant, group in itertools.groupby(parts, key=lambda part: part.constant):
        node = readers.get(constant)
        if node is None or reason_against(node) is not None:
            return False
        layer = LinearLayer.of(node)
        weights, bias = layer.weights.copy(), layer.bias.copy()
        for part in group:
            if part.split is None or weights[part.index].shape != part.weights.shape:
                return False
            left = ~np.isin(part.units, gone)
            weights[part.index], added = part.split.fitted(weights[part.index], left)
            bias[part.index] += added
        layer.write(weights, bias if layer.takes_bias else None, names)
    return True


def before_softmax(tensor: gs.Tensor) -> str:
    """What an output is made of before it is made a probability: errors there add up."""
    node = producer(tensor)
    while node is not None and node.op in SCALINGS and producer(node.inputs[0]) is not None:
        if len(consumers(node.inputs[0])) > 1:
            break
        tensor = node.inputs[0]
        node = producer(tensor)
    return str(tensor.name)


def _energy(values: Array) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))


def _spread(values: Sequence[Array]) -> float:
    """Of one output over samples, about its mean where all have one shape."""
    if len({z.shape for z in values}) > 1:
        return sum(_energy(z) for z in values)
    return _energy(np.stack(values) - np.mean(values, axis=0))
