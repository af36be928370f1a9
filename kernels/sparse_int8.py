"""Products with sparse int8 weights: the Python door, on one thread.

docs/kernels.md describes the packed format; `reference_sparse_int8` has the twin of each function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.kernels import _native
from onnxcomp.kernels.arguments import called, contiguous, lists_of, tokens_of, window_axes
from onnxcomp.kernels.reference_convolution import Window
from onnxcomp.kernels.reference_sparse_int8 import (
    Codes,
    PackedInt8,
    Scaling,
    pack_int8,
    unpack_int8,
)

__all__ = [
    "PackedInt8",
    "Scaling",
    "Window",
    "available_isas",
    "pack_int8",
    "sparse_int8_conv",
    "sparse_int8_matmul",
    "unpack_int8",
]


def available_isas() -> tuple[str, ...]:
    """The kernels this processor runs, best first; "portable" is always the last."""
    return tuple(_native.available_int8_isas())


def sparse_int8_matmul(
    x: Codes, packed: PackedInt8, scaling: Scaling, *, isa: str = "auto"
) -> npt.NDArray[Any]:
    """x[..., in_channels] times the weight's transpose -> [..., out_channels], scaled.

    uint8 codes where `scaling` has a y_zero_point, float32 where it has none. Every isa gives the
    same bits. Raises KernelError when shapes or dtypes do not fit, when `packed` is malformed, or
    when this processor does not run `isa` (see `available_isas`).
    """
    given = tokens_of(x, packed.in_channels, np.uint8), _weights(packed), _scales(scaling)
    y = called("sparse int8 MatMul", _native.sparse_int8_matmul, *given, isa)
    return y.reshape(*x.shape[:-1], packed.out_channels)


def sparse_int8_conv(
    x: Codes,
    packed: PackedInt8,
    scaling: Scaling,
    window: Window | None = None,
    *,
    isa: str = "auto",
) -> npt.NDArray[Any]:
    """x[images, channels, height, width] -> [images, out_channels, rows, columns], scaled.

    uint8 codes or float32 and errors as `sparse_int8_matmul`.
    """
    rows, columns = window_axes(x, packed.kernel_shape, window)
    given = contiguous("x", x, np.uint8), _weights(packed), _scales(scaling), rows, columns
    return called("sparse int8 Conv", _native.sparse_int8_conv, *given, isa)


def _weights(packed: PackedInt8) -> tuple[Any, ...]:
    return (
        *lists_of(packed, np.int8),
        packed.out_channels,
        packed.in_channels,
        packed.positions,
        packed.groups,
        packed.block_rows,
    )


def _scales(scaling: Scaling) -> tuple[Any, ...]:
    return (
        contiguous("scale", scaling.scale, np.float32),
        None if scaling.bias is None else contiguous("bias", scaling.bias, np.int32),
        scaling.x_zero_point,
        scaling.y_zero_point,
    )
