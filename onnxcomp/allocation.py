"""How much each of many things keeps under one budget: a Lagrangian knapsack over cost curves.

Kept widths of channel groups and ranks of factorized weights are chosen alike: each `Choice` has
levels with a cost, and a `Resource` says what the levels use up together. Costs add up; resources
multiply, as a layer's MACs do with the widths of its input and its output. For a fixed price of the
resource every choice is made alone, given what the others keep (Everett 1963, "Generalized Lagrange
multiplier method"); the price is found by bisection, the others' levels by repeating. What whole
levels leave of the budget is then used up by single steps and by exchanges between two choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import RecipeError
from onnxcomp.knapsack import Problem, exchange, fill, least, relax
from onnxcomp.resources import Resource
from onnxcomp.usage import Usage

Array = npt.NDArray[Any]

EXCHANGES = 3  # rounds of exchanging and filling
SPARSITY_STEPS = 40  # of halving


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Levels of which one is to be chosen.

    Attributes:
        name: as the resource calls it.
        size: the level that changes nothing: all units, the full rank.
        levels: what may be kept, ascending, int [n].
        cost: of keeping only that, [n], finite.

    Raises:
        ValueError: the arrays do not fit each other.
    """

    name: str
    size: int
    levels: Array
    cost: Array

    def __post_init__(self) -> None:
        if np.shape(self.levels) != np.shape(self.cost) or np.ndim(self.levels) != 1:
            raise ValueError(f"{self.name}: a cost is needed for each level")
        if not len(self.levels) or (np.diff(self.levels) <= 0).any() or self.size <= 0:
            raise ValueError(f"{self.name}: levels have to ascend")
        if not np.isfinite(self.cost).all():
            raise ValueError(f"{self.name}: costs have to be finite; leave out other levels")

    @classmethod
    def of_removal(
        cls, name: str, cost: Array, *, multiple: int = 1, max_sparsity: float = 1.0
    ) -> Choice:
        """A choice of how many units to remove.

        Args:
            name: of the choice.
            cost: of removing 0, 1, ... units, [size + 1]; at least one unit is kept.
            multiple: of which the number kept is one, unless all are.
            max_sparsity: the fraction that may be removed, 0..1.
        """
        size = len(cost) - 1
        least = max(1.0, size * (1.0 - max_sparsity) - 1e-9)
        kept = np.arange(multiple, size, multiple)
        levels = np.append(kept[kept >= least], size)
        return cls(name=name, size=size, levels=levels, cost=np.asarray(cost)[size - levels])


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Levels chosen.

    Attributes:
        levels: what each choice keeps, by name.
        cost: of all together.
        resource: what they use up.
    """

    levels: Mapping[str, int]
    cost: float
    resource: float


def allocate(
    choices: Sequence[Choice],
    resource: Resource,
    budget: float,
    limits: Sequence[tuple[Resource, float]] = (),
) -> Allocation:
    """The levels of least total cost that use up no more than the budget, to rounding.

    Of levels that cost the same the one that uses less is taken. The result is near the optimum of
    a resource that is a sum over choices, by less than one step of one choice, and near a local one
    of others.

    Args:
        choices: what there is to choose.
        resource: what levels are weighed by.
        budget: the most that may be used of it.
        limits: other resources, and the most that may be used of them.

    Raises:
        RecipeError: the budget cannot be met, or no levels were found that keep the limits.
        ValueError: two choices have the same name.
    """
    problem = _problem(choices, resource, budget, limits)
    if not limits:
        _check(problem, least(problem), resource, budget)
    starts = (problem.top, _most_uniform(problem, choices), problem.bottom)
    plans = [plan for plan in (relax(problem, start) for start in starts) if problem.fits(plan)]
    if not plans:
        raise RecipeError("no levels were found that keep all limits")
    plan = min((fill(problem, plan) for plan in plans), key=problem.cost)
    for _ in range(EXCHANGES):
        found = fill(problem, exchange(problem, plan))
        if (found == plan).all():
            break
        plan = found
    return _allocation(problem, choices, plan)


def uniform(choices: Sequence[Choice], resource: Resource, budget: float) -> Allocation:
    """The least sparsity, the same for all choices, that uses up no more than the budget.

    Raises:
        RecipeError: the budget cannot be met.
        ValueError: two choices have the same name.
    """
    problem = _problem(choices, resource, budget)
    _check(problem, problem.bottom, resource, budget)
    return _allocation(problem, choices, _most_uniform(problem, choices))


def at_sparsity(choices: Sequence[Choice], sparsity: float) -> dict[str, int]:
    """For each choice the level nearest to keeping 1 - sparsity of it, the larger of two."""
    plan = _uniform_plan(choices, sparsity)
    return {c.name: int(c.levels[at]) for c, at in zip(choices, plan, strict=True)}


def _problem(
    choices: Sequence[Choice],
    resource: Resource,
    budget: float,
    limits: Sequence[tuple[Resource, float]] = (),
) -> Problem:
    names = [choice.name for choice in choices]
    if len(set(names)) < len(names):
        raise ValueError("two choices have the same name")
    kept = [choice.levels / choice.size for choice in choices]
    others = [(Usage(other, names), most) for other, most in limits]
    costs = [choice.cost for choice in choices]
    return Problem(kept, costs, Usage(resource, names), budget, others)


def _check(problem: Problem, plan: Array, resource: Resource, budget: float) -> None:
    """Refuses a budget below what the plan that uses least does."""
    if not problem.fits(plan):
        wanted, left = resource.in_words(budget), resource.in_words(problem.used(plan))
        raise RecipeError(
            f"a budget of {wanted} cannot be met: {left} are left when all is removed that may "
            "be; ask for at least that, or let more be removed"
        )


def _allocation(problem: Problem, choices: Sequence[Choice], plan: Array) -> Allocation:
    pairs = zip(choices, plan, strict=True)
    levels = {choice.name: int(choice.levels[at]) for choice, at in pairs}
    return Allocation(levels=levels, cost=problem.cost(plan), resource=problem.used(plan))


def _uniform_plan(choices: Sequence[Choice], sparsity: float) -> Array:
    return np.asarray([_nearest(c, c.size * (1.0 - sparsity)) for c in choices], np.int64)


def _nearest(choice: Choice, kept: float) -> int:
    above = min(int(np.searchsorted(choice.levels, kept)), len(choice.levels) - 1)
    below = max(above - 1, 0)
    return below if kept - choice.levels[below] < choice.levels[above] - kept else above


def _most_uniform(problem: Problem, choices: Sequence[Choice]) -> Array:
    """The plan of least uniform sparsity that fits; that of all smallest levels if none does."""
    fitting, too_large = 1.0, 0.0
    if problem.fits(_uniform_plan(choices, too_large)):
        return _uniform_plan(choices, too_large)
    for _ in range(SPARSITY_STEPS):
        middle = (fitting + too_large) / 2
        if problem.fits(_uniform_plan(choices, middle)):
            fitting = middle
        else:
            too_large = middle
    return _uniform_plan(choices, fitting)
