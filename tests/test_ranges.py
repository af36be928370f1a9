"""Ranges against exhaustive search, by the definitions and on the values themselves."""

from __future__ import annotations

import itertools
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
from onnxcomp.statistics import Histogram, Range

Array = np.ndarray[Any, Any]


def histogram(values: Array, bins: int = 2048) -> Any:
    statistic = Histogram(bins)
    statistic.update(values)
    return statistic.result()


def loss(values: Array, low: float, high: float, clipping: float = 1.5) -> float:
    """What the range search minimizes, by the definition and on the values themselves."""
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    raw = np.rint(values / scale) + zero
    codes = np.clip(raw, 0, 255)
    error = ((codes - zero) * scale - values) ** 2
    return float(np.where(codes != raw, clipping * error, error).sum())


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "uniform", "outlier", "shifted"])
def test_range_loses_no_more_than_exhaustive_search(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = {
        "normal": rng.standard_normal(20000),
        "laplace": rng.laplace(size=20000),
        "relu": np.maximum(rng.standard_normal(20000), 0),
        "uniform": rng.uniform(-1, 3, 20000),
        "outlier": np.append(rng.standard_normal(20000), [90.0]),
        "shifted": rng.standard_normal(20000) + 5,
    }[kind].astype(np.float32)
    found = least_error_range(histogram(values))
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    assert low <= found.low <= 0 <= found.high <= high
    mine = loss(values, float(found.low), float(found.high))
    steps = np.linspace(1, 0.02, 60)
    lows = low * steps if low < 0 else [0.0]
    best = min(loss(values, a, b) for a in lows for b in high * steps)
    assert mine <= 1.03 * best
    assert mine <= loss(values, low, high)


def test_uniform_values_are_not_clipped_and_a_rare_outlier_is() -> None:
    rng = np.random.default_rng(1)
    even = rng.uniform(-1, 1, 50000).astype(np.float32)
    found = least_error_range(histogram(even))
    assert found.low <= 0.99 * even.min()  # half a step less lets zero and both ends have codes
    assert found.high == even.max()
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


def divergence(counts: Array, centres: Array, low: float, high: float, codes: int) -> float:
    """By the definition, level by level."""
    step = (high - low) / (codes - 1)
    first = round(low / step)
    cells: dict[int, list[int]] = {}
    reference = [0.0] * len(counts)
    inside = [i for i, c in enumerate(centres) if 0 <= round(c / step) - first < codes]
    if not inside:
        return np.inf
    for i, count in enumerate(counts):
        reference[min(max(i, inside[0]), inside[-1])] += float(count)
    for i in inside:
        cells.setdefault(round(centres[i] / step), []).append(i)
    kept = sum(counts[i] for i in inside)
    total = 0.0
    for members in cells.values():
        q = sum(counts[i] for i in members) / len(members) / kept
        for i in members:
            p = reference[i] / sum(counts)
            total += p * np.log(p / q)
    return total


@pytest.mark.parametrize("kind", ["normal", "relu", "outlier", "skewed"])
def test_least_divergence_against_exhaustive_search(kind: str) -> None:
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.standard_normal(3000),
        "relu": np.maximum(rng.standard_normal(3000), 0),
        "outlier": np.append(rng.standard_normal(3000), [20.0] * 3),
        "skewed": rng.gamma(2.0, 1.0, 3000) - 1,
    }[kind].astype(np.float32)
    seen = histogram(values, bins=64)
    found = least_divergence_range(seen, codes=8)
    cells = np.flatnonzero(seen.counts)
    centres = ((seen.edges[:-1] + seen.edges[1:]) / 2)[cells]
    some = np.abs(centres) > seen.width
    counts, centres = seen.counts[cells][some], centres[some]
    low, high = min(float(values.min()), 0.0), float(values.max())
    kept = np.geomspace(1.0, 1 / 16, 20)
    every = itertools.product(low * kept if low < 0 else [0.0], high * kept)
    best = min(divergence(counts, centres, a, b, 8) for a, b in every)
    mine = divergence(counts, centres, float(found.low), float(found.high), 8)
    assert mine <= 1.02 * best + 1e-9
    if kind == "outlier":
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
