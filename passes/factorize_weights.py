"""Writes layers with thinner weights: low-rank factors of matrices, kernels and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.concrete_shapes import known_shapes
from onnxcomp.errors import RecipeError
from onnxcomp.factor_budgets import Limit, limit_of, with_effects
from onnxcomp.factor_evidence import evidence
from onnxcomp.factor_payoff import paying_in
from onnxcomp.factorable_weights import (
    constant_of,
    is_named,
    readers_of,
    reason_against,
    weight_index,
)
from onnxcomp.factored_layers import Written
from onnxcomp.graph import Names, all_nodes, label
from onnxcomp.layer_latency import LayerLatency
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.pruning_budgets import check_budgets, given_budget
from onnxcomp.rank_planning import (
    Factorable,
    Option,
    Plan,
    above_noise,
    exact_loss,
    factorable,
    keeping_energy,
    timed,
)
from onnxcomp.recovery import recover
from onnxcomp.runtime import Feed
from onnxcomp.shapes import infer_shapes

ENERGY = 0.99  # that each layer keeps unless told

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class FactorizeWeights(Pass):
    """Writes layers with thinner weights, their ranks shared out under a budget.

    Attributes:
        method: ``svd`` one weight as two, of a Conv the kernel beside a 1 x 1; ``tucker2`` a
            kernel between two 1 x 1; ``spatial`` k x 1 and 1 x k; ``cp`` single channels between
            two 1 x 1; ``auto`` of each layer the best of all but cp.
        rule: what chooses ranks without a budget: ``energy``, or ``evbmf``, what stands out of
            noise in the weights.
        energy: the least share of the output's energy that each layer keeps, 0 to 1; 0.99 where
            it is the rule.
        max_macs: budget: the fraction of the multiplications that may be left, 0 to 1.
        max_parameters: budget: the fraction of the parameters.
        max_bytes: budget: the fraction of the bytes of the file.
        min_speedup: budget: how many times faster one run has to be with one thread. Only what
            is measured to be faster than the layer is used; at 1 the rule chooses among it.
        multiple: ranks are its multiples.
        whole_blocks: for a budget other than of time take ranks and forms that save time as well,
            as far as the target's kernels tell, which compute whole blocks of channels at once.
        embeddings: tables that Gather reads too, and heads that multiply with them: a small
            product at every lookup.
        refine: refit the factors and the layers behind, where samples were given.
        samples: how many to look at.
    """

    method: Literal["auto", "svd", "tucker2", "spatial", "cp"] = "auto"
    rule: Literal["energy", "evbmf"] = "energy"
    energy: float | None = None
    max_macs: float | None = None
    max_parameters: float | None = None
    max_bytes: float | None = None
    min_speedup: float | None = None
    multiple: int = 1
    whole_blocks: bool = True
    embeddings: bool = False
    refine: bool = True
    samples: int = 512

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.energy is not None and not 0 <= self.energy <= 1:
            raise ValueError(f"energy must be from 0 to 1, not {self.energy}")
        check_budgets(self)
        for name in ("multiple", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the layers with weights that can be taken apart."""
        chosen = self._chosen(graph, PassReport())
        return [label(reader) for node, _ in chosen for reader in _readers(node)]

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Chooses, writes and refits; see `Pass.rewrite`."""
        came = graph.copy()
        infer_shapes(graph)
        chosen = self._chosen(graph, report)
        if not chosen:
            return
        feed = None
        if context.calibration is not None or self._budget is not None:
            feed = next(context.samples().feeds(1))
        shapes = {} if feed is None else known_shapes(graph, feed)
        items = self._items(graph, chosen, shapes, context, report)
        limit = None
        if self._budget is not None and feed is not None:
            blocks = context.target.blocks if self.whole_blocks else None
            limit = limit_of(self._budget, getattr(self, self._budget), came, graph, feed, blocks)
        plan = self._plan(items, limit, feed, graph, context, report)
        if plan:
            self._write(items, plan, graph, context, report)

    def _chosen(self, graph: gs.Graph, report: PassReport) -> list[tuple[gs.Node, Self]]:
        """Of each weight that may be taken apart the first reader, with its options."""
        chosen: dict[int, tuple[gs.Node, Self]] = {}
        for node in all_nodes(graph):
            index = weight_index(node)
            if isinstance(index, str):
                if is_named(node):
                    report.skip(node, index)
                continue
            weight, options = _weight(node), self.options_for(node)
            readers = readers_of(weight)
            reason = reason_against(node, index, readers)
            if node.op == "Gather" and (reason or np.dtype(weight.dtype).kind != "f"):
                continue
            if options is None:
                reason = "skipped by the recipe"
            elif readers[0].op == "Gather" and not options.embeddings:
                reason = "embeddings are left alone, unless embeddings=true"
            if reason or options is None:
                report.skip(node, reason)
                chosen.pop(id(weight), None)
            elif id(weight) not in chosen and node is _readers(node)[0]:
                chosen[id(weight)] = node, options
        return list(chosen.values())

    def _items(
        self,
        graph: gs.Graph,
        chosen: Sequence[tuple[gs.Node, Self]],
        shapes: Shapes,
        context: PassContext,
        report: PassReport,
    ) -> list[Factorable]:
        """The weights with the ways to write them, those too slow left out where time counts."""
        samples = context.calibration if context.has_real_samples else None
        options = {id(_weight(node)): (node, mine) for node, mine in chosen}
        weights = [_weight(node) for node, _ in chosen]
        clock = LayerLatency(threads=1) if self._saves_time(context) else None
        found = []
        for weight, gram in evidence(graph, weights, samples, self.samples, context.advance):
            node, mine = options[id(weight)]
            report.current = label(node)
            item = factorable(node, gram, mine.method, shapes, mine.multiple)
            if clock is not None and not isinstance(item, str):
                item = timed(item, clock, faster=self.min_speedup is not None)
            if isinstance(item, str):
                for reader in _readers(node):
                    report.skip(reader, item)
            else:
                found.append(item)
        order = {label(node): at for at, node in enumerate(all_nodes(graph))}
        return sorted(found, key=lambda item: order[item.name])

    def _plan(
        self,
        items: Sequence[Factorable],
        limit: Limit | None,
        feed: Feed | None,
        graph: gs.Graph,
        context: PassContext,
        report: PassReport,
    ) -> Plan:
        """What becomes of which weight."""
        if not items:
            if limit is not None and limit.is_missed:
                raise RecipeError(f"{self._budget}: no layer can be written with thinner weights")
            return {}
        if limit is not None and (limit.option != "min_speedup" or limit.value > 1):
            if context.has_real_samples:
                items = with_effects(items, graph, context.samples(), self.samples)
            plan, note = limit.plan(items)
            report.notes += [note] if note else []
            for item in items:
                if item.name not in plan:
                    self._skip(item, "the budget is met at a lower cost without it", report)
            return plan
        plan = {}
        for item in items:
            mine = self.options_for(item.name) or self
            if mine.rule == "evbmf":
                option = above_noise(item, mine.multiple, mine.energy)
            else:
                option = keeping_energy(item, ENERGY if mine.energy is None else mine.energy)
            if isinstance(option, str):
                self._skip(item, option, report)
            else:
                plan[item.name] = option
        return self._paying(plan, feed, graph, context, report)

    def _paying(
        self,
        plan: Plan,
        feed: Feed | None,
        graph: gs.Graph,
        context: PassContext,
        report: PassReport,
    ) -> Plan:
        """The part of a plan that pays in the time of the whole model, where time counts."""
        if not plan or feed is None or not self._saves_time(context):
            return plan
        left, reasons = paying_in(graph, feed, plan, faster=self.min_speedup is not None)
        for name, reason in reasons.items():
            for node in plan[name].form.nodes:
                report.skip(node, reason)
        return left

    def _skip(self, item: Factorable, reason: str, report: PassReport) -> None:
        for name in item.nodes:
            report.skip(name, reason)

    def _write(
        self,
        items: Sequence[Factorable],
        plan: Plan,
        graph: gs.Graph,
        context: PassContext,
        report: PassReport,
    ) -> None:
        before, names = graph.copy(), Names(graph)
        unseen = 0
        for item in items:
            option = plan.get(item.name)
            if option is None:
                continue
            report.current = item.name
            report.factorized.append(_entry(item, option))
            option.form.write(graph, names, option.rank)
            for name in item.nodes:
                report.change(name)
            unseen += not item.seen
        report.current = ""
        report.numbers["factorized_weights"] = len(plan)
        if unseen:
            report.notes.append(
                f"{unseen} weights were taken apart by their own numbers alone (plain SVD): no "
                "samples were given, or what they read is inside a body or too wide"
            )
        if self.refine and context.has_real_samples:
            self._refine(before, graph, plan, context, report)

    def _refine(
        self,
        before: gs.Graph,
        graph: gs.Graph,
        plan: Plan,
        context: PassContext,
        report: PassReport,
    ) -> None:
        """Refits thin layers, and what reads them, to what the graph ``before`` makes."""
        found = recover(
            before,
            graph,
            {},
            context.samples(),
            samples=self.samples,
            seed=context.seed,
            written=_forms(plan.values()),
            advance=context.advance,
        )
        report.numbers["refitted_layers"] = len(found.refitted)
        old = {label(node) for node in all_nodes(before)}
        for name, reason in found.skipped.items():
            if name in old and name not in report.changed:
                report.skipped.setdefault(name, f"not refitted: {reason}")

    def _saves_time(self, context: PassContext) -> bool:
        return self.min_speedup is not None or context.must_pay

    @property
    def _budget(self) -> str | None:
        """The option that gives one."""
        return given_budget(self)


def _weight(node: gs.Node) -> gs.Constant:
    index = weight_index(node)
    assert isinstance(index, int)
    weight = constant_of(node, index)
    assert weight is not None
    return weight


def _readers(node: gs.Node) -> list[gs.Node]:
    return readers_of(_weight(node))


def _forms(options: Iterable[Option]) -> Written:
    """Methods and ranks of the layers that are rows of their own now."""
    return {
        label(option.form.nodes[0]): (option.form.method, option.rank)
        for option in options
        if len(option.form.nodes) == 1
    }


def _entry(item: Factorable, option: Option) -> dict[str, Any]:
    """What the report says of a weight."""
    form, rank = option.form, option.rank
    return {
        "weight": form.weight.name,
        "nodes": list(item.nodes),
        "method": form.method,
        "rank": list(rank) if isinstance(rank, tuple) else rank,
        "lost_energy": exact_loss(item, option),
        "seen": item.seen,
        "parameters": option.parameters,
        "parameters_before": form.layer_parameters,
        "macs": option.macs,
        "macs_before": form.layer_macs,
    }
