"""Fits that may miss what is cut off anyway, against plain ones and the conditions of a minimum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxcomp import clipped_regression
from onnxcomp.clipped_regression import Rows, best_clipped_fit, steps_for
from onnxcomp.regression import Fit, Moments

Array = np.ndarray[Any, np.dtype[Any]]
TINY = 1e-9
NEVER = np.asarray(np.inf)


def relu_rows(seed: int, count: int = 600, kept: int = 5) -> tuple[Rows, Fit]:
    """y = W x before a Relu, where only the first ``kept`` of 8 x are left; and W of those."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 8, 8)) @ rng.standard_normal((2, 8, count)) + 0.2
    weights = rng.standard_normal((2, 4, 8))
    rows = Rows(x[:, :kept], weights @ x - 1, np.zeros(()), NEVER)
    return rows, Fit(weights[:, :, :kept], np.full((2, 4), -1.0))


def plain(rows: Rows, start: Fit, ridge: float = TINY, *, with_bias: bool = True) -> Fit:
    moments = Moments.of(rows.inputs, rows.outputs)
    return next(moments.fits(start, [ridge], with_bias=with_bias))


@pytest.mark.parametrize("with_bias", [False, True])
def test_without_bounds_it_is_least_squares(with_bias: bool) -> None:
    rows, start = relu_rows(0)
    rows = replace(rows, low=-NEVER)
    wanted = plain(rows, start, 0.1, with_bias=with_bias)
    fit = rows.fit(start, start, 0.1, with_bias=with_bias)
    np.testing.assert_allclose(fit.weights, wanted.weights, rtol=1e-9)
    np.testing.assert_allclose(fit.bias, wanted.bias, rtol=1e-9)


def test_what_varies_little_about_a_large_mean_is_seen_in_float32() -> None:
    rng = np.random.default_rng(9)
    varying = 1e-3 * rng.standard_normal((1, 32, 4)) @ rng.standard_normal((1, 4, 300))
    x = (varying + 10 * rng.standard_normal((1, 32, 1))).astype(np.float32)
    y = (rng.standard_normal((1, 3, 32)) @ varying + 0.01).astype(np.float32)
    rows, start = Rows(x, y, np.zeros(()), NEVER), Fit(np.zeros((1, 3, 32)), np.zeros((1, 3)))
    fit = rows.fit(plain(rows, start, 1e-3), start, 1e-3, with_bias=True)
    assert rows.error(fit) < 1e-2


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("bounds", [(0.0, np.inf), (-1.0, 1.5), (-np.inf, 0.5)])
def test_it_is_a_minimum(
    monkeypatch: pytest.MonkeyPatch, bounds: tuple[float, float], with_bias: bool
) -> None:
    monkeypatch.setattr(clipped_regression, "STEPS", 1000)
    rows, start = relu_rows(1)
    rows = replace(rows, low=np.asarray(bounds[0]), high=np.asarray(bounds[1]))
    fit = rows.fit(start, start, TINY, with_bias=with_bias)
    made = fit.weights @ rows.inputs + fit.bias[..., None]
    seen = (made > rows.low) & (made < rows.high)
    rest = np.where(seen, made - np.clip(rows.outputs, rows.low, rows.high), 0)
    slope = np.einsum("gon,gdn->god", rest, rows.inputs) / made.shape[2]
    assert np.abs(slope).max() < 1e-3
    if with_bias:
        assert np.abs(rest.mean(axis=2)).max() < 1e-3


def test_a_few_steps_beat_least_squares_where_a_relu_follows() -> None:
    ratios = []
    for seed in range(9):
        rows, start = relu_rows(seed)
        free = plain(rows, start)
        fit = rows.fit(free, start, TINY, with_bias=True)
        assert rows.error(fit) < rows.error(free)
        ratios.append(rows.error(fit) / rows.error(free))
    assert np.median(ratios) < 0.97


def test_bounds_may_differ_from_row_to_row() -> None:
    """Added to a stream s before the Relu, y is cut off at -s: as if the sum were fitted."""
    rows, start = relu_rows(2)
    stream = np.random.default_rng(0).standard_normal(rows.outputs.shape)
    shifted = replace(rows, outputs=rows.outputs - stream, low=-stream)
    fit = shifted.fit(plain(shifted, start), start, TINY, with_bias=True)
    wanted = np.maximum(rows.outputs, 0)

    def lost(fit: Fit) -> float:
        made = fit.weights @ rows.inputs + fit.bias[..., None] + stream
        return float(np.sum((np.maximum(made, 0) - wanted) ** 2))

    assert lost(fit) < 0.98 * lost(plain(shifted, start))
    goal = wanted - stream
    spread = np.sum((goal - goal.mean(axis=2, keepdims=True)) ** 2)
    assert shifted.error(fit) == pytest.approx(lost(fit) / spread)


def test_error_is_of_what_is_left_after_the_clip() -> None:
    rows, start = relu_rows(3)
    wanted = np.maximum(rows.outputs, 0)
    made = np.maximum(start.weights @ rows.inputs + start.bias[..., None], 0)
    share = np.sum((wanted - made) ** 2) / (600 * np.sum(wanted.var(axis=2)))
    assert rows.error(start) == pytest.approx(share)


@pytest.mark.filterwarnings("error")
def test_no_rows_to_judge_by_are_no_error_and_no_reason_to_change() -> None:
    inputs, fit = np.ones((1, 2, 6)), Fit(np.zeros((1, 3, 2)), np.zeros((1, 3)))
    shown = Rows(inputs, np.ones((1, 3, 6)), np.array(0.0), np.array(np.inf))
    held = Rows(inputs[:, :, :0], np.ones((1, 3, 0)), np.array(0.0), np.array(np.inf))
    better = Fit(np.full((1, 3, 2), 0.5), np.zeros((1, 3)))
    found = best_clipped_fit(shown, held, fit, (better, better), 1e-3, with_bias=True)
    assert found == (fit, 0.0, 0.0)


def test_the_best_on_samples_held_back_is_taken() -> None:
    rows, start = relu_rows(4)
    sides = [
        replace(rows, inputs=rows.inputs[..., s], outputs=rows.outputs[..., s])
        for s in (slice(400), slice(400, None))
    ]
    fits = plain(sides[0], start), plain(rows, start)
    fit, before, after = best_clipped_fit(*sides, start, fits, TINY, with_bias=True)
    assert before == sides[1].error(start)
    assert after < sides[1].error(fits[0]) < before
    assert rows.error(fit) < rows.error(fits[1])
    broken = Fit(-start.weights, start.bias), Fit(-start.weights, start.bias)
    exact = replace(rows, outputs=start.weights @ rows.inputs + start.bias[..., None])
    fit, before, after = best_clipped_fit(exact, exact, start, broken, TINY, with_bias=True)
    assert fit is start
    assert before == after == 0


def test_wide_layers_take_fewer_steps_or_none() -> None:
    assert steps_for(1 << 20) == clipped_regression.STEPS
    assert 3 <= steps_for(1 << 33) < clipped_regression.STEPS
    assert steps_for(1 << 36) == 0


def test_a_plain_fit_that_chases_what_is_cut_off_is_no_place_to_begin() -> None:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((1, 3, 400))
    start = Fit(np.ones((1, 1, 3)), np.zeros((1, 1)))
    y = 1.2 * x.sum(axis=1, keepdims=True)
    y[y < 0] -= 1000 * rng.random(int((y < 0).sum()))  # a Relu hides all of this
    rows = Rows(x, y, np.zeros(()), NEVER)
    free = plain(rows, start)
    assert rows.error(free) > rows.error(start)
    fit, before, after = best_clipped_fit(rows, rows, start, (free, free), 1e-6, with_bias=True)
    assert after < 0.05 * before
    np.testing.assert_allclose(fit.weights, 1.2, atol=0.05)
