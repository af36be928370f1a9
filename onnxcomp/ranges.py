"""Which range a tensor's codes are spread over, by what its histogram tells: no graphs.

Clipping rare values makes the steps of all others finer. The calibrators differ in how they weigh
one against the other. Both searches here are exhaustive: for each of a grid of steps, every zero
point is tried at once, as what a level costs follows from sums over the cells below its edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.quantization import Affine
from onnxcomp.statistics import HistogramResult, Range

Array = npt.NDArray[Any]
Felt = Callable[[Array], Array]
Cost = Callable[[Array, Array, int], Array]


@dataclass(frozen=True)
class StepErrors:
    """What codes cost a tensor for each of some steps, with the best zero point for each.

    Attributes:
        first: of the levels, in steps: an integer as float64 [steps].
        rounding, clipping: mean squared error of values within and beyond, float64 [steps].
    """

    first: Array
    rounding: Array
    clipping: Array


STEPS, SMALLEST_STEP = 64, 1 / 64  # tried, as shares of the step of the whole range
FINER_STEPS, REFINEMENTS = 9, 2  # around the best of them, and around the best of those
CLIPPING_WEIGHT = 1.5  # errors of clipping share one sign and add up in the next layer's sums


def least_error_range(
    seen: HistogramResult,
    codes: int = 256,
    felt: Felt | None = None,
    clipping_weight: float = CLIPPING_WEIGHT,
) -> Range:
    """The range within the exact one that loses least, in mean squared error.

    Values outside are clipped to its ends, those inside rounded to one of ``codes`` levels
    (Sung, Shin and Hwang, "Resiliency of deep neural networks under quantization", 2015). All
    values of a histogram cell are taken to lie at its centre. Where channels have weights, errors
    count as much. The ends are multiples of a step, at most half of one beyond the exact ends.

    Args:
        seen: the values.
        codes: levels.
        felt: what the readers make of each value; the error is measured behind it. A sigmoid
            linear unit, for one, makes nothing of values far below zero.
        clipping_weight: how much the error of a clipped value counts more than that of others.
    """

    centres, counts = _cells(seen, weighted=True)
    return _search(seen, centres, codes, _squared_error(centres, counts, felt, clipping_weight))


def errors_by_step(seen: HistogramResult, steps: Array, codes: int = 256) -> StepErrors:
    """As `least_error_range` weighs them, for ranges anywhere around zero.

    Args:
        seen: the values.
        steps: [steps], positive.
        codes: levels.
    """
    centres, counts = _cells(seen, weighted=True)
    parts = _squared_errors(centres, counts / counts.sum(), None, CLIPPING_WEIGHT)
    levels = _levels(seen, codes)
    runs = len(levels) - codes + 1
    lost, cut = parts(levels * steps[:, None], _below(centres, levels, steps), runs)
    best = np.argmin(lost + cut, axis=1)[:, None]
    lost, cut = (np.take_along_axis(x, best, 1)[:, 0] for x in (lost, cut))
    return StepErrors(levels[best[:, 0]].astype(np.float64), lost, cut)


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
    return _search(seen, centres, codes, _divergence(counts))


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


def _search(seen: HistogramResult, centres: Array, codes: int, cost: Cost) -> Range:
    """The step and zero point of least cost, as a range.

    Args:
        seen: the values.
        centres: of the cells that count.
        codes: levels.
        cost: takes the values of consecutive levels, [steps, levels], how many cells lie below
            the edges between them, [steps, levels + 1], and how many runs of ``codes`` levels
            there are; returns what each run costs, [steps, runs].
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    whole = high / (codes - 1) - low / (codes - 1)  # divided first: the difference may overflow
    if not np.isfinite(high - low) or whole == 0:
        return Range(np.asarray(low), np.asarray(high))
    levels = _levels(seen, codes)
    first = levels[: len(levels) - codes + 1]

    def best(steps: Array) -> tuple[float, int]:
        below, steps = _below(centres, levels, steps), steps[:, None]
        costs = cost(levels * steps, below, len(first))
        over = np.maximum(low - first * steps, (first + codes - 1) * steps - high)
        costs[over > (0.5 + 1e-6) * steps] = np.inf
        at = np.unravel_index(np.argmin(costs), costs.shape)
        return float(steps[at[0], 0]), int(first[at[1]])

    step, start = best(whole * np.geomspace(1.0, SMALLEST_STEP, STEPS))
    ratio = SMALLEST_STEP ** (1 / (STEPS - 1))
    for _ in range(REFINEMENTS):
        near = step * np.geomspace(ratio, 1 / ratio, FINER_STEPS)
        step, start = best(near[near <= whole * (1 + 1e-9)])
        ratio **= 2 / (FINER_STEPS - 1)
    return Range(np.asarray(start * step), np.asarray((start + codes - 1) * step))


def _levels(seen: HistogramResult, codes: int) -> Array:
    """All that ranges around zero can begin or end with, in steps."""
    return np.arange(1 - codes if seen.low < 0 else 0, codes if seen.high > 0 else 1)


def _below(centres: Array, levels: Array, steps: Array) -> Array:
    """How many centres lie below the edges between ``levels``, [steps, levels + 1]."""
    edges = np.append(levels, levels[-1] + 1) - 0.5
    return np.searchsorted(centres, edges * steps[:, None])


def _squared_error(
    centres: Array, counts: Array, felt: Felt | None, clipping_weight: float
) -> Cost:
    parts = _squared_errors(centres, counts, felt, clipping_weight)
    return lambda levels, below, runs: np.add(*parts(levels, below, runs))


def _squared_errors(
    centres: Array, counts: Array, felt: Felt | None, clipping_weight: float
) -> Callable[[Array, Array, int], tuple[Array, Array]]:
    """As `_search` wants its cost, but those of values within and beyond apart."""
    values = centres if felt is None else felt(centres)
    sums = [_running(counts * values**power) for power in range(3)]
    totals = [total[-1] for total in sums]

    def cost(levels: Array, below: Array, runs: int) -> tuple[Array, Array]:
        levels = levels if felt is None else felt(levels)
        zeroth, first, second = (total[below] for total in sums)
        inside = levels * (levels * np.diff(zeroth) - 2 * np.diff(first))
        inside = _running(inside)
        lost = inside[:, -runs:] - inside[:, :runs] + second[:, -runs:] - second[:, :runs]
        lowest, highest = levels[:, :runs], levels[:, -runs:]
        cut = lowest * (lowest * zeroth[:, :runs] - 2 * first[:, :runs]) + second[:, :runs]
        zeroth, first, second = (
            total - part[:, -runs:]
            for total, part in zip(totals, (zeroth, first, second), strict=True)
        )
        cut += highest * (highest * zeroth - 2 * first) + second
        return lost, clipping_weight * cut

    return cost


def _divergence(counts: Array) -> Cost:
    """``counts`` are of cells that are not empty."""
    before, informations, total = _running(counts), _running(_information(counts)), counts.sum()

    def cost(levels: Array, below: Array, runs: int) -> Array:
        start, end = below[:, :runs], below[:, -runs:]
        cells, held, places = np.diff(below), np.diff(before[below]), np.arange(levels.shape[1])
        logs = np.log(held / np.maximum(cells, 1), where=cells > 0, out=np.zeros_like(held))
        given = _running(held * logs)
        given = given[:, -runs:] - given[:, :runs]
        own = informations[end] - informations[start]
        lower, upper, kept = before[start], total - before[end], before[end] - before[start]
        next_level = np.where(cells > 0, places, len(places) - 1)
        next_level = np.minimum.accumulate(next_level[:, ::-1], axis=1)[:, ::-1][:, :runs]
        last_level = np.maximum.accumulate(np.where(cells > 0, places, 0), axis=1)[:, -runs:]
        given += lower * np.take_along_axis(logs, next_level, 1)
        given += upper * np.take_along_axis(logs, last_level, 1)
        lowest, highest = counts[np.minimum(start, len(counts) - 1)], counts[end - 1]
        alone = np.where(end - start == 1, lower, 0.0)
        own += _information(lowest + lower) - _information(lowest)
        own += _information(highest + alone + upper) - _information(highest + alone)
        found = (own - given) / total + np.log(np.maximum(kept, 1.0) / total)
        return np.where(end > start, found, np.inf)

    return cost


def _information(counts: Array) -> Array:
    return np.asarray(counts * np.log(np.maximum(counts, 1.0)))


def _running(values: Array) -> Array:
    """Sums of the first 0, 1, ... values of the last axis."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums
