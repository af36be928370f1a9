"""Streamed statistics against plain numpy on everything at once."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import helper

from onnxcomp.errors import CalibrationError
from onnxcomp.statistics import Gram, Histogram, MinMax, Moments, MovingAverage, Statistic, Window

R = TypeVar("R")
FLOATS = st.floats(-(2.0**99), 2.0**99, width=32)
VECTORS = arrays(np.float32, st.integers(1, 300), elements=FLOATS)


def summed(statistic: Statistic[R], parts: list[np.ndarray]) -> R:
    for part in parts:
        statistic.update(part)
    return statistic.result()


def random_parts(seed: int, shape: tuple[int, ...], parts: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0.5, 2, shape).astype(np.float32) for _ in range(parts)]


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=FLOATS))
def test_min_max_equals_numpy_per_tensor_and_per_channel(values: np.ndarray) -> None:
    whole = summed(MinMax(), list(values))
    assert whole.low == values.min()
    assert whole.high == values.max()
    others = tuple(range(values.ndim - 1))
    channels = summed(MinMax(axis=-1), [part[None] for part in values])
    np.testing.assert_array_equal(channels.low, values.min(others))
    np.testing.assert_array_equal(channels.high, values.max(others))


@given(VECTORS, st.integers(2, 64), st.randoms(use_true_random=False))
def test_histogram_does_not_depend_on_order_or_cuts(
    values: np.ndarray, bins: int, random: object
) -> None:
    whole = summed(Histogram(bins), [values])
    shuffled = values.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    cut = summed(Histogram(bins), np.array_split(shuffled, min(5, values.size)))
    np.testing.assert_array_equal(whole.counts, cut.counts)
    assert (whole.start, whole.width, whole.low, whole.high) == (
        cut.start,
        cut.width,
        cut.low,
        cut.high,
    )


@given(VECTORS, st.integers(2, 64))
def test_histogram_counts_are_exact_and_its_cells_fine(values: np.ndarray, bins: int) -> None:
    result = summed(Histogram(bins), list(values[:, None]))
    exact = values.astype(np.float64)
    cells = np.floor(exact / result.width) - result.start
    np.testing.assert_array_equal(result.counts, np.bincount(cells.astype(int), minlength=bins))
    assert result.counts.size == bins
    assert result.counts.sum() == values.size
    spread = exact.max() - exact.min()
    finest = max(abs(exact).max() * 2.0**-23, 2.0**-120)
    assert result.width <= max(4 * spread / (bins - 1), finest)


@given(VECTORS, st.sampled_from([50.0, 90.0, 99.0, 99.99, 100.0]))
def test_percentile_leaves_out_at_most_the_tails_and_is_tight(values: np.ndarray, q: float) -> None:
    result = summed(Histogram(), np.array_split(values, min(3, values.size)))
    kept = result.percentile(q)
    ordered, tail = np.sort(values.astype(np.float64)), values.size * (100 - q) / 200
    assert (ordered < kept.low).sum() <= tail + 1e-9
    assert (ordered > kept.high).sum() <= tail + 1e-9
    first = ordered[min(int(np.floor(tail)), values.size - 1)]
    last = ordered[max(int(np.ceil(values.size - tail)) - 1, 0)]
    assert kept.low >= min(first, last) - result.width
    assert kept.high <= max(first, last) + result.width
    assert kept.low >= ordered[0]
    assert kept.high <= ordered[-1]


@pytest.mark.parametrize("constant", [0.0, 3.5, -7.25e-20, 1e30])
def test_histogram_of_a_constant_gives_that_constant(constant: float) -> None:
    result = summed(Histogram(), [np.full((2, 3), constant, np.float32)] * 4)
    kept = result.percentile(99.9)
    assert kept.low == kept.high == np.float32(constant)
    assert result.counts.max() == 24


def test_histogram_grows_from_zeros_over_tiny_to_large_values() -> None:
    parts = [np.float32([0, 0]), np.float32([-1e-30, 0]), np.float32([1e-3]), np.float32([4096])]
    result = summed(Histogram(), parts)
    occupied = np.flatnonzero(result.counts)
    assert result.width == 4.0
    np.testing.assert_array_equal(result.edges[occupied], [-4, 0, 4096])
    np.testing.assert_array_equal(result.counts[occupied], [1, 4, 1])


def test_histogram_percentile_cuts_the_outlier_that_min_max_keeps() -> None:
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    values[7] = 1000.0
    result = summed(Histogram(), np.split(values, 10))
    assert result.high == 1000.0
    assert 3.2 < result.percentile(99.9).high < 4.5
    assert -3.6 < result.percentile(99.9).low < -2.9


def test_histogram_sets_non_finite_values_aside() -> None:
    result = summed(Histogram(), [np.array([1, np.nan, -np.inf, 2, np.inf], np.float32)])
    assert (result.low, result.high, result.nonfinite) == (1.0, 2.0, 3)
    assert result.counts.sum() == 2


@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 7), st.floats(-1e4, 1e4))
def test_moments_equal_numpy_even_when_the_mean_is_large(
    seed: int, parts: int, channels: int, offset: float
) -> None:
    pieces = [p + np.float32(offset) for p in random_parts(seed, (2, channels, 5), parts)]
    everything = np.concatenate(pieces).astype(np.float64)
    result = summed(Moments(axis=1), pieces)
    np.testing.assert_allclose(result.mean, everything.mean((0, 2)), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(result.variance, everything.var((0, 2)), rtol=1e-8, atol=1e-12)
    assert result.count == everything.size // channels
    whole = summed(Moments(), pieces)
    np.testing.assert_allclose(whole.variance, everything.var(), rtol=1e-8)
    assert whole.mean.shape == ()


def test_moments_cross_blocks() -> None:
    values = np.random.default_rng(1).normal(3, 2, (3, 700, 900)).astype(np.float32)
    result = summed(Moments(axis=0), [values])
    np.testing.assert_allclose(result.mean, values.astype(np.float64).mean((1, 2)), rtol=1e-12)
    np.testing.assert_allclose(result.variance, values.astype(np.float64).var((1, 2)), rtol=1e-10)


@pytest.mark.parametrize(("shape", "axis"), [((4, 7, 6), -1), ((2, 6, 5, 3), 1), ((600, 3), 1)])
@pytest.mark.parametrize("parts", [1, 9])
def test_gram_equals_numpy_along_any_axis(shape: tuple[int, ...], axis: int, parts: int) -> None:
    pieces = random_parts(3, shape, parts)
    rows = np.concatenate([np.moveaxis(p, axis, -1).reshape(-1, p.shape[axis]) for p in pieces])
    rows = rows.astype(np.float64)
    result = summed(Gram(axis), pieces)
    np.testing.assert_allclose(result.matrix, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_array_equal(result.matrix, result.matrix.T)
    assert result.count == len(rows)
    backwards = summed(Gram(axis), [p[::-1] for p in reversed(pieces)])
    np.testing.assert_allclose(backwards.matrix, result.matrix, rtol=1e-5, atol=1e-6)


def test_gram_result_may_be_read_and_then_updated_again() -> None:
    first, second = random_parts(4, (5, 3), 2)
    gram = Gram()
    gram.update(first)
    gram.result()
    gram.update(second)
    rows = np.concatenate([first, second])
    np.testing.assert_allclose(gram.result().matrix, rows.T @ rows / 10, rtol=1e-5)


CONVOLUTIONS = [
    ({"kernel_shape": [1, 1]}, (8, 5, 1, 1), (9, 7)),
    ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, (8, 5, 3, 3), (9, 7)),
    ({"kernel_shape": [3, 2], "pads": [0, 1, 2, 0], "strides": [2, 1]}, (4, 6, 3, 2), (11, 8)),
    ({"kernel_shape": [3, 3], "dilations": [2, 3], "group": 3}, (6, 2, 3, 3), (12, 13)),
    ({"kernel_shape": [3, 3], "group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]},
     (4, 1, 3, 3), (8, 9)),
    ({"kernel_shape": [4, 2], "auto_pad": "SAME_LOWER", "strides": [3, 2]}, (2, 3, 4, 2), (8, 9)),
    ({"kernel_shape": [3], "auto_pad": "VALID", "strides": [2]}, (4, 5, 3), (17,)),
    ({"kernel_shape": [2, 3, 2], "pads": [1, 0, 0, 0, 1, 1]}, (3, 2, 2, 3, 2), (5, 6, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("attributes", "weight_shape", "spatial"), CONVOLUTIONS)
def test_gram_of_a_conv_predicts_the_power_of_its_output(
    attributes: dict[str, object], weight_shape: tuple[int, ...], spatial: tuple[int, ...]
) -> None:
    """With y = W x: E[y] = W E[x] and E[y yT] = W G WT, computed by onnxruntime's own Conv."""
    rng = np.random.default_rng(5)
    window = Window.of_conv(attributes, weight_shape)
    weight = rng.normal(size=weight_shape).astype(np.float32)
    samples = random_parts(6, (2, weight_shape[1] * window.group, *spatial), 3)
    result = summed(Gram(window=window), samples)

    outputs = np.concatenate([run_conv(attributes, weight, sample) for sample in samples])
    outputs = np.moveaxis(outputs, 1, 0).reshape(weight_shape[0], -1).astype(np.float64)
    flat = weight.reshape(window.group, weight_shape[0] // window.group, -1).astype(np.float64)
    power = np.einsum("gor,grs,gos->go", flat, result.matrix, flat).ravel()
    mean = np.einsum("gor,gr->go", flat, result.mean).ravel()
    assert result.count == outputs.shape[1]
    np.testing.assert_allclose(power, (outputs**2).mean(1), rtol=1e-4)
    np.testing.assert_allclose(mean, outputs.mean(1), rtol=1e-4, atol=1e-4)


def run_conv(attributes: dict[str, object], weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    kinds = [helper.make_tensor_value_info(n, 1, None) for n in ("x", "w", "y")]
    graph = helper.make_graph([node], "conv", kinds[:2], kinds[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x, "w": weight})[0])


def test_gram_gathers_a_large_conv_in_bounded_blocks() -> None:
    sample = np.random.default_rng(8).normal(size=(32, 200, 200)).astype(np.float32)
    window = Window(kernel=(3, 3), pads=(1, 1, 1, 1))
    blocks = [block.shape for block in window.patches(sample)]
    assert sum(rows for *_, rows in blocks) == 200 * 200
    assert max(np.prod(shape) for shape in blocks) * 4 <= 5 << 20


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_gram_of_float16_is_accumulated_wider(seed: int) -> None:
    values = np.random.default_rng(seed).normal(100, 1, (4000, 2)).astype(np.float16)
    exact = values.astype(np.float64)
    result = summed(Gram(), np.split(values, 40))
    np.testing.assert_allclose(result.matrix, exact.T @ exact / 4000, rtol=1e-5)


@pytest.mark.parametrize("statistic", [MinMax(), Histogram(), Moments(), Gram()])
def test_a_statistic_without_values_says_so(statistic: Statistic[object]) -> None:
    with pytest.raises(CalibrationError, match="saw no finite values"):
        summed(statistic, [np.zeros((0, 3), np.float32)])


@pytest.mark.parametrize("make", [MinMax, Histogram, Moments, Gram])
def test_statistics_keep_nothing_of_the_arrays_they_saw(make: type) -> None:
    """onnxruntime may reuse an output's memory for the next sample."""
    values = np.random.default_rng(9).normal(size=(40, 3)).astype(np.float32)
    expected, statistic, buffer = summed(make(), list(values[:, None])), make(), np.empty((1, 3))
    buffer = buffer.astype(np.float32)
    for row in values:
        buffer[:] = row
        statistic.update(buffer)
    buffer[:] = np.nan
    for name, value in vars(statistic.result()).items():
        np.testing.assert_array_equal(value, getattr(expected, name))


@pytest.mark.parametrize("momentum", [None, 0.0, 0.9])
def test_moving_average_equals_numpy(momentum: float | None) -> None:
    samples = np.random.default_rng(0).standard_normal((7, 3, 50), np.float32)
    statistic = MovingAverage(momentum)
    for sample in samples:
        statistic.update(sample)
    lows, highs = samples.min((1, 2)), samples.max((1, 2))
    if momentum is None:
        want = lows.mean(), highs.mean()
    else:
        weights = (1 - momentum) * momentum ** np.arange(6, -1, -1.0)
        weights[0] /= 1 - momentum
        want = weights @ lows, weights @ highs
    assert np.allclose([statistic.result().low, statistic.result().high], want, rtol=1e-6)


def test_moving_average_refuses_other_momenta() -> None:
    with pytest.raises(ValueError, match=r"1\.5"):
        MovingAverage(1.5)


@pytest.mark.parametrize("most", [None, 300])
def test_weighted_histogram_equals_numpy(most: int | None) -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4, 3, 20, 10)).astype(np.float32)
    values[1, 2, 3, 4] = np.inf
    weights = np.array([1.0, 10.0, 0.25])
    statistic = Histogram(bins=64, most=most, weights=weights, axis=1)
    for sample in values:
        statistic.update(sample[None])
    found = statistic.result()
    finite = np.isfinite(values)
    spread = np.broadcast_to(weights.reshape(1, 3, 1, 1), values.shape)[finite]
    want, _ = np.histogram(values[finite], found.edges, weights=spread)
    plain, _ = np.histogram(values[finite], found.edges)
    assert found.weighted is not None
    if most is None:
        assert np.allclose(found.weighted, want)
        assert np.array_equal(found.counts, plain)
    else:
        assert found.weighted.sum() == pytest.approx(want.sum(), rel=0.05)
        assert found.counts.sum() == pytest.approx(plain.sum(), rel=0.01)
        centres = (found.edges[:-1] + found.edges[1:]) / 2
        spreads = [np.sqrt(c @ centres**2 / c.sum()) for c in (found.weighted, want)]
        assert spreads[0] == pytest.approx(spreads[1], rel=0.1)
    assert (found.low, found.high) == (values[finite].min(), values[finite].max())


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channels"):
        Histogram(weights=np.ones(2)).update(np.zeros((1, 3, 4), np.float32))


def test_moments_of_some_values_are_near_those_of_all() -> None:
    values = np.random.default_rng(0).standard_normal((2, 5, 90, 100)).astype(np.float32)
    values *= np.arange(1, 6, dtype=np.float32).reshape(1, 5, 1, 1)
    some, every = Moments(axis=1, most=5000), Moments(axis=1)
    for statistic in (some, every):
        statistic.update(values)
    assert some.result().count < every.result().count / 10
    assert np.allclose(some.result().variance, every.result().variance, rtol=0.15)
