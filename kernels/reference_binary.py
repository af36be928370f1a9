"""numpy twins of the binary kernels, which are tested against them, and the packing of weights.

A sign is one bit: 1 for +1, 0 for -1. Words of 64 bits hold channels 64 w to 64 w + 63 of one
position, the first in the lowest bit; bits past the last channel are 0. Activations are planar,
[batch, words, ...positions], so that the words of neighbouring pixels are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

FORMAT_VERSION = 1
WORD_BITS = 64
GEMM_LANES = 8
"""Outputs whose words are neighbours in a packed Gemm weight."""

Bits = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]
Comparison = Literal["greater", "greater_or_equal", "less", "less_or_equal"]
COMPARISONS: tuple[Comparison, ...] = get_args(Comparison)
"""How `pack_signs` compares, in the order of the operator's attribute."""
_COMPARE = dict(
    zip(COMPARISONS, (np.greater, np.greater_equal, np.less, np.less_equal), strict=True)
)


def word_count(channels: int) -> int:
    """The words that hold so many signs."""
    return -(-channels // WORD_BITS)


def _pack_bits(positive: npt.NDArray[np.bool_]) -> Bits:
    """[batch, channels, ...] -> [batch, words, ...]."""
    batch, channels, *rest = positive.shape
    words = word_count(channels)
    padding = [(0, 0), (0, words * WORD_BITS - channels), *[(0, 0)] * len(rest)]
    bits = np.pad(positive, padding).reshape(batch, words, WORD_BITS, *rest)
    places = np.arange(WORD_BITS, dtype=np.uint64).reshape(-1, *[1] * len(rest))
    packed: Bits = (bits.astype(np.uint64) << places).sum(axis=2, dtype=np.uint64)
    return packed


def pack_signs(
    x: Floats, thresholds: Floats | None = None, *, comparison: Comparison = "greater"
) -> Bits:
    """x [batch, channels, ...] -> bits [batch, words, ...]: 1 where `x comparison thresholds`.

    `thresholds` are [channels] or [1], 0 where there are none. NaN compares as false: bit 0.
    """
    levels = np.zeros(1, np.float32) if thresholds is None else thresholds
    return _pack_bits(_COMPARE[comparison](x, levels.reshape(-1, *[1] * (x.ndim - 2))))


def unpack_signs(bits: Bits, channels: int) -> Floats:
    """Bits [batch, words, ...] -> -1 or +1 [batch, channels, ...]."""
    places = np.arange(WORD_BITS, dtype=np.uint64).reshape(-1, *[1] * (bits.ndim - 2))
    single = (bits[:, :, None] >> places) & np.uint64(1)
    signs = single.reshape(len(bits), bits.shape[1] * WORD_BITS, *bits.shape[2:])[:, :channels]
    return np.where(signs == 1, np.float32(1), np.float32(-1))


@dataclass(frozen=True, kw_only=True)
class PackedConv:
    """The signs of a weight [out_channels, in_channels / group, kernel_h, kernel_w]."""

    bits: Bits
    """[out_channels, kernel_h * kernel_w, words], channels along the words."""
    in_channels: int
    kernel_shape: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, bottom, right; a padded position adds 0 to a sum."""
    dilations: tuple[int, int] = (1, 1)
    group: int = 1

    @property
    def attributes(self) -> dict[str, int | tuple[int, ...]]:
        """The attributes of the node that reads these bits."""
        return {
            "format_version": FORMAT_VERSION,
            "in_channels": self.in_channels,
            "kernel_shape": self.kernel_shape,
            "strides": self.strides,
            "pads": self.pads,
            "dilations": self.dilations,
            "group": self.group,
        }


@dataclass(frozen=True, kw_only=True)
class PackedGemm:
    """The signs of a weight [in_channels * positions, out_features].

    The input is a flattened [in_channels, positions], packed along its channels: word w * positions
    + p of a row holds channels 64 w to 64 w + 63 of position p.
    """

    bits: Bits
    """[ceil(out_features / 8), words * positions, 8]; outputs past the last one hold 0."""
    in_channels: int
    positions: int
    out_features: int

    @property
    def in_features(self) -> int:
        """The number of signs that one output sums."""
        return self.in_channels * self.positions

    @property
    def attributes(self) -> dict[str, int | tuple[int, ...]]:
        """The attributes of the node that reads these bits."""
        return {
            "format_version": FORMAT_VERSION,
            "in_channels": self.in_channels,
            "positions": self.positions,
            "out_features": self.out_features,
        }


def pack_conv(weight: npt.NDArray[Any], *, group: int = 1, **window: Any) -> PackedConv:
    """Packs the signs of weight [out, in / group, kernel_h, kernel_w]; `window` as in PackedConv.

    Raises ValueError for a zero or NaN, another rank, or groups that share a word: their channels
    must be a multiple of 64.
    """
    _check_signs(weight, 4)
    out_channels, channels, height, width = weight.shape
    if group > 1 and channels % WORD_BITS:
        raise ValueError(f"{channels} channels in a group: only a multiple of 64 fills its words")
    bits = _pack_bits((weight > 0).reshape(out_channels, channels, -1))
    return PackedConv(
        bits=np.ascontiguousarray(bits.transpose(0, 2, 1)),
        in_channels=channels * group,
        kernel_shape=(height, width),
        group=group,
        **window,
    )


def pack_gemm(weight: npt.NDArray[Any], *, positions: int = 1) -> PackedGemm:
    """Packs the signs of weight [in_channels * positions, out], rows as Flatten has them.

    Raises ValueError for a zero or NaN, another rank, or rows that are no multiple of `positions`.
    """
    _check_signs(weight, 2)
    rows, out_features = weight.shape
    if rows % positions:
        raise ValueError(f"{rows} inputs are not a multiple of {positions} positions")
    positive = np.pad(weight.T > 0, ((0, -out_features % GEMM_LANES), (0, 0)))
    bits = _pack_bits(positive.reshape(len(positive), -1, positions))
    lanes = bits.reshape(-1, GEMM_LANES, bits[0].size).transpose(0, 2, 1)
    return PackedGemm(
        bits=np.ascontiguousarray(lanes),
        in_channels=rows // positions,
        positions=positions,
        out_features=out_features,
    )


def _check_signs(weight: npt.NDArray[Any], rank: int) -> None:
    if weight.ndim != rank or 0 in weight.shape:
        raise ValueError(f"expected a weight of rank {rank}, found shape {list(weight.shape)}")
    if not (abs(weight) > 0).all():
        raise ValueError("a weight of 0 or NaN has no sign")


def conv_sums(x: Bits, packed: PackedConv) -> Integers:
    """Bits [batch, words, height, width] -> sums of signs' products [batch, out, height', width'].

    Those of a convolution of -1 and +1, padded by 0.
    """
    signs = unpack_signs(x, packed.in_channels)
    top, left, bottom, right = packed.pads
    padded = np.pad(signs, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (kernel_h, kernel_w), (step_h, step_w) = packed.kernel_shape, packed.dilations
    reach = (step_h * (kernel_h - 1) + 1, step_w * (kernel_w - 1) + 1)
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    stride_h, stride_w = packed.strides
    windows = views[:, :, ::stride_h, ::stride_w, ::step_h, ::step_w]
    batch, channels, height, width = windows.shape[:4]
    inputs = channels // packed.group
    grouped = windows.reshape(batch, packed.group, inputs, height, width, kernel_h * kernel_w)
    weight = unpack_signs(packed.bits.transpose(0, 2, 1), inputs)
    outputs = len(weight)
    weight = weight.reshape(packed.group, outputs // packed.group, *weight.shape[1:])
    sums: Floats = np.einsum("ngchwp,gocp->ngohw", grouped, weight, optimize=True)
    return sums.reshape(batch, outputs, height, width).astype(np.int32)


def gemm_sums(x: Bits, packed: PackedGemm) -> Integers:
    """Bits [batch, words * positions] -> sums of products of signs [batch, out_features]."""
    words = word_count(packed.in_channels)
    signs = unpack_signs(x.reshape(len(x), words, packed.positions), packed.in_channels)
    columns = packed.bits.transpose(0, 2, 1).reshape(-1, x.shape[1])[: packed.out_features]
    columns = columns.reshape(len(columns), -1, packed.positions)
    weight = unpack_signs(columns, packed.in_channels)
    return np.tensordot(signs, weight, axes=((1, 2), (1, 2))).astype(np.int32)


def scaled(sums: Integers, scale: Floats | None = None, bias: Floats | None = None) -> Floats:
    """float32(sum) * scale[channel] + bias[channel], each step rounded; channels on axis 1."""
    aligned = (-1, *[1] * (sums.ndim - 2))
    y = sums.astype(np.float32)
    if scale is not None:
        y = y * scale.reshape(aligned)
    return y if bias is None else y + bias.reshape(aligned)


def compared(sums: Integers, thresholds: Integers) -> Bits:
    """Bits [batch, words, ...] of sum >= thresholds[channel]; channels on axis 1.

    BatchNorm and Sign fold to this: where BatchNorm's factor is negative, the channel's weights are
    negated first, and a channel that is always +1 or -1 has the lowest or highest int32 there is.
    """
    return _pack_bits(sums >= thresholds.reshape(-1, *[1] * (sums.ndim - 2)))


def max_pool(
    x: Bits,
    *,
    kernel_shape: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Bits:
    """The maximum of signs, bits [batch, words, height, width]: the or of a window's bits."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    views = np.lib.stride_tricks.sliding_window_view(padded, kernel_shape, axis=(2, 3))
    picked = views[:, :, :: strides[0], :: strides[1]]
    pooled: Bits = np.bitwise_or.reduce(picked, axis=(4, 5))
    return pooled
