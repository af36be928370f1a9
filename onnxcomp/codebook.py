"""Weights as indices into a few values: k-means in one dimension.

In one dimension clusters are intervals, and the best cut of n sorted values into k intervals is
found exactly by dynamic programming (Wang and Song, "Ckmeans.1d.dp", 2011). More than `EXACT`
distinct values are first put into as many bins of neighbours; the centres found are then moved
by Lloyd's iterations over all values.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.quantization import Array

EXACT = 768  # distinct values up to which the cut is exact
LLOYD_STEPS = 20
MOST_SORTED = 1 << 18  # values; of more a histogram is made
CELLS = 1 << 16


def cluster(values: Array, count: int, importance: Array | None = None) -> tuple[Array, Array]:
    """At most ``count`` values that stand for all, with least sum importance * (v - c)^2.

    Args:
        values: any shape, finite.
        count: of the codebook.
        importance: broadcast against ``values``, not negative; None for the same everywhere.

    Returns:
        The codebook, float32 [k], rising, and uint8 indices in the shape of ``values``.
    """
    weight = np.ones(1) if importance is None else np.asarray(importance, np.float64)
    weight = np.broadcast_to(weight, values.shape).reshape(-1)
    flat = values.astype(np.float64).reshape(-1)
    weight = weight + 1e-12 * max(float(weight.mean()), 1e-300)
    if flat.size > MOST_SORTED:
        flat, weight = _histogram(flat, weight)
    else:
        order = np.argsort(flat, kind="stable")
        flat, weight = flat[order], weight[order]
    points, masses = _binned(flat, weight)
    centres = _lloyd(flat, weight, _best_cut(points, masses, min(count, len(points))))
    book = np.unique(centres.astype(np.float32))
    middles = (book[1:].astype(np.float64) + book[:-1]) / 2
    return book, np.searchsorted(middles, values).astype(np.uint8)


def _histogram(flat: Array, weight: Array) -> tuple[Array, Array]:
    """Means and masses of cells so narrow that nothing else need be known of the values."""
    low, width = flat.min(), np.ptp(flat) / CELLS
    cells = np.minimum((flat - low) / (width or 1.0), CELLS - 1).astype(np.int64)
    mass = np.bincount(cells, weight, CELLS)
    used = mass > 0
    return np.bincount(cells, weight * flat, CELLS)[used] / mass[used], mass[used]


def _binned(flat: Array, weight: Array) -> tuple[Array, Array]:
    """Means and masses of the distinct values, or of at most EXACT bins of neighbours."""
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    if len(starts) > EXACT:
        share = weight + weight.mean()  # by weight and by count: neither may leave a gap
        reach = np.cumsum(share) - share
        starts = np.unique(np.searchsorted(reach, np.linspace(0, reach[-1], EXACT)))
    mass = np.add.reduceat(weight, starts)
    return np.add.reduceat(weight * flat, starts) / mass, mass


def _best_cut(points: Array, masses: Array, count: int) -> Array:
    """Centres of the best cut of sorted points into ``count`` intervals: O(count n^2), exact."""
    shifted = points - np.average(points, weights=masses)  # sums of squares keep their digits
    zero, one, two = (
        np.concatenate([[0.0], np.cumsum(masses * shifted**power)]) for power in range(3)
    )
    mass = zero[None, 1:] - zero[:-1, None]  # of points first..last: [first, last]
    moment, square = (x[None, 1:] - x[:-1, None] for x in (one, two))
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = square - moment**2 / mass
    size = len(points)
    cost = np.where(np.arange(size)[:, None] <= np.arange(size), np.maximum(cost, 0), np.inf)
    best, firsts = cost[0], np.zeros((count, size), np.int64)
    for k in range(1, count):
        total = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        firsts[k] = total.argmin(axis=0)
        best = total[firsts[k], np.arange(size)]
    centres, last = np.empty(count), size - 1
    for k in range(count - 1, -1, -1):
        first = firsts[k, last]
        part = slice(first, last + 1)
        centres[k] = np.average(points[part], weights=masses[part])
        last = first - 1
    return centres


def _lloyd(flat: Array, weight: Array, centres: Array) -> Array:
    """Moves each centre to the mean of what is nearest to it, until nothing changes."""
    mass = np.concatenate([[0.0], np.cumsum(weight)])
    moment = np.concatenate([[0.0], np.cumsum(weight * flat)])
    for _ in range(LLOYD_STEPS):
        cuts = np.searchsorted(flat, (centres[1:] + centres[:-1]) / 2)
        ends = np.concatenate([[0], cuts, [len(flat)]])
        parts = np.diff(mass[ends])
        moved = np.divide(np.diff(moment[ends]), parts, out=centres.copy(), where=parts > 0)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres
