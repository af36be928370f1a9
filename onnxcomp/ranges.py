"""Which range a tensor's codes are spread over, by what its histogram tells: no graphs.

Clipping rare values makes the steps of all others finer. The calibrators differ in how they weigh
one against the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.quantization import Affine
from onnxcomp.statistics import HistogramResult, Range

Array = npt.NDArray[Any]
Felt = Callable[[Array], Array]

CANDIDATES = 64  # ends tried at a time
SMALLEST_KEPT = 1 / 64  # of each end
REFINEMENTS = 3  # times each end is tried alone
CLIPPING_WEIGHT = 1.5  # errors of clipping share one sign and add up in the next layer's sums


def least_error_range(
    seen: HistogramResult,
    codes: int = 256,
    felt: Felt | None = None,
    clipping_weight: float = CLIPPING_WEIGHT,
) -> Range:
    """The range within the exact one that loses least, in mean squared error.

    Values outside are clipped to its ends, those inside rounded to one of ``codes`` levels
    (Sung, Shin and Hwang, "Resiliency of deep neural networks under quantization", 2015). Both
    ends are shrunk together first, then each alone. All values of a histogram cell are taken to
    lie at its centre. Where channels have weights, errors count as much.

    Args:
        seen: the values.
        codes: levels.
        felt: what the readers make of each value; the error is measured behind it. A sigmoid
            linear unit, for one, makes nothing of values far below zero.
        clipping_weight: how much the error of a clipped value counts more than that of others.
    """

    def cost(lows: Array, highs: Array) -> Array:
        return _squared_errors(centres, counts, lows, highs, codes, felt, clipping_weight)

    centres, counts = _cells(seen, weighted=True)
    return _search(seen, cost)


def least_divergence_range(seen: HistogramResult, codes: int = 256) -> Range:
    """The range whose levels lose least information, by Kullback and Leibler's divergence.

    P are the counts with those outside moved to the cells at the ends; Q gives each level's count
    in equal parts to the cells it stands for, of those that are not empty (Migacz, "8-bit inference
    with TensorRT", 2017; here for both ends). Values that are zero are left out: they have a code
    of their own whatever the range.
    """
    centres, counts = _cells(seen)
    some = (centres < -seen.width) | (centres > seen.width)
    if not some.any():
        return Range(np.asarray(min(seen.low, 0.0)), np.asarray(max(seen.high, 0.0)))
    centres, counts = centres[some], counts[some]

    def cost(lows: Array, highs: Array) -> Array:
        pairs = zip(lows.tolist(), highs.tolist(), strict=True)
        return np.asarray([_divergence(centres, counts, low, high, codes) for low, high in pairs])

    return _search(seen, cost)


def power_of_two_range(seen: Range, codes: int = 256) -> Range:
    """The least range around ``seen`` and zero whose step is a power of two.

    Some integer hardware shifts where others multiply (Jacob et al. 2018 describe the latter).
    """
    low, high = min(float(seen.low), 0.0), max(float(seen.high), 0.0)
    width = high / (codes - 1) - low / (codes - 1)  # divided first: the difference may overflow
    if width == 0:
        return Range(np.asarray(low), np.asarray(high))
    mantissa, exponent = math.frexp(width)
    step = math.ldexp(1.0, max(exponent - (mantissa == 0.5), -126))
    below = math.ceil(-low / step)
    if below + math.ceil(high / step) > codes - 1:  # zero is no multiple of the step from both ends
        step, below = 2 * step, math.ceil(-low / step / 2)
    return Range(np.asarray(-below * step), np.asarray((codes - 1 - below) * step))


def mean_squared_error(
    seen: HistogramResult, parameters: Affine, felt: Felt | None = None
) -> float:
    """What codes cost a tensor, per value, behind ``felt``.

    Args:
        seen: its values.
        parameters: one scale and zero point.
        felt: see `least_error_range`.
    """
    centres, counts = _cells(seen)
    low, high, step = (float(x) for x in (parameters.low, parameters.high, parameters.scale))
    rounded = np.clip(np.rint(centres / step) * step, low, high)
    error = rounded - centres if felt is None else felt(rounded) - felt(centres)
    return float(np.square(error) @ counts / counts.sum())


def _cells(seen: HistogramResult, weighted: bool = False) -> tuple[Array, Array]:
    """Centres and counts of the cells that are not empty, float64; by weight where it is known."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    occupied = np.flatnonzero(seen.counts)
    edges = seen.edges
    centres = np.clip(((edges[:-1] + edges[1:]) / 2)[occupied], low, high)
    counts = seen.counts if seen.weighted is None or not weighted else seen.weighted
    return centres, counts[occupied].astype(np.float64)


def _search(seen: HistogramResult, cost: Callable[[Array, Array], Array]) -> Range:
    """The pair of ends of least cost among shrunk ones, found one end at a time."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if not np.isfinite(high - low) or high == low:
        return Range(np.asarray(low), np.asarray(high))
    kept = np.geomspace(1.0, SMALLEST_KEPT, CANDIDATES)
    best = _best(cost, low * kept, high * kept)
    for _ in range(REFINEMENTS if low < 0 < high else 0):
        last = best
        best = _best(cost, low * kept, best[1])
        best = _best(cost, best[0], high * kept)
        if best == last:
            break
    near = np.linspace(1 - 2.5 / CANDIDATES, 1 + 2.5 / CANDIDATES, 11)
    best = _best(cost, np.maximum(best[0] * near, low), best[1])
    best = _best(cost, best[0], np.minimum(best[1] * near, high))
    return Range(np.asarray(best[0]), np.asarray(best[1]))


def _best(
    cost: Callable[[Array, Array], Array], lows: Array | float, highs: Array | float
) -> tuple[float, float]:
    """The pair of ends, of arrays [candidates] or one for all, of least cost."""
    lows, highs = np.broadcast_arrays(np.atleast_1d(lows), highs)
    best = int(np.argmin(cost(lows, highs)))
    return float(lows[best]), float(highs[best])


def _squared_errors(
    centres: Array,
    counts: Array,
    lows: Array,
    highs: Array,
    codes: int,
    felt: Felt | None,
    clipping_weight: float,
) -> Array:
    """Sums of squared errors, [candidates]."""
    scale = (highs - lows)[:, None] / (codes - 1)
    first = np.rint(lows[:, None] / scale)
    raw = centres / scale
    np.rint(raw, out=raw)
    rounded = np.maximum(raw, first)
    np.minimum(rounded, first + (codes - 1), out=rounded)
    clipped = rounded != raw
    rounded *= scale
    if felt is not None:
        rounded, centres = felt(rounded), felt(centres)
    rounded -= centres
    np.square(rounded, out=rounded)
    np.multiply(rounded, clipping_weight, out=rounded, where=clipped)
    return np.asarray(rounded @ counts)


def _divergence(centres: Array, counts: Array, low: float, high: float, codes: int) -> float:
    step = (high - low) / (codes - 1)
    levels = np.rint(centres / step).astype(np.int64) - int(np.rint(low / step))
    inside = (levels >= 0) & (levels < codes)
    if not inside.any():
        return math.inf
    levels, kept = levels[inside], counts[inside]
    reference = kept.copy()
    first, last = np.argmax(inside), len(inside) - np.argmax(inside[::-1])
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    shared = np.bincount(levels, kept, codes) / np.maximum(np.bincount(levels, minlength=codes), 1)
    p, q = reference / reference.sum(), shared[levels] / kept.sum()
    return float((p * np.log(p / q)).sum())
