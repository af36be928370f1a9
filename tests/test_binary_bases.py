"""binary_bases: scales as least squares gives them, signs found again, a loss that only falls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.binary_bases import (
    MOST,
    BinaryBases,
    best_scales,
    best_signs,
    fit_bases,
)
from onnxcomp.quantization import Array
from onnxcomp.rounding import loss


def layer(rows: int, width: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """W [rows, width], inputs [width, count] that are correlated, and their G."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(width) + 0.3 * rng.standard_normal((width, width))
    x = np.maximum(mixing @ rng.standard_normal((width, 4 * width)), -0.2)
    return rng.standard_normal((rows, width)), x, x @ x.T / x.shape[1]


def lost(weights: Array, gram: Array, bases: BinaryBases) -> Array:
    return loss(weights, bases.values, gram, 1.0, 0.0)


def some_signs(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


@pytest.mark.parametrize(("blocks", "count"), [(1, 1), (1, 3), (2, 2), (3, 1)])
def test_scales_are_the_least_squares_of_what_the_layer_makes(blocks: int, count: int) -> None:
    rows, width = 5, 12
    weights, x, gram = layer(rows, blocks * width)
    signs = some_signs(blocks, count, rows, width)
    scales = best_scales(weights, gram, signs)
    for row in range(rows):
        features = [
            signs[block, base, row] @ x[block * width : (block + 1) * width]
            for block, base in itertools.product(range(blocks), range(count))
        ]
        expected = np.linalg.lstsq(np.stack(features, axis=1), weights[row] @ x, rcond=None)[0]
        np.testing.assert_allclose(scales[:, :, row].ravel(), expected, rtol=1e-7)


def test_equal_bases_share_their_scale() -> None:
    weights, _, gram = layer(3, 8)
    one = some_signs(1, 1, 3, 8)
    alone = best_scales(weights, gram, one)
    both = best_scales(weights, gram, np.concatenate([one, one], axis=1))
    np.testing.assert_allclose(both, np.concatenate([alone, alone], axis=1) / 2, rtol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_one_base_of_independent_inputs_is_that_of_xnor_net(scale: float) -> None:
    weights = np.random.default_rng(3).standard_normal((6, 40))
    bases = fit_bases(weights, scale * np.eye(40), 1)
    np.testing.assert_array_equal(bases.signs[0, 0], np.sign(weights))
    np.testing.assert_allclose(bases.scales[0, 0], np.abs(weights).mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("blocks", [1, 2])
def test_weights_that_are_a_sum_of_bases_are_found_again(count: int, blocks: int) -> None:
    rows, width = 9, 30
    rng = np.random.default_rng(count)
    scales = np.sort(rng.uniform(0.8, 1.2, (blocks, count, rows)), axis=1)
    scales *= (0.4 ** np.arange(count))[:, None]  # each above all behind it together
    made = BinaryBases(some_signs(blocks, count, rows, width), scales)
    gram = np.diag(rng.uniform(0.5, 2, blocks * width))
    found = fit_bases(made.values, gram, count, blocks=blocks)
    np.testing.assert_allclose(found.values, made.values, atol=1e-9)
    order = np.argsort(-found.scales, axis=1)
    np.testing.assert_allclose(
        np.take_along_axis(found.scales, order, axis=1), np.sort(scales, axis=1)[:, ::-1], rtol=1e-9
    )


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 6),
    width=st.integers(1, 40),
    blocks=st.integers(1, 3),
    count=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_nothing_ever_raises_the_loss(
    rows: int, width: int, blocks: int, count: int, seed: int
) -> None:
    weights, _, gram = layer(rows, blocks * width, seed)
    signs = some_signs(blocks, count, rows, width, seed=seed)
    bases = BinaryBases(signs, best_scales(weights, gram, signs))
    room = 1 + 1e-9
    for _ in range(3):
        before = lost(weights, gram, bases)
        turned = BinaryBases(best_signs(weights, gram, bases), bases.scales)
        between = lost(weights, gram, turned)
        bases = BinaryBases(turned.signs, best_scales(weights, gram, turned.signs))
        after = lost(weights, gram, bases)
        assert (between <= before * room + 1e-12).all()
        assert (after <= between * room + 1e-12).all()
    losses = [lost(weights, gram, fit_bases(weights, gram, n, blocks=blocks)) for n in (1, 2, 3)]
    energy = loss(weights, np.zeros_like(weights), gram, 1.0, 0.0)
    for before, after in itertools.pairwise([energy, *losses]):
        assert (after <= before * room + 1e-12).all()


def test_no_single_column_can_be_improved_where_signs_stand_still() -> None:
    weights, _, gram = layer(4, 9)
    bases = fit_bases(weights, gram, 2, rounds=100)
    still = lost(weights, gram, bases)
    for column, pattern in itertools.product(range(9), itertools.product((-1, 1), repeat=2)):
        signs = bases.signs.copy()
        signs[0, :, :, column] = np.array(pattern)[:, None]
        assert (lost(weights, gram, BinaryBases(signs, bases.scales)) >= still * (1 - 1e-9)).all()


def test_the_gram_matrix_matters() -> None:
    weights, x, gram = layer(16, 100)
    fitted = fit_bases(weights, gram, 2)
    blind = fit_bases(weights, np.eye(100), 2)
    errors = [np.square((weights - bases.values) @ x).mean() for bases in (fitted, blind)]
    assert errors[0] < 0.7 * errors[1]


def test_scales_are_never_negative_and_inputs_that_never_come_do_no_harm() -> None:
    weights, _, gram = layer(7, 20)
    gram[:, 4] = gram[4] = 0.0
    bases = fit_bases(weights, gram, 3)
    assert (bases.scales >= 0).all()
    assert set(np.unique(bases.signs)) == {-1, 1}
    nothing = fit_bases(weights, np.zeros((20, 20)), 2)
    assert np.isfinite(nothing.values).all()


@pytest.mark.parametrize("count", [0, MOST + 1])
def test_a_number_of_bases_that_is_out_of_range_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to {MOST} bases, not {count}"):
        fit_bases(np.ones((2, 2)), np.eye(2), count)
