"""Predicted rounding errors against rounding itself, and what is chosen by them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.equalization import (
    LEAST_RANGE,
    Activation,
    Reader,
    balanced_factors,
    choose_factors,
    relative_bounds,
)

Array = np.ndarray[Any, Any]
SPREAD = np.array([1.0, 0.5, 0.1, 0.02])  # ranges of channels


def activation(spread: Array, importance: Array | float = 1.0, count: int = 4000) -> Activation:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, (spread.size, count)) * spread[:, None]
    felt = np.broadcast_to(np.asarray(importance, float), spread.shape)
    return Activation(
        classes=np.arange(spread.size),
        values=values,
        weights=np.ones(count),
        held=values,
        held_weights=np.ones(count),
        importance=felt,
    )


def reader(weights: Array, power: Array) -> Reader:
    """Of weights [out, in]."""
    return Reader(
        classes=np.arange(weights.shape[1])[None],
        largest=np.abs(weights)[None],
        power=power[None],
        importance=1.0,
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_loss_of_an_activation_is_that_of_rounding_it(alpha: float) -> None:
    given = activation(SPREAD, [1, 2, 3, 40])
    factors = SPREAD**alpha
    scaled = given.values / factors[:, None]
    step = scaled.max() / 255
    error = (np.rint(scaled / step) * step - scaled) * factors[:, None]
    want = (np.square(error).mean(axis=1) * [1, 2, 3, 40]).sum()
    assert given.loss(factors) == pytest.approx(want, rel=0.03)


def test_weights_of_values_count_as_repetitions() -> None:
    values = np.array([[0.1, 0.37, 0.9], [0.05, 0.6, 1.0]])
    counts = np.array([1, 3, 2])
    repeated = np.repeat(values, counts, axis=1)
    once, often = (
        Activation(
            classes=np.arange(2),
            values=table,
            weights=weights,
            held=table * 0.9,
            held_weights=weights,
            importance=np.ones(2),
        )
        for table, weights in ((values, counts.astype(float)), (repeated, np.ones(6)))
    )
    assert once.loss(np.ones(2)) == pytest.approx(often.loss(np.ones(2)))


def test_factors_that_fit_only_the_samples_they_were_made_from_are_not_taken() -> None:
    rng = np.random.default_rng(6)
    silent = rng.uniform(0, 1, (16, 4000)) * np.where(np.arange(16) < 8, 1, 0.01)[:, None]
    weights = rng.standard_normal((64, 16)) * np.where(np.arange(16) < 8, 1, 20)
    for loud in (False, True):  # whether the small channels are as small in other samples
        given = Activation(
            classes=np.arange(16),
            values=silent,
            weights=np.ones(4000),
            held=np.roll(silent, 8, axis=0) if loud else silent,
            held_weights=np.ones(4000),
            importance=np.square(weights).sum(axis=0),
        )
        power = np.square(given.held).mean(axis=1)
        choice = choose_factors([given], [reader(weights, power)], np.ones(16, bool))
        assert (choice.alpha == 0) == loud


def test_loss_of_a_reader_is_that_of_rounding_its_weights() -> None:
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((50, 256))
    spread = np.repeat(SPREAD, 64)
    power = np.square(spread) * rng.uniform(0.5, 2, 256)
    for factors in (np.ones(256), spread, np.sqrt(spread)):
        scaled = weights * factors
        step = np.abs(scaled).max(axis=1, keepdims=True) / 127
        error = (np.rint(scaled / step) * step - scaled) / factors
        want = float((np.square(error) * power).sum())
        assert reader(weights, power).loss(factors) == pytest.approx(want, rel=0.15)


def test_depthwise_readers_do_not_mind_factors() -> None:
    weights = np.random.default_rng(2).standard_normal((4, 1, 1))
    depthwise = Reader(
        classes=np.arange(4)[:, None],
        largest=np.abs(weights),
        power=np.ones((4, 1)),
        importance=1.0,
    )
    assert depthwise.loss(SPREAD) == pytest.approx(depthwise.loss(np.ones(4)))


def test_the_choice_has_the_least_true_error_of_all_exponents() -> None:
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((32, 4)) / SPREAD  # small channels are read by large weights
    given = activation(SPREAD, np.square(weights).sum(axis=0))
    power = np.square(given.values).mean(axis=1)
    choice = choose_factors([given], [reader(weights, power)], np.ones(4, bool))

    def true_error(alpha: float) -> float:
        factors = (SPREAD / SPREAD.max()) ** alpha
        x = given.values / factors[:, None]
        w = weights * factors
        step, steps = x.max() / 255, np.abs(w).max(axis=1, keepdims=True) / 127
        rounded = (np.rint(w / steps) * steps) @ (np.rint(x / step) * step)
        return float(np.square(rounded - weights @ given.values).mean())

    errors = {alpha: true_error(alpha) for alpha in (0, 0.25, 0.5, 0.75, 1)}
    assert choice.alpha == pytest.approx(min(errors, key=errors.__getitem__), abs=0.25)
    assert true_error(choice.alpha) < 0.1 * errors[0]
    assert choice.after < 0.1 * choice.before


def test_even_channels_are_left_alone() -> None:
    weights = np.random.default_rng(4).standard_normal((8, 4))
    choice = choose_factors(
        [activation(np.ones(4))], [reader(weights, np.ones(4))], np.ones(4, bool)
    )
    assert choice.alpha == 0
    assert (choice.factors == 1).all()


def test_pinned_and_dead_channels_keep_the_factor_1_and_tiny_ones_are_bounded() -> None:
    given = activation(np.array([1.0, 0.5, 0.0, 1e-6]))
    free = np.array([True, False, True, True])
    assert relative_bounds([given], free).tolist() == pytest.approx(
        [1, 1, 1, LEAST_RANGE], rel=1e-3
    )


def test_factors_that_are_powers_of_two_stay_above_the_range() -> None:
    weights = np.random.default_rng(5).standard_normal((8, 4)) / SPREAD
    given = activation(SPREAD, np.square(weights).sum(axis=0))
    readers = [reader(weights, np.square(given.values).mean(axis=1))]
    choice = choose_factors([given], readers, np.ones(4, bool), power_of_two=True)
    assert choice.alpha > 0
    assert (np.log2(choice.factors) % 1 == 0).all()
    assert (choice.factors >= (SPREAD / SPREAD.max()) ** choice.alpha * 0.99).all()


def test_balanced_factors_make_both_sides_alike() -> None:
    rows, columns = np.array([1.0, 4.0, 0.0, 2.0]), np.array([1.0, 1.0, 1.0, 0.5])
    factors = balanced_factors(rows, columns, np.array([True, True, True, False]))
    assert factors[2:].tolist() == [1, 1]  # made by no weight; not free
    balance = (rows / factors) / (columns * factors)
    assert balance[0] == pytest.approx(balance[1])
    assert factors.max() == 1
