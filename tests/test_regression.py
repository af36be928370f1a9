"""Fits from moments against least squares on the rows themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.gram import Gram
from onnxcomp.regression import Fit, Moments, best_fit, reason_against

Array = np.ndarray[Any, np.dtype[Any]]
TINY = 1e-12


def rows_of(seed: int, count: int = 500, groups: int = 2) -> tuple[Array, Array, Fit]:
    """x [groups, 6, count] with a mean, y [groups, 3, count] that x nearly makes, and weights."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((groups, 6, 6)) @ rng.standard_normal((groups, 6, count)) + 2
    weights = rng.standard_normal((groups, 3, 6))
    y = weights @ x + 0.5 * rng.standard_normal((groups, 3, count)) - 1
    return x, y, Fit(weights + 0.3, np.zeros((groups, 3)))


def lost(x: Array, y: Array, fit: Fit) -> float:
    return float(np.sum((y - fit.weights @ x - fit.bias[..., None]) ** 2))


@pytest.mark.parametrize("with_bias", [False, True])
def test_without_a_ridge_it_is_least_squares(with_bias: bool) -> None:
    x, y, start = rows_of(0)
    start = Fit(start.weights, start.bias + (0 if with_bias else 0.7))
    fit = next(Moments.of(x, y).fits(start, [TINY], with_bias=with_bias))
    for group in range(len(x)):
        columns = x[group].T
        if with_bias:
            columns = np.c_[columns, np.ones(len(columns))]
        goal = y[group].T - (0 if with_bias else 0.7)
        wanted = np.linalg.lstsq(columns, goal, rcond=None)[0].T
        np.testing.assert_allclose(fit.weights[group], wanted[:, :6], rtol=1e-7)
        bias = wanted[:, 6] if with_bias else 0.7
        np.testing.assert_allclose(fit.bias[group], bias, rtol=1e-6)


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_ridge_draws_towards_the_weights_there_are(with_bias: bool) -> None:
    x, y, start = rows_of(1)
    found = list(Moments.of(x, y).fits(start, [0.1, 1e9], with_bias=with_bias))
    assert len(found) == 2 + with_bias
    rows = x - x.mean(axis=2, keepdims=True) if with_bias else x
    goal = y - y.mean(axis=2, keepdims=True) if with_bias else y
    mean = np.mean(rows**2, axis=(1, 2))
    for group in range(len(x)):  # as further rows that ask for W = W0
        weight = np.sqrt(0.1 * mean[group] * x.shape[2]) * np.eye(6)
        columns = np.concatenate([rows[group], weight], axis=1)
        goals = np.concatenate([goal[group], start.weights[group] @ weight], axis=1)
        wanted = np.linalg.lstsq(columns.T, goals.T, rcond=None)[0].T
        np.testing.assert_allclose(found[0].weights[group], wanted, rtol=1e-7)
    np.testing.assert_allclose(found[1].weights, start.weights, atol=1e-6)


def test_what_varies_little_about_a_large_mean_is_seen_in_float32() -> None:
    rng = np.random.default_rng(9)
    varying = 1e-3 * rng.standard_normal((1, 32, 4)) @ rng.standard_normal((1, 4, 300))
    x = (varying + 10 * rng.standard_normal((1, 32, 1))).astype(np.float32)
    y = (rng.standard_normal((1, 3, 32)) @ varying + 100).astype(np.float32)
    parts = Moments.of(x[..., :100], y[..., :100]), Moments.of(x[..., 100:], y[..., 100:])
    moments = parts[0] + parts[1]
    rest = np.asarray(x, np.float64) - np.mean(x, axis=2, keepdims=True, dtype=np.float64)
    wanted = rest @ rest.swapaxes(1, 2) / 300
    found = moments.metric(centred=True)
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    fit = next(moments.fits(Fit(np.zeros((1, 3, 32)), np.zeros((1, 3))), [1e-3], with_bias=True))
    assert moments.error(fit) < 1e-3


def test_error_is_what_the_rows_say_whatever_the_parts() -> None:
    x, y, start = rows_of(2)
    fit = Fit(start.weights, start.bias + 0.4)
    whole = sum((Moments.of(x[..., s], y[..., s]) for s in (slice(90), slice(200, None))),
                Moments.of(x[..., 90:200], y[..., 90:200]))  # fmt: skip
    assert whole.count == 500
    assert whole.error(fit) == pytest.approx(lost(x, y, fit) / (500 * np.sum(np.var(y, axis=2))))


def test_moments_of_kept_inputs_give_the_closed_form() -> None:
    x, _, start = rows_of(3, groups=1)
    weights, kept = start.weights[0], np.array([0, 2, 5])
    statistic = Gram()
    statistic.update(x[0].T)
    moments = Moments.of_kept(weights, statistic.result(), kept)
    rows = Moments.of(x[:, kept], weights[None] @ x)
    for name in ("gram", "cross", "inputs", "outputs", "energy", "count"):
        np.testing.assert_allclose(getattr(moments, name), getattr(rows, name), rtol=1e-9)
    gram = statistic.result().matrix
    wanted = weights @ gram[:, kept] @ np.linalg.inv(gram[np.ix_(kept, kept)])
    start = Fit(weights[None, :, kept], np.zeros((1, 3)))
    fit = next(moments.fits(start, [TINY], with_bias=False))
    np.testing.assert_allclose(fit.weights[0], wanted, rtol=1e-6)


def test_the_ridge_is_chosen_on_rows_held_back() -> None:
    rng = np.random.default_rng(4)
    width = 40
    start = Fit(rng.standard_normal((1, 2, width)), np.zeros((1, 2)))

    def moments(count: int) -> Moments:
        x = rng.standard_normal((1, width, count))
        return Moments.of(x, 0.9 * start.weights @ x + 3 + rng.standard_normal((1, 2, count)))

    shown, held, fresh = moments(50), moments(50), moments(5000)
    choice = best_fit(shown, held, start, with_bias=True)
    fit = choice.whole
    assert choice.before == held.error(start)
    assert choice.after == held.error(choice.shown) < choice.before
    again = next((shown + held).fits(start, [choice.ridge], with_bias=True))
    np.testing.assert_array_equal(fit.weights, again.weights)
    (free,) = list((shown + held).fits(start, [TINY], with_bias=True))[:1]
    assert fresh.error(fit) < 0.8 * fresh.error(free)
    assert fresh.error(fit) < 0.2 * fresh.error(start)


def test_what_is_best_already_stays() -> None:
    x, _, start = rows_of(5)
    y = start.weights @ x + start.bias[..., None]
    parts = Moments.of(x[..., :300], y[..., :300]), Moments.of(x[..., 300:], y[..., 300:])
    choice = best_fit(*parts, start, with_bias=True)
    assert choice.before == choice.after == 0
    np.testing.assert_allclose(choice.whole.weights, start.weights, atol=1e-12)


def test_inputs_that_never_vary_leave_their_weights_alone() -> None:
    x, y, start = rows_of(6)
    x[:, 3] = 0
    fit = next(Moments.of(x, y).fits(start, [1e-3], with_bias=True))
    np.testing.assert_allclose(fit.weights[:, :, 3], start.weights[:, :, 3])


def test_reasons_against_a_fit() -> None:
    x, y, _ = rows_of(7)
    assert reason_against(Moments.of(x, y)) is None
    assert "1 rows of samples are too few for 6" in str(
        reason_against(Moments.of(x[..., :1], y[..., :1]))
    )
    assert "all zero" in str(reason_against(Moments.of(0 * x, y)))
    x[0, 0, 0] = np.inf
    assert "not finite" in str(reason_against(Moments.of(x, y)))
