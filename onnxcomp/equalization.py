"""The mathematics of equalization: factors of channels that lose least in rounding, no graphs.

A tensor x is divided by factors s along its channels; the layers that read it multiply their
columns by s, those that make it divide their rows. In float nothing changes. Rounded to one scale
a tensor, the error of channel c is that of x_c / s_c times s_c: factors near the range of each
channel let small channels use all codes, but make the columns, and with them the rounding of the
weights of each output channel, uneven (Nagel et al., "Data-free quantization through weight
equalization and bias correction", 2019; Xiao et al., "SmoothQuant", 2022, for the exponent alpha).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.quantization import Array, affine
from onnxcomp.ranges import least_error_range
from onnxcomp.statistics import HistogramResult

ALPHAS = (0.25, 0.5, 0.75, 1.0)
LEAST_RANGE = 2.0**-3  # of a channel, relative to the largest: errors of smaller ones are nothing
CELLS = 512  # of the histogram that stands for a tensor
LEVELS = 127  # positive codes of a weight
LEAST_GAIN = 0.9  # of the predicted error has to be left at most: it knows no correlations


@dataclass(frozen=True, kw_only=True)
class Activation:
    """A tensor that will be rounded to 8 bits with one scale.

    Attributes:
        classes: of its channels, int [channels].
        values: some of its values, [channels, count].
        weights: how many each of them stands for, [count].
        held: values of other samples, [channels, held_count], which show whether factors and
            ranges fit more than the samples they were made from.
        held_weights: [held_count].
        importance: what an error of variance 1 in one channel costs, [channels].
    """

    classes: Array
    values: Array
    weights: Array
    held: Array
    held_weights: Array
    importance: Array

    def loss(self, factors: Array) -> float:
        """The cost of rounding x / s on the held samples, with ``factors`` s by class."""
        own = factors[self.classes][:, None]
        seen = _histogram(self.values / own, self.weights)
        parameters = affine(least_error_range(seen), np.uint8)
        scaled = self.held / own
        error = parameters.dequantize(parameters.quantize(scaled)) - scaled
        power = (np.square(error * own) @ self.held_weights) / self.held_weights.sum()
        return float(power @ self.importance)


def _histogram(values: Array, weights: Array) -> HistogramResult:
    """Weighted counts in equal cells, each of which holds more than nothing."""
    low, high = float(values.min()), float(values.max())
    width = max((high - low) / (CELLS - 1), abs(low) * 2.0**-20, abs(high) * 2.0**-20, 1e-30)
    start = int(np.floor(low / width))
    cells = np.floor(values / width).astype(np.int64) - start
    each = np.broadcast_to(weights, values.shape)
    counts = np.bincount(cells.ravel(), each.ravel(), minlength=CELLS)
    return HistogramResult(counts, start, width, low, high)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A layer whose columns are multiplied by the factors of its input.

    Attributes:
        classes: of its input channels, [groups, in_channels].
        largest: magnitude of its weights, [groups, out_channels, in_channels].
        power: E[x^2] of its input times the number of weights that read each channel,
            [groups, in_channels].
        importance: what an error of variance 1 in its outputs costs.
    """

    classes: Array
    largest: Array
    power: Array
    importance: float

    def loss(self, factors: Array) -> float:
        """The cost of rounding the weights: step^2 / 12 of each row times E[x^2]."""
        own = factors[self.classes]
        steps = (self.largest * own[:, None, :]).max(axis=2) / LEVELS
        variance = np.square(steps).sum(axis=1) / 12
        return float((variance * (self.power / np.square(own)).sum(axis=1)).sum() * self.importance)


@dataclass(frozen=True)
class Choice:
    """Factors for the classes of one group, and what they are predicted to do.

    Attributes:
        factors: float64, by class, at most 1.
        alpha: 0 for untouched.
        before, after: predicted squared error, relative to the outputs of the readers.
    """

    factors: Array
    alpha: float
    before: float
    after: float


def choose_factors(
    activations: Sequence[Activation],
    readers: Sequence[Reader],
    free: Array,
    *,
    power_of_two: bool = False,
) -> Choice:
    """The exponent alpha and the factors bound^alpha with the least predicted error.

    Args:
        activations: the tensors of the group that get codes; the ranges of their channels decide.
        readers: the layers that read one of the group's tensors.
        free: whether the factor of a class may differ from 1, bool [classes].
        power_of_two: only factors that change no bit of the float results.
    """
    untouched = np.ones(free.shape)
    before = after = _loss(activations, readers, untouched)
    best, exponent = untouched, 0.0
    for alpha, factors in _candidates(activations, free, power_of_two):
        loss = _loss(activations, readers, factors)
        if loss < min(after, before * LEAST_GAIN):
            best, exponent, after = factors, alpha, loss
    if exponent:  # once the exponent is known, all samples tell the ranges
        best = _power(relative_bounds(activations, free, held=True), exponent, power_of_two)
    return Choice(best, exponent, before, after)


def _loss(activations: Sequence[Activation], readers: Sequence[Reader], factors: Array) -> float:
    return sum(a.loss(factors) for a in activations) + sum(r.loss(factors) for r in readers)


def _candidates(
    activations: Sequence[Activation], free: Array, power_of_two: bool
) -> Iterator[tuple[float, Array]]:
    bounds = relative_bounds(activations, free)
    for alpha in ALPHAS:
        yield alpha, _power(bounds, alpha, power_of_two)


def _power(bounds: Array, alpha: float, power_of_two: bool) -> Array:
    factors = bounds**alpha
    return np.asarray(2.0 ** np.ceil(np.log2(factors)) if power_of_two else factors)


def relative_bounds(activations: Sequence[Activation], free: Array, *, held: bool = False) -> Array:
    """The range of each class against that of the whole tensor, LEAST_RANGE..1, by class.

    Of several tensors the largest counts, and with ``held`` the held samples count too. Classes
    that are always zero on the samples, and those that are not free, get 1: nothing is known of
    them.
    """
    found = np.zeros(free.shape)
    for activation in activations:
        bounds = np.abs(activation.values).max(axis=1, initial=0.0)
        if held:
            bounds = np.maximum(bounds, np.abs(activation.held).max(axis=1, initial=0.0))
        if bounds.size and bounds.max() > 0:
            np.maximum.at(found, activation.classes, bounds / bounds.max())
    return np.where(free & (found > 0), np.clip(found, LEAST_RANGE, 1.0), 1.0)


def balanced_factors(rows: Array, columns: Array, free: Array) -> Array:
    """Without samples: what makes weight ranges before and behind a channel equal.

    s = sqrt(r1 / r2), so that r1 / s = r2 s (Nagel et al., 2019, equation 11), at most 1 and at
    least LEAST_RANGE of the largest.

    Args:
        rows: largest weight that makes each class, 0 where none does.
        columns: largest weight that reads it.
        free: whether the factor may differ from 1.
    """
    known = free & (rows > 0) & (columns > 0)
    if not known.any():
        return np.ones(free.shape)
    ratio = np.sqrt(np.where(known, rows, 1.0) / np.where(known, columns, 1.0))
    ratio /= ratio[known].max()
    return np.where(known, np.clip(ratio, LEAST_RANGE, 1.0), 1.0)
