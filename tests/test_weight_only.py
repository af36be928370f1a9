"""Blocks, scales and packing against plain arithmetic and brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.block_codes import BlockCodes, Grid, blocked, pack, unpack
from onnxcomp.weight_only import (
    gptq_blocks,
    half_quadratic,
    input_scaling,
    least_squares,
    refitted,
    round_to_nearest,
    row_errors,
)

Array = np.ndarray[Any, Any]


def heavy_tailed(*shape: int, seed: int = 0) -> Array:
    """Weights with outliers, as trained ones have."""
    return np.asarray(np.random.default_rng(seed).standard_t(4, shape) / 20, np.float32)


def gram_of(d: int, rows: int = 400, seed: int = 1) -> Array:
    """Of correlated inputs whose channels have very different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, d)) @ (
        np.eye(d) + 0.5 * rng.standard_normal((d, d)) / d**0.5
    )
    x = mixed * np.exp(rng.standard_normal(d))
    return x.T @ x / rows


@given(
    bits=st.sampled_from([2, 4, 8]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 19)),
    seed=st.integers(0, 99),
)
def test_packing_is_undone(bits: int, shape: tuple[int, int], seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8)

    packed = pack(codes, bits)

    assert packed.shape == (shape[0], -(-shape[1] * bits // 8))
    np.testing.assert_array_equal(unpack(packed, bits, shape[1]), codes)


def test_the_first_code_is_in_the_lowest_bits() -> None:
    assert pack(np.asarray([1, 2, 3], np.uint8), 4).tolist() == [0x21, 0x03]
    assert pack(np.asarray([1, 2, 3, 0, 1], np.uint8), 2).tolist() == [0b00111001, 0b01]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("d", [7, 32, 50, 64])
def test_rounding_is_half_a_step_at_most(bits: int, symmetric: bool, d: int) -> None:
    weights = heavy_tailed(5, d)
    grid = Grid(bits=bits, block_size=16, symmetric=symmetric)

    rounded = round_to_nearest(weights, grid)

    error = np.abs(rounded.dequantized() - weights)
    assert rounded.scale.shape == (5, -(-d // min(16, d)))
    limit = rounded.per_weight(rounded.scale) * 0.5001
    if not symmetric:  # the zero point is rounded too, which may clip one end by half a step
        limit = limit * 2
    assert (error <= limit).all()
    if symmetric:
        assert (rounded.zero_point == 2 ** (bits - 1)).all()


def test_blocks_do_not_touch_each_other() -> None:
    weights = heavy_tailed(3, 80)
    grid = Grid(bits=4, block_size=32)
    whole = round_to_nearest(weights, grid).dequantized()

    for first in (0, 32, 64):
        part = slice(first, first + 32)
        alone = round_to_nearest(weights[:, part], grid).dequantized()
        np.testing.assert_array_equal(whole[:, part], alone)


def test_zero_stays_zero_and_empty_rows_too() -> None:
    weights = heavy_tailed(4, 32)
    weights[1] = 0
    weights[:, ::3] = 0
    for method in (round_to_nearest, least_squares, half_quadratic):
        values = method(weights, Grid(bits=4, block_size=16)).dequantized()
        assert (values[weights == 0] == 0).all()
        assert np.isfinite(values).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_fitted_scales_lose_less_than_the_full_range(bits: int, symmetric: bool) -> None:
    weights = heavy_tailed(64, 96)
    grid = Grid(bits=bits, block_size=32, symmetric=symmetric)

    def block_errors(rounded: BlockCodes) -> Array:
        return np.asarray(np.square(blocked(rounded.dequantized() - weights, 32)).sum(-1))

    nearest = block_errors(round_to_nearest(weights, grid))
    for fitted in (least_squares(weights, grid), half_quadratic(weights, grid)):
        errors = block_errors(fitted)
        assert (errors <= nearest * (1 + 1e-5)).all()
        assert errors.sum() < 0.98 * nearest.sum()


def test_fitted_scales_are_near_the_best_there_are() -> None:
    weights, grid = heavy_tailed(6, 8), Grid(bits=2, block_size=8, symmetric=True)
    found = np.square(least_squares(weights, grid).dequantized() - weights).sum(1)

    scales = np.linspace(0.05, 1.2, 2000)[:, None, None] * np.abs(weights).max(1)[:, None]
    codes = np.clip(np.rint(weights / scales), -2, 1)
    best = np.square(codes * scales - weights).sum(-1).min(0)

    assert found.sum() <= 1.05 * best.sum()


def test_importance_moves_the_error_to_where_it_does_not_matter() -> None:
    weights, grid = heavy_tailed(64, 64), Grid(bits=2, block_size=32)
    importance = np.where(np.arange(64) % 2, 100.0, 1.0)

    plain, weighted = (
        np.square(least_squares(weights, grid, h).dequantized() - weights)
        for h in (None, importance)
    )

    assert weighted[:, 1::2].sum() < 0.95 * plain[:, 1::2].sum()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("d", [48, 50])
def test_gptq_changes_the_output_less_than_nearest_codes(bits: int, d: int) -> None:
    weights, gram, grid = heavy_tailed(40, d), gram_of(d), Grid(bits=bits, block_size=16)

    nearest = row_errors(weights, round_to_nearest(weights, grid).dequantized(), gram)
    chosen = row_errors(weights, gptq_blocks(weights, gram, grid).dequantized(), gram)
    fitted = least_squares(weights, grid, np.diagonal(gram))

    assert chosen.sum() < 0.6 * nearest.sum()
    assert (chosen <= row_errors(weights, fitted.dequantized(), gram) * (1 + 1e-6)).all()


def test_gptq_takes_each_group_for_itself() -> None:
    weights = heavy_tailed(6, 9)
    grams = np.stack([gram_of(9, seed=s) for s in range(3)])
    grid = Grid(bits=4, block_size=0)

    whole = gptq_blocks(weights, grams, grid)

    for group in range(3):
        rows = slice(2 * group, 2 * group + 2)
        alone = gptq_blocks(weights[rows], grams[group], grid)
        np.testing.assert_array_equal(whole.codes[rows], alone.codes)
        np.testing.assert_allclose(whole.scale[rows], alone.scale, rtol=1e-6)


def test_refitted_scales_solve_the_normal_equations() -> None:
    weights, gram = heavy_tailed(5, 40), gram_of(40)
    start = round_to_nearest(weights, Grid(bits=4, block_size=16))

    found = refitted(weights, start, gram)

    np.testing.assert_array_equal(found.codes, start.codes)
    root = np.linalg.cholesky(gram)  # |(w - U s)T root|^2 is the output error
    for row in range(5):
        steps = start.codes[row].astype(float) - start.per_weight(start.zero_point)[row]
        columns = np.stack(
            [root.T @ np.where(np.arange(40) // 16 == block, steps, 0) for block in range(3)], 1
        )
        best = np.linalg.lstsq(columns, root.T @ weights[row].astype(float), rcond=None)[0]
        np.testing.assert_allclose(found.scale[row], best, rtol=2e-2)
    before, after = (row_errors(weights, c.dequantized(), gram) for c in (start, found))
    assert (after <= before).all()
    assert after.sum() < 0.97 * before.sum()


def test_scaling_the_input_channels_lowers_the_output_error() -> None:
    weights, gram, grid = heavy_tailed(64, 64), gram_of(64), Grid(bits=4, block_size=32)

    def quantize(values: Array, importance: Array) -> Array:
        return least_squares(values, grid, importance).dequantized()

    scale, (before, after) = input_scaling(weights, gram, quantize)

    assert scale.shape == (64,)
    assert (scale > 0).all()
    unscaled = quantize(weights, np.diagonal(gram))
    assert before == pytest.approx(row_errors(weights, unscaled, gram).sum())
    scaled = quantize(weights * scale, np.diagonal(gram) / scale**2) / scale
    assert after == pytest.approx(row_errors(weights, scaled, gram).sum())
    assert after < 0.9 * before


def test_the_output_error_is_that_of_the_samples() -> None:
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((50, 6)), heavy_tailed(3, 6)
    rounded = round_to_nearest(weights, Grid(bits=2)).dequantized()

    wanted = np.square(x @ (weights - rounded).T).mean(0)

    np.testing.assert_allclose(row_errors(weights, rounded, x.T @ x / 50), wanted, rtol=1e-9)


def test_two_bit_gptq_is_near_the_best_codes_there_are() -> None:
    weights, gram, grid = heavy_tailed(4, 6), gram_of(6), Grid(bits=2, block_size=0)
    found = gptq_blocks(weights, gram, grid)

    every = np.asarray(list(itertools.product(range(4), repeat=6)), np.float64)
    steps = every[None] - found.zero_point[:, :, None]
    errors = weights[:, None] - steps * found.scale[:, :, None]
    best = np.einsum("rni,ij,rnj->rn", errors, gram, errors).min(1)

    assert (row_errors(weights, found.dequantized(), gram) <= 2.5 * best + 1e-12).all()
