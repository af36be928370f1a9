"""The numpy twin of the sparse float32 convolution, and its packed form: see docs/kernels.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.kernels.packed_lists import PackedChannels
from onnxcomp.kernels.reference import FORMAT_VERSION, PackedWeights, pack, unpack
from onnxcomp.kernels.reference_convolution import Window, convolve

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PackedConv(PackedChannels):
    """Float32 without its zeros, for `SparseConv`; blocks are of `block_size` outputs.

    An index is an input of an output: input i is channel i % in_channels of those that it reads, at
    position i // in_channels of the kernel.
    """

    values: Floats
    """[entries, block_size]; outputs past the last one of a group hold 0."""
    block_size: int

    def attributes(self, window: Window | None = None, *, relu: bool = False) -> dict[str, Any]:
        """The attributes of the `SparseConv` node that reads these arrays."""
        window = window or Window()
        return {
            "format_version": FORMAT_VERSION,
            "out_channels": self.out_channels,
            "in_channels": self.in_channels,
            "block_size": self.block_size,
            "relu": int(relu),
            "kernel_shape": list(self.kernel_shape),
            "strides": list(window.strides),
            "dilations": list(window.dilations),
            "pads": list(window.pads),
            "group": self.groups,
        }


def pack_conv(weight: Floats, *, block_size: int = 4, groups: int = 1) -> PackedConv:
    """Packs a weight [out_channels, in_channels, *kernel_shape]; blocks of zeros are dropped.

    Raises ValueError for another dtype, a rank below 3, an empty weight, or a block_size and groups
    that do not fit.
    """
    if weight.ndim < 3 or 0 in weight.shape or weight.dtype != np.float32:
        raise ValueError(f"expected float32 [out, in, ..], found {weight.dtype} {[*weight.shape]}")
    out_channels, in_channels, *kernel_shape = weight.shape
    if groups < 1 or out_channels % groups:
        raise ValueError(f"{out_channels} outputs cannot be cut into {groups} groups")
    by_input = weight.reshape(groups, out_channels // groups, in_channels, -1).transpose(3, 2, 0, 1)
    missing = -by_input.shape[3] % block_size if block_size > 0 else 0
    padded = np.pad(by_input, ((0, 0), (0, 0), (0, 0), (0, missing)))
    packed = pack(padded.reshape(padded.shape[0] * in_channels, -1), block_size=block_size)
    return PackedConv(
        values=packed.values,
        indices=packed.indices,
        offsets=packed.offsets,
        out_channels=out_channels,
        in_channels=in_channels,
        kernel_shape=tuple(kernel_shape),
        groups=groups,
        block_size=block_size,
    )


def unpack_conv(packed: PackedConv) -> Floats:
    """The dense weight [out_channels, in_channels, *kernel_shape] again."""
    outputs = packed.out_channels // packed.groups
    padded = outputs + -outputs % packed.block_size
    matrix = unpack(
        PackedWeights(
            values=packed.values,
            indices=packed.indices,
            offsets=packed.offsets,
            in_features=packed.positions * packed.in_channels,
            out_features=packed.groups * padded,
            block_size=packed.block_size,
        )
    )
    by_input = matrix.reshape(packed.positions, packed.in_channels, packed.groups, padded)
    dense = by_input[..., :outputs].transpose(2, 3, 1, 0)
    return np.ascontiguousarray(dense).reshape(packed.shape)


def sparse_conv(
    x: Floats,
    packed: PackedConv,
    bias: Floats | None = None,
    window: Window | None = None,
    *,
    relu: bool = False,
) -> npt.NDArray[np.float64]:
    """x[images, channels, height, width] -> [images, out_channels, rows, columns], in float64."""
    weight = unpack_conv(packed).astype(np.float64)
    y = convolve(x.astype(np.float64), weight, window or Window(), packed.groups)
    if bias is not None:
        y = y + bias[:, None, None]
    return np.maximum(y, 0) if relu else y
