"""Layers whose input has no codes fine enough: in float they cost little and save much.

Where one scale stands for channels of very different ranges, rounding to it may leave little of
what a layer makes of the small ones. Depthwise layers, which multiply just those by large weights,
suffer most.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, label, producer
from onnxcomp.placement import Plan
from onnxcomp.quantization import Affine, Array
from onnxcomp.ranges import Felt, mean_squared_error
from onnxcomp.statistics import HistogramResult, MomentsResult
from onnxcomp.targets import Role
from onnxcomp.units import Unit

LEAST_SQNR_DB = 12.0  # of a layer's output, of its input's rounding alone
MOST_MACS = 0.2  # share of all, that may stay in float for it


def silu(values: Array) -> Array:
    """x / (1 + exp(-x)), elementwise."""
    gates = np.clip(values, -700, 700)  # in place from here: this is most of what a search costs
    np.negative(gates, out=gates)
    np.exp(gates, out=gates)
    gates += 1
    return np.asarray(np.divide(values, gates, out=gates))


def root_of_probability(values: Array) -> Array:
    """Square root of 1 / (1 + exp(-x)), elementwise.

    Its squared differences are Hellinger's distance of probabilities: neither the many that are
    next to nothing nor the few near one outweigh the rest.
    """
    return np.asarray(1 / np.sqrt(1 + np.exp(-np.clip(values, -700, 700))))


def gated(plan: Plan) -> dict[str, Felt]:
    """What all readers together make of a tensor, by name, where that is x times its own gate.

    Below some -5 a closed gate makes nothing of any value: no codes need to be spent on those.
    Where a Sigmoid in float makes probabilities of a tensor, their square roots count.
    """
    found: dict[str, Felt] = {}
    for unit in plan.units:
        for tensor in unit.outputs:
            readers = consumers(tensor)
            ends = len(readers) == 1 and readers[0].op == "Sigmoid"
            if ends and tensor.name in plan.shared and not _has_codes(plan, readers[0]):
                found[tensor.name] = root_of_probability
    for unit in plan.units:
        if unit.node.op not in ("Sigmoid", "HardSigmoid"):
            continue
        tensor, gate = unit.node.inputs[0], unit.node.outputs[0]
        products = [n for n in consumers(tensor) if n is not unit.node]
        if len(products) != 1 or products[0].op != "Mul" or consumers(gate) != products:
            continue
        if {t.name for t in products[0].inputs} != {tensor.name, gate.name}:
            continue
        found[tensor.name] = silu if unit.node.op == "Sigmoid" else _hard_gate(unit)
    return found


def _has_codes(plan: Plan, node: gs.Node) -> bool:
    return any(tensor.name in plan.shared for tensor in node.outputs)


def _hard_gate(unit: Unit) -> Felt:
    slope, shift = (float(unit.node.attrs.get(k, d)) for k, d in (("alpha", 0.2), ("beta", 0.5)))
    return lambda x: np.asarray(x * np.clip(slope * x + shift, 0.0, 1.0))


@dataclass(frozen=True)
class Evidence:
    """What was measured of a planned graph.

    Attributes:
        plan: which tensors share scales.
        scales: of each scale of the plan.
        histograms: of the tensors that scales are measured on.
        moments: of the channels of layers' inputs, by name and axis.
    """

    plan: Plan
    scales: Mapping[str, Affine]
    histograms: Mapping[str, HistogramResult]
    moments: Mapping[tuple[str, int], MomentsResult]

    def rounding(self, name: str, felt: Felt | None = None) -> float:
        """Mean squared error of the codes of a tensor, that of the worst with its scale; 0 where
        no histogram tells it."""
        scale = self.plan.shared[name]
        names = [name] if name in self.histograms else self.plan.observed[scale]
        known = [self.histograms[n] for n in names if n in self.histograms]
        errors = [mean_squared_error(seen, self.scales[scale], felt) for seen in known]
        return max(errors, default=0.0)


def drowned_layers(
    evidence: Evidence, macs: Callable[[], Mapping[str, int]]
) -> dict[str, tuple[float, tuple[str, ...]]]:
    """Layers that must not read codes: label -> (SQNR in dB, labels of who else makes way).

    The error of rounding, of energy e^2 for each value, reaches the output y = W x of a layer as
    sum_c |W_c|^2 min(e^2, var x_c): an input channel that hardly changes has an error that does
    not either, which bias correction takes back. The worst come first, as far as MOST_MACS allows.

    Args:
        evidence: see there.
        macs: label -> multiply-accumulates of one run, asked for only if there is such a layer.
    """
    felt = gated(evidence.plan)
    made_by = {t.name: unit for unit in evidence.plan.units for t in unit.outputs}
    found: dict[str, tuple[float, tuple[str, ...]]] = {}
    for unit in evidence.plan.units:
        if unit.operator.role is not Role.LAYER or not unit.means_give_bias:
            continue
        key = (unit.node.inputs[0].name, unit.channel_axis)
        if key not in evidence.moments:
            continue
        errors = [(evidence.rounding(key[0]), [key[0]])]
        maker = producer(unit.node.inputs[0])
        for tensor in maker.inputs if maker is not None and maker.op == "Mul" else ():
            if tensor.name in felt and tensor.name in evidence.plan.shared:
                errors.append((evidence.rounding(tensor.name, felt[tensor.name]), [tensor.name]))
        ratios = [(_sqnr_db(unit, evidence, error), names) for error, names in errors]
        if min(db for db, _ in ratios) < LEAST_SQNR_DB:
            coded = {name for db, names in ratios if db < LEAST_SQNR_DB for name in names}
            makers = tuple(label(made_by[n].node) for n in sorted(coded) if n in made_by)
            found[label(unit.node)] = (min(db for db, _ in ratios), makers)
    return _affordable(found, macs()) if found else {}


def _affordable(
    found: Mapping[str, tuple[float, tuple[str, ...]]], macs: Mapping[str, int]
) -> dict[str, tuple[float, tuple[str, ...]]]:
    room, kept, free = MOST_MACS * sum(macs.values()), {}, set[str]()
    for name, (db, makers) in sorted(found.items(), key=lambda item: item[1][0]):
        group = {name, *makers} - free
        cost = sum(macs.get(member, 0) for member in group)
        if cost <= room:
            room -= cost
            free |= group
            kept[name] = (db, makers)
    return kept


def _sqnr_db(unit: Unit, evidence: Evidence, error: float) -> float:
    """Of a layer's output, centred, if the values of its input have a mean squared ``error``."""
    weights = unit.node.inputs[1].values.astype(np.float64)
    if unit.output_axis == 1:
        weights = weights.T
    seen = evidence.moments[unit.node.inputs[0].name, unit.channel_axis]
    groups = int(unit.node.attrs.get("group", 1))
    table = weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    gains = np.square(table).sum(axis=(1, 3)).reshape(-1)
    noise = float(gains @ np.minimum(error, seen.variance))
    signal = _signal(unit, evidence, table, seen.mean.reshape(groups, -1))
    if noise == 0 or signal is None:
        return math.inf
    return 10 * math.log10(max(signal, 1e-300) / noise)


def _signal(unit: Unit, evidence: Evidence, table: Array, means: Array) -> float | None:
    """The energy of a layer's output around the means of its channels, summed over them.

    Means follow from those of the input, borders left out.
    """
    result = unit.outputs[0].name
    if result not in evidence.histograms:
        return None
    histogram = evidence.histograms[result]
    centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    share = histogram.counts / histogram.counts.sum()
    whole = float(share @ np.square(centres - share @ centres))
    channels = table.shape[0] * table.shape[1]
    if unit.activation is not None:
        return float(whole * channels)
    outputs = np.einsum("goik,gi->go", table, means).reshape(-1)
    outputs = outputs if unit.bias_values is None else outputs + unit.bias_values
    return float(max(whole - float(outputs.var()), whole / 100) * channels)
