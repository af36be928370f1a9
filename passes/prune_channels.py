"""Removes channels, heads and widths; what is left is a smaller dense model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import onnx_graphsurgeon as gs

from onnxcomp.allocation import Choice
from onnxcomp.channel_preparation import prepare
from onnxcomp.channels import Channels
from onnxcomp.cutting import cut
from onnxcomp.errors import RecipeError
from onnxcomp.few_samples import few_samples
from onnxcomp.graph import carried_of, label, sort_nodes
from onnxcomp.group_allocation import GroupAllocation, Scope
from onnxcomp.group_choices import (
    Choices,
    Plan,
    choices_of,
    losses_of,
    plan_of,
    removed,
    with_levels,
)
from onnxcomp.heads_first import Shares, rounds, shares_left, sparsity_left
from onnxcomp.kept_indices import Kept, composed
from onnxcomp.kernel_blocks import blocked_macs
from onnxcomp.parameters import count_parameters
from onnxcomp.passes.base import Pass, PassContext, PassReport
from onnxcomp.payoff import that_pay
from onnxcomp.plan_choice import Weighed, fast_enough, nearest, told, weighings
from onnxcomp.pruning_budgets import (
    Budget,
    budget_of,
    check_budgets,
    given_budget,
    latency_and_macs,
)
from onnxcomp.recovery import recover
from onnxcomp.removal_plan import Importance, Ranked, ranked
from onnxcomp.runtime import Feed
from onnxcomp.shapes import infer_shapes
from onnxcomp.staying_layers import ends, layers_that_stay
from onnxcomp.tracing import Losses, trace
from onnxcomp.unit_parts import weight_axes


@dataclass(frozen=True, kw_only=True)
class PruneChannels(Pass):
    """Removes the channels, heads and widths that matter least, and refits what reads them.

    Attributes:
        sparsity: the fraction of units to remove, unless a budget is given.
        max_macs: budget: the fraction of the multiplications that may be left, 0 to 1.
        max_parameters: budget: the fraction of the parameters.
        max_bytes: budget: the fraction of the bytes of the file.
        min_speedup: budget: how many times faster one run has to be with one thread, by the
            latency of each layer's shape, measured once and cached.
        scope: ``uniform``, the same fraction of every group; ``global``, the units of the whole
            model that cost least for what they free; ``auto``, global for a budget, else uniform.
        importance: ``l1``, ``l2``, ``activation``, ``reconstruction``, or ``auto``:
            reconstruction where samples were given, else l2.
        multiple: the number of channels left of an axis is one of it, where it is cut.
        whole_blocks: for a budget other than of time leave whole blocks of the channels that the
            target's kernels compute at once, 16 or 8: parts of them save no time.
        max_sparsity: the largest fraction that a group may lose.
        granularity: what shrinks where heads or groups of a Conv could, or the width of each:
            ``head``, ``head_dim``, ``both`` sharing what is to go, or ``auto``.
        keep_first: leave what the first layer makes.
        keep_last: leave what the last layer reads.
        recovery: refit the weights of what reads pruned channels, where samples were given.
        samples: how many to look at.
    """

    sparsity: float = 0.3
    max_macs: float | None = None
    max_parameters: float | None = None
    max_bytes: float | None = None
    min_speedup: float | None = None
    scope: Scope = "auto"
    importance: Literal["auto", "l1", "l2", "activation", "reconstruction"] = "auto"
    multiple: int = 8
    whole_blocks: bool = True
    max_sparsity: float = 0.9
    granularity: Literal["auto", "head", "head_dim", "both"] = "auto"
    keep_first: bool = False
    keep_last: bool = False
    recovery: bool = True
    samples: int = 512

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for name in ("sparsity", "max_sparsity"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1, not {getattr(self, name)}"
                )
        check_budgets(self)
        for name in ("multiple", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def candidates(self, graph: gs.Graph) -> list[str]:
        """Labels of the layers that make channels."""
        return [label(layer.node) for layer in weight_axes(graph)]

    def rewrite(self, graph: gs.Graph, context: PassContext, report: PassReport) -> None:
        """Finds the groups, cuts them and refits what reads them."""
        came = graph.copy()
        overridable = len(carried_of(graph).defaults)
        if overridable:
            note = f"{overridable} weights are inputs that a caller may override, and stay"
            report.notes.append(note)
        infer_shapes(graph)
        prepare(graph)
        sort_nodes(graph)
        before = graph.copy()
        kept: Kept = {}
        losses: list[tuple[dict[str, Any], Losses]] = []
        shares: Shares = {}
        for channels, heads, left in rounds(graph, self.granularity):
            now = _Round(came, graph, channels, context, report)
            if heads:  # what stays is told by the last round
                plan = self._halved()._head_plan(now, heads)
                shares = shares_left(plan)
            else:
                plan = self._after(left)._plan(now, shares)
            if plan:
                losses += losses_of(plan, kept)
                kept = composed(kept, cut(graph, channels, removed(plan)))
        report.numbers["parameters_before"] = count_parameters(came)
        report.numbers["parameters_after"] = count_parameters(graph)
        if not losses:
            return
        self._tell(before, kept, losses, context, report)
        if self.recovery and context.has_real_samples:
            self._recover(before, graph, kept, context, report)

    def _halved(self) -> Self:
        """What heads may lose, so that as much is left for their widths."""
        halved: dict[str, Any] = {"sparsity": 1 - math.sqrt(1 - self.sparsity)}
        if self._budget is not None:
            halved[self._budget] = math.sqrt(getattr(self, self._budget))
        return dataclasses.replace(self, **halved)

    def _after(self, left: float) -> Self:
        """Where a share of the parameters is left and all of them count, what is left to remove."""
        if self.scope != "global":
            return self
        return dataclasses.replace(self, sparsity=max(0.0, 1 - (1 - self.sparsity) / left))

    def _head_plan(self, now: _Round, heads: frozenset[str]) -> Plan:
        """What ``heads`` lose where all groups share what may be left; the others lose it later."""
        try:
            plan = self._plan(dataclasses.replace(now, report=PassReport()), {})
        except RecipeError:  # their widths and the others may do
            return []
        return [(item, count) for item, count in plan if item.group.name in heads]

    def _plan(self, now: _Round, shares: Shares) -> Plan:
        """The groups that lose units, and how many each keeps."""
        stay = layers_that_stay(now.graph, now.channels)
        for name, why in [*stay, *now.channels.unknown.items()]:
            now.report.skip(name, f"its channels stay: {why}")
        wanted = self._wanted(now, shares)
        choices = self._choices(now, wanted)
        reasons: Mapping[str, str] = {}
        if now.context.must_pay and choices:
            costs = latency_and_macs(now.graph, now.channels, now.feed)
            paying, reasons = that_pay(choices_of(choices), *costs)
            choices = with_levels(choices, paying)
        plan = self._within_budget(now, choices, wanted)
        cut_groups = {item.group.name for item, _ in plan}
        for name in choices:
            if name not in cut_groups:
                best = "the number of channels that suits best is all of them"
                now.report.skip(name, reasons.get(name, best))
        return plan

    def _choices(self, now: _Round, wanted: Mapping[str, PruneChannels]) -> Choices:
        """The widths that each group may take, and what they cost."""
        kinds = {name: options._importance(now.context) for name, options in wanted.items()}
        if "reconstruction" in kinds.values():
            few = few_samples(now.graph, now.channels, now.context.samples(), self.samples)
            now.report.notes += [few] if few else []
        found: dict[str, tuple[Ranked, Choice]] = {}
        told = now.context.calibration, self.samples, now.context.advance
        for item in ranked(now.graph, now.channels, kinds, *told, weigh=self._compares()):
            options = wanted[item.group.name]
            choice = item.choice(options.multiple, options.max_sparsity)
            if len(choice.levels) < 2:
                size = f"{item.group.size} units of {item.group.span} channels"
                now.report.skip(item.group.name, f"{size} cannot lose any and keep a multiple")
                continue
            found[item.group.name] = item, choice
        return found

    def _within_budget(
        self, now: _Round, choices: Choices, wanted: Mapping[str, PruneChannels]
    ) -> Plan:
        """Shares the budget out: of several ways to weigh groups by what is nearest in the end."""
        option, budget = self._budget, None
        places = now.came, now.graph, now.channels
        if option is not None:
            budget = budget_of(option, getattr(self, option), *places, now.feed)
        own = {name: options.sparsity for name, options in wanted.items()}
        sharing = GroupAllocation(self.sparsity, own, self.scope, budget)
        if budget is not None and self.min_speedup is not None:

            def tried(less: Budget) -> Plan:
                return plan_of(
                    choices, dataclasses.replace(sharing, budget=less).counts(choices)[0]
                )

            return fast_enough(tried, budget, *places, now.feed, self.min_speedup)
        if budget is not None and self.whole_blocks and self.scope != "uniform":
            shapes = {name: values.shape for name, values in now.feed.items()}
            blocked = blocked_macs(now.graph, now.channels, shapes, now.context.target.blocks)
            sharing = dataclasses.replace(sharing, blocked=blocked)
        plans = []
        for exponent, weighed in weighings(choices).items():
            counts, notes = sharing.counts(weighed)
            plans.append(Weighed(plan_of(weighed, counts), exponent, notes))
        best = plans[0]
        errors: Mapping[float, float] = {}
        if self.recovery and now.context.has_real_samples and len(plans) > 1:
            among = plans, now.graph, now.channels, now.context.samples()
            best, errors = nearest(*among, limit=self.samples, seed=now.context.seed)
        now.report.notes += [*best.notes, *([told(best, errors)] if errors else [])]
        return best.plan

    def _wanted(self, now: _Round, shares: Shares) -> dict[str, PruneChannels]:
        """The groups that may be pruned with their options; ``shares`` of their heads are left."""
        held = ends(now.graph, self.keep_first, self.keep_last)
        wanted = {}
        for group in now.channels.groups:
            options = self.options_for(group.name)
            why = [held[p.tensor, p.axis] for p in group.places if (p.tensor, p.axis) in held]
            if options is None:
                now.report.skip(group.name, "skipped by the recipe")
            elif why:
                now.report.skip(group.name, why[0])
            elif options.sparsity == self.sparsity and (self._budget or self.scope == "global"):
                wanted[group.name] = options
            else:
                left = sparsity_left(options.sparsity, group, shares)
                wanted[group.name] = dataclasses.replace(options, sparsity=left)
        return wanted

    def _importance(self, context: PassContext) -> Importance:
        if self.importance == "auto":
            return "reconstruction" if context.has_real_samples else "l2"
        if self.importance in ("activation", "reconstruction"):
            context.samples()
        return self.importance

    def _compares(self) -> bool:
        """Whether groups compete for what may be left."""
        return self.scope == "global" or (self._budget is not None and self.scope == "auto")

    @property
    def _budget(self) -> str | None:
        """The option that gives one."""
        return given_budget(self)

    def _tell(
        self,
        before: gs.Graph,
        kept: Kept,
        losses: Sequence[tuple[dict[str, Any], Losses]],
        context: PassContext,
        report: PassReport,
    ) -> None:
        """Records what left, in the names of the original."""
        for node in before.nodes:
            if any(tensor.name in kept for tensor in (*node.inputs, *node.outputs)):
                report.change(node)
        original = context.original if context.original is not None else before
        traced = trace(original, [lost for _, lost in losses], before, context.removed)
        for (entry, _), left in zip(losses, traced, strict=True):
            report.removed.append(entry | left.as_dict())
        report.numbers["groups"] = len(losses)

    def _recover(
        self,
        before: gs.Graph,
        graph: gs.Graph,
        kept: Kept,
        context: PassContext,
        report: PassReport,
    ) -> None:
        found = recover(
            before,
            graph,
            kept,
            context.samples(),
            samples=self.samples,
            seed=context.seed,
            advance=context.advance,
        )
        report.numbers["refitted_layers"] = len(found.refitted)
        for name, reason in found.skipped.items():
            report.skip(name, f"not refitted: {reason}")


@dataclass(frozen=True)
class _Round:
    """What can be cut at one time.

    Attributes:
        came: the graph before the pass, of which budgets are shares.
        graph: what is left of it.
        channels: of that.
        context, report: of the pass.
    """

    came: gs.Graph
    graph: gs.Graph
    channels: Channels
    context: PassContext
    report: PassReport

    @cached_property
    def feed(self) -> Feed:
        """Inputs at whose shapes things are counted and timed."""
        return next(self.context.samples().feeds(1))
