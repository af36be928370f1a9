"""What the Python doors of sparse products ask of their arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import KernelError
from onnxcomp.kernels.reference_convolution import Window


def contiguous(name: str, array: npt.NDArray[Any], dtype: type[Any]) -> npt.NDArray[Any]:
    """The array in the order of C. Raises KernelError where it has another dtype."""
    if array.dtype != dtype:
        raise KernelError(f"{name} is {array.dtype}, expected {np.dtype(dtype)}")
    return np.ascontiguousarray(array)


def window_axes(
    x: npt.NDArray[Any], kernel_shape: tuple[int, ...], window: Window | None
) -> tuple[tuple[int, ...], ...]:
    """(taps, stride, dilation, padding before and after) of the rows and of the columns.

    Raises KernelError where x or the kernel has another rank than those of images.
    """
    window = window or Window()
    if x.ndim != 4 or len(kernel_shape) != 2:
        raise KernelError(
            f"x has shape {list(x.shape)} and the kernel {list(kernel_shape)}, expected "
            "[images, channels, height, width] and [rows, columns]"
        )
    pads = (window.pads[:2], window.pads[2:])
    return tuple(zip(kernel_shape, window.strides, window.dilations, *pads, strict=True))
