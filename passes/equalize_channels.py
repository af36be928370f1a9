"""Channels of one tensor get alike ranges, so that one 8-bit scale fits all of them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxcomp.equalizing import Outcome, equalize
from onnxcomp.graph import label
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.placement import plan_static
from onnxcomp.rescaling import LAYERS
from onnxcomp.shapes import infer_shapes


@dataclass(frozen=True, kw_only=True)
class EqualizeChannels(Pass):
    """Moves the scales of channels from one layer into the next, so that quantizing loses less.

    Computes the same in float. With samples, factors follow from the measured ranges of channels
    and the predicted rounding errors; without, from the weights alone.

    Attributes:
        samples: how many samples to look at.
        power_of_two: only factors that are powers of two, which change no bit of the results.
    """

    samples: int = 32
    power_of_two: bool = False

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the layers, whose weights may take factors."""
        return [label(node) for node in graph.nodes if node.op in LAYERS]

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Scales channels for the tensors that the target would run on as codes."""
        infer_shapes(graph)
        plan = plan_static(graph, context.target, lambda node: None)
        outcome = equalize(
            graph,
            set(plan.shared),
            context.calibration,
            samples=self.samples,
            power_of_two=self.power_of_two,
            wanted=lambda node: self.options_for(node) is not None,
        )
        record(outcome, report)
        for node in outcome.changed:
            report.change(node)
        for name, reason in outcome.skipped.items():
            report.skip(name, reason)


def record(outcome: Outcome, report: PassReport) -> None:
    """Notes what was chosen."""
    report.numbers["equalized_groups"] = outcome.equalized
    report.numbers["groups_left_alone"] = len(outcome.choices) - outcome.equalized
    for name, choice in outcome.choices.items():
        if choice.alpha:
            report.notes.append(
                f"channels with {name}: alpha {choice.alpha:g}, "
                f"predicted error {choice.after / choice.before:.2f} of before"
            )
