"""What a pass may ask calibration for: streamed statistics of one tensor.

Each takes arrays one after another and keeps a summary whose size does not depend on how many it
saw. Results do not depend on the order of the arrays or on how they are cut along their samples;
for sums that holds up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from onnxcomp.errors import CalibrationError
from onnxcomp.gram import NOTHING_SEEN, Array, Gram, GramResult, Window
from onnxcomp.histogram import BLOCK_ELEMENTS, Histogram, HistogramResult, Range, spread_step

__all__ = [
    "Gram",
    "GramResult",
    "Histogram",
    "HistogramResult",
    "MinMax",
    "Moments",
    "MomentsResult",
    "MovingAverage",
    "Range",
    "Statistic",
    "Window",
]

R_co = TypeVar("R_co", covariant=True)


class Statistic(Protocol[R_co]):
    """Sees every value of one tensor, a sample at a time, and sums them up."""

    def update(self, values: Array) -> None:
        """Takes the tensor's value for one sample; it may be reused by the caller afterwards."""

    def result(self) -> R_co:
        """The summary so far.

        Raises:
            CalibrationError: no value was seen.
        """


class MinMax:
    """The exact range of a tensor, or of each index of ``axis`` (as ONNX counts it)."""

    def __init__(self, axis: int | None = None) -> None:
        """Per tensor, or per index of ``axis``."""
        self.axis = axis
        self._range: Range | None = None

    def update(self, values: Array) -> None:
        """``values``: any shape; NaN makes the range NaN."""
        if values.size == 0:
            return
        low, high = _reduce(np.min, values, self.axis), _reduce(np.max, values, self.axis)
        if self._range is not None:
            low = np.minimum(low, self._range.low)
            high = np.maximum(high, self._range.high)
        self._range = Range(np.asarray(low), np.asarray(high))

    def result(self) -> Range:
        """Range of [] or [channels], in the dtype of the tensor."""
        if self._range is None:
            raise CalibrationError(NOTHING_SEEN)
        return self._range


def _reduce(operation: Any, values: Array, axis: int | None) -> Array:
    if axis is None:
        return np.asarray(operation(values))
    kept = axis % values.ndim
    return np.asarray(operation(values, axis=tuple(i for i in range(values.ndim) if i != kept)))


class MovingAverage:
    """The average of each sample's extremes, which single odd samples move little.

    With ``momentum`` m each sample counts (1 - m) and all before it m, as TensorFlow and PyTorch
    average while they train; with None all count alike. The result depends on the order then.
    """

    def __init__(self, momentum: float | None = None) -> None:
        """``momentum`` in [0, 1), or None for the plain average."""
        if momentum is not None and not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self._count, self._low, self._high = 0, 0.0, 0.0

    def update(self, values: Array) -> None:
        """``values``: any shape, of one sample; NaN makes the range NaN."""
        if values.size == 0:
            return
        self._count += 1
        step = 1 / self._count
        if self.momentum is not None and self._count > 1:
            step = 1 - self.momentum
        self._low += step * (float(values.min()) - self._low)
        self._high += step * (float(values.max()) - self._high)

    def result(self) -> Range:
        """Range of []."""
        if self._count == 0:
            raise CalibrationError(NOTHING_SEEN)
        return Range(np.asarray(self._low), np.asarray(self._high))


@dataclass(frozen=True)
class MomentsResult:
    """Mean and population variance: float64 [] per tensor, [channels] per channel.

    ``count`` is the number of values behind each entry.
    """

    mean: Array
    variance: Array
    count: int


class Moments:
    """Mean and variance of a tensor or of each index of ``axis``.

    Blocks are merged with the update of Chan, Golub and LeVeque (1983), which does not cancel
    when the mean is large against the deviation.
    """

    def __init__(self, axis: int | None = None, most: int | None = None) -> None:
        """Per tensor, or per index of ``axis``; of at most ``most`` values of each array, evenly
        spread over every channel."""
        self.axis, self.most = axis, most
        self._count = 0
        self._mean: Array = np.zeros(1)
        self._squares: Array = np.zeros(1)  # sum of squared differences from the mean

    def update(self, values: Array) -> None:
        """``values``: any shape."""
        table = _channels_first(values, self.axis)
        share = None if self.most is None else max(1, self.most // max(1, table.shape[0]))
        table = table[:, :: spread_step(table.shape[1], share)]
        width = max(1, BLOCK_ELEMENTS // max(1, table.shape[0]))
        for first in range(0, table.shape[1], width):
            self._merge(table[:, first : first + width].astype(np.float64))

    def _merge(self, block: Array) -> None:
        mean = block.mean(1)
        block -= mean[:, None]
        squares = np.einsum("ij,ij->i", block, block)
        count, added = self._count, block.shape[1]
        step = mean - self._mean
        self._squares = self._squares + squares + step * step * (count * added / (count + added))
        self._mean = self._mean + step * (added / (count + added))
        self._count = count + added

    def result(self) -> MomentsResult:
        """Mean and variance of [] or [channels]."""
        if self._count == 0:
            raise CalibrationError(NOTHING_SEEN)
        shape = () if self.axis is None else (-1,)
        variance = self._squares / self._count
        return MomentsResult(self._mean.reshape(shape), variance.reshape(shape), self._count)


def _channels_first(values: Array, axis: int | None) -> Array:
    """[channels, everything else], [1, everything] when axis is None; a view where possible."""
    if axis is None:
        return values.reshape(1, -1)
    if axis == 1 and len(values) == 1:  # nothing to move, which takes longer than all else
        return values.reshape(values.shape[1], -1)
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
