"""What a pass may ask calibration for: streamed statistics of one tensor.

Each takes arrays one after another and keeps a summary whose size does not depend on how many it
saw. Results do not depend on the order of the arrays or on how they are cut along their samples;
for sums that holds up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from onnxcomp.errors import CalibrationError
from onnxcomp.gram import NOTHING_SEEN, Array, Gram, GramResult, Window

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
FINEST = -120  # exponent of the finest cells: 2.0**120 is still a float32
BLOCK_ELEMENTS = 1 << 18  # converted at once: stays within a CPU cache


class Statistic(Protocol[R_co]):
    """Sees every value of one tensor, a sample at a time, and sums them up."""

    def update(self, values: Array) -> None:
        """Takes the tensor's value for one sample; it may be reused by the caller afterwards."""

    def result(self) -> R_co:
        """The summary so far.

        Raises:
            CalibrationError: no value was seen.
        """


@dataclass(frozen=True)
class Range:
    """Smallest and largest value: arrays of shape [] per tensor, [channels] per channel."""

    low: Array
    high: Array


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
class HistogramResult:
    """Counts over equal cells: cell i holds the values in [start + i, start + i + 1) * width.

    Attributes:
        counts: int64 [bins].
        start: index of the first cell on the grid of multiples of ``width``.
        width: a power of two.
        low, high: the exact smallest and largest finite value.
        nonfinite: how many NaN and infinite values were left out.
    """

    counts: Array
    start: int
    width: float
    low: float
    high: float
    nonfinite: int = 0

    @property
    def edges(self) -> Array:
        """float64 [bins + 1], exact."""
        cells = self.start + np.arange(self.counts.size + 1, dtype=np.float64)
        return np.asarray(cells * self.width)

    def percentile(self, q: float) -> Range:
        """The range that holds the central ``q`` % of all values, 0 < q <= 100.

        At most (100 - q) / 2 % of the values lie below it and as many above; either end is at
        most one cell wider than that needs, and never beyond the exact minimum or maximum.
        """
        if not 0 < q <= 100:
            raise ValueError(f"percentile must be in (0, 100], got {q}")
        running = np.cumsum(self.counts)
        tail = running[-1] * ((100.0 - q) / 200.0)
        first = int(np.argmax(running > tail))
        last = int(np.argmax(running >= running[-1] - tail))
        edges = self.edges
        low, high = max(edges[min(first, last)], self.low), min(edges[last + 1], self.high)
        return Range(np.asarray(low), np.asarray(high))


class Histogram:
    """Exact counts in a fixed number of cells; the range grows by merging pairs of cells.

    All cells lie on the grid of multiples of 2**k. Cells of 2**k nest in those of 2**(k + 1), so
    merging is exact, and k depends on nothing but the extremes: it is the smallest for which
    [low, high] touches at most ``bins`` cells and a cell is not finer than float32 resolves.
    """

    def __init__(self, bins: int = 2048) -> None:
        """With ``bins`` cells, at least 2."""
        if bins < 2:
            raise ValueError(f"a histogram needs at least 2 bins, got {bins}")
        self.bins = bins
        self._counts = np.zeros(bins, np.int64)
        self._exponent, self._start, self._nonfinite = 0, 0, 0
        self._low, self._high = math.inf, -math.inf

    def update(self, values: Array) -> None:
        """``values``: any shape."""
        flat = values.ravel()
        if flat.dtype not in (np.float32, np.float64):
            flat = flat.astype(np.float32)
        if flat.size and not (np.isfinite(flat.min()) and np.isfinite(flat.max())):
            finite = flat[np.isfinite(flat)]
            self._nonfinite += flat.size - finite.size
            flat = finite
        if flat.size == 0:
            return
        self._cover(float(flat.min()), float(flat.max()))
        for first in range(0, flat.size, BLOCK_ELEMENTS):
            self._count(flat[first : first + BLOCK_ELEMENTS])

    def _cover(self, low: float, high: float) -> None:
        """Coarsens and shifts the cells until they hold [low, high]."""
        first_time = not self._counts.any()
        if not first_time and low >= self._low and high <= self._high:
            return
        self._low, self._high = min(low, self._low), max(high, self._high)
        old_exponent, old_start = self._exponent, self._start
        self._exponent = _cell_exponent(self._low, self._high, self.bins)
        self._start = _cell(self._low, self._exponent)
        if first_time:
            return
        occupied = np.flatnonzero(self._counts)
        shift = min(self._exponent - old_exponent, 62)
        merged = np.zeros_like(self._counts)
        np.add.at(merged, ((occupied + old_start) >> shift) - self._start, self._counts[occupied])
        self._counts = merged

    def _count(self, flat: Array) -> None:
        if self._exponent > 0:  # scaling down could flush tiny negative float32 values to zero
            flat = flat.astype(np.float64)
        cells = np.floor(flat * flat.dtype.type(math.ldexp(1.0, -self._exponent)))
        cells -= flat.dtype.type(self._start)
        self._counts += np.bincount(cells.astype(np.intp), minlength=self.bins)

    def result(self) -> HistogramResult:
        """The counts so far; at least one value is finite."""
        if not self._counts.any():
            raise CalibrationError(NOTHING_SEEN)
        width = math.ldexp(1.0, self._exponent)
        counts = self._counts.copy()
        return HistogramResult(
            counts, self._start, width, self._low, self._high, nonfinite=self._nonfinite
        )


def _cell(value: float, exponent: int) -> int:
    return math.floor(math.ldexp(value, -exponent))


def _cell_exponent(low: float, high: float, bins: int) -> int:
    """The smallest k for which cells of 2**k from low to high are at most ``bins``."""
    largest = max(abs(low), abs(high))
    k = max(math.frexp(largest)[1] - 24, FINEST) if largest else FINEST
    span = high / bins - low / bins  # divided first: the difference of two floats may overflow
    if span > 0:
        k = max(k, math.frexp(span)[1] - 2)
    while _cell(high, k) - _cell(low, k) >= bins:
        k += 1
    return k


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

    def __init__(self, axis: int | None = None) -> None:
        """Per tensor, or per index of ``axis``."""
        self.axis = axis
        self._count = 0
        self._mean: Array = np.zeros(1)
        self._squares: Array = np.zeros(1)  # sum of squared differences from the mean

    def update(self, values: Array) -> None:
        """``values``: any shape."""
        table = _channels_first(values, self.axis)
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
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
