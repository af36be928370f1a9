"""Fewer nodes, the same function."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxcomp.duplicates import merge_constants, merge_nodes
from onnxcomp.folding import fold_constants
from onnxcomp.fusing import AFFINE_RULES, BATCH_NORM_RULES
from onnxcomp.graph import all_graphs, all_nodes, carried_of, label, opsets, remove_unused
from onnxcomp.model import graph_bytes
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.redundancy import REDUNDANCY_RULES
from onnxcomp.rewriting import Budget, Rule, Scope, scopes
from onnxcomp.sizes import SHAPE_RULES
from onnxcomp.space_to_depth import PIXEL_RULES
from onnxcomp.views import VIEW_RULES

MEASURED_ROUNDS = 4


@dataclass(frozen=True, kw_only=True)
class SimplifyGraph(Pass):
    """Folds constants and BatchNormalization, and removes what is dead, double or without effect.

    The result has at most as many nodes and bytes as before, computes the same up to the rounding
    of fused weights, and simplifying it again changes nothing. Quantized weights stay quantized,
    binary ones binary, and weights that no rule fits are not read.

    Attributes:
        fold_constants: compute once what depends on constants alone.
        fuse_batch_norm: fold BatchNormalization into the layer before it.
        fuse_affine: fold constants per channel, added to or multiplied with what a linear layer
            gives, into its weight and bias; MatMul and Add of a matrix become Gemm.
        remove_redundant: remove operators without effect, and merge chains that one can do.
        merge_duplicates: keep equal constants and equal nodes once.
        largest_growth: bytes by which the result may be larger than the input for having fewer
            nodes, such as by a mask that one small node generates.
    """

    minimum_opset: ClassVar[int] = 7

    fold_constants: bool = True
    fuse_batch_norm: bool = True
    fuse_affine: bool = True
    remove_redundant: bool = True
    merge_duplicates: bool = True
    largest_growth: int = 0

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Applies all rules until none fits; see `Pass.rewrite`."""
        before = _operators(graph)
        self._apply_all(graph, report)
        after = _operators(graph)
        report.numbers["nodes_before"] = before.total()
        report.numbers["nodes_after"] = after.total()
        gone = ", ".join(f"{count} {op}" for op, count in (before - after).most_common())
        if gone:
            report.notes.append(f"fewer nodes: {gone}")
        _drop_unused_opsets(graph)

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the nodes the rules would change; found by changing a copy."""
        report = PassReport()
        self._apply_all(graph.copy(), report)
        return report.changed

    def _apply_all(self, graph: gs.Graph, report: PassReport) -> None:
        """Goes over the graph until no rule fits; every round leaves fewer nodes or inputs."""
        largest = graph_bytes(graph) + self.largest_growth
        budget = Budget(self.largest_growth)
        for count in itertools.count(1):
            before = _operators(graph)
            all_scopes = scopes(graph, report, budget, self._kept(graph))
            changed = [self._apply_rules(scope, report) for scope in all_scopes]
            if self.merge_duplicates:
                changed += [merge_constants(scope) | merge_nodes(scope) for scope in all_scopes]
            _remove_unused(graph, report)
            if count <= MEASURED_ROUNDS:  # else saving and spending would take turns for long
                budget.bytes = largest - graph_bytes(graph)
            if self.fold_constants:
                changed += [fold_constants(scope) for scope in all_scopes]
            _remove_unused(graph, report)
            if not any(changed) and _operators(graph) == before:
                break

    def _kept(self, graph: gs.Graph) -> frozenset[str]:
        """Labels of the nodes that overrides say to skip."""
        labels = {label(node) for node in all_nodes(graph)} if self.overrides else set()
        return frozenset(name for name in labels if self.options_for(name) is None)

    def _apply_rules(self, scope: Scope, report: PassReport) -> bool:
        changed, mine = False, self._rules()
        for node in report.visit(scope.body.nodes):
            options = self.options_for(node)
            if options is None or node.domain:
                continue
            for rule in (mine if options is self else options._rules())[node.op]:
                if node.outputs and rule(scope, node):
                    changed = True
        return changed

    def _rules(self) -> dict[str, list[Rule]]:
        tables = [
            (self.remove_redundant, REDUNDANCY_RULES),
            (self.remove_redundant, VIEW_RULES),
            (self.remove_redundant, PIXEL_RULES),
            (self.fuse_batch_norm, BATCH_NORM_RULES),
            (self.fuse_affine, AFFINE_RULES),
            (self.fold_constants, SHAPE_RULES),
        ]
        rules: dict[str, list[Rule]] = defaultdict(list)
        for wanted, table in tables:
            for op, entries in table.items() if wanted else ():
                rules[op] += entries
        return rules


def _remove_unused(graph: gs.Graph, report: PassReport) -> None:
    for body in all_graphs(graph):
        labels = [(node, label(node)) for node in body.nodes if node.outputs]
        remove_unused(body)
        for node, name in labels:
            if not node.outputs:
                report.skipped.pop(name, None)
                report.change(name)


def _operators(graph: gs.Graph) -> Counter[str]:
    """How many nodes of each operator a graph and its bodies have."""
    return Counter(node.op for node in all_nodes(graph))


def _drop_unused_opsets(graph: gs.Graph) -> None:
    """Drops imports of operator sets that no node and no function of the model uses."""
    functions = carried_of(graph).header.functions
    used = {node.domain or "" for node in all_nodes(graph)} | {f.domain for f in functions}
    used |= {o.domain for f in functions for o in f.opset_import}
    used |= {"", "ai.onnx"}  # a later pass may want standard operators
    graph.import_domains = [o for o in opsets(graph) if o.domain in used] or opsets(graph)
