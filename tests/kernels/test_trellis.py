"""Trellis-coded integers: the search against all paths there are, the inverse against its twin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.errors import KernelError
from onnxcomp.kernels import trellis_reference
from onnxcomp.kernels.trellis import choose, codes_of, restore


def restored(codes: np.ndarray) -> np.ndarray:
    integers = codes.copy()
    restore(integers)
    return integers


def price(prices: np.ndarray, codes: np.ndarray) -> float:
    return float(prices[np.minimum(np.abs(codes), len(prices) - 1)].sum(dtype=np.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.4, 1.5, 3.0]), st.integers(1, 5))
def test_no_path_is_cheaper(seed: int, spread: float, period: int) -> None:
    rng = np.random.default_rng(seed)
    targets, prices = rng.normal(0, spread, (1, 4)), np.float32(rng.random(3) * 2)
    paths = np.asarray(list(itertools.product(range(-6, 7), repeat=4)), np.int32)
    parts = [restored(paths[:, i : i + period].copy()[:, :, None]) for i in range(0, 4, period)]
    integers = np.concatenate(parts, 1)[:, :, 0]
    costs = ((targets - integers) ** 2).sum(1)
    costs += prices[np.minimum(np.abs(paths), 2)].sum(1, dtype=np.float64)
    found, cost = choose(targets, prices, period)
    assert cost == pytest.approx(costs.min(), rel=1e-6)
    codes = codes_of(found)
    assert cost == pytest.approx(((targets - found) ** 2).sum() + price(prices, codes), rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.3, 2.0, 30.0]),
    st.integers(1, 30),
    st.integers(1, 25),
)
def test_the_search_and_its_inverse_are_those_of_the_twin(
    seed: int, spread: float, length: int, period: int
) -> None:
    rng = np.random.default_rng(seed)
    targets, prices = rng.normal(0, spread, (3, length)), np.float32(rng.random(9) * 3)
    found, cost = choose(targets, prices, period)
    twin, expected = trellis_reference.choose(targets, prices, period)
    np.testing.assert_array_equal(found, twin)
    assert cost == pytest.approx(expected, rel=1e-9)
    for first in range(0, length, period):  # a sequence each
        part = found[:, first : first + period]
        codes = codes_of(part)[:, :, None]
        np.testing.assert_array_equal(restored(codes)[:, :, 0], part)


def test_a_trellis_errs_less_than_a_uniform_grid_at_the_same_entropy() -> None:
    """By 0.8 dB and more; 1.53 dB is all that anything can gain (Gish, Pierce, 1968)."""
    targets = np.random.default_rng(0).laplace(0, 12, (1, 2**17))
    integers, _ = choose(targets, np.zeros(1, np.float32), 2**17)
    codes = codes_of(integers)

    def entropy(values: np.ndarray) -> float:
        shares = np.unique(values, return_counts=True)[1] / values.size
        return float(-(shares * np.log2(shares)).sum())

    gain_db = -10 * np.log10(np.mean((targets - integers) ** 2) / (4 / 12))
    loss_db = 6.02 * (entropy(codes) - entropy(np.rint(targets / 2)))
    assert 0.8 < gain_db - loss_db < 1.53


@pytest.mark.parametrize("prices", [[0, 0.4, 0.8, 1.2, 1.6, 2.0], [0]])
def test_choosing_together_never_costs_more_than_even_integers_only(prices: list[float]) -> None:
    """Codes that are all even stay in state 0, where integers are multiples of 4."""
    rng = np.random.default_rng(1)
    targets, prices_ = rng.normal(0, 5, (20, 40)), np.asarray(prices, np.float32)
    _, cost = choose(targets, prices_, 40)
    codes = 2 * np.rint(targets / 4).astype(np.int32)
    np.testing.assert_array_equal(restored(codes[:, :, None])[:, :, 0], 2 * codes)
    assert cost < ((targets - 2 * codes) ** 2).sum() + price(prices_, codes)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 20), st.integers(0, 30), st.sampled_from([0, 1, 2, 63, 64, 65, 130])),
    st.sampled_from([2, 50, 2**31]),
    st.integers(0, 99),
)
def test_any_codes_stand_for_the_integers_of_the_twin(
    shape: tuple[int, int, int], most: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(-most, most, shape).astype(np.int32)
    np.testing.assert_array_equal(restored(codes), trellis_reference.restore(codes))


def test_states_are_those_of_the_specification() -> None:
    """An impulse: the odd states that follow, by the parity checks 23 and 04."""
    codes = np.asarray([1] + [2] * 11, np.int32).reshape(1, 12, 1)
    states, state = [], 0
    for code in codes.ravel():
        states.append(state)
        state = (state << 1 & 15) ^ (9 if state & 8 else 0) ^ (4 if code & 1 else 0)
    assert states == [0, 4, 8, 9, 11, 15, 7, 14, 5, 10, 13, 3]
    expected = 2 * codes.ravel() - np.asarray(states) // 8
    np.testing.assert_array_equal(restored(codes).ravel(), expected)


def test_arguments_that_do_not_fit_are_refused() -> None:
    prices = np.zeros(1, np.float32)
    for targets in (np.zeros(3), np.full((1, 2), np.nan), np.full((1, 2), np.inf)):
        with pytest.raises(KernelError, match="no finite sequences"):
            choose(targets, prices, 1)
    for bad, period in ((prices, 0), (prices[:0], 1)):
        with pytest.raises(KernelError, match="at least 1"):
            choose(np.zeros((1, 2)), bad, period)
    with pytest.raises(KernelError, match="prices"):
        choose(np.zeros((1, 2)), np.asarray([np.inf]), 1)
    with pytest.raises(KernelError, match="int32"):
        restore(np.zeros((2, 2, 2), np.int64))
    fixed = np.zeros((2, 2, 2), np.int32)
    fixed.flags.writeable = False
    with pytest.raises(KernelError, match="written"):
        restore(fixed)
