"""The mathematics of quantization: codes, scales and zero points in numpy, no graphs.

Everywhere real = scale * (code - zero_point), as ONNX's QuantizeLinear has it. Rounding is half to
even. "Per channel" means one scale for each index of one axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.statistics import Range

Array = npt.NDArray[Any]

LARGEST_BIAS_CODE = 2**30  # half of int32: the other half is for the sum it is added to
FEW_BITS = 6  # up to here clipping large weights can pay
SHARES, SMALLEST_SHARE = 24, 0.4  # of a channel's range that are tried
TINY = float(np.finfo(np.float32).tiny)  # scales are normal numbers: subnormal ones may be flushed


@dataclass(frozen=True)
class Affine:
    """A scale and a zero point: arrays of shape [] per tensor, [channels] per channel.

    Attributes:
        scale: float32, positive.
        zero_point: in the dtype of the codes.
        axis: the axis of the channels, None per tensor.
    """

    scale: Array
    zero_point: Array
    axis: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the codes."""
        return self.zero_point.dtype

    @property
    def low(self) -> Array:
        """The smallest representable value."""
        return self.scale * (np.iinfo(self.dtype).min - self.zero_point.astype(np.float64))

    @property
    def high(self) -> Array:
        """The largest representable value."""
        return self.scale * (np.iinfo(self.dtype).max - self.zero_point.astype(np.float64))

    def quantize(self, values: Array, bits: int = 8) -> Array:
        """Codes of ``values``, of the same shape; with 7 bits only the inner half of the codes."""
        scale, zero_point = (
            _along(x, values.ndim, self.axis) for x in (self.scale, self.zero_point)
        )
        low, high = np.iinfo(self.dtype).min >> (8 - bits), np.iinfo(self.dtype).max >> (8 - bits)
        codes = np.rint(values / scale) + zero_point
        return np.asarray(np.clip(codes, low, high).astype(self.dtype))

    def dequantize(self, codes: Array) -> Array:
        """float32 values of ``codes``."""
        scale, zero_point = (
            _along(x, codes.ndim, self.axis) for x in (self.scale, self.zero_point)
        )
        return np.asarray((codes.astype(np.int32) - zero_point.astype(np.int32)) * scale)


def _along(values: Array, rank: int, axis: int | None) -> Array:
    """[channels] shaped to broadcast over ``axis`` of an array of ``rank`` axes."""
    if axis is None:
        return values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def affine(seen: Range, dtype: npt.DTypeLike) -> Affine:
    """The parameters that spread all codes over a range, widened to include zero.

    Zero is exactly representable: padding, Relu and sparse data depend on it. A range of width
    zero gets scale 1.

    Raises:
        ValueError: the range is not finite.
    """
    low = np.minimum(np.asarray(seen.low, np.float64), 0.0)
    high = np.maximum(np.asarray(seen.high, np.float64), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"the range {low} to {high} is not finite")
    limits = np.iinfo(dtype)
    steps = limits.max - limits.min
    scale = np.maximum(high / steps - low / steps, TINY)
    scale = np.where((high == 0) & (low == 0), 1.0, scale).astype(np.float32)
    zero_point = np.clip(np.rint(limits.min - low / scale), limits.min, limits.max)
    return Affine(np.asarray(scale), np.asarray(zero_point.astype(dtype)))


def symmetric(
    weights: Array, axis: int | None, least: Array | float = 0.0, bits: int = 8
) -> Affine:
    """int8 parameters with zero point 0, for weights.

    Args:
        weights: any shape.
        axis: of the channels, or None for one scale.
        least: the smallest scale wanted, [] or [channels]; see `least_weight_scale`.
        bits: 7 keeps codes within +-63, for CPUs whose sums of products saturate. With at most
            `FEW_BITS` the largest weights are clipped where that loses less in mean squared error.
    """
    others = None if axis is None else tuple(i for i in range(weights.ndim) if i != axis)
    bound = np.abs(weights).max(axis=others, initial=0.0).astype(np.float64)
    if bits <= FEW_BITS:
        bound = bound * _least_error_share(weights, bound, axis, others, bits)
    scale = np.maximum(bound / (2 ** (bits - 1) - 1), least)
    scale = np.where(scale > 0, np.maximum(scale, TINY), 1.0).astype(np.float32)
    return Affine(np.asarray(scale), np.zeros(scale.shape, np.int8), axis)


def _least_error_share(
    weights: Array, bound: Array, axis: int | None, others: tuple[int, ...] | None, bits: int
) -> Array:
    """The part of each channel's range that loses least, of the shape of ``bound``."""
    high = 2 ** (bits - 1) - 1
    best, least = np.ones_like(bound), np.full_like(bound, np.inf)
    for share in np.linspace(1.0, SMALLEST_SHARE, SHARES):
        scale = np.where(bound > 0, bound, 1.0) * (share / high)
        wide = _along(scale, weights.ndim, axis)
        codes = np.clip(np.rint(weights / wide), -high, high)
        error = np.square(codes * wide - weights).sum(axis=others)
        best, least = np.where(error < least, share, best), np.minimum(error, least)
    return np.asarray(best)


def least_weight_scale(bias: Array, input_scale: Array | float) -> Array:
    """The weight scale, [channels], below which a bias [channels] overflows its int32 codes.

    A bias has the scale of its layer's sums: input_scale * weight_scale. Where the weights of a
    channel are nearly zero that is too fine for the bias; a coarser scale for such weights changes
    the sum by less than 2**-20 of the bias. The scale of the sums stays a normal number: a
    subnormal one has too few digits to divide by.
    """
    size = np.abs(np.asarray(bias, np.float64))
    sums = np.where(size > 0, np.maximum(size / LARGEST_BIAS_CODE, TINY), 0.0)
    return np.asarray(sums / np.float64(input_scale))


def bias_codes(bias: Array, scale: Array) -> Array:
    """int32 codes of a bias [channels] for the scales of its layer's sums, [channels] or []."""
    codes = np.rint(np.asarray(bias, np.float64) / scale)
    return np.asarray(np.clip(codes, -(2**31), 2**31 - 1).astype(np.int32))


def rounding_bias(weights: Array, rounded: Array, means: Array, groups: int = 1) -> Array:
    """What rounding a layer's weights takes from the mean of its outputs: its bias has to add it.

    E[W x] - E[W_q x] = (W - W_q) E[x] (Nagel et al., "Data-free quantization", 2019, section 4.2;
    E[x] is measured here). Padding is not accounted for.

    Args:
        weights, rounded: [out_channels, in_channels / groups, *kernel].
        means: of the input, [in_channels].
        groups: of a Conv.

    Returns:
        float64 [out_channels].
    """
    channels, inner = weights.shape[:2]
    error = (weights.astype(np.float64) - rounded).reshape(groups, channels // groups, inner, -1)
    shift = np.einsum("goik,gi->go", error, means.reshape(groups, inner))
    return np.asarray(shift.reshape(channels))
