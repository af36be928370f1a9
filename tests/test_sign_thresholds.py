"""Folding to integer thresholds, against trying every sum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.sign_thresholds import Affine, Comparison, Folded, fold

HOLDS = {
    "greater": np.greater,
    "greater_or_equal": np.greater_equal,
    "less": np.less,
    "less_or_equal": np.less_equal,
}
INTEGERS = np.iinfo(np.int32)


@given(
    factor=st.sampled_from([1.0, -1.0, 0.5, -0.3, 2.7, 0.0]),
    offset=st.sampled_from([0.0, 0.1, -3.0, 2.2, 50.0, -50.0]),
    level=st.sampled_from([0.0, 1.0, -2.0, 0.25, 40.0, np.inf, -np.inf]),
    comparison=st.sampled_from(list(HOLDS)),
    largest=st.integers(1, 12),
    rounds=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_folded_comparisons_hold_where_the_float_ones_do(
    factor: float, offset: float, level: float, comparison: Comparison, largest: int, rounds: bool
) -> None:
    if not rounds:  # then it is the sum itself that is compared
        factor, offset = 1.0, 0.0
    affine = Affine(np.array([factor]), np.array([offset]), rounds)
    sums = np.arange(-largest, largest + 1)
    values = factor * sums + offset
    close = np.isclose(values, level, rtol=1e-6, atol=1e-6)
    folded = fold(affine, comparison, level, largest)
    if isinstance(folded, str):
        assert rounds
        assert close.any()
        return
    expected = HOLDS[comparison](values, level)
    got = folded.directions[0] * sums >= folded.thresholds[0]
    np.testing.assert_array_equal(got, expected)
    if expected.all() or not expected.any():
        assert folded.thresholds[0] == (INTEGERS.min if expected.all() else INTEGERS.max)


def test_each_channel_has_its_own_direction_and_threshold() -> None:
    affine = Affine.identity(4).then(np.array([2.0, -2.0, 0.0, 1.0]), np.array([1.0, 1, 1, -99]))
    folded = fold(affine, "greater_or_equal", np.zeros(4), 9)
    assert isinstance(folded, Folded)
    assert folded.directions.tolist() == [1, -1, 1, 1]
    assert folded.thresholds.tolist() == [0, 0, INTEGERS.min, INTEGERS.max]


def test_sums_that_land_on_a_rounded_level_are_refused() -> None:
    on_zero = Affine.identity(3).then(np.array([0.1, 0.1, 0.1]), np.array([0.3, 0.35, -0.7]))
    folded = fold(on_zero, "greater", 0.0, 9)
    assert folded == "float rounding decides the sign of 1 channels"  # of -3 and of 7
    assert not isinstance(fold(on_zero, "greater", 0.02, 9), str)


@pytest.mark.parametrize(("level", "refused"), [(0.0, True), (0.5, False), (10.0, False)])
def test_a_sum_on_its_level_has_no_sign(level: float, refused: bool) -> None:
    folded = fold(Affine.identity(1), "greater", level, 9, zero_counts=False)
    assert isinstance(folded, str) == refused
