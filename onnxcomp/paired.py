"""What a layer reads in the float model beside what its quantized twin reads, as moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.gram import Array

WIDE = 512  # from here on regressions are solved in float32, in half the time


@dataclass(frozen=True)
class Paired:
    """Moments of what a layer reads in the float model, x, and in the quantized one, x_q.

    Attributes:
        gram: the sum of x_q x_qT, [groups, d, d].
        cross: the sum of x x_qT, [groups, d, d].
        totals: the sums of x and of x_q, [2, groups, d].
        count: of the summands.
    """

    gram: Array
    cross: Array
    totals: Array
    count: int

    @classmethod
    def of(cls, rows: Array, quantized: Array) -> Paired:
        """From rows [groups, d, count]."""
        transposed = quantized.transpose(0, 2, 1)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for infinity
            gram, cross = (np.matmul(x, transposed).astype(np.float64) for x in (quantized, rows))
        totals = np.stack([x.sum(axis=2, dtype=np.float64) for x in (rows, quantized)])
        return cls(gram, cross, totals, rows.shape[2])

    def __add__(self, other: Paired) -> Paired:
        return Paired(
            self.gram + other.gram,
            self.cross + other.cross,
            self.totals + other.totals,
            self.count + other.count,
        )

    def centred(self) -> Paired:
        """The same of x and x_q less their means: what a bias cannot make up for."""
        first, second = self.totals[..., None] / max(1, self.count)
        transposed = self.totals[1][:, None, :]
        return Paired(
            self.gram - second * transposed,
            self.cross - first * transposed,
            np.zeros_like(self.totals),
            self.count,
        )

    def regression(self, weights: Array, ridge: float) -> Array:
        """The weights for x_q that come nearest to ``weights`` for x; [groups, out, d]."""
        if not np.isfinite(ridge):
            return weights
        width = self.gram.shape[-1]
        mean = np.trace(self.gram, axis1=1, axis2=2)[:, None, None] / width
        damped = self.gram + np.where(mean > 0, ridge * mean, 1.0) * np.eye(width)
        change = (weights @ (self.cross - self.gram)).swapaxes(1, 2)
        if width > WIDE:  # the ridge bounds what rounding to float32 can do
            damped, change = damped.astype(np.float32), change.astype(np.float32)
        return np.asarray(weights + np.linalg.solve(damped, change).swapaxes(1, 2))

    def loss(self, weights: Array, changed: Array) -> float:
        """The sum of |W x - W' x_q|^2 but for a constant."""
        return float(np.sum((changed @ self.gram - 2 * (weights @ self.cross)) * changed))
