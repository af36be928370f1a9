"""Least squares where a Relu or a Clip follows: what it cuts off need not be met.

Let the goal be clip(y) where W0 x + b0 is not cut off, and W0 x + b0 itself where it is. But for a
constant, |clip(y) - clip(W x + b)|^2 never exceeds |goal - W x - b|^2 and equals it at W0. So each
plain fit to the goal of the one before lowers the error (Hunter and Lange, "A tutorial on MM
algorithms", 2004). All share one Gram matrix; Nesterov's momentum saves steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.gram import Array
from onnxcomp.regression import Fit

STEPS = 8
MOST_WORK = 1 << 36  # multiplications of all steps of a layer
LEAST_STEPS = 3
Nearest = Callable[[Array, Array, Array], Array]
"""Weights in the place of M [groups, out, d] under G [groups, d, d], near those there are."""


@dataclass(frozen=True)
class Rows:
    """What a layer reads, what it should make of that, and where that is cut off.

    Attributes:
        inputs: x, [groups, d, n].
        outputs: y, [groups, out, n].
        low, high: bounds of y, each of the shape of y or of one that broadcasts to it.
    """

    inputs: Array
    outputs: Array
    low: Array
    high: Array

    def __add__(self, other: Rows) -> Rows:
        """Both of them."""
        parts = zip(_parts(self), _parts(other), strict=True)
        return Rows(*(np.concatenate(pair, axis=2) for pair in parts))

    def through(self, expansion: Array) -> Rows:
        """Of E x instead of x, E [groups, features, d], and the same y."""
        inputs = np.matmul(expansion.astype(self.inputs.dtype), self.inputs)
        return replace(self, inputs=inputs)

    def error(self, fit: Fit) -> float:
        """E|clip(y) - clip(W x + b)|^2 as a share of the variance of clip(y); 0 of no rows."""
        if not self.outputs.size:
            return 0.0
        wanted = np.clip(self.outputs, self.low, self.high)
        rest = wanted - np.clip(self._made(fit), self.low, self.high)
        lost = float(np.sum(np.square(rest, dtype=np.float64)))
        centred = wanted - wanted.mean(axis=2, keepdims=True)
        spread = float(np.sum(np.square(centred, dtype=np.float64)))
        return lost / spread if spread > 0 else (np.inf if lost > 0 else 0.0)

    def fit(
        self,
        start: Fit,
        towards: Fit,
        ridge: float,
        *,
        with_bias: bool,
        steps: int | None = None,
        nearest: Nearest | None = None,
    ) -> Fit:
        """A local minimum of E|clip(y) - clip(W x + b)|^2 + ridge * m |W - W0|^2, nearly.

        Args:
            start: where to begin.
            towards: W0, and the bias that stays without ``with_bias``.
            ridge: a share of m, the mean of the diagonal of E[x xT].
            with_bias: whether the bias may change.
            steps: at most; None for as many as are worth their time.
            nearest: of weights that are not free, those nearest to some under a metric.
        """
        x, mean = self.inputs, np.zeros(self.inputs.shape[:2])
        count, width = x.shape[2], x.shape[1]
        if with_bias:  # before products of float32 are summed: see `Moments.of`
            near = x.mean(axis=2, dtype=np.float64).astype(x.dtype)
            x, mean = x - near[:, :, None], near.astype(np.float64)
        left = x.mean(axis=2, dtype=np.float64)
        gram = np.matmul(x, x.transpose(0, 2, 1)).astype(np.float64) / count
        if with_bias:
            gram -= left[:, :, None] * left[:, None, :]
        scale = np.trace(gram, axis1=1, axis2=2)[:, None, None] / width
        damped = gram + np.where(scale > 0, ridge * scale, 1.0) * np.eye(width)
        inverse = np.linalg.inv(damped)
        now, before = start, start
        most = steps_for(x.size * self.outputs.shape[1])
        for step in range(most if steps is None else min(steps, most)):
            push = max(0.0, (step - 1) / (step + 2))
            goal = self._goal(_ahead(now, before, push))
            cross = np.matmul(goal, x.transpose(0, 2, 1)).astype(np.float64) / count
            level = goal.mean(axis=2, dtype=np.float64) if with_bias else towards.bias
            cross -= level[:, :, None] * left[:, None, :]
            weights = towards.weights + (cross - towards.weights @ gram) @ inverse
            if nearest is not None:
                weights = nearest(weights, damped, now.weights)
            shift = np.einsum("god,gd->go", weights, mean + left) if with_bias else 0.0
            now, before = Fit(weights, level - shift), now
        return now

    def _made(self, fit: Fit) -> Array:
        dtype = self.inputs.dtype
        made = np.matmul(fit.weights.astype(dtype), self.inputs)
        return np.asarray(made + fit.bias[..., None].astype(dtype))

    def _goal(self, fit: Fit) -> Array:
        """clip(y), but where what is made is cut off what is made."""
        made = self._made(fit)
        is_seen = (made > self.low) & (made < self.high)
        return np.where(is_seen, np.clip(self.outputs, self.low, self.high), made)


def _ahead(now: Fit, before: Fit, push: float) -> Fit:
    weights = now.weights + push * (now.weights - before.weights)
    return Fit(weights, now.bias + push * (now.bias - before.bias))


def steps_for(products: int) -> int:
    """How many steps a problem with so many products a step may take; 0 for none."""
    steps = min(STEPS, MOST_WORK // max(1, 2 * products))
    return int(steps) if steps >= LEAST_STEPS else 0


def best_clipped_fit(
    shown: Rows, held: Rows, start: Fit, plain: tuple[Fit, Fit], ridge: float, *, with_bias: bool
) -> tuple[Fit, float, float]:
    """The best on ``held`` of the weights there are, a plain fit and a fit that is clipped.

    Args:
        shown, held: of samples to fit, and others to judge by.
        start: the weights and the bias there are.
        plain: fits of `Moments`, made from ``shown`` and from all.
        ridge: with which those were made.
        with_bias: whether the bias may change.

    Returns:
        the fit made from all samples, ``start`` itself if none is better; the errors on ``held``
        of ``start`` and of the fit made from ``shown``.
    """
    stays = shown.error(start) < shown.error(plain[0])  # plain fits chase what is cut off
    clipped = shown.fit(start if stays else plain[0], start, ridge, with_bias=with_bias)
    errors = [held.error(fit) for fit in (start, plain[0], clipped)]
    best = int(np.argmin(errors))
    if best == 2:
        fit = (shown + held).fit(start if stays else plain[1], start, ridge, with_bias=with_bias)
        return fit, errors[0], errors[2]
    return (start, plain[1])[best], errors[0], errors[best]


def _parts(rows: Rows) -> list[Array]:
    shape = rows.outputs.shape
    bounds = [np.broadcast_to(bound, shape) for bound in (rows.low, rows.high)]
    return [rows.inputs, rows.outputs, *bounds]
