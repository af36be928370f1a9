"""What the Python doors of kernels ask of their arguments, and how they refuse them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import KernelError
from onnxcomp.kernels.packed_lists import PackedLists
from onnxcomp.kernels.reference_convolution import Window

Result = TypeVar("Result")


def called(door: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a compiled function returns. Raises KernelError, which names the door, as it refuses."""
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        raise KernelError(f"{door}: {str(error).splitlines()[0]}") from error


def contiguous(name: str, array: npt.NDArray[Any], dtype: type[Any]) -> npt.NDArray[Any]:
    """The array in the order of C. Raises KernelError where it has another dtype."""
    if array.dtype != dtype:
        raise KernelError(f"{name} is {array.dtype}, expected {np.dtype(dtype)}")
    return np.ascontiguousarray(array)


def tokens_of(x: npt.NDArray[Any], features: int, dtype: type[Any]) -> npt.NDArray[Any]:
    """x[..., features] as [tokens, features].

    Raises KernelError where x has another shape or dtype.
    """
    if x.ndim == 0 or x.shape[-1] != features:
        raise KernelError(f"x has shape {list(x.shape)}, expected [..., {features}]")
    return contiguous("x", x, dtype).reshape(prod(x.shape[:-1]), features)


def lists_of(packed: PackedLists, dtype: type[Any]) -> tuple[npt.NDArray[Any], ...]:
    """The values, of this dtype, indices and offsets. Raises KernelError where one has another."""
    return (
        contiguous("values", packed.values, dtype),
        contiguous("indices", packed.indices, np.int32),
        contiguous("offsets", packed.offsets, np.int32),
    )


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
