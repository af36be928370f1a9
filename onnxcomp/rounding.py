"""Which code each weight of a layer gets, so that the layer's output changes least.

Rounding W to W_q moves the output y = W x by (W - W_q) x. Over the samples that costs
tr (W - W_q) G (W - W_q)T with G = E[x xT], the layer's Gram matrix. `nearest` ignores G; `gptq`
carries each column's error into the columns that follow; `descend` improves one column at a time
until none can be improved alone. No gradients, no labels.

Shapes: weights and codes [*groups, out, d] and gram [*groups, d, d], where the leading axes are
those of a grouped Conv and may be absent. Everything broadcasts: scale and zero_point are [out, 1]
per channel, [out, d] where blocks of a row have scales of their own, or scalars.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from onnxcomp.gram_factor import upper_factor
from onnxcomp.quantization import Array

PAIRED = 64  # columns: with more of them, pairs of columns take too long
STILL = 1e-9  # gains below this share of a code's own are rounding errors
LEAF = 32  # columns rounded one by one before a matrix product carries their errors on
ROWS = 4096  # rows at once: bounds the float64 copies


def nearest(
    weights: Array, scale: Array | float, zero_point: Array | float, low: int, high: int
) -> Array:
    """The code nearest to each weight, half to even: int32, in the shape of ``weights``.

    Args:
        weights: any shape.
        scale, zero_point: broadcast against ``weights``.
        low, high: the smallest and the largest code.
    """
    codes = np.rint(np.asarray(weights, np.float64) / scale) + np.asarray(zero_point)
    return np.asarray(np.clip(codes, low, high).astype(np.int32))


def loss(
    weights: Array, codes: Array, gram: Array, scale: Array | float, zero_point: Array | float
) -> Array:
    """E[((W - W_q) x)^2] of each output channel: float64 [*groups, out]."""
    error = weights - _values(codes, scale, zero_point)
    return np.asarray(np.einsum("...od,...od->...o", error @ np.asarray(gram, np.float64), error))


def gptq(
    weights: Array,
    gram: Array,
    scale: Array | float,
    zero_point: Array | float,
    low: int,
    high: int,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    choose: Callable[[Array], Array] = np.rint,
) -> Array:
    """Rounds column after column, each making up for the errors of those before it.

    Frantar et al., "GPTQ", 2022. With G = R RT, R upper triangular, the loss is the squared norm
    of (W - W_q) R, whose column j depends on columns 0..j of the weights only: it is least at
    w_j + sum_{i<j} (w_i - q_i) R_ij / R_jj, and that is what column j rounds. This is GPTQ's update
    without the inverse (Chen et al., "The geometry of LLM quantization", 2025), and needs one
    Cholesky factorization. A column that no sample ever used (G_jj = 0) goes to the nearest codes.

    Args:
        weights: [*groups, out, d].
        gram: [*groups, d, d], symmetric, positive semidefinite.
        scale, zero_point: broadcast against ``weights``.
        low, high: the smallest and the largest code.
        damping: added to the diagonal of G, as a share of its mean.
        act_order: round the columns with the largest G_jj first, while errors can still be made
            up for by many others.
        choose: gives the integers for what a column should be, [*groups, out] in units of the
            scale; unless it is np.rint it sees the whole column at once.

    Returns:
        int32 codes [*groups, out, d].
    """
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1).astype(np.float64)
    order = np.argsort(-diagonal if act_order else np.zeros_like(diagonal), -1, kind="stable")
    factor = upper_factor(gram, order, damping)
    back = np.argsort(order, -1)[..., :, None]
    codes = np.empty(weights.shape, np.int32)
    at_once = ROWS if choose is np.rint else max(1, weights.shape[-2])
    for rows, w, s, z in _transposed(weights, scale, zero_point, at_once):
        w, s, z = (  # what is the same for all columns stays a view
            np.take_along_axis(x, order[..., :, None], -2) if x.strides[-2] else x
            for x in (w, s, z)
        )
        columns = _Columns(w, s, z, np.zeros(w.shape), np.empty(w.shape), np.empty(w.shape))
        columns.round(factor, low, high, choose)
        codes[..., rows, :] = np.take_along_axis(columns.codes, back, -2).swapaxes(-1, -2)
    return codes


@dataclass(frozen=True)
class _Columns:
    """Neighbouring columns of a layer at work; all arrays [*groups, columns, out], views.

    Attributes:
        weights, scale, zero_point: given.
        carried: sum_{i<j} (w_i - q_i) R_ij, of the columns rounded so far.
        codes, errors: w - q; filled in.
    """

    weights: Array
    scale: Array
    zero_point: Array
    carried: Array
    codes: Array
    errors: Array

    def part(self, columns: slice) -> _Columns:
        return _Columns(*(getattr(self, f.name)[..., columns, :] for f in fields(self)))

    def round(self, factor: Array, low: int, high: int, choose: Callable[[Array], Array]) -> None:
        """Halves the columns until few are left: nearly all the work is matrix products."""
        width = self.weights.shape[-2]
        if width <= LEAF:
            for j in range(width):
                self._round_one(j, factor, low, high, choose)
            return
        middle = width // 2
        first, last = self.part(slice(middle)), self.part(slice(middle, None))
        first.round(factor[..., :middle, :middle], low, high, choose)
        last.carried[...] += factor[..., :middle, middle:].swapaxes(-1, -2) @ first.errors
        last.round(factor[..., middle:, middle:], low, high, choose)

    def _round_one(
        self, j: int, factor: Array, low: int, high: int, choose: Callable[[Array], Array]
    ) -> None:
        weights, scale, zero_point = (
            x[..., j, :] for x in (self.weights, self.scale, self.zero_point)
        )
        codes = self.carried[..., j, :] / factor[..., j, j, None]  # in place from here
        codes += weights
        codes /= scale
        codes = np.asarray(choose(codes), np.float64)
        codes += zero_point
        np.maximum(codes, low, out=codes)
        np.minimum(codes, high, out=codes)
        errors = weights - (codes - zero_point) * scale
        self.codes[..., j, :], self.errors[..., j, :] = codes, errors
        self.carried[..., j + 1 :, :] += factor[..., j, j + 1 :, None] * errors[..., None, :]


def descend(
    weights: Array,
    codes: Array,
    gram: Array,
    scale: Array | float,
    zero_point: Array | float,
    low: int,
    high: int,
    *,
    sweeps: int = 8,
) -> Array:
    """Gives column after column its best codes while all others are held, over and over.

    Never increases the loss; stops early when nothing moves. With e = W - W_q the loss is, in
    e_j, a parabola with its least value at -sum_{i != j} e_i G_ij / G_jj. Where no column can be
    improved alone and there are at most PAIRED, two at a time are tried.

    Args:
        weights, gram, scale, zero_point, low, high: as for `gptq`.
        codes: where to start, [*groups, out, d].
        sweeps: at most so many rounds over all columns.

    Returns:
        int32 codes [*groups, out, d].
    """
    gram, result = np.asarray(gram, np.float64), np.array(codes, np.int32)
    for rows, w, s, z in _transposed(weights, scale, zero_point):
        found = result[..., rows, :].swapaxes(-1, -2) - z
        layer = _Descent(gram, s, low - z, high - z, found, w - found * s)
        for _ in range(sweeps):
            if not (layer.sweep() or (gram.shape[-1] <= PAIRED and layer.sweep_pairs())):
                break
        result[..., rows, :] = (layer.codes + z).swapaxes(-1, -2)
    return result


@dataclass(frozen=True)
class _Descent:
    """A layer whose codes are being improved; arrays [*groups, d, out], gram [*groups, d, d].

    Attributes:
        low, high: limits of the codes.
        codes: less their zero point; changed in place.
        errors: W - W_q; changed in place.
    """

    gram: Array
    scale: Array
    low: Array
    high: Array
    codes: Array
    errors: Array

    def sweep(self) -> bool:
        """Moves each column to where the loss is least; whether any code moved."""
        moved = False
        for first in range(0, self.gram.shape[-1], LEAF):
            block = np.s_[..., first : first + LEAF, :]
            square = self.gram[..., first : first + LEAF, first : first + LEAF]
            pull = self.gram[block] @ self.errors  # e G, kept up to date within the block
            parts = [x[block] for x in (self.scale, self.low, self.high, self.codes, self.errors)]
            for j in range(square.shape[-1]):
                scale, low, high, codes, errors = (x[..., j, :] for x in parts)
                wanted = _quotient(pull[..., j, :], square[..., j, j, None] * scale)
                step = np.clip(np.rint(codes + wanted), low, high) - codes
                step[np.abs(step - wanted) >= np.abs(wanted) - STILL] = 0  # ties stay put
                if step.any():
                    moved = True
                    codes += step
                    errors -= step * scale
                    pull -= square[..., :, j, None] * (step * scale)[..., None, :]
        return moved

    def sweep_pairs(self) -> bool:
        """Moves each column by one code and with it the other column that then gains most."""
        moved = False
        curvature = np.diagonal(self.gram, axis1=-2, axis2=-1)[..., None] * self.scale
        pull = self.gram @ self.errors
        for j, sign in itertools.product(range(self.gram.shape[-1]), (-1.0, 1.0)):
            step = sign * self.scale[..., j, :]
            new = self.codes[..., j, :] + sign
            cost = step * (step * self.gram[..., j, j, None] - 2 * pull[..., j, :])
            cost[(new < self.low[..., j, :]) | (new > self.high[..., j, :])] = np.inf
            cost[curvature[..., j, :] == 0] = np.inf
            after = pull - self.gram[..., :, j, None] * step[..., None, :]
            other = np.rint(self.codes + _quotient(after, curvature))
            other = np.clip(other, self.low, self.high) - self.codes
            gain = self.scale * other * (2 * after - curvature * other)
            gain[..., j, :] = -np.inf
            best = gain.argmax(axis=-2)[..., None, :]
            gained = np.take_along_axis(gain, best, -2)[..., 0, :]
            wins = gained > cost + STILL * curvature[..., j, :] * self.scale[..., j, :]
            if wins.any():
                moved = True
                change = np.zeros_like(other)
                np.put_along_axis(change, best, np.take_along_axis(other, best, -2), -2)
                change[..., j, :] += sign
                change *= wins[..., None, :]
                self.codes[...] += change
                self.errors[...] -= change * self.scale
                pull = self.gram @ self.errors
        return moved


def _quotient(dividend: Array, divisor: Array) -> Array:
    """0 where the divisor is 0: a column that no sample used stays where it is."""
    return np.asarray(np.divide(dividend, divisor, where=divisor > 0, out=np.zeros_like(dividend)))


def _transposed(
    weights: Array,
    scale: Array | float,
    zero_point: Array | float,
    at_once: int = ROWS,
) -> Iterator[tuple[slice, Array, Array, Array]]:
    """Slices of at most ``at_once`` rows, and weights, scale and zero point of each as float64
    views or copies [*groups, d, rows]: a column of the layer is contiguous then."""
    scale, zero_point = (np.asarray(x, np.float64) for x in (scale, zero_point))
    scale, zero_point = (np.broadcast_to(x, weights.shape) for x in (scale, zero_point))
    for first in range(0, weights.shape[-2], at_once):
        rows = slice(first, first + at_once)
        w, s, z = (x[..., rows, :].swapaxes(-1, -2) for x in (weights, scale, zero_point))
        yield rows, np.ascontiguousarray(w, np.float64), s, z


def _values(codes: Array, scale: Array | float, zero_point: Array | float) -> Array:
    return np.asarray((np.asarray(codes, np.float64) - zero_point) * np.asarray(scale, np.float64))
