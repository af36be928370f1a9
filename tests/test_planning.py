"""The search for what to keep: found, fewest and cheapest against all subsets, and few tries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.planning import (
    CONFIRMATIONS,
    GROUPS,
    MOST_GROWTHS,
    MOST_PRUNINGS,
    Choice,
    Verdict,
    by_worth,
    confirmed,
    enough_to_keep,
    fewest_kept,
)

Noise = dict[str, float]


class Adding:
    """A judge of a model whose errors add up; remembers what it was asked."""

    def __init__(self, noise: Noise, allowed: float) -> None:
        self.noise, self.allowed = noise, allowed
        self.asked: list[tuple[str, ...]] = []

    def left(self, kept: Collection[str]) -> float:
        return math.fsum(value for name, value in self.noise.items() if name not in kept)

    def __call__(self, kept: Collection[str]) -> Verdict:
        self.asked.append(tuple(kept))
        left = self.left(kept)
        return Verdict(left <= self.allowed, f"{left:g}")


def noises(count: int, loud: dict[int, float]) -> Noise:
    return {f"n{i}": loud.get(i, 0.001) for i in range(count)}


def test_the_one_bad_node_is_found_wherever_the_order_puts_it() -> None:
    noise = noises(40, {17: 5.0})
    for order in (by_worth(noise, {}), list(noise), list(reversed(noise))):
        judge = Adding(noise, 0.1)
        choice = fewest_kept(order, judge)
        assert choice is not None
        assert choice.kept == ["n17"]
        assert choice.verdict == Verdict(True, f"{judge.left({'n17'}):g}")


def test_with_the_right_order_and_prediction_two_bad_nodes_take_three_tries() -> None:
    noise = noises(40, {3: 5.0, 30: 2.0})
    order = by_worth(noise, {})
    judge = Adding(noise, 0.1)
    first = enough_to_keep(order, noise, 0.1)
    assert (order[:2], first) == (["n3", "n30"], 2)
    choice = fewest_kept(order, judge, first)
    assert choice is not None
    assert sorted(choice.kept) == ["n3", "n30"]
    assert choice.tries == len(judge.asked) <= 4
    assert {name: float(v.figure) for name, v in choice.without.items()} == pytest.approx(
        {"n3": 5.038, "n30": 2.038}
    )


def test_of_two_equally_bad_nodes_the_cheap_one_is_kept() -> None:
    noise = noises(10, {2: 1.0, 7: 1.0})
    order = by_worth(noise, {"n2": 0.9, "n7": 0.01})
    choice = fewest_kept(order, Adding(noise, 1.1))
    assert choice is not None
    assert choice.kept == ["n7"]


def test_nothing_is_claimed_where_no_choice_holds() -> None:
    judge = Adding(noises(30, {}), -1.0)
    assert fewest_kept(list(judge.noise), judge) is None
    assert set(judge.asked[-1]) == set(judge.noise), "keeping all was tried before giving up"
    assert fewest_kept([], Adding({}, -1.0)) is None


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=7),
    st.integers(0, 120),
    st.integers(1, 7),
)
def test_what_is_found_holds_and_needs_every_node(
    values: list[int], allowed: int, first: int
) -> None:
    """1-minimal always; of the fewest by brute force where all nodes cost the same."""
    noise = {f"n{i}": float(value) for i, value in enumerate(values)}
    judge = Adding(noise, float(allowed))
    if judge(()).holds:
        return  # there is no search for what holds already
    order = by_worth(noise, {})
    choice = fewest_kept(order, judge, first)
    assert choice is not None
    assert judge(choice.kept).holds
    for name in choice.kept:
        rest = [other for other in choice.kept if other != name]
        assert not rest or not judge(rest).holds, f"{name} is not needed"
    fewest = next(
        size
        for size in range(len(noise) + 1)
        if any(judge(kept).holds for kept in itertools.combinations(noise, size))
    )
    assert len(choice.kept) == fewest


@pytest.mark.parametrize("count", [1, 2, 64, 400, 3000])
def test_tries_are_bounded_whatever_the_size(count: int) -> None:
    for allowed in (0.0, 0.01, 0.3 * count):
        judge = Adding({f"n{i}": 1.0 for i in range(count)}, allowed)
        fewest_kept(list(judge.noise), judge)
        assert len(judge.asked) <= 2 * MOST_GROWTHS + MOST_PRUNINGS + 1
    assert MOST_PRUNINGS >= GROUPS


@given(st.lists(st.floats(0, 1e3), max_size=12), st.floats(0, 2e3), st.floats(1, 4))
def test_the_prediction_is_the_shortest_prefix(
    values: list[float], allowed: float, excess: float
) -> None:
    noise = {f"n{i}": value for i, value in enumerate(values)}
    order = list(noise)
    found = enough_to_keep(order, noise, allowed, excess)

    def left(count: int) -> float:
        return math.fsum(noise[name] for name in order[count:]) * excess

    slack = 1e-9 * (1 + sum(values) * excess)
    assert found == len(order) or left(found) <= allowed + slack
    assert found == 0 or left(found - 1) > allowed - slack


def test_being_one_node_more_costs_as_much_as_the_mean_share() -> None:
    noise = {"light": 1.0, "heavy": 1.4, "free": 0.1, "other": 0.0}
    assert by_worth(noise, {"light": 0.0, "heavy": 0.5, "free": 0.0}) == [
        "light",
        "heavy",
        "free",
        "other",
    ]
    assert by_worth(noise, {"light": 0.0, "heavy": 1.0})[1] == "heavy"


def test_what_a_draft_suggests_is_confirmed_by_the_pass_or_extended() -> None:
    noise = noises(10, {2: 1.0, 7: 0.9, 4: 0.8})
    order = by_worth(noise, {})
    draft = Choice(["n2"], Verdict(True, "draft"), {"n2": Verdict(False, "worse")}, tries=3)
    same = confirmed(draft, order, Adding(noise, 2.0))
    assert same is not None
    assert (same.kept, same.tries, same.without) == (["n2"], 4, draft.without)
    assert same.draft == Verdict(True, "draft")
    more = confirmed(draft, order, Adding(noise, 0.5))
    assert more is not None
    assert (more.kept, more.without) == (["n2", "n7", "n4"], {})
    assert more.verdict.holds
    never = Adding(noise, -1.0)
    assert confirmed(draft, order, never) is None
    assert len(never.asked) == CONFIRMATIONS
