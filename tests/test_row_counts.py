"""How often rows are looked up, and what is said of rows that were not."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.errors import CalibrationError
from onnxcomp.row_counts import RowCounts


def test_rows_seen_once_give_their_share_to_those_not_seen() -> None:
    counts = RowCounts(6)
    counts.update(np.array([[0, 0, -6], [1, 2, 0]]))
    counts.update(np.array(1))
    result = counts.result()
    assert result.count == 7
    new = 1 / 8  # row 2 was seen once, of 7 lookups and one more
    wanted = [*(np.array([4, 2, 1]) * (1 - new) / 7), *[new / 3] * 3]
    np.testing.assert_allclose(result.matrix, wanted)
    assert result.matrix.sum() == pytest.approx(1)


def test_every_row_costs_something_and_seen_ones_are_counted_where_all_were() -> None:
    counts = RowCounts(3)
    counts.update(np.array([0, 0, 1, 1]))
    assert counts.result().matrix[2] == pytest.approx(1 / 5)
    counts.update(np.array([2, 2, 2, 2]))
    np.testing.assert_allclose(counts.result().matrix, [0.25, 0.25, 0.5])


def test_estimates_of_new_rows_are_near_the_truth() -> None:
    """On words as they come: few are frequent, most are rare."""
    rng = np.random.default_rng(0)
    shares = 1.0 / (1 + np.arange(20000))
    shares /= shares.sum()
    drawn = rng.choice(20000, 3000, p=shares)
    counts = RowCounts(20000)
    counts.update(drawn)
    unseen = np.setdiff1d(np.arange(20000), drawn)
    assert counts.result().matrix[unseen].sum() == pytest.approx(shares[unseen].sum(), rel=0.1)


def test_without_lookups_nothing_is_known() -> None:
    counts = RowCounts(3)
    counts.update(np.zeros((0, 4), np.int64))
    with pytest.raises(CalibrationError):
        counts.result()
