"""Weights on grids that an entropy coder shortens, for results that are containers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.coded_constants import SMALLEST
from onnxcomp.coding_plan import NothingToCode
from onnxcomp.coding_quality import Quality
from onnxcomp.graph import all_nodes, is_constant, label, replace_constants
from onnxcomp.level_search import SAMPLES, LevelSearch
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.weight_sites import find_weights, refused_nodes

SQNR_DB = 25.0  # where neither an option nor a gate says more


@dataclass(frozen=True, kw_only=True)
class CodeWeights(Pass):
    """Puts float32 weights on grids of integers that take few bits in a container (.oxc).

    Attributes:
        min_sqnr_db: what the worst output keeps, before a final Softmax, on the samples held
            back. Without it the gates of the recipe say how far to go, and without gates 25 dB.
        bits: of a weight in the container, on average; instead of the above.
        trellis: let codes depend on those before: fewer bits, slower to find.
        samples: at most so many are run to observe what layers read.
    """

    min_sqnr_db: float | None = None
    bits: float | None = None
    trellis: bool = False
    samples: int = SAMPLES

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.min_sqnr_db is not None and self.bits is not None:
            raise ValueError("give min_sqnr_db or bits, not both")
        for option in ("min_sqnr_db", "bits", "samples"):
            value = getattr(self, option)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{option} must be positive, not {value}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the nodes that read float32 constants worth a code."""
        return list(dict.fromkeys(label(node) for node, _ in _readers(graph)))

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Searches the coarsest steps that keep the quality; see `Pass.rewrite`.

        Raises:
            OnnxcompError: there is nothing to code, or no step keeps it.
        """
        fitted = context.samples()
        readers = list(_readers(graph))
        kept = {id(node) for node, _ in readers if self.options_for(node) is None}
        try:
            search = LevelSearch(
                graph,
                self._quality(context),
                fitted,
                context.held_back or fitted,
                margin=context.margin,
                left={constant.name for node, constant in readers if id(node) in kept},
                samples=self.samples,
                advance=context.advance,
            )
        except NothingToCode:
            return
        found = search.result()
        coded = {n: gs.Constant(n, weight.values) for n, weight in found.codes.items()}
        replace_constants(graph, coded)
        report.quantized = found
        report.numbers["bits_per_weight"] = round(found.bits_per_weight, 2)
        report.notes += found.in_words().splitlines()
        _skip_others(graph, report)
        for node, constant in readers:
            if constant.name in coded:
                report.skipped.pop(label(node), None)
                report.change(node)
            elif id(node) in kept:
                report.skip(node, "the recipe says so")
            elif label(node) not in report.changed:
                report.skip(node, f"{constant.name} is shorter as it is, or not finite")
        report.changed[:] = dict.fromkeys(report.changed)

    def _quality(self, context: PassContext) -> Quality:
        given = context.quality or Quality(min_sqnr_db=SQNR_DB)
        if self.bits is not None or self.min_sqnr_db is not None:
            given = Quality(min_sqnr_db=self.min_sqnr_db, bits=self.bits)
        return dataclasses.replace(given, trellis=self.trellis)


def _skip_others(graph: gs.Graph, report: PassReport) -> None:
    """Says why layers get no codes whose weights are not constants of float32."""
    for node, reason in refused_nodes(graph):
        report.skip(node, reason)
    for weight in find_weights(graph):
        if weight.constant.dtype != np.float32:
            for site in weight.sites:
                report.skip(site.layer, f"its weights are {np.dtype(weight.constant.dtype)}")


def _readers(graph: gs.Graph) -> Iterator[tuple[gs.Node, gs.Constant]]:
    """Nodes and the constants that they read of what gets codes."""
    for node in all_nodes(graph):
        for tensor in node.inputs:
            fits = is_constant(tensor) and tensor.dtype == np.float32
            if fits and math.prod(tensor.shape) >= SMALLEST:
                yield node, tensor
