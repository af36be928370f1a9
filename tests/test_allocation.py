"""Levels under a budget against exhaustive search, and by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.allocation import Allocation, Choice, allocate, at_sparsity, uniform
from onnxcomp.errors import RecipeError
from onnxcomp.knapsack import Problem, fill
from onnxcomp.resources import Product, Resource, Size, Table
from onnxcomp.usage import Usage

Array = np.ndarray[Any, Any]
seeds = st.integers(0, 2**20)
ROUNDING = 1 + 1e-12


def falling(rng: np.random.Generator, levels: int, convex: bool) -> Array:
    """Costs of keeping 1, 2, ... levels: 0 for all, more for fewer."""
    steps = rng.random(levels - 1)
    if convex:
        steps = np.sort(steps)[::-1]
    return np.append(np.cumsum(steps[::-1])[::-1], 0.0) * rng.uniform(0.1, 10)


def choices_of(rng: np.random.Generator, count: int, levels: int, convex: bool) -> list[Choice]:
    return [
        Choice(
            name=f"g{at}",
            size=levels,
            levels=np.arange(1, levels + 1),
            cost=falling(rng, levels, convex),
        )
        for at in range(count)
    ]


def separable(rng: np.random.Generator, choices: list[Choice]) -> Resource:
    terms = [Product.of_powers(rng.uniform(0.1, 10), {choice.name: 1}) for choice in choices]
    return Resource(terms=tuple(terms), constant=1.0)


def coupled(rng: np.random.Generator, choices: list[Choice]) -> Resource:
    """A chain of layers, a few that read and write the same group, and a table."""
    names = [choice.name for choice in choices]
    terms: list[Product | Table] = [
        Product.of_powers(rng.uniform(0.1, 10), {one: 1, other: 1})
        for one, other in itertools.pairwise(names)
    ]
    terms += [Product.of_powers(rng.uniform(0.1, 10), {rng.choice(names): 2}) for _ in range(2)]
    values = np.cumsum(np.cumsum(rng.random((3, 3)), axis=0), axis=1)
    axes = tuple(Size(parts={name: 8.0}) for name in rng.choice(names, 2))
    knots = np.asarray([2.0, 5.0, 8.0])
    return Resource(terms=(*terms, Table(sizes=axes, knots=(knots, knots), values=values)))


def budget_of(rng: np.random.Generator, choices: list[Choice], resource: Resource) -> float:
    least = resource.value({choice.name: choice.levels[0] / choice.size for choice in choices})
    return float(least + (resource.value() - least) * rng.random())


def value(choices: list[Choice], resource: Resource, levels: tuple[int, ...]) -> float:
    return resource.value({c.name: n / c.size for c, n in zip(choices, levels, strict=True)})


def optimum(choices: list[Choice], resource: Resource, budget: float) -> float:
    """The least cost of all combinations of levels that fit."""
    costs = [dict(zip(c.levels.tolist(), c.cost.tolist(), strict=True)) for c in choices]
    return min(
        sum(cost[level] for cost, level in zip(costs, levels, strict=True))
        for levels in itertools.product(*costs)
        if value(choices, resource, levels) <= budget * ROUNDING
    )


def check(choices: list[Choice], resource: Resource, budget: float, found: Allocation) -> None:
    """That a result says what it is, fits, and leaves nothing that one choice could use."""
    levels = tuple(found.levels[choice.name] for choice in choices)
    at = [list(c.levels).index(level) for c, level in zip(choices, levels, strict=True)]
    assert found.cost == pytest.approx(sum(c.cost[i] for c, i in zip(choices, at, strict=True)))
    assert found.resource == pytest.approx(value(choices, resource, levels))
    assert found.resource <= budget * ROUNDING
    for row, choice in enumerate(choices):
        for level, cost in zip(choice.levels, choice.cost, strict=True):
            if cost < choice.cost[at[row]]:
                raised = (*levels[:row], int(level), *levels[row + 1 :])
                assert value(choices, resource, raised) > budget * (1 - 1e-9)


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 5))
def test_convex_and_separable_is_optimal_to_one_step(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    choices = choices_of(rng, count, 4, convex=True)
    resource = separable(rng, choices)
    budget = budget_of(rng, choices, resource)
    found = allocate(choices, resource, budget)
    check(choices, resource, budget, found)
    largest = max(-np.diff(choice.cost).min() for choice in choices)
    assert found.cost <= optimum(choices, resource, budget) + largest + 1e-9


@settings(max_examples=25, deadline=None)
@given(seeds, st.integers(1, 6), st.booleans())
def test_coupled_choices_fit_and_nothing_is_left(seed: int, count: int, convex: bool) -> None:
    rng = np.random.default_rng(seed)
    choices = choices_of(rng, count, 8, convex)
    resource = coupled(rng, choices)
    budget = budget_of(rng, choices, resource)
    found = allocate(choices, resource, budget)
    check(choices, resource, budget, found)
    even = uniform(choices, resource, budget)
    assert even.resource <= budget * ROUNDING
    assert found.cost <= even.cost * ROUNDING


@settings(max_examples=25, deadline=None)
@given(seeds, st.booleans(), st.booleans())
def test_two_choices_are_optimal(seed: int, convex: bool, couple: bool) -> None:
    rng = np.random.default_rng(seed)
    choices = choices_of(rng, 2, 7, convex)
    resource = (coupled if couple else separable)(rng, choices)
    budget = budget_of(rng, choices, resource)
    best = optimum(choices, resource, budget)
    assert allocate(choices, resource, budget).cost == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("make", [separable, coupled])
def test_few_coarse_choices_are_near_the_optimum(make: Any) -> None:
    """Of 30 problems of four choices of four levels: on average, and most of them exactly."""
    excess = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        choices = choices_of(rng, 4, 4, convex=bool(seed % 2))
        resource = make(rng, choices)
        budget = budget_of(rng, choices, resource)
        best = optimum(choices, resource, budget)
        whole = sum(choice.cost[0] for choice in choices)
        excess.append((allocate(choices, resource, budget).cost - best) / whole)
    assert np.mean(excess) < 0.005
    assert np.mean(np.asarray(excess) < 1e-9) > 0.7


def test_many_coarse_choices_are_near_the_optimum() -> None:
    """27 groups of 16 to 64 channels in steps of 8, against dynamic programming."""
    excess = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        choices, terms, units = [], [], rng.choice([3, 5, 7, 9, 11], 27)
        for at, unit in enumerate(units):
            size = (16, 32, 64)[at // 9]
            decay = np.exp(-np.arange(size)[::-1] / size * rng.uniform(1, 8))
            cost = np.append(0.0, np.cumsum(decay)) * rng.lognormal()
            choices.append(Choice.of_removal(f"g{at}", cost, multiple=8))
            terms.append(Product.of_powers(unit * size / 8, {f"g{at}": 1}))
        resource = Resource(terms=tuple(terms))
        budget = int(resource.value() * rng.uniform(0.4, 0.9))
        best = np.append(0.0, np.full(budget, np.inf))  # least cost of using up exactly so much
        for choice, unit in zip(choices, units, strict=True):
            used = [int(level) // 8 * unit for level in choice.levels]
            shifted = [np.append(np.full(n, np.inf), best)[: budget + 1] for n in used]
            best = (np.stack(shifted) + choice.cost[:, None]).min(axis=0)
        excess.append(allocate(choices, resource, budget).cost / best.min() - 1)
    assert min(excess) >= -1e-9
    assert np.mean(excess) < 0.01
    assert max(excess) < 0.03


def test_many_fine_choices_meet_the_continuous_optimum() -> None:
    """sum w_g (1 - x_g)^2 with sum c_g x_g = B: by Lagrange x_g = 1 - price c_g / (2 w_g)."""
    rng = np.random.default_rng(0)
    count, size = 200, 4096
    weights, coefficients = rng.uniform(1, 2, count), rng.uniform(1, 2, count)
    curve = (np.arange(size + 1) / size) ** 2
    choices = [Choice.of_removal(f"g{at}", w * curve) for at, w in enumerate(weights)]
    terms = [Product.of_powers(c, {f"g{at}": 1}) for at, c in enumerate(coefficients)]
    resource = Resource(terms=tuple(terms))
    found = allocate(choices, resource, 0.8 * coefficients.sum())
    price = 0.2 * coefficients.sum() / (coefficients**2 / (2 * weights)).sum()
    kept = 1 - price * coefficients / (2 * weights)
    levels = np.asarray([found.levels[f"g{at}"] for at in range(count)]) / size
    assert np.abs(levels - kept).max() < 2 / 512
    assert found.cost == pytest.approx((weights * (1 - kept) ** 2).sum(), rel=1e-4)
    assert found.resource > 0.8 * coefficients.sum() * (1 - 1e-5)


def test_products_make_a_chain_keep_its_balance() -> None:
    """x y = 1/4 with costs (1 - x)^2 + (1 - y)^2: both halves, and not what is linear at 1."""
    curve = (np.arange(101) / 100) ** 2
    choices = [Choice.of_removal(name, curve) for name in "xy"]
    resource = Resource(terms=(Product.of_powers(1.0, {"x": 1, "y": 1}),))
    found = allocate(choices, resource, 0.25)
    assert found.levels == {"x": 50, "y": 50}


def test_a_choice_that_saves_nothing_is_left_whole() -> None:
    choices = [Choice.of_removal(name, np.arange(9.0)) for name in ("free", "flat", "steep")]
    table = Table(
        sizes=(Size(parts={"flat": 8.0}),), knots=(np.asarray([4.0, 8.0]),), values=np.full(2, 9.0)
    )
    resource = Resource(terms=(table, Product.of_powers(8.0, {"steep": 1})))
    assert allocate(choices, resource, 14.0).levels == {"free": 8, "flat": 8, "steep": 5}


def test_a_smaller_layer_that_is_slower_is_never_chosen() -> None:
    """5 to 7 channels of 8 fall off the fast kernel: 4 is the next that pays."""
    choices = [Choice.of_removal(name, np.arange(9.0)) for name in ("odd", "even")]
    times = np.asarray([1, 2, 3, 4, 9, 9, 9, 8])
    tables = [
        Table(sizes=(Size(parts={"odd": 8.0}),), knots=(np.arange(1, 9),), values=times),
        Table(
            sizes=(Size(parts={"even": 8.0}),), knots=(np.asarray([0, 8]),), values=times[[0, 3]]
        ),
    ]
    resource = Resource(terms=tuple(tables), unit="ms")
    assert resource.value() == 12
    assert allocate(choices, resource, 11.6).levels == {"odd": 8, "even": 6}
    assert allocate(choices, resource, 9.1).levels == {"odd": 4, "even": 8}
    assert allocate(choices, resource, 7.0).levels == {"odd": 3, "even": 8}


def test_ranks_are_levels_like_any_other() -> None:
    """Two weights [8, 8]: rank r takes 16 r, left whole 64; the flat spectrum stays whole."""
    spectra = {"flat": np.ones(8), "low": np.asarray([9.0, 4, 1e-3, 1e-3, 0, 0, 0, 0])}
    levels = np.asarray([1, 2, 3, 8])
    choices = [
        Choice(
            name=name, size=8, levels=levels, cost=np.asarray([spectrum[r:].sum() for r in levels])
        )
        for name, spectrum in spectra.items()
    ]
    table = [
        Table(sizes=(Size(parts={n: 8.0}),), knots=(levels,), values=np.asarray([16, 32, 48, 64]))
        for n in spectra
    ]
    found = allocate(choices, Resource(terms=tuple(table), unit="MACs"), 100)
    assert found.levels == {"flat": 8, "low": 2}
    assert found.resource == 96


def test_what_costs_nothing_goes_even_within_the_budget() -> None:
    choice = Choice.of_removal("a", np.asarray([0.0, 0.0, 0.0, 1.0, 2.0]))
    resource = Resource(terms=(Product.of_powers(4.0, {"a": 1}),))
    assert allocate([choice], resource, 100.0).levels == {"a": 2}


@pytest.mark.parametrize("choose", [allocate, uniform])
def test_a_budget_that_cannot_be_met_says_what_can(choose: Any) -> None:
    choice = Choice.of_removal("a", np.arange(101.0), max_sparsity=0.5)
    resource = Resource(terms=(Product.of_powers(4000.0, {"a": 2}),), unit="MACs")
    with pytest.raises(RecipeError, match=r"900 MACs cannot be met: 1,000 MACs are left"):
        choose([choice], resource, 900)
    assert choose([choice], resource, 1000).levels == {"a": 50}


def test_without_choices_there_is_only_the_constant() -> None:
    assert allocate([], Resource(terms=(), constant=3.0), 3.0).resource == 3
    with pytest.raises(RecipeError, match="3 are left"):
        allocate([], Resource(terms=(), constant=3.0), 2.0)


@pytest.mark.parametrize(
    ("multiple", "max_sparsity", "levels"),
    [
        (1, 1.0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (4, 1.0, [4, 8, 10]),
        (4, 0.5, [8, 10]),
        (16, 1.0, [10]),
        (1, 0.2, [8, 9, 10]),
        (1, 0.0, [10]),
    ],
)
def test_levels_are_multiples_or_all(multiple: int, max_sparsity: float, levels: list[int]) -> None:
    cost = np.arange(11.0) ** 2
    choice = Choice.of_removal("a", cost, multiple=multiple, max_sparsity=max_sparsity)
    assert choice.levels.tolist() == levels
    assert choice.cost.tolist() == [(10 - level) ** 2 for level in levels]


def test_the_same_sparsity_for_all_rounds_to_levels() -> None:
    choices = [
        Choice.of_removal("a", np.arange(65.0), multiple=8),
        Choice.of_removal("b", np.arange(13.0)),
        Choice.of_removal("c", np.arange(65.0), multiple=8, max_sparsity=0.25),
    ]
    assert at_sparsity(choices, 0.5) == {"a": 32, "b": 6, "c": 48}
    assert at_sparsity(choices, 0.56) == {"a": 32, "b": 5, "c": 48}  # 28.16, 5.28, 28.16
    assert at_sparsity(choices, 0.0) == {"a": 64, "b": 12, "c": 64}


def test_uniform_removes_as_little_as_the_budget_asks_for() -> None:
    choices = [Choice.of_removal(name, np.arange(101.0)) for name in "ab"]
    resource = Resource(terms=(Product.of_powers(1.0, {"a": 1, "b": 1}),))
    assert uniform(choices, resource, 0.5).levels == {"a": 70, "b": 70}  # 0.71^2 = 0.5041
    assert uniform(choices, resource, 1.0).levels == {"a": 100, "b": 100}


@pytest.mark.parametrize(
    ("levels", "cost", "reason"),
    [
        ([1, 2], [0.0], "each level"),
        ([2, 1], [0.0, 1.0], "ascend"),
        ([], [], "ascend"),
        ([1, 2], [np.nan, 0.0], "finite"),
    ],
)
def test_curves_that_are_none_are_refused(levels: Any, cost: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Choice(name="a", size=2, levels=np.asarray(levels), cost=np.asarray(cost))


def test_names_are_unique() -> None:
    choice = Choice.of_removal("a", np.arange(3.0))
    with pytest.raises(ValueError, match="same name"):
        allocate([choice, choice], Resource(terms=()), 1.0)


def test_a_step_that_a_limit_refuses_is_tried_again_after_others() -> None:
    """x may rise once y has: the limit is on 2 x - 4/3 y. Levels of x are padded to those of y."""
    x, y = Size(parts={"x": 1}), Size(parts={"y": 1})
    used = Product(coefficient=2.0, sizes=(x,)), Product(coefficient=4 / 3, sizes=(y,))
    limit = Resource(terms=(used[0], Product(coefficient=-4 / 3, sizes=(y,))))
    kept = [np.asarray([0.5, 1.0]), np.asarray([0.25, 0.5, 0.75, 1.0])]
    costs = [np.asarray([10.0, 0.0]), np.asarray([9.5, 9.4, 9.3, 0.0])]
    names = ["x", "y"]
    limits = [(Usage(limit, names), 0.7)]

    problem = Problem(kept, costs, Usage(Resource(terms=used), names), 10.0, limits)

    assert fill(problem, np.asarray([0, 0])).tolist() == [1, 3]
    assert not problem.fits(np.asarray([1, 0]))
