"""How much the error of each channel of a tensor counts for the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.placement import Plan
from onnxcomp.quantization import Array
from onnxcomp.targets import Role
from onnxcomp.units import CONVOLUTIONS, Unit

LEAST = 1e-3  # of the mean: a channel that no layer reads may be read by something else
POINTWISE = ("Add", "Mul")
BY_CHANNEL = ("AveragePool", "GlobalAveragePool", "Identity", "MaxPool", "Resize")


@dataclass(frozen=True)
class Importance:
    """Weights of squared errors, of mean 1.

    Attributes:
        axis: of the channels: 1 where convolutions read the tensor, else -1.
        weights: float64 [channels].
    """

    axis: int
    weights: Array


def importances(plan: Plan) -> dict[str, Importance]:
    """By name, of the tensors with codes whose readers tell.

    An error e of energy E[e_c^2] in channel c reaches the output y = W x of a layer with the energy
    sum_c |W_c|^2 E[e_c^2], whatever the samples; a layer's output as such counts the same for all
    layers. What passes channels on (sums, pooling, Concat) passes on what they count.
    """
    readers: dict[str, list[Unit]] = {}
    for unit in plan.units:
        for tensor in unit.activations:
            readers.setdefault(tensor.name, []).append(unit)
    return _Search(readers).found({n: t for u in plan.units for n, t in _tensors(u)})


def _tensors(unit: Unit) -> list[tuple[str, gs.Tensor]]:
    return [(t.name, t) for t in [*unit.activations, *unit.outputs]]


@dataclass
class _Search:
    """Follows tensors to the layers that read them."""

    readers: Mapping[str, list[Unit]]
    known: dict[str, Importance | None] = field(default_factory=dict)

    def found(self, tensors: Mapping[str, gs.Tensor]) -> dict[str, Importance]:
        found = {name: self.of(tensor) for name, tensor in reversed([*tensors.items()])}
        return {name: importance for name, importance in found.items() if importance is not None}

    def of(self, tensor: gs.Tensor) -> Importance | None:
        if tensor.name not in self.known:
            self.known[tensor.name] = None
            told = [self._through(unit, tensor) for unit in self.readers.get(tensor.name, [])]
            parts = [part for part in told if part is not None]
            if parts and all(
                p.axis == parts[0].axis and p.weights.shape == parts[0].weights.shape for p in parts
            ):
                self.known[tensor.name] = _normalized(parts[0].axis, sum(p.weights for p in parts))
        return self.known[tensor.name]

    def _through(self, unit: Unit, tensor: gs.Tensor) -> Importance | None:
        if unit.operator.role is Role.LAYER:
            return _of_layer(unit) if unit.node.inputs[0].name == tensor.name else None
        behind = self.of(unit.outputs[0])
        channels = _channels(tensor, behind)
        if behind is None or channels is None:
            return None
        if unit.node.op in (*POINTWISE, *BY_CHANNEL) and channels == len(behind.weights):
            return behind
        axis = unit.node.attrs.get("axis")
        if unit.node.op == "Concat" and axis in (behind.axis, 1 if behind.axis == 1 else None):
            return self._part(unit, tensor, behind)
        return None

    @staticmethod
    def _part(unit: Unit, tensor: gs.Tensor, behind: Importance) -> Importance | None:
        first = 0
        for part in unit.node.inputs:
            channels = _channels(part, behind)
            if channels is None:
                return None
            if part.name == tensor.name:
                return Importance(behind.axis, behind.weights[first : first + channels])
            first += channels
        return None


def _of_layer(unit: Unit) -> Importance | None:
    if not unit.means_give_bias:
        return None
    weights = unit.node.inputs[1].values.astype(np.float64)
    if unit.output_axis == 1:
        weights = weights.T
    groups = int(unit.node.attrs.get("group", 1)) if unit.node.op in CONVOLUTIONS else 1
    table = weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    return _normalized(unit.channel_axis, np.square(table).sum(axis=(1, 3)).reshape(-1))


def _normalized(axis: int, weights: Array | int) -> Importance | None:
    mean = float(np.mean(weights))
    if not mean > 0:
        return None
    return Importance(axis, np.maximum(np.asarray(weights) / mean, LEAST))


def _channels(tensor: gs.Tensor, like: Importance | None) -> int | None:
    if like is None or tensor.shape is None or len(tensor.shape) < 2:
        return None
    channels = tensor.shape[like.axis]
    return channels if isinstance(channels, int) else None
