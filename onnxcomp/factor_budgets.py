"""What thinner weights may leave of MACs, parameters, bytes or measured time, and how it is met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.calibration import Calibration
from onnxcomp.factor_trials import written
from onnxcomp.output_effects import LOSS, OutputEffects, weights_of
from onnxcomp.pruning_budgets import MARGIN, milliseconds, time_ratio, used
from onnxcomp.rank_allocation import Pace, Use, within_budget
from onnxcomp.rank_planning import Factorable, Option, Plan, confirmed, exact_loss, typical
from onnxcomp.runtime import Feed

REPLANNED = 3  # plans, with ever more losses exact
ESTIMATED = 0.02  # of a loss: an estimate that is as near was good enough
TRIES = 4  # of a budget that the written model misses: bytes and time are not exactly foretold
ROUNDING = 1e-9
UNITS = {
    "max_macs": "MACs",
    "max_parameters": "parameters",
    "max_bytes": "bytes",
    "min_speedup": "ms",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Limit:
    """A budget of one kind.

    Attributes:
        option: of ``BUDGETS``.
        value: of the option.
        came: the graph of which it is a share.
        graph: the one whose weights are taken apart.
        feed: inputs at whose shapes things are counted and timed.
        whole: what ``graph`` uses now.
        most: what may be left.
        blocks: channels that kernels of the target compute at once, by operator type, if what is
            saved has to save time; None if not.
    """

    option: str
    value: float
    came: gs.Graph
    graph: gs.Graph
    feed: Feed
    whole: float
    most: float
    blocks: Mapping[str, int] | None = None

    @property
    def is_missed(self) -> bool:
        """Whether the graph uses more as it is."""
        return self.whole > self.most * (1 + ROUNDING)

    def plan(self, items: Sequence[Factorable]) -> tuple[Plan, str]:
        """The options that lose least in all, with a note where they hardly save time.

        Losses of tensor methods are estimated first: those of the options taken are then made
        exact, and of the plans made from them the one that loses least is taken.

        Raises:
            RecipeError: the budget cannot be met.
        """
        tried: list[tuple[float, Plan, str]] = []
        known = {item.name: item for item in items}
        for _ in range(REPLANNED):
            plan, note = self._plan(list(known.values()))
            estimated = {name for name, option in plan.items() if not option.exact}
            exact = {name: confirmed(known[name], plan[name]) for name in plan}
            lost = {name: exact_loss(known[name], option) for name, option in plan.items()}
            cost = sum(known[name].weight * loss for name, loss in lost.items())
            tried.append((cost, plan, note))
            known |= exact
            if all(abs(lost[n] - plan[n].lost) <= ESTIMATED * lost[n] for n in estimated):
                break
        _, plan, note = min(tried, key=lambda each: each[0])
        return plan, note

    def _plan(self, items: Sequence[Factorable]) -> tuple[Plan, str]:
        """A plan, written into a copy and counted or timed there."""
        budget, plan, note, scale = self.most, Plan(), "", 1.0
        if self.option == "min_speedup":  # layers may be faster together than alone
            scale = min(1.0, self.whole / sum(item.milliseconds for item in items))
        use = Use(
            option=lambda option: scale * self._amount(option),
            now=lambda item: scale * self._now(item),
            unit=UNITS[self.option],
        )
        for _ in range(TRIES):
            plan, note = within_budget(items, use, self.whole, budget, self._pace())
            missed = self.missed_by(list(plan.values()))
            if missed <= 1 + ROUNDING:
                break
            if self.option == "min_speedup":
                budget *= MARGIN / missed
            else:  # what more nodes take in the file
                budget = self.most - (missed * self.most - self._foretold(items, plan))
        return plan, note

    def _pace(self) -> Pace | None:
        blocks = self.blocks
        if blocks is None or self.option == "min_speedup":
            return None
        return Pace(
            macs=Use(option=lambda o: float(o.macs), now=lambda item: float(item.form.layer_macs)),
            work=Use(
                option=lambda o: float(o.form.work(o.rank, blocks)),
                now=lambda item: float(item.form.layer_work(blocks)),
            ),
        )

    def _foretold(self, items: Sequence[Factorable], plan: Plan) -> float:
        chosen = [(item, plan[item.name]) for item in items if item.name in plan]
        return self.whole - sum(self._now(item) - self._amount(option) for item, option in chosen)

    def missed_by(self, options: Sequence[Option]) -> float:
        """How many times more than may be left is used with these written; up to 1 is kept."""
        trial = written(options, self.graph)
        if self.option == "min_speedup":
            return time_ratio(self.came, trial, self.feed) * self.value
        return used(self.option, trial, self.feed) / self.most

    def _amount(self, option: Option) -> float:
        return {
            "max_macs": float(option.macs),
            "max_parameters": float(option.parameters),
            "max_bytes": float(option.parameters * _item_bytes(option)),
            "min_speedup": option.milliseconds,
        }[self.option]

    def _now(self, item: Factorable) -> float:
        form = item.form
        return {
            "max_macs": float(form.layer_macs),
            "max_parameters": float(form.layer_parameters),
            "max_bytes": float(form.layer_parameters * _item_bytes(item.options[0])),
            "min_speedup": item.milliseconds,
        }[self.option]


def limit_of(
    option: str,
    value: float,
    came: gs.Graph,
    graph: gs.Graph,
    feed: Feed,
    blocks: Mapping[str, int] | None,
) -> Limit:
    """The budget of one option; arguments as the attributes of `Limit`."""
    if option == "min_speedup":
        whole = milliseconds(came, feed)
        most = whole / value
    else:
        whole = used(option, graph, feed)
        most = value * used(option, came, feed)
    return Limit(
        option=option,
        value=value,
        came=came,
        graph=graph,
        feed=feed,
        whole=whole,
        most=most,
        blocks=blocks,
    )


def with_effects(
    items: Sequence[Factorable], graph: gs.Graph, samples: Calibration, limit: int
) -> list[Factorable]:
    """Weights with what the model's outputs lose for a share of each one's energy, measured."""
    if len(items) < 2:
        return list(items)
    effects = OutputEffects(graph, samples, limit, len(items))
    ratios = []
    for item in items:
        option = typical(item, LOSS)
        lost = exact_loss(item, option)
        found = effects.loss_of(written([option], graph))
        ratios.append(None if found is None or lost <= 0 else found / lost)
    pairs = zip(items, weights_of(ratios), strict=True)
    return [replace(item, weight=weight) for item, weight in pairs]


def _item_bytes(option: Option) -> int:
    return int(np.dtype(option.form.weight.dtype).itemsize)
