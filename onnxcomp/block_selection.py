"""Which residual branches to drop: greedily the one whose absence costs least for what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_graphsurgeon as gs

from onnxcomp.branch_switches import SwitchedSession
from onnxcomp.evaluation import Reference
from onnxcomp.graph import label
from onnxcomp.macs import macs_by_node
from onnxcomp.parameters import parameters, stored_constants
from onnxcomp.residual_blocks import Branch, Wiring
from onnxcomp.stand_ins import StandIn

STALE = 1.5  # an old score this much worse than the best new one is not looked at again
PAIRED = 0.75  # of the sum of two branches' errors, which both together may stay below
LEAST_GAIN = 1e-4  # of the model; what saves less is no gain

Forms = Mapping[int, StandIn | None]
Unit = tuple[int, ...]  # indices of the branches that go together


@dataclass(frozen=True)
class Goal:
    """When to stop.

    Attributes:
        max_macs: fraction of the MACs that may be left.
        max_parameters: fraction of the parameters that may be left.
        count: branches to drop.
        min_sqnr_db: of the worst output; no step goes below it.
    """

    max_macs: float | None = None
    max_parameters: float | None = None
    count: int | None = None
    min_sqnr_db: float | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether anything but the error says when to stop."""
        return (self.max_macs, self.max_parameters, self.count) != (None, None, None)

    def is_met(self, left: Size, dropped: int) -> bool:
        """Whether enough is gone; never where nothing but the error bounds it."""
        return self.is_bounded and (
            left.macs <= _or(self.max_macs)
            and left.parameters <= _or(self.max_parameters)
            and dropped >= (self.count or 0)
        )

    def gain(self, left: Size, after: Size) -> float:
        """What a step saves of what is asked for; what is not needed any more counts nothing."""
        gains = []
        if self.max_macs is not None:
            gains.append(left.macs - max(after.macs, self.max_macs))
        if self.max_parameters is not None:
            gains.append(left.parameters - max(after.parameters, self.max_parameters))
        if not gains:
            gains = [left.macs - after.macs]
        return sum(max(0.0, gain) for gain in gains)


def _or(limit: float | None) -> float:
    return math.inf if limit is None else limit + 1e-9


@dataclass(frozen=True)
class Size:
    """What is left, as fractions of the whole model."""

    macs: float
    parameters: float


class Costs:
    """What a graph costs without some of its branches.

    Attributes:
        macs: of the whole graph, as far as they are known.
        parameters: of the whole graph.
        unknown: labels of the nodes whose MACs are not known.
        maps: MACs and parameters of a linear stand-in, by index of the branch.
    """

    def __init__(
        self,
        graph: gs.Graph,
        wiring: Wiring,
        branches: Sequence[Branch],
        feed: Mapping[str, Sequence[int]],
    ) -> None:
        """Counts the nodes of ``graph``.

        Args:
            graph: with all branches.
            wiring: of the graph.
            branches: of the graph.
            feed: shapes of the inputs.
        """
        self._wiring = wiring
        self.maps: dict[int, tuple[int, int]] = {}
        self._edges = [(b.cut[0], graph.nodes[b.cut[0]].inputs[b.cut[1]].name) for b in branches]
        counts = {node.name: node.macs for node in macs_by_node(graph, feed)}
        self._macs = [counts.get(label(node)) or 0 for node in graph.nodes]
        self.unknown = [name for name, macs in counts.items() if macs is None]
        indices = {id(node): index for index, node in enumerate(graph.nodes)}
        self._weights = [
            (parameters(tensor, roles), {indices.get(id(node), -1) for node, _ in roles})
            for tensor, roles in stored_constants(graph)
        ]
        self.macs = sum(self._macs)
        self.parameters = sum(size for size, _ in self._weights)

    def left(self, dropped: Forms) -> Size:
        """What remains where these branches are replaced by these stand-ins."""
        dead = self._wiring.without(self._edges[index] for index in dropped)
        macs = self.macs - sum(self._macs[index] for index in dead)
        size = self.parameters
        size -= sum(count for count, readers in self._weights if count and readers <= dead)
        for index, stand_in in dropped.items():
            if self._edges[index][0] in dead or stand_in is None or stand_in.matrix is None:
                continue
            macs, size = macs + self.maps[index][0], size + self.maps[index][1]
        return Size(macs / max(self.macs, 1), size / max(self.parameters, 1))


@dataclass(frozen=True)
class Step:
    """One removal.

    Attributes:
        unit: the branches that went.
        sqnr_db: of the worst output afterwards.
        left: of the model afterwards.
    """

    unit: Unit
    sqnr_db: float
    left: Size


@dataclass
class Selection:
    """The search for branches to drop.

    Attributes:
        session: in which branches can be switched off.
        reference: what the original answers to the samples that scores are taken on.
        costs: of the graph.
        forms: what may stand in for each branch, by index; the branches that may go.
        pairs: branches that follow on each other, as candidates to go together.
        advance: called with (done, total).
        dropped: what stands in for each branch that is gone.
        steps: in which order they went.
        tries: how often the model was compared with the original.
        chosen: what stands in for each branch if it goes.
        alone: noise without each single branch.
    """

    session: SwitchedSession
    reference: Reference
    costs: Costs
    forms: Mapping[int, Sequence[StandIn | None]]
    pairs: Sequence[Unit]
    goal: Goal
    advance: Callable[[int, int], None]
    dropped: dict[int, StandIn | None] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    tries: int = 0
    chosen: dict[int, StandIn | None] = field(default_factory=dict)
    alone: dict[int, float] = field(default_factory=dict)

    def noise(self, dropped: Forms) -> float:
        """Error / signal at the worst output, as energies, without these branches."""
        self.session.dropped = dropped
        self.tries += 1
        self.advance(self.tries, max(self.tries, 6 * len(self.forms)))
        sqnr_db = self.reference.compare(self.session).sqnr_db
        return 0.0 if sqnr_db == math.inf else float(10 ** (-max(sqnr_db, -300.0) / 10))

    def run(self) -> list[Step]:
        """Drops until the goal is met, no branch is left or the next would cost too much."""
        left, noise = Size(1.0, 1.0), 0.0
        added = self._alone(left)
        while not self.goal.is_met(left, len(self.dropped)):
            found = self._best(left, noise, added)
            if found is None:
                break
            unit, noise = found
            self.dropped |= {index: self.chosen[index] for index in unit}
            left = self.costs.left(self.dropped)
            self.steps.append(Step(unit, decibel(noise), left))
        return self.steps

    def _alone(self, left: Size) -> dict[Unit, float]:
        """Noise that each unit adds, of pairs an estimate; chooses what stands in for a branch."""
        added: dict[Unit, float] = {}
        for index, forms in self.forms.items():
            scored = []
            for number, form in enumerate(forms):
                gain = self._gain(left, {index: form})
                if gain > 0:
                    noise = self.noise({index: form})
                    scored.append((noise / gain, number, noise))
            if scored:
                _, number, self.alone[index] = min(scored)
                self.chosen[index], added[index,] = forms[number], self.alone[index]
        for pair in self.pairs:
            if all((index,) in added for index in pair):
                added[pair] = PAIRED * sum(added[index,] for index in pair)
        return added

    def _best(
        self, left: Size, noise: float, added: dict[Unit, float]
    ) -> tuple[Unit, float] | None:
        """The unit that costs least for what it saves, and the noise with it; None for none.

        Errors grow as more is gone, so what was much worse before is not tried anew (Minoux,
        "Accelerated Greedy Algorithms for Maximizing Submodular Set Functions", 1978).
        """
        gains = dict(self._gains(left, added))
        known = {} if self.dropped else {(i,): noise for i, noise in self.alone.items()}
        fresh: dict[Unit, float] = {unit: known[unit] for unit in gains if unit in known}

        def score(unit: Unit) -> tuple[float, float]:
            return max(added[unit], 0.0) / gains[unit], -gains[unit]

        while waiting := [unit for unit in gains if unit not in fresh]:
            unit = min(waiting, key=score)
            bounds = [score(u)[0] for u in fresh if self._bearable(fresh[u])]
            if bounds and score(unit)[0] > STALE * min(bounds):
                break
            fresh[unit] = self.noise(self.dropped | {i: self.chosen[i] for i in unit})
            added[unit] = fresh[unit] - noise
        bearable = [unit for unit in fresh if self._bearable(fresh[unit])]
        if not bearable:
            return None
        unit = min(bearable, key=score)
        return unit, fresh[unit]

    def _gains(self, left: Size, units: Iterable[Unit]) -> Iterator[tuple[Unit, float]]:
        most = math.inf if self.goal.count is None else self.goal.count - len(self.dropped)
        for unit in units:
            if any(index in self.dropped for index in unit):
                continue
            if len(unit) > 1 and len(unit) > most > 0:
                continue
            gain = self._gain(left, {i: self.chosen[i] for i in unit})
            if gain > 0:
                yield unit, gain

    def _gain(self, left: Size, more: Forms) -> float:
        after = self.costs.left({**self.dropped, **more})
        saved = max(left.macs - after.macs, left.parameters - after.parameters)
        return self.goal.gain(left, after) if saved > LEAST_GAIN else 0.0

    def _bearable(self, noise: float) -> bool:
        limit = self.goal.min_sqnr_db
        return limit is None or noise <= 10 ** (-limit / 10)


def decibel(noise: float) -> float:
    """The SQNR of noise / signal, of energies."""
    return math.inf if noise <= 0 else -10 * math.log10(noise)


def consecutive(graph: gs.Graph, branches: Sequence[Branch], wanted: Collection[int]) -> list[Unit]:
    """Pairs of branches that follow on each other, such as the two of a transformer's layer.

    The stream of the second is the sum of the first, or what one node makes of it.
    """
    made = {node.outputs[0].name: i for i, node in enumerate(graph.nodes) if node.outputs}
    by_sum: dict[int, list[int]] = {}
    for index in wanted:
        by_sum.setdefault(branches[index].cut[0], []).append(index)
    pairs: list[Unit] = []
    for second in wanted:
        maker = made.get(branches[second].stream)
        if maker is not None and maker not in by_sum:
            maker = made.get(next((t.name for t in graph.nodes[maker].inputs if t.inputs), ""))
        if maker is not None:
            pairs += [(first, second) for first in by_sum.get(maker, [])]
    return pairs
