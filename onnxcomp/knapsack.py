"""Choosing a level for each of many choices under one budget: relaxation, filling, exchanging.

A plan is the index of a level for each choice, [g]. Costs add up over choices; what is used up is
any `Usage`, so that what a level of one choice uses depends on the levels of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.usage import Usage

Array = npt.NDArray[Any]

ROUNDING = 1e-12  # of the budget
ROUNDS = 12  # of choosing all levels given the last ones
SETTLED = 1e-4  # of the cost: a round that gains less is the last
FINEST = 512  # levels while the price is searched; single steps then see all of them
PRICE_STEPS = 60
HIGHEST = 1e9  # price, of the first
PRICE_EXACT = 1e-7
CLOSE = 0.9  # of the best gain for what is used: taken in one go
LOWERED, RAISED = 8, 16  # levels that an exchange moves by at most
RAISES = 24  # tried for each that is lowered, best first: limits are not foreseen
MOST_TRIES, MOST_WORK = 300, 20_000  # exchanges matter where choices are few


class Problem:
    """Choices as arrays, padded to the same number of levels by repeating the largest.

    Attributes:
        kept: fractions, [g, levels].
        costs: [g, levels].
        top, bottom: the plans of all largest and of all smallest levels.
        rows: 0 .. g - 1.
        real: which levels are no repetitions, [g, levels].
        tiny: a difference of what is used that is rounding.
    """

    def __init__(
        self,
        kept: Sequence[Array],
        costs: Sequence[Array],
        usage: Usage,
        budget: float,
        limits: Sequence[tuple[Usage, float]] = (),
    ) -> None:
        """``kept`` and ``costs``: [levels] for each choice, kept ascending; ``limits`` hold, too,
        without being looked at when levels are weighed."""
        self.usage, self.tiny = usage, ROUNDING * abs(budget) or ROUNDING
        self._limit = budget + self.tiny
        self.limited = bool(limits)  # a step that is refused now may be possible after others
        self._limits = [(other, most + ROUNDING * abs(most)) for other, most in limits]
        self.rows = np.arange(len(costs))
        self.top = np.asarray([len(known) - 1 for known in costs], np.int64)
        self.bottom = np.zeros_like(self.top)
        self.every = np.minimum(np.arange(self.top.max(initial=0) + 1), self.top[:, None])
        self.real = np.arange(self.top.max(initial=0) + 1) <= self.top[:, None]
        self.kept, self.costs = (
            np.stack([known[at] for known, at in zip(arrays, self.every, strict=True)])
            if arrays
            else np.zeros(self.every.shape)
            for arrays in (kept, costs)
        )

    def used(self, plan: Array) -> float:
        """What a plan uses up."""
        return self.usage.value(self.kept[self.rows, plan])

    def left(self, plan: Array) -> float:
        """What a plan leaves of the budget; negative where it does not fit."""
        return self._limit - self.used(plan)

    def fits(self, plan: Array) -> bool:
        """Whether a plan is within the budget and the limits."""
        kept = self.kept[self.rows, plan]
        within = all(other.value(kept) <= most for other, most in self._limits)
        return within and self.left(plan) >= 0

    def cost(self, plan: Array) -> float:
        """Of a plan."""
        return float(self.costs[self.rows, plan].sum())

    def changes(self, plan: Array, columns: Array, rows: Array | None = None) -> Array:
        """By how much more is used when one choice alone takes other levels.

        Args:
            plan: what the others take.
            columns: indices of levels, [g, n].
            rows: which choices; None for all.

        Returns:
            [rows, n]
        """
        chosen = self.rows if rows is None else rows
        candidates = np.take_along_axis(self.kept[chosen], columns[chosen], axis=1)
        return self.usage.changes(self.kept[self.rows, plan], chosen, candidates)


def least(problem: Problem) -> Array:
    """A plan that uses as little as any, exactly so where keeping less never uses more."""
    plan = problem.bottom
    for _ in range(ROUNDS if len(plan) else 0):
        changes = problem.changes(plan, problem.every)
        row, column = np.unravel_index(int(changes.argmin()), changes.shape)
        if changes[row, column] >= -problem.tiny:
            break
        plan = plan.copy()
        plan[row] = column
    return plan


def relax(problem: Problem, start: Array) -> Array:
    """Chooses all levels for one price, given the last ones, until that gains no more.

    Args:
        problem: that `least` can solve.
        start: a plan, whether it fits or not.
    """
    columns = _thinned(problem)
    known: Array | None = None
    plan, best, price, cost = start, None, 0.0, np.inf
    for _ in range(ROUNDS):
        changes = problem.changes(plan, columns)
        changes -= changes.min(axis=1, keepdims=True)
        known = changes if known is None else (known + changes) / 2  # or levels go to and fro
        plan, price = _priced(problem, columns, known, price)
        if not problem.fits(plan):
            continue
        before, now = cost, problem.cost(plan)
        if now < cost:
            best, cost = plan, now
        if now > before * (1 - SETTLED):
            break
    return least(problem) if best is None else best


def _thinned(problem: Problem) -> Array:
    """Columns to look at, [g, few]: every n-th level from the largest down, and the smallest."""
    levels = problem.costs.shape[1]
    step = -(-levels // FINEST)
    columns = problem.top[:, None] - step * np.arange(-(-levels // step) + 1)
    found: Array = np.maximum(columns, 0)[:, ::-1]
    return found


def _priced(problem: Problem, columns: Array, changes: Array, last: float) -> tuple[Array, float]:
    """The plan of the lowest price that fits the budget, and the price (the largest tried if none).

    Args:
        problem: all of it.
        columns: indices of the levels to choose from, [g, few].
        changes: what each uses more than the one that uses least, [g, few].
        last: a price to start from; 0 for none.
    """
    costs = np.take_along_axis(problem.costs, columns, axis=1)

    def plan(price: float) -> Array:
        at = np.argmin(costs + price * changes, axis=1)  # of equals the smallest level
        found: Array = columns[problem.rows, at]
        return found

    best = plan(0.0)
    if problem.fits(best):
        return best, 0.0
    scale = float(np.ptp(costs) / (changes.max(initial=0.0) or 1.0)) or 1.0
    low, high = (last / 1.5, last * 1.5) if last else (scale / 4, scale)
    for _ in range(PRICE_STEPS):
        best = plan(high)
        if problem.fits(best):
            break
        low, high = high, 8 * high
        if high > HIGHEST * scale:
            return best, high
    for _ in range(PRICE_STEPS):
        trial = plan(low)
        if not problem.fits(trial):
            break
        best, low, high = trial, low / 8, low
    for _ in range(PRICE_STEPS):
        if high < low * (1 + PRICE_EXACT):
            break
        middle = (low * high) ** 0.5
        trial = plan(middle)
        if problem.fits(trial):
            best, high = trial, middle
        else:
            low = middle
    return best, high


def fill(problem: Problem, plan: Array) -> Array:
    """Uses up what a plan leaves of the budget, by the steps that gain most for what they use."""
    changes = problem.changes(plan, problem.every)
    while True:
        gains = problem.costs[problem.rows, plan][:, None] - problem.costs
        possible = (changes <= problem.left(plan)) & (gains > 0) & problem.real
        worth = np.zeros_like(gains)
        np.divide(gains, np.maximum(changes, problem.tiny), out=worth, where=possible)
        columns = worth.argmax(axis=1)
        best = worth[problem.rows, columns]
        if not best.any():
            return plan
        touched: list[Array] = []
        for row in np.argsort(-best, kind="stable"):
            if best[row] < CLOSE * best.max():
                break
            trial = plan.copy()
            trial[row] = columns[row]
            if problem.fits(trial):
                plan = trial
                touched.append(problem.usage.neighbours[row])
            else:
                changes[row, columns[row]] = np.inf
        if touched:
            rows = problem.rows if problem.limited else np.unique(np.concatenate(touched))
            changes[rows] = problem.changes(plan, problem.every, rows)


def exchange(problem: Problem, plan: Array) -> Array:
    """Lowers one choice to raise another, as long as that is cheaper and tries are left."""
    plan = plan.copy()
    tries, row, unchanged = min(MOST_TRIES, MOST_WORK // (len(plan) or 1)), 0, 0
    columns = _around(problem, plan)
    changes = problem.changes(plan, columns)
    while unchanged < len(plan) and tries > 0:
        unchanged += 1
        for column in range(plan[row] - 1, max(-1, plan[row] - 1 - LOWERED), -1):
            tries -= 1
            found = _raised(problem, plan, columns, changes, row, column)
            if found is not None:
                other, level = found
                plan[row], plan[other] = column, level
                columns = _around(problem, plan)
                touched = np.union1d(*(problem.usage.neighbours[at] for at in (row, other)))
                changes[touched] = problem.changes(plan, columns, touched)
                unchanged = 0
                break
        row = (row + 1) % len(plan)
    return plan


def _around(problem: Problem, plan: Array) -> Array:
    """The levels near those of a plan, [g, n]."""
    steps = np.arange(-LOWERED, RAISED + 1)
    found: Array = np.clip(plan[:, None] + steps, 0, problem.top[:, None])
    return found


def _raised(
    problem: Problem, plan: Array, columns: Array, changes: Array, row: int, column: int
) -> tuple[int, int] | None:
    """Which choice to raise to which level when one is lowered to ``column``; None if it costs."""
    trial = plan.copy()
    trial[row] = column
    rows = problem.usage.neighbours[row]
    after = changes.copy()
    after[rows] = problem.changes(trial, columns, rows)
    now = problem.costs[problem.rows, plan]
    gains = now[:, None] - np.take_along_axis(problem.costs, columns, axis=1)
    gains[after > problem.left(trial)] = -np.inf
    gains[row] = -np.inf
    loss = problem.costs[row, column] - now[row] + ROUNDING * now.sum()
    for place in np.argsort(-gains, axis=None, kind="stable")[:RAISES]:
        other, at = (int(index) for index in np.unravel_index(place, gains.shape))
        if gains[other, at] <= loss:
            break
        raised = trial.copy()
        raised[other] = columns[other, at]
        if problem.fits(raised):
            return other, int(raised[other])
    return None
