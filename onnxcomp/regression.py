"""Ridge least squares from streamed moments: the weights that make wanted outputs of given inputs.

The ridge draws towards the weights that a layer has, not towards zero: what few samples leave open
stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.gram import Array, GramResult

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # shares of the mean diagonal
FEW_RIDGES = (1e-3, 1e-1)  # where each takes seconds
WIDE = 1024  # inputs
LEAST_ROWS = 0.25  # for each input


@dataclass(frozen=True)
class Fit:
    """y = W x + b, of each group.

    Attributes:
        weights: [groups, out, d].
        bias: [groups, out].
    """

    weights: Array
    bias: Array


@dataclass(frozen=True)
class Choice:
    """A fit whose ridge did best on samples held back.

    Attributes:
        shown, whole: made without those samples, and from all.
        ridge: its ridge; the largest tried where a new bias alone does best.
        before, after: errors of the weights there are and of ``shown`` on the samples held back.
    """

    shown: Fit
    whole: Fit
    ridge: float
    before: float
    after: float


@dataclass(frozen=True)
class Moments:
    """Sums over rows of what a layer reads, x, and what it should make of that, y; float64.

    Attributes:
        gram: of x xT, [groups, d, d].
        cross: of y xT, [groups, out, d].
        inputs: of x, [groups, d].
        outputs: of y, [groups, out].
        energy: of |y|^2.
        count: of rows.
    """

    gram: Array
    cross: Array
    inputs: Array
    outputs: Array
    energy: float
    count: int

    @classmethod
    def of(cls, inputs: Array, outputs: Array) -> Moments:
        """From rows x [groups, d, count] and y [groups, out, count].

        Products are summed in the precision of the rows, so they are of x and y less their means:
        what varies little about a large mean would be lost.
        """
        count = inputs.shape[2]
        with np.errstate(over="ignore", invalid="ignore"):  # `reason_against` looks for infinity
            read, made = (x.sum(axis=2, dtype=np.float64) for x in (inputs, outputs))
            x, y = (m[:, :, None] / max(1, count) for m in (read, made))
            x, y = x.astype(inputs.dtype), y.astype(outputs.dtype)
            rest = inputs - x, outputs - y
            turned = rest[0].swapaxes(1, 2)
            gram, cross = (np.matmul(v, turned).astype(np.float64) for v in rest)
            left, x = read[:, :, None] - count * x.astype(np.float64), x.astype(np.float64)
            gram += x * left.swapaxes(1, 2) + read[:, :, None] * x.swapaxes(1, 2)
            cross += y * left.swapaxes(1, 2) + made[:, :, None] * x.swapaxes(1, 2)
            energy = float(np.sum(np.square(outputs, dtype=np.float64)))
        return cls(gram, cross, read, made, energy, count)

    @classmethod
    def of_kept(cls, weights: Array, gram: GramResult, kept: Array) -> Moments:
        """Of y = W x and of those x that are ``kept``, from one Gram matrix of all x.

        Args:
            weights: [out, d].
            gram: of all inputs, [d, d].
            kept: indices of x, [n].
        """
        cross = weights.astype(np.float64) @ gram.matrix
        return cls(
            gram.count * gram.matrix[np.ix_(kept, kept)][None],
            gram.count * cross[None, :, kept],
            gram.count * gram.mean[None, kept],
            gram.count * (weights @ gram.mean)[None],
            gram.count * float(np.sum(cross * weights)),
            gram.count,
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.inputs + other.inputs,
            self.outputs + other.outputs,
            self.energy + other.energy,
            self.count + other.count,
        )

    def through(self, expansion: Array) -> Moments:
        """Of E x instead of x, E [groups, features, d], and the same y."""
        turned = expansion.swapaxes(1, 2)
        return replace(
            self,
            gram=expansion @ self.gram @ turned,
            cross=self.cross @ turned,
            inputs=np.einsum("gfd,gd->gf", expansion, self.inputs),
        )

    def metric(self, *, centred: bool) -> Array:
        """E[x xT], or that about the mean of x, [groups, d, d]."""
        gram, x = self.gram / self.count, self.inputs / self.count
        return gram - x[:, :, None] * x[:, None, :] if centred else gram

    def level(self, weights: Array) -> Array:
        """The bias with which outputs have the mean of y, [groups, out]."""
        shown = np.einsum("god,gd->go", weights, self.inputs)
        return np.asarray((self.outputs - shown) / self.count)

    @property
    def width(self) -> int:
        """How many inputs an output has, d."""
        return int(self.gram.shape[-1])

    def error(self, fit: Fit) -> float:
        """E|y - W x - b|^2 / E|y - E[y]|^2; infinite where y is constant but not hit."""
        weights, bias = fit.weights, fit.bias
        shown = np.einsum("god,gd->go", weights, self.inputs)
        lost = float(
            self.energy
            + np.sum((weights @ self.gram - 2 * self.cross) * weights)
            + np.sum(bias * (2 * (shown - self.outputs) + self.count * bias))
        )
        spread = self.energy - float(np.sum(np.square(self.outputs))) / max(1, self.count)
        if lost <= 1e-9 * self.energy:  # rounding
            return 0.0
        return lost / spread if spread > 1e-9 * self.energy else np.inf

    def fits(self, start: Fit, ridges: Sequence[float], *, with_bias: bool) -> Iterator[Fit]:
        """For each ridge, the minimum of E|y - W x - b|^2 + ridge * m |W - W0|^2.

        That is W = W0 + (C - W0 G)(G + ridge m I)^-1 with G = E[x xT], C = E[y xT] and m the mean
        of G's diagonal; with a bias, of x and y less their means. The last is a new bias alone.

        Args:
            start: W0, and the bias that stays without ``with_bias``.
            ridges: all above 0.
            with_bias: whether the bias may change.
        """
        gram, cross = self.metric(centred=with_bias), self.cross / self.count
        x, y = self.inputs / self.count, self.outputs / self.count
        if with_bias:
            cross = cross - y[:, :, None] * x[:, None, :]
        else:
            cross = cross - start.bias[:, :, None] * x[:, None, :]
        mean = np.trace(gram, axis1=1, axis2=2)[:, None, None] / self.width
        missing = (cross - start.weights @ gram).swapaxes(1, 2)

        def fit(weights: Array) -> Fit:
            return Fit(weights, self.level(weights) if with_bias else start.bias)

        for ridge in ridges:
            damped = gram + np.where(mean > 0, ridge * mean, 1.0) * np.eye(self.width)
            yield fit(start.weights + np.linalg.solve(damped, missing).swapaxes(1, 2))
        if with_bias:
            yield fit(start.weights)


def reason_against(moments: Moments, unknowns: int | None = None) -> str | None:
    """Why moments do not settle a layer's weights, or None. A ridge takes care of the condition.

    ``unknowns``: weights of an output, if there are not as many as inputs.
    """
    unknowns = moments.width if unknowns is None else unknowns
    if not np.isfinite(moments.gram).all() or not np.isfinite(moments.cross).all():
        return "its values are not finite"
    if moments.count < LEAST_ROWS * unknowns:
        return f"{moments.count} rows of samples are too few for {unknowns} inputs"
    if not np.trace(moments.gram, axis1=1, axis2=2).any():
        return "its inputs are all zero"
    return None


def best_fit(shown: Moments, held: Moments, start: Fit, *, with_bias: bool) -> Choice:
    """The fit whose ridge does best on samples not seen."""
    ridges = list(RIDGES if shown.width <= WIDE else FEW_RIDGES)
    before = held.error(start)
    fits = list(shown.fits(start, ridges, with_bias=with_bias))
    errors = [held.error(fit) for fit in fits]
    best = int(np.argmin(errors))
    chosen = ridges[best : best + 1]  # none: the bias alone
    whole = next((shown + held).fits(start, chosen, with_bias=with_bias))
    return Choice(fits[best], whole, chosen[0] if chosen else ridges[-1], before, errors[best])
