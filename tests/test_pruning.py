"""Importance and costs of units against explicit least squares and exhaustive search."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.pruning import Part, centred, cheapest_first, costs_along, importance, lowest, ranks

Array = np.ndarray[Any, Any]


def correlated(rng: np.random.Generator, width: int, rows: int = 400) -> Array:
    """Samples [rows, width] of which no two columns are independent."""
    mixed = rng.standard_normal((rows, width)) @ rng.standard_normal((width, width))
    return np.asarray(mixed * rng.uniform(0.2, 3, width))


def part_of(samples: Array, weights: Array, units: Array, share: float = 1.0) -> Part:
    gram = samples.T @ samples / len(samples)
    return Part(weights=weights, units=units, gram=gram, share=share)


def lost(samples: Array, part: Part, removed: Any) -> float:
    """The share of the output's energy that the best weights for what is kept cannot make."""
    kept = ~np.isin(part.units, removed)
    outputs = samples @ part.weights.T
    refitted = np.linalg.lstsq(samples[:, kept], outputs, rcond=None)[0]
    rest = outputs - samples[:, kept] @ refitted
    return float(np.sum(rest**2) / np.sum(outputs**2))


LAYOUTS = {
    "one column each": np.arange(9),
    "blocks": np.arange(12) // 3,
    "kernel positions last": np.arange(12) % 4,
    "some of no unit": np.array([0, 1, -1, 2, 2, 3, -1, 3, 0, 4]),
}


@pytest.mark.parametrize("units", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("out", [2, 30])
def test_costs_are_what_least_squares_cannot_explain(units: Array, out: int) -> None:
    rng = np.random.default_rng(0)
    samples = correlated(rng, len(units))
    part = part_of(samples, rng.standard_normal((out, len(units))), units)
    removal = cheapest_first([part], int(units.max()) + 1, damping=1e-12)
    assert sorted(removal.order) == list(range(units.max() + 1))
    wanted = [lost(samples, part, removal.order[:n]) for n in range(len(removal.order) + 1)]
    np.testing.assert_allclose(removal.costs, wanted, rtol=1e-6, atol=1e-9)


def test_each_step_takes_the_unit_that_costs_least_over_all_layers() -> None:
    rng = np.random.default_rng(1)
    inputs = [correlated(rng, 8), correlated(rng, 16)]
    parts = [
        part_of(inputs[0], rng.standard_normal((3, 8)), np.arange(8), share=3.0),
        part_of(inputs[1], rng.standard_normal((5, 16)), np.arange(16) // 2),
    ]
    removal = cheapest_first(parts, 8, damping=1e-12)
    gone: list[int] = []
    for unit, cost in zip(removal.order, removal.costs[1:], strict=True):
        choices = {
            other: sum(
                part.share * lost(x, part, [*gone, other]) / 4
                for x, part in zip(inputs, parts, strict=True)
            )
            for other in range(8)
            if other not in gone
        }
        assert unit == min(choices, key=lambda other: choices[other])
        assert cost == pytest.approx(choices[int(unit)], rel=1e-6)
        gone.append(int(unit))


def test_greedy_choice_is_near_the_best_subset() -> None:
    ratios = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        samples = correlated(rng, 9)
        part = part_of(samples, rng.standard_normal((4, 9)), np.arange(9))
        best = min(lost(samples, part, subset) for subset in itertools.combinations(range(9), 4))
        by_weight = np.argsort(importance("l2", [part], 9))[:4]
        removal = cheapest_first([part], 9)
        ratios.append((removal.costs[4] / best, lost(samples, part, by_weight) / best))
    greedy, by_weights = np.median(ratios, axis=0)
    assert greedy < 1.2
    assert by_weights > 2 * greedy


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(2, 24),
    columns=st.integers(1, 4),
    rows=st.integers(1, 60),
    seed=st.integers(0, 2**32 - 1),
    rounds=st.sampled_from([1, 4, 256]),
)
def test_costs_never_fall_and_are_exact_for_any_number_of_rounds(
    width: int, columns: int, rows: int, seed: int, rounds: int
) -> None:
    rng = np.random.default_rng(seed)
    samples = correlated(rng, width * columns, rows)
    units = rng.permutation(np.arange(width * columns) % width)
    part = part_of(samples, rng.standard_normal((3, width * columns)), units)
    removal = cheapest_first([part], width, rounds=rounds)
    assert removal.costs[0] == 0
    assert (np.diff(removal.costs) >= 0).all()
    assert sorted(removal.order) == list(range(width))
    np.testing.assert_allclose(removal.costs, costs_along(removal.order, [part]), atol=1e-9)
    assert removal.costs[-1] >= 1 - 1e-9  # all is lost, and damping


@settings(max_examples=30, deadline=None)
@given(kept=st.integers(1, 8), copies=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_what_others_explain_costs_nothing_and_goes_first(
    kept: int, copies: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    free = rng.standard_normal((500, kept))
    mixed = free @ rng.standard_normal((kept, copies))
    samples = np.concatenate([free, mixed], axis=1)[:, rng.permutation(kept + copies)]
    weights = rng.standard_normal((kept + copies, kept + copies)) + 1
    part = part_of(samples, weights, np.arange(kept + copies))
    removal = cheapest_first([part], kept + copies, damping=1e-9)
    assert removal.costs[copies] < 1e-5
    assert removal.costs[copies + 1] > 10 * removal.costs[copies]


def test_a_copy_goes_but_not_its_twin_even_in_one_round() -> None:
    rng = np.random.default_rng(3)
    samples = rng.standard_normal((300, 8))
    samples[:, 5] = samples[:, 2]
    samples[:, [0, 1]] *= 0.3
    weights = np.ones((1, 8))
    removal = cheapest_first([part_of(samples, weights, np.arange(8))], 8, rounds=1)
    assert len({2, 5} & set(removal.order[:3].tolist())) == 1


def test_scale_of_a_layer_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    inputs = [correlated(rng, 6), correlated(rng, 6)]
    weights = [rng.standard_normal((4, 6)) for _ in inputs]
    parts = [part_of(x, w, np.arange(6)) for x, w in zip(inputs, weights, strict=True)]
    loud = [parts[0], part_of(inputs[1], 1e3 * weights[1], np.arange(6))]
    np.testing.assert_allclose(cheapest_first(parts, 6).costs, cheapest_first(loud, 6).costs)
    for kind in ("l1", "l2", "activation"):
        np.testing.assert_allclose(importance(kind, parts, 6), importance(kind, loud, 6))


def test_importance_by_hand() -> None:
    weights = np.array([[3.0, 0.0, -1.0, 1.0], [4.0, 0.0, 1.0, 1.0]])
    gram = np.diag([1.0, 5.0, 4.0, 0.0])
    part = Part(weights=weights, units=np.array([1, 0, 2, 2]), gram=gram)
    np.testing.assert_allclose(importance("l1", [part], 3), np.array([0, 7, 4]) * 3 / 11)
    np.testing.assert_allclose(importance("l2", [part], 3), np.array([0, 5, 2]) * 3 / 7)
    energy = np.array([0, 5, np.sqrt(8)])
    np.testing.assert_allclose(importance("activation", [part], 3), energy * 3 / energy.sum())
    maker = Part(weights=np.ones((2, 2)), units=np.array([0, -1]), share=2.0)
    np.testing.assert_allclose(importance("l1", [part, maker], 3), [2, 7 * 3 / 11, 12 / 11])
    with pytest.raises(ValueError, match="needs a Gram"):
        importance("activation", [maker], 3)
    with pytest.raises(ValueError, match="unknown importance"):
        importance("l3", [maker], 3)


def test_layers_without_output_do_not_count() -> None:
    part = part_of(np.eye(3), np.zeros((2, 3)), np.arange(3))
    removal = cheapest_first([part, Part(weights=np.ones((1, 3)), units=np.arange(3))], 3)
    np.testing.assert_array_equal(removal.costs, 0)
    np.testing.assert_array_equal(removal.order, [0, 1, 2])


def test_lowest_takes_as_many_from_each_set() -> None:
    scores = np.array([5.0, 1, 2, 0, 9, 8, 7, 6])
    np.testing.assert_array_equal(lowest(scores, 3), [1, 2, 3])
    sets = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(lowest(scores, 4, sets), [1, 3, 6, 7])
    np.testing.assert_array_equal(lowest(scores, 3, sets), [3, 7])
    np.testing.assert_array_equal(lowest(scores, 0, sets), [])
    order = np.array([3, 1, 0, 2])
    np.testing.assert_array_equal(lowest(ranks(order), 2), [1, 3])


def test_centred_is_the_covariance() -> None:
    samples = np.random.default_rng(5).standard_normal((50, 4)) + 3
    gram = samples.T @ samples / 50
    np.testing.assert_allclose(centred(gram, samples.mean(axis=0)), np.cov(samples.T, bias=True))
