"""Streamed counts of a tensor's values, which its range is chosen by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxcomp.errors import CalibrationError
from onnxcomp.gram import NOTHING_SEEN, Array

FINEST = -120  # exponent of the finest cells: 2.0**120 is still a float32
BLOCK_ELEMENTS = 1 << 18  # converted at once: stays within a CPU cache


@dataclass(frozen=True)
class Range:
    """Smallest and largest value: arrays of shape [] per tensor, [channels] per channel."""

    low: Array
    high: Array


@dataclass(frozen=True)
class HistogramResult:
    """Counts over equal cells: cell i holds the values in [start + i, start + i + 1) * width.

    Attributes:
        counts: int64 [bins].
        start: index of the first cell on the grid of multiples of ``width``.
        width: a power of two.
        low, high: the exact smallest and largest finite value.
        nonfinite: how many NaN and infinite values were left out.
        weighted: float64 [bins], what the values count where channels have weights; else None.
    """

    counts: Array
    start: int
    width: float
    low: float
    high: float
    nonfinite: int = 0
    weighted: Array | None = None

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

    def __init__(
        self,
        bins: int = 2048,
        most: int | None = None,
        weights: Array | None = None,
        axis: int = 1,
    ) -> None:
        """With ``bins`` cells, at least 2.

        Args:
            bins: cells.
            most: values of each array that are counted, evenly spread, each for as many as were
                passed over. The extremes are exact in any case.
            weights: [channels], what a value of each channel counts beside 1.
            axis: of the channels, as ONNX counts it.
        """
        if bins < 2:
            raise ValueError(f"a histogram needs at least 2 bins, got {bins}")
        self.bins, self.most, self.weights, self.axis = bins, most, weights, axis
        self._counts = np.zeros(bins, np.int64)
        self._weighted: Array | None = None if weights is None else np.zeros(bins)
        self._exponent, self._start, self._nonfinite = 0, 0, 0
        self._low, self._high = math.inf, -math.inf

    def update(self, values: Array) -> None:
        """``values``: any shape."""
        flat = values.ravel()
        if flat.dtype not in (np.float32, np.float64):
            flat = flat.astype(np.float32)
        if flat.size == 0:
            return
        low, high = float(flat.min()), float(flat.max())
        finite = None
        if not (math.isfinite(low) and math.isfinite(high)):
            finite = np.isfinite(flat)
            known = flat[finite]
            self._nonfinite += flat.size - known.size
            if known.size == 0:
                return
            low, high = float(known.min()), float(known.max())
        self._cover(low, high)
        step, inner = spread_step(flat.size, self.most), self._inner(values.shape)
        for first in range(0, flat.size, BLOCK_ELEMENTS * step):
            chosen = slice(first, first + BLOCK_ELEMENTS * step, step)
            block, weights = flat[chosen], self._weights_at(flat.size, chosen, inner)
            if finite is not None:
                block = block[finite[chosen]]
                weights = weights if weights is None else weights[finite[chosen]]
            self._count(block, step, weights)

    def _inner(self, shape: tuple[int, ...]) -> int:
        """How many values in a row belong to one channel."""
        if self.weights is None:
            return 0
        axis = self.axis % len(shape)
        if shape[axis] != len(self.weights):
            raise ValueError(f"axis {self.axis} of {shape} has not {len(self.weights)} channels")
        return math.prod(shape[axis + 1 :])

    def _weights_at(self, size: int, chosen: slice, inner: int) -> Array | None:
        if self.weights is None:
            return None
        places = np.arange(*chosen.indices(size))
        if inner > 1:
            places //= inner
        if inner * len(self.weights) < size:  # a remainder takes as long as all else
            places %= len(self.weights)
        return np.asarray(self.weights[places])

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
        cells = ((occupied + old_start) >> shift) - self._start
        counts, self._counts = self._counts, np.zeros_like(self._counts)
        np.add.at(self._counts, cells, counts[occupied])
        if self._weighted is not None:
            self._weighted = np.bincount(cells, self._weighted[occupied], self.bins)

    def _count(self, flat: Array, times: int, weights: Array | None) -> None:
        if self._exponent > 0:  # scaling down could flush tiny negative float32 values to zero
            flat = flat.astype(np.float64)
        cells = flat * flat.dtype.type(math.ldexp(1.0, -self._exponent))
        np.floor(cells, out=cells)
        cells -= flat.dtype.type(self._start)
        places = cells.astype(np.intp)
        self._counts += times * np.bincount(places, minlength=self.bins)
        if weights is not None and self._weighted is not None:
            self._weighted += times * np.bincount(places, weights, self.bins)

    def result(self) -> HistogramResult:
        """The counts so far; at least one value is finite."""
        if not self._counts.any():
            raise CalibrationError(NOTHING_SEEN)
        width = math.ldexp(1.0, self._exponent)
        return HistogramResult(
            self._counts.copy(),
            self._start,
            width,
            self._low,
            self._high,
            nonfinite=self._nonfinite,
            weighted=None if self._weighted is None else self._weighted.copy(),
        )


def spread_step(size: int, most: int | None) -> int:
    """Every how many values one is taken so that ``most`` are: prime to ``size``, lest all come
    from one column."""
    step = 1 if most is None else -(-size // most)
    while math.gcd(step, size) > 1:
        step += 1
    return step


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
