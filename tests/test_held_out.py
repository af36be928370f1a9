"""Costs on samples held back, against explicit fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.errors import CalibrationError
from onnxcomp.gram import Window
from onnxcomp.held_out import RIDGES, SplitGram, SplitMoments, is_held
from onnxcomp.pruning import Part, cheapest_first, costs_along

Array = np.ndarray[Any, Any]


def samples(rng: np.random.Generator, count: int, width: int, rank: int) -> Array:
    """Rows [count, width] with means, mixed of ``rank`` independent values and some noise."""
    mixed = rng.standard_normal((count, rank)) @ rng.standard_normal((rank, width))
    return np.asarray(mixed + 0.3 * rng.standard_normal((count, width)) + np.arange(width))


def moments_of(rows: Array) -> SplitMoments:
    moments = SplitMoments()
    for row in rows:
        moments.update(row[None])
    return moments


def held(count: int) -> Array:
    return np.asarray([is_held(index) for index in range(count)])


def split_of(rows: Array) -> SplitGram:
    split = moments_of(rows).result()[1]
    assert split is not None
    return split


def refitted(x: Array, y: Array, start: Array, ridge: float) -> tuple[Array, Array]:
    """W and b of least |y - W x - b|^2 / n + ridge |W - start|^2, as one stacked problem."""
    count, width = x.shape
    bias = np.append(np.ones(count), np.zeros(width))[:, None]
    stacked = np.vstack([x / np.sqrt(count), np.sqrt(ridge) * np.eye(width)])
    bias[:count] /= np.sqrt(count)
    goal = np.vstack([y / np.sqrt(count), np.sqrt(ridge) * start.T])
    found = np.linalg.lstsq(np.hstack([stacked, bias]), goal, rcond=None)[0]
    return found[:-1].T, found[-1]


@pytest.mark.parametrize("count", [40, 200])
def test_a_loss_is_that_of_the_best_of_a_few_fits_on_rows_not_fitted(count: int) -> None:
    rng = np.random.default_rng(0)
    x, weights = samples(rng, count, 12, 4), rng.standard_normal((5, 12))
    y, back = x @ weights.T, held(count)
    left = np.arange(12) % 3 > 0
    shown = x[~back]
    scale = float(np.square(shown - shown.mean(axis=0)).sum()) / len(shown) / 12
    losses = [np.square((x - shown.mean(axis=0))[:, ~left] @ weights[:, ~left].T)[back]]
    for ridge in RIDGES:
        w, b = refitted(shown[:, left], y[~back], weights[:, left], ridge * scale)
        losses.append(np.square(y - x[:, left] @ w.T - b)[back])
    wanted = min(float(loss.sum(axis=1).mean()) for loss in losses)
    assert split_of(x).loss(weights, left) == pytest.approx(wanted, rel=1e-6)
    fit, added = split_of(x).fitted(weights, left)
    assert not fit[:, ~left].any()
    rest = (y - x @ fit.T - added)[back]
    assert np.square(rest).sum(axis=1).mean() == pytest.approx(wanted, rel=1e-6)


def test_nothing_is_lost_with_nothing_and_all_with_all() -> None:
    rng = np.random.default_rng(1)
    x, weights = samples(rng, 80, 6, 2), rng.standard_normal((3, 6))
    split = split_of(x)
    back = held(80)
    spread = (x[back] - x[~back].mean(axis=0)) @ weights.T
    assert split.loss(weights, np.ones(6, bool)) == 0
    assert split.loss(weights, np.zeros(6, bool)) == pytest.approx(
        np.square(spread).sum(axis=1).mean()
    )


def test_moments_of_all_samples_and_of_both_parts() -> None:
    rng = np.random.default_rng(2)
    images = rng.standard_normal((9, 4, 5, 5)).astype(np.float32)
    moments = SplitMoments(window=Window(kernel=(1, 1), group=2))
    for image in images:
        moments.update(image[None])
    whole, split = moments.result()
    assert split is not None
    assert whole.count == 9 * 25
    rows = images.reshape(9, 2, 2, 25).transpose(1, 0, 3, 2).astype(np.float64)
    back = held(9)
    for group in range(2):
        table = rows[group].reshape(-1, 2)
        np.testing.assert_allclose(whole.matrix[group], table.T @ table / len(table), atol=1e-5)
        shown, judged = rows[group][~back].reshape(-1, 2), rows[group][back].reshape(-1, 2)
        np.testing.assert_allclose(split[group].shown, np.cov(shown.T, bias=True), atol=1e-5)
        offset = judged - shown.mean(axis=0)
        np.testing.assert_allclose(split[group].held, offset.T @ offset / len(offset), atol=1e-5)


def test_few_samples_are_not_split_and_none_are_an_error() -> None:
    rows = np.random.default_rng(3).standard_normal((7, 3))
    whole, split = moments_of(rows).result()
    assert split is None
    np.testing.assert_allclose(whole.matrix, rows.T @ rows / 7)
    np.testing.assert_allclose(moments_of(rows[:2]).result()[0].mean, rows[:2].mean(axis=0))
    with pytest.raises(CalibrationError):
        SplitMoments().result()


def part_of(rows: Array, weights: Array, *, judged: bool) -> Part:
    whole, split = moments_of(rows).result()
    gram = whole.matrix - np.outer(whole.mean, whole.mean)
    units = np.arange(weights.shape[1])
    return Part(weights=weights, units=units, gram=gram, split=split if judged else None)


def test_inputs_that_few_rows_make_up_for_by_chance_cost_what_they_cost_others() -> None:
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((10, 64))
    few, many = rng.standard_normal((24, 64)), rng.standard_normal((4000, 64))
    plain = cheapest_first([part_of(few, weights, judged=False)], 64)
    judged = cheapest_first([part_of(few, weights, judged=True)], 64)
    true = costs_along(judged.order, [part_of(many, weights, judged=False)])
    np.testing.assert_array_equal(judged.order, plain.order)
    assert (np.diff(judged.costs) >= 0).all()
    half = 32
    assert true[half] > 0.15  # independent inputs: nothing makes up for them
    assert plain.costs[half] < 0.2 * true[half]
    assert 0.6 * true[half] < judged.costs[half] < 2.5 * true[half]


def test_with_many_rows_samples_held_back_change_little() -> None:
    rng = np.random.default_rng(5)
    rows, weights = samples(rng, 6000, 16, 5), rng.standard_normal((8, 16))
    plain = cheapest_first([part_of(rows, weights, judged=False)], 16)
    judged = cheapest_first([part_of(rows, weights, judged=True)], 16)
    np.testing.assert_allclose(judged.costs[3:], plain.costs[3:], rtol=0.15)
    part = part_of(rows, weights, judged=True)
    np.testing.assert_allclose(costs_along(judged.order, [part]), judged.costs)
