"""Convolutions with sparse float32 weights: the Python door, on one thread.

docs/kernels.md describes the packed format; `reference_sparse_conv` has the twin of each function.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.kernels import _native
from onnxcomp.kernels.arguments import called, contiguous, lists_of, window_axes
from onnxcomp.kernels.reference_convolution import Window
from onnxcomp.kernels.reference_sparse_conv import Floats, PackedConv, pack_conv, unpack_conv

__all__ = ["PackedConv", "Window", "pack_conv", "sparse_conv", "unpack_conv"]


def sparse_conv(
    x: Floats,
    packed: PackedConv,
    bias: Floats | None = None,
    window: Window | None = None,
    *,
    relu: bool = False,
    isa: str = "auto",
) -> Floats:
    """x[images, channels, height, width] -> [images, out_channels, rows, columns].

    Raises KernelError when the shapes or dtypes do not fit, when `packed` is malformed, or when
    this processor does not run `isa` (see `onnxcomp.kernels.available_isas`).
    """
    rows, columns = window_axes(x, packed.kernel_shape, window)
    weights = (
        *lists_of(packed, np.float32),
        packed.out_channels,
        packed.in_channels,
        packed.groups,
        packed.block_size,
    )
    added = None if bias is None else contiguous("bias", bias, np.float32)
    given = (contiguous("x", x, np.float32), weights, added, relu, rows, columns)
    return called("SparseConv", _native.sparse_conv, *given, isa)
