"""Which of several plans for pruning to take: by what was measured, not by what layers foretell.

What a plan costs is added up over layers that were looked at one by one. Errors of layers do not
quite add up, and how much the outputs feel of each is measured for a single small cut only: plans
that weigh this differently are all sensible. The one whose repaired model is nearest to the
original on samples held back is the best of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.channels import Channels
from onnxcomp.cutting import cut
from onnxcomp.group_choices import Choices, Plan, removed
from onnxcomp.output_effects import OutputEffects
from onnxcomp.pruning_budgets import Budget, time_ratio
from onnxcomp.recovery import recover
from onnxcomp.runtime import Feed

EXPONENTS_IN_WORDS = {  # of the effects measured at the outputs, in what a group costs
    1.0: "their effects at the outputs",
    0.5: "the square roots of these",
    0.0: "what their readers lose",
}
TRIAL_SAMPLES = 128  # that a plan which is only compared is repaired with
SPEED_TRIES = 4  # of a budget of time: layers measured alone do not foretell all of a model's time


@dataclass(frozen=True)
class Weighed:
    """A plan, how its costs were weighed, and what is to be said if it is taken."""

    plan: Plan
    exponent: float
    notes: Sequence[str] = ()


def weighings(choices: Choices) -> dict[float, Choices]:
    """The choices as they are, with costs by the effects at the outputs, and with less of these.

    Without effects there is one weighing.
    """
    if all(item.effect == 1.0 for item, _ in choices.values()):
        return {1.0: choices}
    return {
        exponent: {
            name: (item, replace(choice, cost=choice.cost * item.effect ** (exponent - 1)))
            for name, (item, choice) in choices.items()
        }
        for exponent in EXPONENTS_IN_WORDS
    }


def nearest(
    plans: Iterable[Weighed],
    graph: gs.Graph,
    channels: Channels,
    samples: Calibration,
    *,
    limit: int,
    seed: int,
) -> tuple[Weighed, dict[float, float]]:
    """The plan whose cut and repaired model has the least error at its outputs, the first of equal.

    Args:
        plans: at least one; equal ones are tried once.
        graph: the one that ``channels`` were found in.
        channels: its groups.
        samples: to repair with, and, those held back, to compare on.
        limit: how many of them to look at.
        seed: of the repair.

    Returns:
        The plan, and for each exponent tried the error: a share of the variance of the outputs.
        Empty where there was nothing to compare, or nothing could be measured.
    """
    found = list(plans)
    different: dict[frozenset[tuple[str, int]], Weighed] = {}
    for weighed in found:
        kept = frozenset((item.group.name, count) for item, count in weighed.plan)
        different.setdefault(kept, weighed)
    if len(different) < 2:
        return found[0], {}
    outputs = OutputEffects(graph, samples, limit, 1)
    errors: dict[float, float] = {}
    for weighed in different.values():
        trial = graph.copy()
        kept_indices = cut(trial, channels, removed(weighed.plan))
        few = min(limit, TRIAL_SAMPLES)
        recover(graph, trial, kept_indices, samples, samples=few, seed=seed)
        error = outputs.loss_of(trial)
        if error is None or not math.isfinite(error):
            return found[0], {}
        errors[weighed.exponent] = error
    best = min(errors, key=lambda exponent: errors[exponent])
    return next(w for w in different.values() if w.exponent == best), errors


def told(best: Weighed, errors: Mapping[float, float]) -> str:
    """What the report says of a comparison."""
    each = ", ".join(f"{error:.3g} with {EXPONENTS_IN_WORDS[e]}" for e, error in errors.items())
    return (
        "error of the outputs on samples held back, a share of their variance, by how groups were "
        f"weighed: {each}; taken: {EXPONENTS_IN_WORDS[best.exponent]}"
    )


def fast_enough(
    plan_of: Callable[[Budget], Plan],
    budget: Budget,
    came: gs.Graph,
    graph: gs.Graph,
    channels: Channels,
    feed: Feed,
    min_speedup: float,
) -> Plan:
    """The plan for a budget of time, which is lowered until the cut model is measured to keep it.

    Args:
        plan_of: makes the plan for a budget.
        budget: the first one.
        came: the model that the result has to be faster than.
        graph: the one that ``channels`` were found in.
        channels: its groups.
        feed: to time with.
        min_speedup: how many times faster.
    """
    for left in reversed(range(SPEED_TRIES)):
        plan = plan_of(budget)
        if not plan or not left:
            break
        trial = graph.copy()
        cut(trial, channels, removed(plan))
        missed = time_ratio(came, trial, feed) * min_speedup
        if missed <= 1:
            break
        budget = budget.missed_by(missed)
    return plan
