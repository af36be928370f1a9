"""How many units each channel group keeps of what all may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from onnxcomp.allocation import allocate, uniform
from onnxcomp.group_choices import Choices, with_own_levels
from onnxcomp.kernel_blocks import Blocked, allocate_in_blocks
from onnxcomp.pruning_budgets import Budget, aimed_at

Scope = Literal["auto", "uniform", "global"]


@dataclass(frozen=True)
class GroupAllocation:
    """The rule by which groups share what may be left.

    Attributes:
        sparsity: of all groups, where there is no budget.
        own: sparsity of each group by name; where groups share, one that differs from that of all
            is kept to.
        scope: ``uniform``, the same fraction of every group; ``global``, the units that cost least
            for what they free; ``auto``, global for a budget, else uniform.
        budget: what may be left.
        blocked: with which whole blocks of channels are left, so that time is saved.
    """

    sparsity: float
    own: Mapping[str, float]
    scope: Scope
    budget: Budget | None
    blocked: Blocked | None = None

    def counts(self, choices: Choices) -> tuple[Mapping[str, int], list[str]]:
        """How many units each group keeps, and notes."""
        budget, shares = self.budget, {name: self.own[name] for name in choices}
        if budget is not None or self.scope == "global":
            shares = {name: share for name, share in shares.items() if share != self.sparsity}
        fixed, free = with_own_levels(choices, shares)
        note = ""
        if budget is None and len(fixed) == len(choices):
            return fixed, []
        if budget is None:
            groups = [item.group for item, _ in choices.values()]
            budget, note = aimed_at(groups, free, self.sparsity)
        if self.scope == "uniform":
            levels = uniform(free, budget.resource, budget.amount).levels
        elif self.blocked is None:
            levels = allocate(free, budget.resource, budget.amount).levels
        else:
            levels, note = allocate_in_blocks(free, budget.resource, budget.amount, self.blocked)
        return levels, [note] if note else []
