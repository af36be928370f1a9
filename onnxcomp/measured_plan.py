"""A plan whose ranges were measured, by as few goes over the samples as it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.behind_relu import with_passing_terms
from onnxcomp.blas import one_blas_thread
from onnxcomp.calibration import Advance, Calibration
from onnxcomp.drowned import Evidence, drowned_layers, gated
from onnxcomp.errors import CalibrationError
from onnxcomp.graph import label, producer
from onnxcomp.importance import Importance, importances
from onnxcomp.logits import widened_logits
from onnxcomp.macs import macs_by_node
from onnxcomp.placement import Plan
from onnxcomp.quantization import Array
from onnxcomp.ranges import Felt, least_divergence_range, least_error_range, power_of_two_range
from onnxcomp.shared_steps import with_shared_steps
from onnxcomp.statistics import Histogram, MinMax, Moments, MovingAverage, Range, Statistic
from onnxcomp.targets import Target

Calibrator = Literal["auto", "minmax", "moving_average", "percentile", "entropy", "mse"]
Seen = MinMax | MovingAverage | Histogram
MOST_VALUES = 1 << 14  # of a tensor that are counted in each sample, beside its extremes


class Options(Protocol):
    """How ranges are chosen; see `QuantizeStatic`."""

    @property
    def calibrator(self) -> Calibrator:
        """How ranges follow from the samples."""

    @property
    def percentile(self) -> float:
        """Share of all values, in %, that "percentile" keeps."""

    @property
    def power_of_two(self) -> bool:
        """Whether scales are powers of two."""

    @property
    def keep_drowned(self) -> bool:
        """Whether layers that one scale would drown may stay in float."""

    @property
    def correct_bias(self) -> bool:
        """Whether the means of a layer's inputs are wanted."""


@dataclass
class MeasuredPlan:
    """What to quantize, with what was seen.

    Attributes:
        plan: whose ranges are all finite.
        ranges: of each scale of the plan, by name.
        means: of each channel of layers' inputs, by name and axis.
    """

    plan: Plan
    ranges: dict[str, Range]
    means: dict[tuple[str, int], Array]


@dataclass
class Measuring:
    """Measures the ranges of a plan, and plans anew without what they show to be unfit.

    Attributes:
        graph: the outermost graph; not changed.
        samples: to measure on.
        target: whose codes the ranges are for.
        planned: the plan without the nodes of these labels, each with the reason.
        options: of one node.
        defaults: of what no node of the graph makes, and of the graph as a whole.
        advance: told how far the work is.
    """

    graph: gs.Graph
    samples: Calibration
    target: Target
    planned: Callable[[Mapping[str, str]], Plan]
    options: Callable[[gs.Node], Options]
    defaults: Options
    advance: Advance
    _seen: dict[str, Seen] = field(default_factory=dict)
    _moments: dict[tuple[str, int], Moments] = field(default_factory=dict)
    _chosen: dict[tuple[str, Felt | None], Range] = field(default_factory=dict)

    @one_blas_thread()
    def result(self) -> MeasuredPlan:
        """Ranges of all scales; what was measured for one plan serves the next."""
        barred: dict[str, str] = {}
        while True:
            plan = self.planned(barred)
            wanted = {n for names in plan.observed.values() for n in names} - self._seen.keys()
            if wanted:
                self._observe(plan, wanted)
                barred |= self._not_finite(plan, wanted)
                continue
            ranges = self._ranges(plan)
            if self.samples.synthetic:
                ranges = widened_logits(self.graph, plan.observed, ranges)
            drowned = self._drowned(plan, ranges)
            if not drowned.keys() - barred.keys():
                break
            barred |= drowned
        means = {key: found.result().mean for key, found in self._moments.items()}
        return MeasuredPlan(plan, ranges, means)

    def _observe(self, plan: Plan, wanted: set[str]) -> None:
        """Everything in one go over the samples."""
        made_by, told = self.graph.tensors(), importances(plan)
        felt = sorted(n for n in wanted if self._options_at(made_by[n]).calibrator == "auto")
        graph, passing = with_passing_terms(self.graph, felt)
        taps: dict[str, list[Statistic[Any]]] = {}
        for name in sorted(wanted):
            self._seen[name] = _statistic(self._options_at(made_by[name]), told.get(name))
            taps[passing.get(name, name)] = [self._seen[name]]
        for name, axis in sorted(self._biased(plan) - self._moments.keys()):
            self._moments[name, axis] = Moments(axis=axis, most=MOST_VALUES)
            taps.setdefault(name, []).append(self._moments[name, axis])
        self.samples.observe(graph, taps, advance=self.advance)

    def _not_finite(self, plan: Plan, wanted: set[str]) -> dict[str, str]:
        bad = {name for name in wanted if not _is_finite(self._seen[name])}
        return {
            label(unit.node): "its values are not finite on the samples"
            for unit in (plan.units if bad else ())
            if bad & {t.name for t in [*unit.activations, *unit.outputs]}
        }

    def _drowned(self, plan: Plan, ranges: Mapping[str, Range]) -> dict[str, str]:
        """Label -> reason, of the layers that must not read codes and of who makes way for them."""
        if not self.defaults.keep_drowned:
            return {}
        known = {n: self._seen[n] for names in plan.observed.values() for n in names}
        evidence = Evidence(
            plan=plan,
            scales={n: self.target.activation_parameters(r) for n, r in ranges.items()},
            histograms={n: s.result() for n, s in known.items() if isinstance(s, Histogram)},
            moments={key: found.result() for key, found in self._moments.items()},
        )

        def macs() -> dict[str, int]:
            shapes = {name: v.shape for name, v in next(self.samples.feeds(1)).items()}
            return {node.name: node.macs or 0 for node in macs_by_node(self.graph, shapes)}

        reasons = {}
        for name, (sqnr_db, makers) in drowned_layers(evidence, macs).items():
            reasons[name] = f"one scale for its input leaves its output an SQNR of {sqnr_db:.0f} dB"
            reasons |= dict.fromkeys(makers, f"{name} reads it in float")
        return reasons

    def _biased(self, plan: Plan) -> set[tuple[str, int]]:
        """Inputs of layers whose bias is to be corrected: names and axes of the channels."""
        return {
            (unit.node.inputs[0].name, unit.channel_axis)
            for unit in plan.units
            if unit.adder is not None and self.options(unit.node).correct_bias
        }

    def _options_at(self, tensor: gs.Tensor) -> Options:
        """The options for the range of a tensor: those of the node that makes it."""
        maker = producer(tensor)
        return self.defaults if maker is None else self.options(maker)

    def _ranges(self, plan: Plan) -> dict[str, Range]:
        ranges, tensors, felt = {}, self.graph.tensors(), gated(plan)
        for scale, names in plan.observed.items():
            found = [self._range(tensors[name], felt.get(name)) for name in names]
            whole = Range(
                np.asarray(min(r.low for r in found)), np.asarray(max(r.high for r in found))
            )
            ranges[scale] = power_of_two_range(whole) if self.defaults.power_of_two else whole
        if self.defaults.power_of_two or self.target.symmetric:
            return ranges
        alone = {
            scale: self._seen[names[0]]
            for scale, names in plan.observed.items()
            if len(names) == 1
            and names[0] not in felt
            and self._options_at(tensors[names[0]]).calibrator == "auto"
        }
        seen = {n: s.result() for n, s in alone.items() if isinstance(s, Histogram)}
        return with_shared_steps(plan, ranges, seen)

    def _range(self, tensor: gs.Tensor, felt: Felt | None) -> Range:
        """Of one tensor; what was chosen for one plan serves the next."""
        key = (tensor.name, felt)
        if key not in self._chosen:
            self._chosen[key] = _range(self._options_at(tensor), self._seen[tensor.name], felt)
        return self._chosen[key]


def _statistic(options: Options, importance: Importance | None) -> Seen:
    if options.calibrator == "minmax":
        return MinMax()
    if options.calibrator == "moving_average":
        return MovingAverage()
    if options.calibrator != "auto" or importance is None:
        return Histogram(most=MOST_VALUES)
    return Histogram(most=MOST_VALUES, weights=importance.weights, axis=importance.axis)


def _range(options: Options, statistic: Seen, felt: Felt | None) -> Range:
    if not isinstance(statistic, Histogram):
        return statistic.result()
    histogram = statistic.result()
    if options.calibrator == "percentile":
        return histogram.percentile(options.percentile)
    if options.calibrator == "entropy":
        return least_divergence_range(histogram)
    return least_error_range(histogram, felt=felt)


def _is_finite(statistic: Seen) -> bool:
    try:
        result = statistic.result()
    except CalibrationError:  # not one finite value
        return False
    if isinstance(result, Range):
        return bool(np.isfinite(result.low) and np.isfinite(result.high))
    return result.nonfinite == 0
