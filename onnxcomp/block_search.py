"""From a graph and samples to the residual branches that go, and what stands in for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.block_selection import Costs, Goal, Selection, Size, Step, consecutive, decibel
from onnxcomp.branch_switches import SwitchedSession
from onnxcomp.calibration import Calibration
from onnxcomp.evaluation import Reference
from onnxcomp.graph import Names, label, remove_unused, sort_nodes
from onnxcomp.joined_maps import join_map
from onnxcomp.recovery import recover
from onnxcomp.refitting import Recovered
from onnxcomp.residual_blocks import Branch, Shapes, Wiring, drop_branches
from onnxcomp.runtime import Feed, open_session
from onnxcomp.stand_in_fits import find_layouts, fit_stand_ins, refit
from onnxcomp.stand_ins import Layout, StandIn, write_stand_in

MACS = 1e12  # of all runs that score, and of all that fit: a minute each on one core
FEWEST_SCORED, FEWEST_FITTED = 2, 8  # samples, however large the model is
TRIES = 6  # of each branch, about: alone in each form, and later among those that are gone
THREADS = 1  # the same bits on every machine

Feeds = Callable[[], Iterator[Feed]]


class BlockSearch:
    """One search for branches to drop.

    Attributes:
        graph: with all branches; not changed before `write`.
        branches: that may go.
        dropped: what stands in for each branch that goes, by index; None for nothing.
        steps: in which order they went.
        sqnr_db: of the worst output without them.
        scored: samples that errors were measured on.
        fitted_again: stand-ins that were fitted once more among the others.
    """

    def __init__(
        self,
        graph: gs.Graph,
        wiring: Wiring,
        shapes: Shapes,
        branches: Sequence[Branch],
        calibration: Calibration,
        *,
        repair: str,
        samples: int,
    ) -> None:
        """Opens the session with switches and fits what may stand in for each branch.

        Raises:
            UnsupportedModel: onnxruntime cannot run the graph.
        """
        self.graph, self.shapes, self.branches = graph, shapes, branches
        self._repair = repair
        feed = next(calibration.feeds(1))
        self.costs = Costs(graph, wiring, branches, {n: np.shape(v) for n, v in feed.items()})
        self._fitted, held = calibration.split()
        runs = max(self.costs.macs, 1) * len(branches)
        count = min(4 * samples, max(FEWEST_FITTED, int(MACS / (3 * runs))))
        self._feeds: Feeds = lambda: self._fitted.feeds(count)
        self._layouts: list[Layout | None] = [None] * len(branches)
        if repair != "none":
            self._layouts = find_layouts(graph, branches, shapes, feed, THREADS)
            self.costs.maps = {i: self._map_costs(i) for i in self._placed}
        self._forms = self._fit_forms()
        self._session = SwitchedSession(graph, branches, self._layouts, threads=THREADS)
        self.scored = min(samples, int(MACS / (TRIES * runs)))
        if self.scored < FEWEST_SCORED:  # a form for each has to do, the one that is mostly best
            self.scored = FEWEST_SCORED
            self._forms = {index: found[-1:] for index, found in self._forms.items()}
        self._reference = Reference.of(
            self._session, held.feeds(self.scored), calibration.synthetic
        )
        self.scored = len(self._reference.feeds)
        self.dropped: dict[int, StandIn | None] = {}
        self.steps: list[Step] = []
        self.sqnr_db, self.fitted_again = math.inf, 0
        self._alone: Mapping[int, float] = {}

    @property
    def left(self) -> Size:
        """What remains of the model, before maps are joined with the layers before them."""
        return self.steps[-1].left if self.steps else Size(1.0, 1.0)

    @property
    def _placed(self) -> dict[int, Layout]:
        return {i: layout for i, layout in enumerate(self._layouts) if layout is not None}

    def _fit_forms(self) -> dict[int, Sequence[StandIn | None]]:
        """What may stand in for each branch, by index."""
        forms: dict[int, Sequence[StandIn | None]] = {i: [None] for i in range(len(self.branches))}
        if not self._placed:
            return forms
        return forms | fit_stand_ins(
            self.graph,
            self.branches,
            self._placed,
            self.shapes,
            self._feeds,
            linear=self._repair == "linear",
            threads=THREADS,
        )

    def _map_costs(self, index: int) -> tuple[int, int]:
        """MACs and parameters of a linear stand-in."""
        layout = self._layouts[index]
        channels = layout.channels if layout is not None else 0
        shape = self.shapes.of(self.branches[index].stream) or (0,)
        return math.prod(shape) * channels, channels * (channels + 1)

    def run(self, goal: Goal, advance: Callable[[int, int], None]) -> None:
        """Drops branches until ``goal`` is met or nothing more may go."""
        indices = range(len(self.branches))
        pairs = consecutive(self.graph, self.branches, indices)
        selection = Selection(
            self._session, self._reference, self.costs, self._forms, pairs, goal, advance
        )
        self.steps = selection.run()
        self.dropped, self._alone = selection.dropped, selection.alone
        if self.steps:
            self.sqnr_db = self.steps[-1].sqnr_db

    def fit_again(self) -> None:
        """Fits each stand-in among the others, first to last, where that helps on other samples.

        Branches that nothing stands in for get no stand-in now: that would take back savings.
        """
        kept = {i: s for i, s in self.dropped.items() if s is not None}
        sums = {i: self.graph.nodes[self.branches[i].cut[0]].outputs[0].name for i in kept}
        streams = [self.branches[i].stream for i in kept]
        inputs = {tensor.name for tensor in self.graph.inputs}
        tapped = [name for name in dict.fromkeys([*sums.values(), *streams]) if name not in inputs]
        if not kept:
            return
        session = SwitchedSession(
            self.graph, self.branches, self._layouts, extra_outputs=tapped, threads=THREADS
        )
        for index, layout in self._placed.items():
            if index not in kept:
                continue
            found = refit(
                session,
                sums[index],
                self.branches[index],
                index,
                layout,
                self.dropped,
                self._feeds,
                linear=kept[index].matrix is not None,
            )
            self._session.dropped = {**self.dropped, index: found}
            sqnr_db = self._reference.compare(self._session).sqnr_db
            if sqnr_db > self.sqnr_db:
                self.dropped[index], self.sqnr_db = found, sqnr_db
                self.fitted_again += 1

    def recover(
        self, before: gs.Graph, samples: int, seed: int, advance: Callable[[int, int], None]
    ) -> Recovered | None:
        """Refits the layers behind what `write` took out; None if outputs get no nearer by it.

        Args:
            before: the graph with all branches.
            samples: at most so many, of those that errors are not measured on.
            seed: of the choice of rows.
            advance: called with (layers done, layers in all).
        """
        were = [(node, list(node.inputs)) for node in self.graph.nodes]
        found = recover(
            before, self.graph, {}, self._fitted, samples=samples, seed=seed, advance=advance
        )
        session = open_session(self.graph, threads=THREADS)
        sqnr_db = self._reference.compare(session).sqnr_db
        if sqnr_db > self.sqnr_db:
            self.sqnr_db = sqnr_db
            return found
        for node, inputs in were:
            node.inputs = inputs
        return None

    def why_kept(self, index: int) -> str:
        """Why a branch stayed."""
        noise = self._alone.get(index)
        if noise is None:
            return "nothing that could stand in for it would save anything that is asked for"
        return f"dropping it alone leaves {decibel(noise):.1f} dB"

    def write(self) -> list[str]:
        """Takes the branches out of the graph; labels of the nodes that went."""
        graph, names = self.graph, Names(self.graph)
        before = [label(node) for node in graph.nodes]
        maps: list[list[gs.Node]] = []
        for index, stand_in in sorted(self.dropped.items()):
            layout = self._layouts[index]
            if stand_in is not None and layout is not None:
                maps.append(write_stand_in(graph, self.branches[index], layout, stand_in, names))
        drop_branches(graph, [self.branches[i] for i, s in self.dropped.items() if s is None])
        _clean(graph)
        alive = [nodes for nodes in maps if nodes and nodes[0].inputs]  # not within another branch
        joined = [nodes for nodes in alive if join_map(graph, nodes, names)]
        if joined:
            _clean(graph)
        after = {label(node) for node in graph.nodes}
        return [name for name in before if name not in after]


def _clean(graph: gs.Graph) -> None:
    """Removes what nobody needs, in an order in which it can run."""
    graph.nodes[:] = [node for node in graph.nodes if node.outputs]
    sort_nodes(graph)
    remove_unused(graph)
