"""One option for each weight so that least is lost under one budget: the knapsack of pruning.

Each weight is a `Choice` of which the levels are its options, in the order of what they use; the
top level is the weight as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.allocation import Choice, allocate
from onnxcomp.kernel_blocks import Blocked, allocate_in_blocks
from onnxcomp.rank_planning import Factorable, Option, Plan
from onnxcomp.resources import Resource, Size, Table

SHARES = (0.5, 0.25)  # of the MACs saved that the work saved has to be: calls and moves never pay


@dataclass(frozen=True, kw_only=True)
class Use:
    """What is used of something: of one option, and of a weight as it is."""

    option: Callable[[Option], float]
    now: Callable[[Factorable], float]
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """MACs, and the work that they are on a target: see `Form.work`."""

    macs: Use
    work: Use


def within_budget(
    items: Sequence[Factorable], use: Use, whole: float, budget: float, pace: Pace | None = None
) -> tuple[Plan, str]:
    """The options that lose least in all and leave no more than a budget.

    Args:
        items: the weights.
        use: what is used.
        whole: what the graph uses as it is.
        budget: the most that may be left.
        pace: the share of the work that is saved has to be about that of the MACs.

    Returns:
        The plan, and a note where it saves less work than MACs.

    Raises:
        RecipeError: the budget cannot be met.
    """
    uses = [use] if pace is None else [use, pace.work]
    levels = {item.name: _best(item, uses) for item in items}
    rest = whole - sum(use.now(item) for item in items)
    resource = _resource(items, levels, use, rest)
    choices = [_choice(item, levels[item.name]) for item in items]
    if pace is None:
        chosen, note = allocate(choices, resource, budget).levels, ""
    else:
        macs, work = (_resource(items, levels, each) for each in (pace.macs, pace.work))
        blocked = Blocked(macs, work.times(macs.value() / (work.value() or 1.0)))
        chosen, note = allocate_in_blocks(choices, resource, budget, blocked, SHARES)
    plan = {
        name: levels[name][level - 1]
        for name, level in chosen.items()
        if level <= len(levels[name])
    }
    return plan, note


def _best(item: Factorable, uses: Sequence[Use]) -> list[Option]:
    """Options of which no other uses and loses no more; what uses least of the first is first."""
    amounts = [[*(use.option(o) for use in uses), o.lost] for o in item.options]
    table = np.asarray(amounts, np.float64).reshape(len(item.options), len(uses) + 1)
    order = np.lexsort(table.T[::-1])
    table = table[order]
    below = (table[None] <= table[:, None]).all(axis=2)  # [option, other]: other is no worse
    beaten = np.tril(below, -1).any(axis=1)  # of equals the first stays
    saves = table[:, 0] < uses[0].now(item)
    return [item.options[at] for at in order[saves & ~beaten]]


def _choice(item: Factorable, options: Sequence[Option]) -> Choice:
    size = len(options) + 1
    costs = [*(item.weight * option.lost for option in options), 0.0]
    return Choice(name=item.name, size=size, levels=np.arange(1, size + 1), cost=np.asarray(costs))


def _resource(
    items: Sequence[Factorable],
    levels: dict[str, list[Option]],
    use: Use,
    constant: float = 0.0,
) -> Resource:
    tables = []
    for item in items:
        values = [*(use.option(option) for option in levels[item.name]), use.now(item)]
        knots = np.arange(1, len(values) + 1)
        size = Size(parts={item.name: float(len(values))})
        tables.append(Table(sizes=(size,), knots=(knots,), values=np.asarray(values, np.float64)))
    return Resource(terms=tuple(tables), constant=constant, unit=use.unit)
