"""What a layer reads in the float model beside what its quantized twin reads, as moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.gram import Array

WIDE = 512  # from here on regressions are solved in float32


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

    def regressions(self, weights: Array, ridges: Sequence[float]) -> Iterator[Array]:
        """The weights for x_q that come nearest to ``weights`` for x, for each ridge.

        A ridge is a share of the mean of the diagonal; an infinite one leaves the weights alone.
        Weights are [groups, out, d].
        """
        width = self.gram.shape[-1]
        mean = np.trace(self.gram, axis1=1, axis2=2)[:, None, None] / width
        change = self._product(weights, self.cross - self.gram).swapaxes(1, 2)
        for ridge in ridges:
            if not np.isfinite(ridge):
                yield weights
                continue
            damped = self.gram + np.where(mean > 0, ridge * mean, 1.0) * np.eye(width)
            if width > WIDE:  # the ridge bounds what rounding to float32 can do
                damped = damped.astype(np.float32)
            yield weights + np.linalg.solve(damped, change).swapaxes(1, 2)

    def losses(self, weights: Array, changed: Iterable[Array]) -> list[float]:
        """The sum of |W x - W' x_q|^2 but for a constant, for each W' of ``changed``."""
        goal = 2 * self._product(weights, self.cross)
        return [float(np.sum((self._product(x, self.gram) - goal) * x)) for x in changed]

    def _product(self, weights: Array, moments: Array) -> Array:
        """Of wide layers in float32, which takes half the time."""
        dtype = np.float32 if moments.shape[-1] > WIDE else np.float64
        return np.asarray(weights.astype(dtype) @ moments.astype(dtype))
