"""The mathematics against its definitions, exhaustive search and plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcomp.quantization import (
    LARGEST_BIAS_CODE,
    affine,
    bias_codes,
    least_weight_scale,
    rounding_bias,
    symmetric,
)
from onnxcomp.statistics import Range

Array = np.ndarray[Any, Any]
dtypes = st.sampled_from([np.uint8, np.int8])
reals = st.floats(-1e6, 1e6, width=32)
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4), elements=reals)


@given(reals, reals, dtypes)
def test_zero_is_exact_and_the_whole_range_has_codes(a: float, b: float, dtype: Any) -> None:
    found = affine(Range(np.asarray(min(a, b)), np.asarray(max(a, b))), dtype)
    step = float(found.scale)
    assert found.dtype == dtype
    assert step > 0
    assert found.quantize(np.zeros(1)) == found.zero_point
    assert found.dequantize(np.asarray([found.zero_point])) == 0
    assert found.low <= min(a, b, 0) + 0.501 * step
    assert found.high >= max(a, b, 0) - 0.501 * step


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=reals), dtypes)
def test_rounding_loses_half_a_step(values: Array, dtype: Any) -> None:
    found = affine(Range(values.min(), values.max()), dtype)
    codes = found.quantize(values)
    assert codes.dtype == dtype
    error = np.abs(found.dequantize(codes).astype(np.float64) - values)
    # the ends may lie half a step outside, where the zero point was rounded to
    inside = (values >= found.low) & (values <= found.high)
    assert (error[inside] <= 0.501 * found.scale).all()
    assert (error <= 1.002 * found.scale).all()


@pytest.mark.parametrize(("dtype", "codes"), [(np.uint8, [2, 3, 4]), (np.int8, [-126, -125, -124])])
def test_codes_by_hand(dtype: Any, codes: list[int]) -> None:
    found = affine(Range(np.asarray(0.0), np.asarray(255.0)), dtype)
    assert found.scale == 1
    assert found.zero_point == np.iinfo(dtype).min
    assert found.quantize(np.asarray([2.5, 2.51, 3.5])).tolist() == codes  # halves to even


def test_a_constant_zero_tensor_has_a_scale() -> None:
    assert affine(Range(np.zeros(()), np.zeros(())), np.uint8).scale == 1


@pytest.mark.parametrize("end", [np.nan, np.inf])
def test_a_range_that_is_not_finite_is_refused(end: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        affine(Range(np.asarray(-1.0), np.asarray(end)), np.uint8)


@given(matrices, st.integers(0, 1), st.sampled_from([7, 8]))
def test_weights_use_the_whole_symmetric_range(weights: Array, axis: int, bits: int) -> None:
    found = symmetric(weights, axis, bits=bits)
    codes = found.quantize(weights, bits)
    top = 2 ** (bits - 1) - 1
    bounds = np.abs(codes.astype(int)).max(axis=tuple(i for i in range(weights.ndim) if i != axis))
    dead = np.abs(weights).max(axis=tuple(i for i in range(weights.ndim) if i != axis)) == 0
    tiny = found.scale <= np.finfo(np.float32).tiny * 1.01
    assert found.scale.shape == (weights.shape[axis],)
    assert not found.zero_point.any()
    assert (bounds[~dead & ~tiny] == top).all()
    assert (bounds[dead] == 0).all()
    shape = [-1 if i == axis else 1 for i in range(weights.ndim)]
    error = np.abs(found.dequantize(codes).astype(np.float64) - weights)
    assert (error <= 0.501 * found.scale.reshape(shape)).all()


def test_one_scale_per_tensor() -> None:
    found = symmetric(np.asarray([[1.0, -2.54], [0.5, 0.0]], np.float32), None)
    assert found.scale.shape == ()
    assert found.scale == np.float32(0.02)
    assert found.quantize(np.asarray([[1.0, -2.54]], np.float32)).tolist() == [[50, -127]]


@given(
    hnp.arrays(np.float32, 5, elements=st.floats(-1e8, 1e8, width=32)),
    hnp.arrays(np.float32, (5, 3), elements=st.floats(-(2.0**-66), 2.0**-66, width=32)),
    st.floats(2**-20, 16, width=32),
)
@example(np.full(5, 3.6771263e-35, np.float32), np.zeros((5, 3), np.float32), 2.0**-20)
def test_a_bias_never_overflows(bias: Array, weights: Array, input_scale: float) -> None:
    """Channels of nearly zero weights and a large bias are what pruning and BatchNorm leave."""
    found = symmetric(weights, 0, least_weight_scale(bias, input_scale))
    scale = np.float32(input_scale) * found.scale
    codes = bias_codes(bias, scale)
    assert codes.dtype == np.int32
    assert (np.abs(codes.astype(np.int64)) <= LARGEST_BIAS_CODE * (1 + 1e-5)).all()
    assert np.allclose(codes * scale.astype(np.float64), bias, rtol=1e-5, atol=float(scale.max()))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_rounding_bias_is_the_shift_of_the_mean(groups: int) -> None:
    rng = np.random.default_rng(groups)
    weights = rng.standard_normal((8, 4 // groups, 1, 1))
    rounded = weights + rng.uniform(-0.1, 0.1, weights.shape)
    x = rng.standard_normal((1000, 4)) + rng.standard_normal(4)
    shift = rounding_bias(weights, rounded, x.mean(0), groups)
    for channel in range(8):
        first = channel // (8 // groups) * (4 // groups)
        part = x[:, first : first + 4 // groups]
        exact = (part @ weights[channel, :, 0, 0]).mean() - (
            part @ rounded[channel, :, 0, 0]
        ).mean()
        assert shift[channel] == pytest.approx(exact, abs=1e-12)


def test_rounding_bias_sums_over_the_kernel() -> None:
    weights = np.zeros((1, 2, 3, 3))
    rounded = weights.copy()
    rounded[0, 1] = 0.5
    assert rounding_bias(weights, rounded, np.asarray([7.0, 2.0])).tolist() == [-9.0]
