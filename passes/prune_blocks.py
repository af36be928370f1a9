"""Whole residual branches go: fewer blocks, the same stream through those that stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.block_search import BlockSearch
from onnxcomp.block_selection import LEAST_GAIN, Costs, Goal, Size
from onnxcomp.graph import label, sort_nodes
from onnxcomp.macs import FORMULAS, count_macs
from onnxcomp.parameters import count_parameters
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.removed_branches import trace_branches
from onnxcomp.residual_blocks import Branch, Shapes, Wiring, find_branches
from onnxcomp.shapes import infer_shapes
from onnxcomp.stand_ins import StandIn

DEFAULT_SQNR_DB = 15.0  # where nothing else says when to stop; the gate of the default recipe


@dataclass(frozen=True, kw_only=True)
class PruneBlocks(Pass):
    """Drops residual branches, such as blocks of a ResNet and layers of a transformer.

    Of y = x + f(x) nothing of f is left, or a constant, or one linear map of x, whichever costs
    the outputs least for the multiplications it saves. Branches go one by one, or two in a row at
    once, each time the one that costs least, until a limit is met; without any, as long as the
    worst output keeps 15 dB.

    Attributes:
        max_macs: drop until at most this fraction of the multiplications is left.
        max_parameters: drop until at most this fraction of the parameters is left.
        count: drop so many branches.
        min_sqnr_db: stop before an output falls below, against the model before this pass.
        repair: what may stand in for a branch: a "linear" map of the stream or a "constant",
            fitted to samples and kept where others confirm it, or "none".
        recovery: refit the layers behind what left, where samples were given.
        samples: at most so many to measure errors on, and four times as many others to fit to,
            eight times as many for recovery; large models get fewer.
    """

    needs_calibration: ClassVar[bool] = True

    max_macs: float | None = None
    max_parameters: float | None = None
    count: int | None = None
    min_sqnr_db: float | None = None
    repair: Literal["linear", "constant", "none"] = "linear"
    recovery: bool = True
    samples: int = 64

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for name in ("max_macs", "max_parameters"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is a fraction from 0 to 1, not {value}")
        if self.count is not None and self.count < 0:
            raise ValueError(f"count must not be negative, not {self.count}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the sums whose branches could go."""
        branches, _ = find_branches(graph, Wiring(graph), Shapes(graph, None))
        wanted = (
            label(graph.nodes[branch.cut[0]])
            for branch in branches
            if self._may_go(graph, branch)
            and any(graph.nodes[index].op in FORMULAS for index in branch.nodes)
        )
        return list(dict.fromkeys(wanted))

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Finds, scores and drops branches; see `Pass.rewrite`."""
        calibration = context.samples()
        sort_nodes(graph)
        infer_shapes(graph)
        feed = {name: np.shape(value) for name, value in next(calibration.feeds(1)).items()}
        wiring, shapes = Wiring(graph), Shapes(graph, feed)
        found, refused = find_branches(graph, wiring, shapes)
        for name, reason in refused.items():
            report.skip(name, reason)
        branches = self._wanted(graph, found, Costs(graph, wiring, found, feed), report)
        report.numbers["branches_found"] = len(branches)
        if not branches:
            report.notes.append("there is no residual branch that may go")
            return
        whole = graph.copy()
        search = BlockSearch(
            graph,
            wiring,
            shapes,
            branches,
            calibration,
            repair=self.repair,
            samples=self.samples,
        )
        goal = self._goal()
        search.run(goal, context.advance)
        search.fit_again()
        _explain(search, report)
        _write(search, graph if context.original is None else context.original, report)
        if self.recovery and search.dropped and context.has_real_samples:
            self._recover(search, whole, context, report)
        left = _left(whole, search, feed, report)
        if goal.is_bounded and not goal.is_met(left, len(search.dropped)):
            report.notes.append("the limit is not reached: no other branch may go")

    def _recover(
        self, search: BlockSearch, whole: gs.Graph, context: PassContext, report: PassReport
    ) -> None:
        """Refits what is left to what the whole graph makes of the samples."""
        found = search.recover(whole, 8 * self.samples, context.seed, context.advance)
        if found is None:
            report.notes.append("refitting the layers behind what left brings outputs no nearer")
            return
        report.numbers |= {
            "refitted_layers": len(found.refitted),
            "sqnr_db": round(search.sqnr_db, 2),
        }
        report.notes.append(
            f"{search.sqnr_db:.1f} dB once {len(found.refitted)} layers behind them were refitted"
        )
        for name in found.refitted:
            report.change(name)
        for name, reason in found.skipped.items():
            report.skip(name, f"not refitted: {reason}")

    def _wanted(
        self, graph: gs.Graph, branches: list[Branch], costs: Costs, report: PassReport
    ) -> list[Branch]:
        """The branches that may go; the others are reported."""
        wanted = []
        for index, branch in enumerate(branches):
            left = costs.left({index: None})
            if not self._may_go(graph, branch):
                report.skip(branch.name, "the recipe says so")
            elif min(left.macs, left.parameters) > 1 - LEAST_GAIN:
                report.skip(branch.name, "dropping it would save no multiplications")
            else:
                wanted.append(branch)
        return wanted

    def _may_go(self, graph: gs.Graph, branch: Branch) -> bool:
        nodes = [graph.nodes[index] for index in (branch.cut[0], *branch.nodes)]
        return not self.overrides or all(self.options_for(node) is not None for node in nodes)

    def _goal(self) -> Goal:
        limits = (self.max_macs, self.max_parameters, self.count, self.min_sqnr_db)
        if limits == (None, None, None, None):
            return Goal(min_sqnr_db=DEFAULT_SQNR_DB)
        return Goal(*limits)


def _explain(search: BlockSearch, report: PassReport) -> None:
    """Says what went in which order, and why the others stayed."""
    for number, step in enumerate(search.steps, 1):
        names = " and ".join(
            f"{search.branches[i].name} ({_in_words(search.dropped[i])} in its place)"
            for i in step.unit
        )
        report.notes.append(
            f"{number}. {names}: {step.sqnr_db:.1f} dB, {step.left.macs:.1%} of the MACs and"
            f" {step.left.parameters:.1%} of the parameters left"
        )
    report.numbers["branches_dropped"] = len(search.dropped)
    if search.steps:
        report.numbers["sqnr_db"] = round(search.sqnr_db, 2)
        report.notes.append(
            f"{search.sqnr_db:.1f} dB on {search.scored} samples once {search.fitted_again}"
            " stand-ins were fitted again, each to what the others leave over"
        )
    for index, branch in enumerate(search.branches):
        if index not in search.dropped:
            report.skip(branch.name, search.why_kept(index))


def _write(search: BlockSearch, original: gs.Graph, report: PassReport) -> None:
    """Takes the branches out of the graph."""
    report.removed += _removed(search, original)
    sums = [label(search.graph.nodes[search.branches[i].cut[0]]) for i in search.dropped]
    for name in dict.fromkeys([*sums, *search.write()]):
        report.change(name)


def _left(
    whole: gs.Graph, search: BlockSearch, feed: Mapping[str, Sequence[int]], report: PassReport
) -> Size:
    """What is left of the ``whole`` graph, counted where that is possible."""
    graph, left = search.graph, search.left
    counts = {
        "macs": (count_macs(whole, feed), count_macs(graph, feed)),
        "parameters": (count_parameters(whole), count_parameters(graph)),
    }
    for name, (before, after) in counts.items():
        if before and after is not None:
            report.numbers |= {f"{name}_before": before, f"{name}_after": after}
            left = dataclasses.replace(left, **{name: after / before})
    return left


def _removed(search: BlockSearch, original: gs.Graph) -> list[dict[str, Any]]:
    """What the branches were in the original, by branch, in the order in which they went."""
    cuts = []
    for index in search.dropped:
        at, operand = search.branches[index].cut
        node = search.graph.nodes[at]
        cuts.append((node.outputs[0].name, node.inputs[operand].name))
    traced = trace_branches(original, cuts)
    return [
        {
            "group": search.branches[index].name,
            "units": 1,
            "removed_units": 1,
            "cost": None,
            "replaced_by": _in_words(stand_in),
            "places": [place.as_dict() for place in places],
        }
        for (index, stand_in), places in zip(search.dropped.items(), traced, strict=True)
    ]


def _in_words(stand_in: StandIn | None) -> str:
    if stand_in is None:
        return "nothing"
    return "a constant" if stand_in.matrix is None else "a linear map"
