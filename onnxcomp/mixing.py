"""Mixed precision: what a quantizing pass has to leave in float for the gates to hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnxcomp.errors import OnnxcompError
from onnxcomp.evaluation import Reference
from onnxcomp.gates import Measured, answers_in_words, unfaithful
from onnxcomp.graph import Graph
from onnxcomp.local_error import local_sqnr_db
from onnxcomp.measuring import Measurements
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.planning import (
    Choice,
    Verdict,
    by_worth,
    confirmed,
    enough_to_keep,
    fewest_kept,
)
from onnxcomp.probing import Probe, affordable, decibel, energy_ratio, keeping, measure_nodes
from onnxcomp.progress import Progress
from onnxcomp.recipe import Gates
from onnxcomp.report import PassResult
from onnxcomp.sensitivity import NodeCost, node_costs

LARGEST_LEAD = 6.0  # dB that the pass is trusted to gain on its draft with nodes in float too
LARGEST_EXCESS = 4.0  # of the error of all over the sum of each: beyond it errors do not add up


@dataclass(frozen=True)
class Mixture:
    """A pass that leaves some nodes alone, and why.

    Attributes:
        step: the pass, with these overrides.
        choice: the nodes.
        nodes: how many the pass changes when it leaves none alone.
        noise: that each of them causes alone, or is estimated to.
        before: what was measured with none left alone, in words.
    """

    step: Pass
    choice: Choice
    nodes: int
    noise: Mapping[str, float]
    before: str

    def explain(self, outcome: PassResult) -> None:
        """Says in the report which nodes were kept, and why each."""
        now = self.choice.verdict.figure
        tried = (self.choice.draft or self.choice.verdict).figure
        for name in self.choice.kept:
            if len(self.choice.kept) == 1:
                said = f"without it {self.before} instead of {now}"
            elif name in self.choice.without:
                said = f"without it {self.choice.without[name].figure} instead of {tried}"
            else:
                said = f"without these {len(self.choice.kept)} {self.before} instead of {now}"
            alone = decibel(self.noise[name])
            outcome.skipped[name] = (
                f"kept in float: {said}; quantized alone it leaves {alone:.1f} dB"
            )
        outcome.numbers["kept_in_float"] = float(len(self.choice.kept))
        outcome.notes.append(
            f"{len(self.choice.kept)} of {self.nodes} nodes stay in float: {now} instead of "
            f"{self.before} with all quantized, found in {self.choice.tries} tries"
            f"{' of a quicker form of the pass' if self.choice.draft else ''}; "
            "the overrides of the report, or --save-recipe FILE, repeat it"
        )


def mix(
    graph: Graph,
    step: Pass,
    context: PassContext,
    measurements: Measurements,
    gates: Gates,
    before: Measured,
    progress: Progress,
) -> Mixture | None:
    """Finds the nodes to leave alone so that the gates on answers hold; None if no choice does.

    Args:
        graph: before the pass.
        step: the pass, which breaks a gate when it changes all it can.
        context: of the pass.
        measurements: the original and the samples to judge by.
        gates: of the recipe.
        before: what was measured of it then.
        progress: told how far the work is.

    Raises:
        OnnxcompError: the pass does not run.
    """
    samples, budget = affordable(measurements.macs)
    progress.stage(f"{step.name()}: measuring each node")
    probe = Probe(graph, step.draft(), context, _first(measurements.reference, samples))
    estimates = local_sqnr_db(
        graph, set(probe.labels), probe.context.samples(), context.target.weight_bits
    )
    noise, measured = measure_nodes(probe, estimates, budget, progress.advance)
    if not noise:
        return None
    costs = node_costs(graph, measurements.reference)
    order = by_worth(noise, {name: _cost(costs[name]) for name in noise})
    aimed, first = gates, 1
    if gates.min_sqnr_db is not None:
        least_db = gates.min_sqnr_db - _lead(before, probe)
        aimed = dataclasses.replace(gates, min_sqnr_db=least_db)
        if len(measured) == len(noise) and min(noise.values()) > energy_ratio(least_db):
            return None  # one node alone is too much, whichever it is
        first = _first_guess(order, noise, probe, least_db)
    search = _Search(step, probe, order, first, gates, measurements, progress)
    choice = search.fewest(aimed)
    if choice is None and aimed != gates:  # the draft does not lag as far behind with nodes kept
        choice = search.fewest(gates)
    if choice is None or len(choice.kept) == len(probe.labels):
        return None
    words = answers_in_words(gates, measurements.original, before)
    return Mixture(keeping(step, sorted(choice.kept)), choice, len(probe.labels), noise, words)


@dataclass(frozen=True)
class _Search:
    """The search for the nodes to keep, by the draft of the pass, confirmed by the pass itself.

    Attributes:
        step: the pass.
        probe: of its draft.
        order: labels of the nodes, those first that are most worth keeping.
        first: how many of them to try to keep first.
        gates: of the recipe.
        measurements: to judge by.
        progress: told how far the work is.
    """

    step: Pass
    probe: Probe
    order: Sequence[str]
    first: int
    gates: Gates
    measurements: Measurements
    progress: Progress

    def fewest(self, goal: Gates) -> Choice | None:
        """The fewest nodes with which the draft reaches ``goal`` and the pass the gates."""
        name, draft = self.step.name(), self.probe.step
        self.progress.stage(f"{name}: the fewest nodes in float")
        found = fewest_kept(
            self.order,
            lambda kept: self._judge(kept, draft, goal),
            self.first,
            self.progress.advance,
        )
        if found is None or draft == self.step:
            return found
        self.progress.stage(f"{name}: with {len(found.kept)} nodes in float")
        return confirmed(found, self.order, lambda kept: self._judge(kept, self.step, self.gates))

    def _judge(self, kept: Collection[str], tried: Pass, goal: Gates) -> Verdict:
        measurements = self.measurements
        try:
            after = measurements.answers_of(self.probe.run(keeping(tried, kept), PassReport()))
        except OnnxcompError as error:
            return Verdict(False, str(error))
        broken = unfaithful(goal, measurements.original, after)
        return Verdict(not broken, answers_in_words(self.gates, measurements.original, after))


def _first_guess(
    order: Sequence[str], noise: Mapping[str, float], probe: Probe, least_db: float
) -> int:
    """How many nodes, in order, have to stay in float if errors add up as they do in all of it."""
    together = energy_ratio(probe.full_db) / (sum(noise.values()) or 1.0)
    excess = min(max(together, 1.0), LARGEST_EXCESS) if math.isfinite(together) else 1.0
    return enough_to_keep(order, noise, energy_ratio(least_db), excess)


def _lead(before: Measured, probe: Probe) -> float:
    """By how many dB the pass is better than its draft, which the search has to make up for."""
    if before.fidelity is None:
        return 0.0
    lead = before.fidelity.sqnr_db - probe.full_db
    return min(max(lead, 0.0), LARGEST_LEAD) if math.isfinite(lead) else 0.0


def _first(reference: Reference, count: int) -> Reference:
    return dataclasses.replace(
        reference, feeds=reference.feeds[:count], answers=reference.answers[:count]
    )


def _cost(cost: NodeCost) -> float:
    """Bytes and time count alike."""
    return (cost.bytes_share + (cost.macs_share or 0.0)) / 2
