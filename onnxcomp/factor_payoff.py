"""Which thin weights of a plan save time in the whole model: measured there, left out where not.

A layer measured alone does not tell all: in a model kernels share layouts, are fused with what
follows, and find their inputs in the cache. So the model is timed with all of a plan written, and
without one group of neighbours at a time. Groups that surely save nothing are halved until single
layers are left, which stay as they are. What is left has to save time beyond doubt, all together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import onnx_graphsurgeon as gs

from onnxcomp.factor_trials import written
from onnxcomp.model import graph_bytes
from onnxcomp.rank_planning import Plan
from onnxcomp.runtime import Feed
from onnxcomp.timing import model_times

LEAST_GAIN = 0.02  # of the model's time: what saves less may be an error of measurement
LEAST_SHARE = 0.005  # of it that a group of layers saves
GROUPS = 6  # timed at once
MOST_BYTES = 1 << 31  # of weights of models that take turns: they are in memory at the same time
ROUNDS = 31
CHECKS = 2  # of the whole, with sessions of their own: one may be lucky
SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Measured:
    """Times of plans.

    Attributes:
        ratios: time with each written / time of the model as it is.
        noise: by how much a ratio may be wrong: what two sessions of one model differ by, or two
            standard errors.
    """

    ratios: Sequence[float]
    noise: float


Clock = Callable[[Sequence[Plan]], Measured]


def model_clock(graph: gs.Graph, feed: Feed, threads: int | None = 1) -> Clock:
    """Times plans for ``graph`` by turns, with one thread in CPU time, which others hardly change.

    Args:
        graph: the one that plans are for.
        feed: to time with.
        threads: of onnxruntime; None for its choice.
    """

    def clock(plans: Sequence[Plan]) -> Measured:
        trials = (written(list(plan.values()), graph) for plan in plans)
        graphs = chain([graph, graph], trials)  # the model and its twin first
        found = model_times(graphs, feed, threads, ROUNDS)
        medians, fastest = found.ratios[1:], found.fastest_ratios[1:]
        if threads == 1:
            fastest = medians
        estimates = zip(medians, fastest, strict=True)
        twin, *ratios = (min(pair) for pair in estimates)  # work beside it only makes it slower
        differences = abs(medians[0] - 1), abs(fastest[0] - 1)
        noise = max([*differences, SURE * max(found.errors)])
        return Measured([2 * ratio / (1 + twin) for ratio in ratios], noise)

    return clock


def at_once(graph: gs.Graph) -> int:
    """How many groups can take turns without taking too much memory."""
    return max(1, min(GROUPS, MOST_BYTES // graph_bytes(graph) - 3))


def paying_in(
    graph: gs.Graph, feed: Feed, plan: Plan, *, faster: bool
) -> tuple[Plan, dict[str, str]]:
    """The part of a plan for ``graph`` that pays there, by the clock, or nothing of it.

    Args:
        graph: all of it is timed.
        feed: to time with.
        plan: layers in the order of the graph, each with an option.
        faster: each has to save time, and all together; else none may cost any.

    Returns:
        the part, and why other layers stay.
    """
    clock, all_threads = (model_clock(graph, feed, threads) for threads in (1, None))
    left, reasons = paying(plan, clock, faster=faster, groups=at_once(graph))
    why = slower(left, clock, all_threads, faster=faster) if left else ""
    return ({}, reasons | dict.fromkeys(left, why)) if why else (left, reasons)


def paying(
    plan: Plan, clock: Clock, *, faster: bool, groups: int = GROUPS
) -> tuple[Plan, dict[str, str]]:
    """The part of a plan that may save time in the whole model, and for other layers why they stay.

    Args:
        plan: layers in the order of the graph, each with an option.
        clock: of one thread.
        faster: each has to save time; else none may cost any.
        groups: layers are timed in so many groups at most.
    """
    left, reasons = dict(plan), dict[str, str]()
    pending = list(_split(list(plan), groups))
    while pending:
        now, pending = pending[:groups], pending[groups:]
        found = clock([left, *(_without(left, group) for group in now)])
        whole, *others = found.ratios
        for group, ratio in zip(now, others, strict=True):
            saved = ratio - whole
            if saved + found.noise >= (LEAST_SHARE if faster else -LEAST_SHARE):
                continue
            if len(group) > 1:
                pending += _split(group, 2)
                continue
            left = _without(left, group)
            reasons[group[0]] = (
                f"in the whole model thinner weights save no time: {saved:+.1%} of it, "
                f"{found.noise:.1%} is noise"
            )
    return left, reasons


def slower(plan: Plan, clock: Clock, all_threads: Clock, *, faster: bool) -> str:
    """Why a plan as a whole does not save time; empty where it does.

    Args:
        plan: to be written.
        clock: of one thread.
        all_threads: of as many as onnxruntime takes by itself, where it must not be slower.
        faster: it has to save time with one thread; else it may not cost any.
    """
    for _ in range(CHECKS):
        found = clock([plan])
        most = 1 - max(LEAST_GAIN, found.noise) if faster else 1 + found.noise
        if found.ratios[0] > most:
            return (
                "the whole model was measured to be no faster with thinner weights: "
                f"{found.ratios[0]:.3f} of its time, a gain is {most:.3f} or less"
            )
    found = all_threads([plan])
    if found.ratios[0] > 1 + found.noise:
        return (
            "with all threads the whole model was measured to be slower with thinner weights: "
            f"{found.ratios[0]:.3f} of its time"
        )
    return ""


def _without(plan: Plan, names: Collection[str]) -> Plan:
    return {name: option for name, option in plan.items() if name not in names}


def _split(names: Sequence[str], parts: int) -> Iterator[Sequence[str]]:
    """Neighbours together, in parts of about the same length."""
    count = min(parts, len(names))
    for at in range(count):
        yield names[at * len(names) // count : (at + 1) * len(names) // count]
