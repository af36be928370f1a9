"""onnxcomp.sparse_fitting against exhaustive search and least squares."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from output_losses import loss

from onnxcomp.quantization import Array
from onnxcomp.sparse_fitting import alternate, refit, sparse_gpt
from onnxcomp.sparsity import Pattern, magnitude, wanda


def layer(out: int, d: int, seed: int = 0) -> tuple[Array, Array]:
    """Weights [out, d], and the Gram matrix of inputs that correlate."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((4 * d, d)) @ rng.standard_normal((d, d))
    return rng.standard_normal((out, d)), x.T @ x / len(x)


def test_what_stays_makes_up_for_what_went_as_well_as_later_columns_can() -> None:
    weights, gram = layer(4, 12)
    sparse = sparse_gpt(weights, gram, Pattern(), 0.5, damping=0.0, block=12)
    assert (sparse == 0).sum() == 24
    for row, target in zip(sparse, weights, strict=True):
        gone = np.flatnonzero(row == 0)
        # Columns before the first that went have no reason to move.
        np.testing.assert_allclose(row[: gone[0]], target[: gone[0]], rtol=1e-9)
        # Those behind the last that went are the best there are, given all before them.
        free = np.arange(gone[-1] + 1, 12)
        if len(free):
            error = np.delete(target - row, free)
            held = np.delete(np.arange(12), free)
            best = np.linalg.solve(gram[np.ix_(free, free)], gram[np.ix_(free, held)] @ error)
            np.testing.assert_allclose(row[free], target[free] + best, rtol=1e-6)


def test_a_first_mask_is_the_best_where_columns_do_not_correlate() -> None:
    weights, _ = layer(3, 8)
    gram = np.diag(np.arange(1.0, 9))
    sparse = sparse_gpt(weights, gram, Pattern(), 0.5, damping=0.0)
    kept = Pattern().mask(wanda(weights, gram), 0.5)
    np.testing.assert_allclose(sparse, np.where(kept, weights, 0))


@pytest.mark.parametrize("name", ["2:4", "4x4", "1x4", "16x1", "unstructured"])
def test_each_loses_less_than_what_looks_at_less(name: str) -> None:
    weights, gram = layer(64, 64, seed=3)
    pattern = Pattern.named(name)
    kept = [pattern.mask(scores, 0.5) for scores in (magnitude(weights), wanda(weights, gram))]
    found = [np.where(mask, weights, 0) for mask in kept]
    found += [f(weights, gram, pattern, 0.5) for f in (sparse_gpt, alternate)]
    for sparse in found:
        np.testing.assert_allclose((sparse == 0).mean(), 0.5)
    losses = [loss(weights - sparse, gram) for sparse in found]
    assert losses[3] < 0.7 * losses[2] < 0.7 * losses[1] < losses[0]
    assert loss(weights - refit(weights, gram, found[2]), gram) < losses[2]
    best = loss(weights - refit(weights, gram, found[3]), gram)
    assert 0.98 * losses[3] < best  # as far as its zeros allow


def test_blocks_are_scored_by_what_they_leave_together() -> None:
    """Of two blocks of two columns in a row, the one to go is found by trying both."""
    weights, gram = layer(1, 4, seed=5)
    sparse = sparse_gpt(weights, gram, Pattern(columns=2), 0.5, damping=0.0)
    factor = np.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1]
    left = [
        np.square(weights[0, at : at + 2] @ factor[at : at + 2, at : at + 2]).sum() for at in (0, 2)
    ]
    assert (sparse[0] == 0).reshape(2, 2).all(1).tolist() == [left[0] < left[1], left[1] < left[0]]


def test_alternating_is_near_the_best_of_all_masks() -> None:
    """Summed over small layers; it may miss the best of one."""
    ours = best = other = 0.0
    for seed in range(20):
        weights, gram = layer(1, 6, seed)
        found = alternate(weights, gram, Pattern(), 0.5, damping=0.0)
        ours += loss(weights - refit(weights, gram, found, damping=0.0), gram)
        masks = (list(kept) for kept in itertools.combinations(range(6), 3))
        best += min(loss(weights - _with_only(weights, gram, kept), gram) for kept in masks)
        other += loss(weights - sparse_gpt(weights, gram, Pattern(), 0.5, damping=0.0), gram)
    assert best <= ours * (1 + 1e-9)
    assert ours < 1.5 * best
    assert ours < 0.5 * other


def test_refitted_weights_are_those_of_least_squares() -> None:
    weights, gram = layer(1, 9)
    start = np.where(np.arange(9) % 2 == 0, weights, 0)
    found = refit(weights, gram, start, damping=0.0)
    np.testing.assert_allclose(found, _with_only(weights, gram, [0, 2, 4, 6, 8]), rtol=1e-6)


def _with_only(weights: Array, gram: Array, kept: list[int]) -> Array:
    """The best weights with only some columns."""
    sparse = np.zeros_like(weights)
    sparse[:, kept] = np.linalg.solve(gram[np.ix_(kept, kept)], gram[kept] @ weights.T).T
    return sparse


def test_columns_that_no_sample_used_cost_nothing() -> None:
    weights, gram = layer(8, 16)
    gram[5:, :] = gram[:, 5:] = 0
    for find in (sparse_gpt, alternate):
        sparse = find(weights, gram, Pattern(), 0.5)
        assert np.isfinite(sparse).all()
        assert loss(weights - sparse, gram) < 1e-2 * loss(weights, gram)
