"""Steps that the tensors of a sum share: codes of equal steps are added without rounding.

Where a, b and a + b have the same step, the codes of the sum are the sum of the codes but for their
zero points: nothing is lost except where it is clipped. A residual stream is such a sum time and
again. Each tensor alone would have a step of its own, though; here steps are shared where all
tensors together lose less so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.placement import Plan
from onnxcomp.quantization import Array
from onnxcomp.ranges import StepErrors, errors_by_step
from onnxcomp.statistics import HistogramResult, Range

CODES = 256
RATIO = 1.05  # of one step that is tried to the one before
BEYOND = 1.5  # times the largest of the tensors' own steps, and the smallest through it
LEAST_GAIN = 0.05  # of what the tensors of a sum lose: less is not worth a step that fits none


def with_shared_steps(
    plan: Plan, ranges: Mapping[str, Range], seen: Mapping[str, HistogramResult]
) -> dict[str, Range]:
    """``ranges`` with equal steps, of 256 codes, for the tensors of sums that gain by it.

    Sums are joined one by one, the one that gains most first, with all that shares a step with its
    tensors already. The errors of all tensors count the same.

    Args:
        plan: its Add nodes of two activations are looked at.
        ranges: of each scale.
        seen: the values of each scale whose range may change.
    """
    fit = {name for name in seen if float(ranges[name].high - ranges[name].low) > 0}
    fit = {name for name in fit if seen[name].low < 0 or seen[name].high > 0}
    sums = [names for names in _sums(plan) if fit.issuperset(names)]
    free = sorted({name for names in sums for name in names})
    if not free:
        return dict(ranges)
    own = [float(ranges[name].high - ranges[name].low) / (CODES - 1) for name in free]
    low, high = min(own) / BEYOND, max(own) * BEYOND
    steps = np.geomspace(low, high, 2 + int(np.log(high / low) / np.log(RATIO)))
    errors = {name: errors_by_step(seen[name], steps, CODES) for name in free}
    found = dict(ranges)
    for group in _joined(sums, errors):
        at = int(np.argmin(group.costs))
        for name in group.tensors if len(group.tensors) > 1 else ():
            first = errors[name].first[at]
            ends = (first * steps[at], (first + CODES - 1) * steps[at])
            found[name] = Range(*(np.asarray(end) for end in ends))
    return found


def _sums(plan: Plan) -> list[tuple[str, ...]]:
    """The scales of each sum's result and terms."""
    return [
        tuple(plan.shared[t.name] for t in [*unit.outputs, *unit.activations])
        for unit in plan.units
        if unit.node.op == "Add"
        and len(unit.activations) == 2
        and all(t.name in plan.shared for t in unit.outputs)
    ]


@dataclass(frozen=True)
class _Group:
    """Tensors of one step.

    Attributes:
        tensors: scales, by name.
        exact: those of sums whose terms share the step, too: they are not rounded.
        costs: what all lose, [steps].
    """

    tensors: frozenset[str]
    exact: frozenset[str]
    costs: Array

    @classmethod
    def of(
        cls, tensors: frozenset[str], exact: frozenset[str], errors: Mapping[str, StepErrors]
    ) -> _Group:
        """Adds up the errors."""
        parts = [errors[n].clipping for n in tensors]
        parts += [errors[n].rounding for n in tensors - exact]
        return cls(tensors, exact, np.sum(parts, axis=0))


def _joined(sums: list[tuple[str, ...]], errors: Mapping[str, StepErrors]) -> list[_Group]:
    group_of = {name: _Group.of(frozenset([name]), frozenset(), errors) for name in errors}
    alone = {name: float(group.costs.min()) for name, group in group_of.items()}
    while True:
        best, gained = None, 0.0
        for names in sums:
            if names[0] in group_of[names[0]].exact:
                continue
            parts = {group_of[name].tensors: group_of[name] for name in names}.values()
            exact = frozenset(names[:1]).union(*(part.exact for part in parts))
            whole = _Group.of(frozenset().union(*(p.tensors for p in parts)), exact, errors)
            gain = sum(float(part.costs.min()) for part in parts) - float(whole.costs.min())
            if gain > max(gained, LEAST_GAIN * sum(alone[name] for name in names)):
                best, gained = whole, gain
        if best is None:
            return [*{group.tensors: group for group in group_of.values()}.values()]
        group_of |= dict.fromkeys(best.tensors, best)
