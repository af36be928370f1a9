"""One-dimensional k-means against every possible cut."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from onnxcomp.codebook import EXACT, MOST_SORTED, cluster

Array = np.ndarray[Any, Any]


def error(values: Array, book: Array, indices: Array, importance: Array | float = 1.0) -> float:
    return float((importance * np.square(values - book[indices].astype(np.float64))).sum())


def best_error(values: Array, count: int, importance: Array) -> float:
    """By trying every cut of the sorted values into ``count`` intervals."""
    order = np.argsort(values)
    v, h = values[order].astype(np.float64), importance[order]
    found = np.inf
    for cuts in itertools.combinations(range(1, len(v)), count - 1):
        total = 0.0
        for part, mass in zip(np.split(v, cuts), np.split(h, cuts), strict=True):
            total += float((mass * np.square(part - np.average(part, weights=mass))).sum())
        found = min(found, total)
    return found


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_cut_is_the_best_of_all(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 13).astype(np.float32)
    importance = rng.random(13) + 0.05

    book, indices = cluster(values, count, importance)

    assert len(book) == count
    best = best_error(values, count, importance)
    assert error(values, book, indices, importance) == pytest.approx(best, rel=1e-5)


def test_few_distinct_values_are_kept_exactly() -> None:
    values = np.random.default_rng(0).choice([-1.5, 0.0, 0.25, 3.0], (9, 11)).astype(np.float32)

    book, indices = cluster(values, 16)

    assert book.tolist() == [-1.5, 0.0, 0.25, 3.0]
    assert indices.dtype == np.uint8
    np.testing.assert_array_equal(book[indices], values)


def test_many_values_are_cut_nearly_as_well_as_by_the_exact_way() -> None:
    values = np.random.default_rng(1).standard_normal(20_000)
    book, indices = cluster(values.astype(np.float32), 4)

    # Lloyd-Max of the normal distribution with four levels loses 0.11748 of its variance.
    assert error(values, book, indices) / values.size == pytest.approx(0.11748, rel=0.02)
    assert len(np.unique(values)) > EXACT


def test_a_histogram_serves_as_well_as_all_values() -> None:
    values = np.random.default_rng(4).standard_t(4, MOST_SORTED + 1).astype(np.float32)

    few = cluster(values[:-1], 16)  # sorted
    many = cluster(values, 16)

    part = values[:-1]
    assert error(part, many[0], many[1][:-1]) < 1.001 * error(part, *few)


def test_importance_counts() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((64, 64)).astype(np.float32)
    importance = np.where(np.arange(64) < 8, 1000.0, 1.0)  # of columns
    values[:, :8] += 3

    plain, weighted = (cluster(values, 8, h) for h in (None, importance))

    assert error(values, *weighted, importance) < 0.7 * error(values, *plain, importance)


def test_every_weight_gets_the_nearest_value() -> None:
    values = np.random.default_rng(3).standard_normal(5000).astype(np.float32)
    book, indices = cluster(values, 32)

    nearest = np.abs(values[:, None].astype(np.float64) - book).argmin(1)

    assert (np.diff(book) > 0).all()
    np.testing.assert_array_equal(indices, nearest)
