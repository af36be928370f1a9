"""Ranges against exhaustive search, by the definitions and on the values themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.quantization import affine
from onnxcomp.ranges import (
    least_divergence_range,
    least_error_range,
    mean_squared_error,
    power_of_two_range,
)
from onnxcomp.statistics import Histogram, HistogramResult, Range

Array = np.ndarray[Any, Any]


def histogram(values: Array, bins: int = 2048) -> HistogramResult:
    statistic = Histogram(bins)
    statistic.update(values)
    return statistic.result()


def cells(seen: HistogramResult) -> tuple[Array, Array]:
    """Centres, within the exact range, and counts of the cells that are not empty."""
    some = seen.counts > 0
    centres = (seen.edges[:-1] + seen.edges[1:]) / 2
    return np.clip(centres, min(seen.low, 0), max(seen.high, 0))[some], seen.counts[some]


def every_code(seen: HistogramResult, codes: int, steps: Array) -> Iterator[tuple[float, int]]:
    """Steps and first levels of all ranges that are at most half a step beyond the exact one."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    for step in ((high - low) / (codes - 1) * steps).tolist():
        slack = (0.5 + 1e-6) * step
        for first in range(1 - codes if low < 0 else 0, 1 if high > 0 else 2 - codes):
            if first * step >= low - slack and (first + codes - 1) * step <= high + slack:
                yield step, first


def squared_error(
    centres: Array, counts: Array, step: float, first: int, codes: int, clipping: float = 1.5
) -> float:
    """What the search minimizes, by the definition."""
    level = np.floor(centres / step + 0.5)
    kept = np.clip(level, first, first + codes - 1)
    error = np.square(kept * step - centres) * np.where(kept == level, 1.0, clipping)
    return float(error @ counts)


def values_of(kind: str, count: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    values = {
        "normal": rng.standard_normal(count),
        "laplace": rng.laplace(size=count),
        "relu": np.maximum(rng.standard_normal(count), 0),
        "negative": -rng.exponential(size=count),
        "uniform": rng.uniform(-1, 3, count),
        "outlier": np.append(rng.standard_normal(count), [90.0]),
        "outliers": np.append(rng.standard_normal(count), [20.0] * 3),
        "skewed": rng.gamma(2.0, 1.0, count) - 1,
        "heavy": rng.standard_t(2, count),
        "shifted": rng.standard_normal(count) + 5,
    }[kind]
    return values.astype(np.float32)


ErrorOf = Callable[[Array, Array, float, int, int], float]


def assert_exact(seen: HistogramResult, found: Range, codes: int, error: ErrorOf) -> None:
    """``found`` is as good as the best of all steps and zero points, tried one by one: steps of a
    grid first, then twice those of a finer one around the best."""
    centres, counts = cells(seen)
    if error is divergence:
        centres, counts = (x[np.abs(centres) > seen.width] for x in (centres, counts))
    shares, ratio = np.geomspace(1.0, 1 / 64, 64), (1 / 64) ** (1 / 63)
    for _ in range(3):
        tried = every_code(seen, codes, shares[shares <= 1 + 1e-9])
        best, share = min((error(centres, counts, *code, codes), code[0]) for code in tried)
        share /= (max(seen.high, 0.0) - min(seen.low, 0.0)) / (codes - 1)
        shares, ratio = share * np.geomspace(ratio, 1 / ratio, 9), ratio**0.25
    step = float(found.high - found.low) / (codes - 1)
    first = round(float(found.low) / step)
    assert found.low == pytest.approx(first * step, rel=1e-9)
    mine = error(centres, counts, step, first, codes)
    assert mine == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(
    "kind", ["normal", "relu", "negative", "uniform", "outlier", "skewed", "heavy", "shifted"]
)
@pytest.mark.parametrize("codes", [16, 255])
def test_least_error_is_that_of_exhaustive_search(kind: str, codes: int) -> None:
    seen = histogram(values_of(kind, 3000), bins=128)
    assert_exact(seen, least_error_range(seen, codes), codes, squared_error)


@pytest.mark.parametrize("kind", ["normal", "relu", "uniform", "outlier", "heavy", "shifted"])
def test_least_error_on_the_values_themselves(kind: str) -> None:
    """No pair of ends, tried on the values, is much better than what the histogram tells."""
    values = values_of(kind, 8000)

    def loss(low: float, high: float) -> float:
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        raw = np.rint(values / scale) + zero
        codes = np.clip(raw, 0, 255)
        error = ((codes - zero) * scale - values) ** 2
        return float(np.where(codes != raw, 1.5 * error, error).sum())

    found = least_error_range(histogram(values))
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    slack = float(found.high - found.low) / 255 * 0.501
    assert low - slack <= found.low <= 0 <= found.high <= high + slack
    steps = np.linspace(1, 0.02, 60)
    lows = low * steps if low < 0 else [0.0]
    best = min(loss(a, b) for a in lows for b in high * steps)
    assert loss(float(found.low), float(found.high)) <= 1.02 * best


def test_uniform_values_are_not_clipped_and_a_rare_outlier_is() -> None:
    rng = np.random.default_rng(1)
    even = rng.uniform(-1, 1, 50000).astype(np.float32)
    found = least_error_range(histogram(even))
    assert found.low <= 0.99 * even.min()
    assert found.high >= 0.99 * even.max()
    rare = np.append(rng.standard_normal(500000), [100.0]).astype(np.float32)
    assert least_error_range(histogram(rare)).high < 80


def test_range_of_a_constant_tensor() -> None:
    found = least_error_range(histogram(np.full(7, 3.0, np.float32)))
    assert (found.low, found.high) == (0.0, 3.0)
    found = least_error_range(histogram(np.zeros(7, np.float32)))
    assert (found.low, found.high) == (0.0, 0.0)


def silu(x: Array) -> Array:
    return np.asarray(x / (1 + np.exp(-np.clip(x, -80, 80))))


def test_range_before_a_gate_ends_where_the_gate_has_closed() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.uniform(-80, 0, 20000), rng.uniform(0, 10, 20000)])
    seen = histogram(values.astype(np.float32))
    blind, felt = least_error_range(seen), least_error_range(seen, felt=silu)
    assert blind.low < -70
    assert -12 < felt.low < -3
    assert felt.high > 9

    def error(found: Range) -> float:
        parameters = affine(found, np.uint8)
        codes = parameters.dequantize(parameters.quantize(values))
        return float(np.square(silu(codes) - silu(values)).mean())

    assert error(felt) < error(blind) / 20
    assert mean_squared_error(seen, affine(felt, np.uint8), silu) == pytest.approx(
        error(felt), rel=0.15
    )


def divergence(centres: Array, counts: Array, step: float, first: int, codes: int) -> float:
    """Kullback and Leibler's, by the definition, level by level."""
    levels = np.floor(centres / step + 0.5)
    inside = np.flatnonzero((levels >= first) & (levels < first + codes))
    if not inside.size:
        return np.inf
    reference = np.zeros(len(counts))
    for i, count in enumerate(counts):
        reference[min(max(i, inside[0]), inside[-1])] += float(count)
    kept, total = counts[inside].sum(), 0.0
    for level in np.unique(levels[inside]):
        members = inside[levels[inside] == level]
        q = counts[members].sum() / len(members) / kept
        p = reference[members] / counts.sum()
        total += float((p * np.log(p / q)).sum())
    return total


@pytest.mark.parametrize("kind", ["normal", "relu", "negative", "outliers", "skewed"])
def test_least_divergence_is_that_of_exhaustive_search(kind: str) -> None:
    seen = histogram(values_of(kind, 3000, seed=3), bins=64)
    found = least_divergence_range(seen, codes=8)
    assert_exact(seen, found, 8, divergence)
    if kind == "outliers":
        assert found.high < 12


def test_least_divergence_of_nothing_but_zeros() -> None:
    found = least_divergence_range(histogram(np.zeros(5, np.float32)))
    assert (found.low, found.high) == (0.0, 0.0)


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32))
def test_power_of_two_steps_hold_the_range_and_are_the_least(a: float, b: float) -> None:
    seen = Range(np.asarray(min(a, b)), np.asarray(max(a, b)))
    parameters = affine(power_of_two_range(seen), np.uint8)
    mantissa, exponent = np.frexp(float(parameters.scale))
    assert mantissa == 0.5
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    if low == high:
        return
    assert parameters.low <= low
    assert parameters.high >= high
    half = float(np.ldexp(mantissa, exponent - 1))
    if half >= 2.0**-126:
        assert np.ceil(-low / half) + np.ceil(high / half) > 255


def test_power_of_two_range_of_no_width_is_left() -> None:
    zero = Range(np.asarray(0.0), np.asarray(0.0))
    assert power_of_two_range(zero) == zero


def test_auto_clips_what_the_readers_do_not_feel_and_keeps_what_they_do() -> None:
    """Channel 0 has rare large values, channel 1 small ones; squared error alone cannot tell."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((8, 2, 2000)).astype(np.float32)
    values[:, 0] *= 10 * (rng.random((8, 2000)) < 0.02)

    def output_error(found: Range, gains: Array) -> float:
        parameters = affine(found, np.uint8)
        error = parameters.dequantize(parameters.quantize(values)) - values
        return float((np.square(error).mean((0, 2)) * gains).sum())

    for gains in (np.array([1e-3, 2.0]), np.array([2.0, 1e-3])):
        blind, feeling = Histogram(), Histogram(weights=gains, axis=1)
        for sample in values:
            blind.update(sample[None])
            feeling.update(sample[None])
        mse, auto = (least_error_range(s.result(), clipping_weight=1) for s in (blind, feeling))
        if gains[0] < gains[1]:
            assert output_error(auto, gains) < output_error(mse, gains) / 3
        else:
            assert output_error(auto, gains) <= 1.02 * output_error(mse, gains)
