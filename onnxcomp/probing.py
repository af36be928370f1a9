"""What each node's quantization does to the answers: a pass run on few nodes at a time, measured.

Errors of single nodes are small and nearly independent, so their energies at the outputs add up:
what a node does alone is what leaving it in float takes away.
"""

from __future__ import annotations

import dataclasses
import glob
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.errors import OnnxcompError, PassFailed
from onnxcomp.evaluation import Reference
from onnxcomp.graph import Graph, all_nodes, consumers, label, producer, sort_nodes
from onnxcomp.observed import ObservedCalibration
from onnxcomp.passes.base import Advance, Pass, PassContext, PassReport, no_progress
from onnxcomp.runtime import Session, one_line, open_session

MEASUREMENTS = 64  # at most, of single nodes and of groups
SAMPLES = 8  # that each is measured on: more change the figures by a dB or less
MACS = 2e11  # of all these runs together: some ten seconds on one core
NEIGHBOURS = 12  # nodes that a node is measured among, at most
REACH = 48  # nodes looked at to find them
THREADS = 1


def keeping(step: Pass, kept: Iterable[str]) -> Pass:
    """``step`` with the nodes labelled ``kept`` left as they are."""
    mine = {glob.escape(name): {"skip": True} for name in kept}
    return dataclasses.replace(step, overrides=_behind(step.overrides, mine))


def only(step: Pass, wanted: Iterable[str]) -> Pass:
    """``step`` on the nodes labelled ``wanted`` and on no other."""
    everything = "*"
    while everything in step.overrides:  # what a recipe says of all nodes has to stay
        everything += "*"
    mine = {everything: {"skip": True}} | {glob.escape(n): {"skip": False} for n in wanted}
    return dataclasses.replace(step, overrides=_behind(step.overrides, mine))


def _behind(
    given: Mapping[str, Mapping[str, object]], mine: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, object]]:
    """Overrides of which the last that matches wins: ``mine``, with what was said of the same."""
    rest = {key: dict(value) for key, value in given.items() if key not in mine}
    return rest | {key: {**given.get(key, {}), **value} for key, value in mine.items()}


class Probe:
    """A pass on one graph, tried on any of the nodes that it changes.

    Attributes:
        graph: in float; not changed.
        labels: of the nodes that the pass changes, in the order of the graph.
        full_db: SQNR of the worst output with all of them changed.
        tried: how often the pass was tried.
    """

    def __init__(
        self, graph: Graph, step: Pass, context: PassContext, reference: Reference
    ) -> None:
        """Runs the pass on all nodes.

        Raises:
            PassFailed: the pass raised.
            UnsupportedModel: the result does not run.
        """
        self.graph, self.step, self.reference = graph, step, reference
        self.context = context
        if context.calibration is not None:
            known = ObservedCalibration(context.calibration)
            self.context = dataclasses.replace(context, calibration=known)
        self.tried = 0
        report = PassReport()
        changed = self.run(step, report)
        touched = set(report.changed)
        self.labels = [name for node in all_nodes(graph) if (name := label(node)) in touched]
        self.full_db = self.reference.compare(self.open(changed)).sqnr_db
        self.context = dataclasses.replace(self.context, advance=no_progress)

    def run(self, step: Pass, report: PassReport) -> Graph:
        """The graph after ``step``.

        Raises:
            PassFailed: the pass raised.
        """
        candidate = self.graph.copy()
        self.tried += 1
        try:
            step.rewrite(candidate, self.context, report)
            sort_nodes(candidate)
        except OnnxcompError:
            raise
        except Exception as error:
            place = f" at node {report.current!r}" if report.current else ""
            raise PassFailed(f"{step.name()}: {one_line(error)}{place}") from error
        return candidate

    def open(self, graph: gs.Graph) -> Session:
        """A session of what the pass made.

        Raises:
            UnsupportedModel: it does not load.
        """
        return open_session(graph, threads=THREADS)

    def alone(self, names: Collection[str]) -> Session | None:
        """A session with these nodes changed and no others; None where that changes nothing."""
        report = PassReport()
        try:
            candidate = self.run(only(self.step, names), report)
            return self.open(candidate) if report.changed else None
        except OnnxcompError:  # the pass as a whole has worked: so much for this choice
            return None

    def noise(self, names: Collection[str]) -> float | None:
        """Error / signal at the worst output with these nodes changed and no others, as energies;
        None where that changes nothing: some operators only run in integers among others."""
        session = self.alone(names)
        if session is None:
            return None
        try:
            return energy_ratio(self.reference.compare(session).sqnr_db)
        except OnnxcompError:
            return None

    def neighbours(self, name: str, settled: Collection[str]) -> list[str]:
        """The changed nodes around ``name``, up to those whose own noise is ``settled``."""
        by_label = {label(node): node for node in all_nodes(self.graph)}
        found: list[str] = []
        mine, seen = set(self.labels), {name}
        queue = [by_label[name]]
        while queue and len(found) < NEIGHBOURS and len(seen) < REACH:
            node = queue.pop(0)
            makers = [producer(tensor) for tensor in node.inputs]
            readers = [reader for tensor in node.outputs for reader in consumers(tensor)]
            for other in [*makers, *readers]:
                if other is None or label(other) in seen:
                    continue
                seen.add(label(other))
                if label(other) in mine:
                    found.append(label(other))
                if label(other) not in settled:
                    queue.append(other)
        return found


def energy_ratio(sqnr_db: float) -> float:
    """Noise / signal of an SQNR."""
    return 0.0 if sqnr_db == math.inf else 10 ** (-max(sqnr_db, -300.0) / 10)


def decibel(noise: float) -> float:
    """The SQNR of noise / signal."""
    return math.inf if noise <= 0 else -10 * math.log10(noise)


def affordable(macs: int | None) -> tuple[int, int]:
    """How many samples, and measurements, a model of so many MACs gets: never by the clock."""
    if not macs:
        return SAMPLES, MEASUREMENTS
    samples = min(SAMPLES, max(1, int(MACS / (macs * MEASUREMENTS))))
    return samples, min(MEASUREMENTS, max(16, int(MACS / (macs * samples))))


def measure_nodes(
    probe: Probe,
    estimates: Mapping[str, float],
    budget: int = MEASUREMENTS,
    advance: Advance = no_progress,
) -> tuple[dict[str, float], set[str]]:
    """Noise / signal at the outputs that each node of a probe causes, and the nodes measured.

    Of few nodes each is tried alone. Of many, half of the ``budget`` goes to those whose estimates
    are worst; the others are tried in groups, and the nodes of the worst groups alone. What a
    group causes is shared out by the estimates; so is the noise of nodes never tried.

    Args:
        probe: of a pass on a graph.
        estimates: SQNR in dB of each node's own output, by label.
        budget: how many tries there may be.
        advance: called with (done, total).
    """
    done = 0

    def tried(names: Collection[str]) -> float | None:
        nonlocal done
        done += 1
        advance(min(done, budget), budget)
        return probe.noise(names)

    worst = sorted(probe.labels, key=lambda name: estimates.get(name, math.inf))
    few = len(worst) <= budget
    found = {name: tried([name]) for name in (worst if few else worst[: budget // 2])}
    shared: dict[str, float] = {}
    rest = [name for name in probe.labels if name not in found]
    if rest:
        size = -(-len(rest) // max(1, budget // 4))
        groups = [rest[first : first + size] for first in range(0, len(rest), size)]
        sums = [tried(group) or 0.0 for group in groups]
        for index in sorted(range(len(groups)), key=lambda index: -sums[index]):
            if done + len(groups[index]) <= budget:
                found |= {name: tried([name]) for name in groups[index]}
            else:
                shared |= _shared_out(groups[index], sums[index], estimates)
    alone = {name: noise for name, noise in found.items() if noise is not None}
    among = _among_neighbours(probe, [n for n in worst if n in found], alone, tried, budget // 6)
    measured = alone | among
    return _completed(probe.labels, measured, shared, estimates), set(measured)


def _among_neighbours(
    probe: Probe,
    names: Sequence[str],
    alone: Mapping[str, float],
    tried: Callable[[Collection[str]], float | None],
    most: int,
) -> dict[str, float]:
    """The noise of nodes that the pass changes among others only: with them, less without."""
    found = {}
    for name in [n for n in names if n not in alone][:most]:
        around = probe.neighbours(name, alone)
        with_it = tried([name, *around]) if around else None
        if with_it is not None:
            found[name] = max(0.0, with_it - (tried(around) or 0.0))
    return found


def _shared_out(
    group: Sequence[str], noise: float, estimates: Mapping[str, float]
) -> dict[str, float]:
    local = {name: energy_ratio(estimates.get(name, math.inf)) for name in group}
    total = sum(local.values())
    return {n: noise * (e / total if total else 1 / len(group)) for n, e in local.items()}


def _completed(
    labels: Sequence[str],
    measured: Mapping[str, float],
    shared: Mapping[str, float],
    estimates: Mapping[str, float],
) -> dict[str, float]:
    """Noise of all nodes; the unknown from the usual ratio of measured and estimated noise."""
    ratios = [
        measured[name] / local
        for name in measured
        if name in estimates and (local := energy_ratio(estimates[name])) > 0
    ]
    usual = float(np.median(ratios)) if ratios else 0.0
    known = {**shared, **measured}
    return {
        name: known.get(name, usual * energy_ratio(estimates.get(name, math.inf)))
        for name in labels
    }
