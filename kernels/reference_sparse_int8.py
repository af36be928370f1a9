"""numpy twins of the sparse INT8 kernels, and the packed format: docs/kernels.md specifies both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.kernels.packed_lists import PackedChannels, entries_of
from onnxcomp.kernels.reference_convolution import Window, convolve

FORMAT_VERSION = 1
BLOCK_ROWS = (1, 4)
QUAD = 4
"""Input channels that one entry covers."""

Codes = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class PackedInt8(PackedChannels):
    """Int8 without its blocks of zeros; blocks are of `block_rows` outputs.

    An index is a quad: four neighbouring input channels at one position of the kernel. Quad q is
    number q % ceil(in_channels / 4) of position q // ceil(in_channels / 4).
    """

    values: npt.NDArray[np.int8]
    """[entries, block_rows, 4]; rows and channels past the last one hold 0."""
    kernel_shape: tuple[int, ...] = ()
    block_rows: int


def pack_int8(weight: npt.NDArray[np.int8], *, block_rows: int = 4, groups: int = 1) -> PackedInt8:
    """Packs a weight [out_channels, in_channels, *kernel_shape]; blocks of zeros are dropped.

    The weight of a MatMul is [in, out] in ONNX: pack its transpose. Raises ValueError for another
    dtype, a rank below 2, an empty weight, or block_rows and groups that do not fit.
    """
    if weight.ndim < 2 or 0 in weight.shape or weight.dtype != np.int8:
        raise ValueError(f"expected int8 [out, in, ...], found {weight.dtype} {list(weight.shape)}")
    if block_rows not in BLOCK_ROWS:
        raise ValueError(f"block_rows is {block_rows}, expected one of {BLOCK_ROWS}")
    out_channels, in_channels, *kernel_shape = weight.shape
    if groups < 1 or out_channels % groups:
        raise ValueError(f"{out_channels} outputs cannot be cut into {groups} groups")
    by_position = weight.reshape(groups, out_channels // groups, in_channels, -1).swapaxes(2, 3)
    rows_missing, channels_missing = -by_position.shape[1] % block_rows, -in_channels % QUAD
    padded = np.pad(by_position, ((0, 0), (0, rows_missing), (0, 0), (0, channels_missing)))
    blocks = padded.reshape(-1, block_rows, padded.shape[2] * padded.shape[3] // QUAD, QUAD)
    blocks = blocks.swapaxes(1, 2)  # [blocks, quads, block_rows, QUAD]
    kept = (blocks != 0).any(axis=(2, 3))
    indices, offsets = entries_of(kept)
    return PackedInt8(
        values=blocks[kept],
        indices=indices,
        offsets=offsets,
        out_channels=out_channels,
        in_channels=in_channels,
        kernel_shape=tuple(kernel_shape),
        groups=groups,
        block_rows=block_rows,
    )


def unpack_int8(packed: PackedInt8) -> npt.NDArray[np.int8]:
    """The dense weight [out_channels, in_channels, *kernel_shape] again."""
    quads = -(-packed.in_channels // QUAD)
    dense = packed.spread(packed.positions * quads)
    rows = dense.swapaxes(1, 2).reshape(packed.groups, -1, packed.positions, quads * QUAD)
    rows = rows[:, : packed.out_channels // packed.groups, :, : packed.in_channels]
    return np.ascontiguousarray(rows.swapaxes(2, 3).reshape(packed.shape))


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What becomes of a sum of products of codes.

    y = clamp(rint(float32(sum + bias) * scale) + y_zero_point, 0, 255), in float32, rounding to
    even; without y_zero_point y is float32(sum + bias) * scale. Sums are modulo 2^32.
    """

    scale: npt.NDArray[np.float32]
    """[out_channels]: x_scale * weight_scale, over y_scale for codes."""
    bias: npt.NDArray[np.int32] | None = None
    """[out_channels], in units of x_scale * weight_scale."""
    x_zero_point: int = 0
    y_zero_point: int | None = None

    def apply(self, sums: npt.NDArray[np.int64], axis: int) -> npt.NDArray[Any]:
        """uint8 or float32 of the sums' shape, whose `axis` are the output channels."""
        shape = [1] * sums.ndim
        shape[axis] = -1
        if self.bias is not None:
            sums = sums + self.bias.reshape(shape)
        scaled: npt.NDArray[np.float32] = sums.astype(np.int32).astype(np.float32)
        scaled = scaled * self.scale.reshape(shape)
        if self.y_zero_point is None:
            return scaled
        codes: Codes = np.clip(np.rint(scaled) + self.y_zero_point, 0, 255).astype(np.uint8)
        return codes


def sparse_int8_matmul(x: Codes, packed: PackedInt8, scaling: Scaling) -> npt.NDArray[Any]:
    """x[..., in_channels] times the weight's transpose -> [..., out_channels], scaled."""
    sums = (x.astype(np.int64) - scaling.x_zero_point) @ unpack_int8(packed).astype(np.int64).T
    return scaling.apply(sums, sums.ndim - 1)


def sparse_int8_conv(
    x: Codes, packed: PackedInt8, scaling: Scaling, window: Window | None = None
) -> npt.NDArray[Any]:
    """x[images, channels, height, width] -> [images, out_channels, rows, columns], scaled."""
    centred = x.astype(np.int64) - scaling.x_zero_point
    weight = unpack_int8(packed).astype(np.int64)
    return scaling.apply(convolve(centred, weight, window or Window(), packed.groups), 1)
