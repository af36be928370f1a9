"""The numpy twin of a window that slides over images, for every kind of weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Window:
    """The attributes of a two-dimensional convolution, as ONNX's Conv has them."""

    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, bottom, right; filled with what stands for 0."""


def convolve(
    x: npt.NDArray[Any], weight: npt.NDArray[Any], window: Window, groups: int
) -> npt.NDArray[Any]:
    """x[images, channels, height, width] -> [images, out_channels, rows, columns], padded by 0.

    The weight is [out_channels, channels / groups, *kernel]; sums have the type of the products.
    """
    top, left, bottom, right = window.pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    kernel = weight.shape[2:]
    reach = [d * (k - 1) + 1 for d, k in zip(window.dilations, kernel, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(2, 3))
    (down, across), (row_step, column_step) = window.strides, window.dilations
    taps = windows[:, :, ::down, ::across, ::row_step, ::column_step]
    images, _, rows, columns = taps.shape[:4]
    by_group = taps.reshape(images, groups, weight.shape[1], rows, columns, *kernel)
    filters = weight.reshape(groups, -1, *weight.shape[1:])
    sums: npt.NDArray[Any] = np.einsum("ngchwij,gocij->ngohw", by_group, filters)
    return sums.reshape(images, len(weight), rows, columns)
