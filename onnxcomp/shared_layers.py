"""Weights that several layers read are one least-squares problem over what all of them read.

They are fitted when the first of the layers comes up. What a later one reads may follow from the
weights that are looked for; of such a layer the inputs are taken from the original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.clipped_regression import Rows
from onnxcomp.gram import Array
from onnxcomp.graph import Names, consumers, label
from onnxcomp.linear_layers import LinearLayer
from onnxcomp.recovery_targets import depends_on
from onnxcomp.regression import Choice, Fit, Moments, best_fit

Halves = tuple[Moments, Moments]  # of samples to fit, and of samples to judge by


@dataclass(frozen=True)
class Evidence:
    """What samples show of a layer; rows where its target is clipped."""

    moments: Halves
    rows: tuple[Rows, Rows] | None

    def error(self, fit: Fit) -> float:
        """Of the samples held back."""
        return self.moments[1].error(fit) if self.rows is None else self.rows[1].error(fit)

    def through(self, expansion: Array) -> Evidence:
        """Of E x instead of x; see `Moments`."""
        shown, held = (half.through(expansion) for half in self.moments)
        if self.rows is None:
            return Evidence((shown, held), None)
        seen, judging = (rows.through(expansion) for rows in self.rows)
        return Evidence((shown, held), (seen, judging))


@dataclass(frozen=True)
class SharedLayers:
    """Layers with the same weights.

    Attributes:
        layers: in the order of the graph.
        now: those of them whose inputs are settled once the first one comes up.
        ahead: the others.
    """

    layers: tuple[LinearLayer, ...]
    now: tuple[LinearLayer, ...]
    ahead: tuple[LinearLayer, ...]

    @property
    def takes_bias(self) -> bool:
        """Whether all of them have a bias or can get one."""
        return all(layer.takes_bias for layer in self.layers)

    def has(self, layer: LinearLayer) -> bool:
        """Whether a layer is one of them."""
        return any(layer.node is other.node for other in self.layers)

    def joined(
        self, total: Halves | str | None, layer: LinearLayer, evidence: Evidence | str
    ) -> Halves | str:
        """Adds what is known of one of the layers; what is wrong with any is so with all."""
        if isinstance(total, str) or isinstance(evidence, str):
            return total if isinstance(total, str) else str(evidence)
        shown, held = (_less(half, layer.bias) for half in evidence.moments)
        return (shown, held) if total is None else (total[0] + shown, total[1] + held)

    def fit(self, total: Halves) -> Choice:
        """W and c of y = W x + b + c, where b is the bias that each layer has."""
        weights = self.layers[0].weights
        start = Fit(weights, np.zeros(weights.shape[:2]))
        return best_fit(*total, start, with_bias=self.takes_bias)

    def write(self, fit: Fit, names: Names) -> None:
        """Gives all of them the weights of ``fit``, and adds its bias to theirs."""
        biases: list[tuple[Array, gs.Tensor]] = []
        weights = None
        for layer in self.layers:
            bias = layer.bias + fit.bias if self.takes_bias else None
            layer.write(fit.weights, bias, names)
            weights = layer.node.inputs[1] if weights is None else weights
            layer.node.inputs[1] = weights
            if bias is None or layer.adder is None:
                continue
            same = next((t for values, t in biases if np.array_equal(values, bias)), None)
            if same is None:
                biases.append((bias, layer.adder.inputs[layer.bias_index]))
            elif same.shape == layer.adder.inputs[layer.bias_index].shape:
                layer.adder.inputs[layer.bias_index] = same


def _less(moments: Moments, bias: Array) -> Moments:
    """Of the same x, and of y - bias."""
    energy = moments.energy - 2 * float(np.sum(bias * moments.outputs))
    return Moments(
        moments.gram,
        moments.cross - bias[:, :, None] * moments.inputs[:, None, :],
        moments.inputs,
        moments.outputs - moments.count * bias,
        energy + moments.count * float(np.sum(np.square(bias))),
        moments.count,
    )


def find_shared(
    nodes: Iterable[gs.Node], graph: gs.Graph, reason_against: Callable[[gs.Node], str | None]
) -> tuple[list[SharedLayers], dict[str, str]]:
    """Those of ``nodes`` whose weights others read too.

    Args:
        nodes: that are to be refitted, in the order of the graph.
        graph: that they are of.
        reason_against: why a node is no layer that can be refitted.

    Returns:
        the sets, and by label of a node why its weights cannot be fitted.
    """
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    wanted = list(nodes)
    found: list[SharedLayers] = []
    reasons: dict[str, str] = {}
    seen: set[int] = set()
    for node in wanted:
        readers = consumers(node.inputs[1])
        if len(readers) < 2 or id(node) in seen or node.op == "BatchNormalization":
            continue  # scales are small, and each node gets its own
        seen |= {id(reader) for reader in readers}
        reason = _reason(node, readers, {id(n) for n in wanted}, reason_against)
        if reason is not None:
            reasons |= {label(n): reason for n in wanted if n.inputs[1] is node.inputs[1]}
            continue
        readers.sort(key=lambda reader: position[id(reader)])
        later = {id(n) for n in wanted if position[id(n)] >= position[id(readers[0])]}
        layers = tuple(LinearLayer.of(reader) for reader in readers)
        ahead = tuple(x for x in layers if depends_on(x.node.inputs[0], later))
        now = tuple(x for x in layers if not any(x is other for other in ahead))
        found.append(SharedLayers(layers, now, ahead))
    return found, reasons


def _reason(
    node: gs.Node,
    readers: Sequence[gs.Node],
    wanted: set[int],
    reason_against: Callable[[gs.Node], str | None],
) -> str | None:
    """Why the weights of ``node``, which all ``readers`` share, cannot be fitted."""
    for reader in readers:
        alike = reader.op == node.op and reader.inputs[1] is node.inputs[1]
        if not alike:
            return f"its weights are shared with {label(reader)}, which is another kind of layer"
        if id(reader) not in wanted:
            return f"its weights are shared with {label(reader)}, which reads what it did"
        if reader.attrs.get("group", 1) != node.attrs.get("group", 1):
            return f"its weights are shared with {label(reader)}, in other groups"
        reason = reason_against(reader)
        if reason is not None:
            return f"its weights are shared with {label(reader)}: {reason}"
    return None
