"""What a layer reads in the float model beside what its quantized twin reads, as moments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.gram import Array


@dataclass(frozen=True)
class Paired:
    """Moments of what a layer reads in the float model, x, and in the quantized one, x_q.

    Attributes:
        gram: the sum of x_q x_qT, [groups, d, d], in the precision of the rows.
        lost: the sum of (x - x_q) x_qT, [groups, d, d].
        totals: the sums of x - x_q and of x_q, [2, groups, d].
        count: of the summands.
    """

    gram: Array
    lost: Array
    totals: Array
    count: int

    @classmethod
    def of(cls, rows: Array, quantized: Array) -> Paired:
        """From rows [groups, d, count]: in float32 precise enough if their means are near zero."""
        transposed = quantized.transpose(0, 2, 1)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for infinity
            error = rows - quantized
            gram, lost = np.matmul(quantized, transposed), np.matmul(error, transposed)
        totals = np.stack([x.sum(axis=2, dtype=np.float64) for x in (error, quantized)])
        return cls(gram, lost, totals, rows.shape[2])

    def __add__(self, other: Paired) -> Paired:
        return Paired(
            self.gram + other.gram,
            self.lost + other.lost,
            self.totals + other.totals,
            self.count + other.count,
        )

    def centred(self) -> Paired:
        """The same of x and x_q less their means: what a bias cannot make up for."""
        first, second = (self.totals[..., None] / max(1, self.count)).astype(self.gram.dtype)
        transposed = self.totals[1][:, None, :].astype(self.gram.dtype)
        return Paired(
            self.gram - second * transposed,
            self.lost - first * transposed,
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
        change = self._product(weights, self.lost).swapaxes(1, 2)
        for ridge in ridges:
            if not np.isfinite(ridge):
                yield weights
                continue
            damped = self.gram.copy()
            diagonal = np.einsum("gii->gi", damped)  # a view
            diagonal += np.where(mean > 0, ridge * mean, 1.0)[..., 0]
            yield weights + np.linalg.solve(damped, change).swapaxes(1, 2)

    def losses(self, weights: Array, changed: Iterable[Array]) -> list[float]:
        """The sum of |W x - W' x_q|^2 for each W' of ``changed``, less that for W' = W."""
        goal, found = 2 * self._product(weights, self.lost), []
        for other in changed:
            change = other - weights
            error = 0.0 if other is weights else (self._product(change, self.gram) - goal) * change
            found.append(float(np.sum(error)))
        return found

    def _product(self, weights: Array, moments: Array) -> Array:
        """In the precision of the moments."""
        return np.asarray(weights.astype(moments.dtype) @ moments)


def moments(sides: list[Array], shown: int, centred: bool) -> tuple[Paired, Paired, Paired]:
    """Of the rows a regression is made from, of those it is judged by, and of all.

    Args:
        sides: rows of x and of x_q, [groups, d, count], which change if ``centred``.
        shown: the regression is made from so many; where that is all, it is judged by them too.
        centred: whether means do not count.
    """
    if centred:  # all at once first: float32 is precise enough for what is left
        with np.errstate(over="ignore", invalid="ignore"):  # the caller looks for infinity
            for side in sides:
                side -= side.mean(axis=2, keepdims=True)
    first = Paired.of(*(side[..., :shown] for side in sides))
    if shown == sides[0].shape[2]:
        return first, first, first
    last = Paired.of(*(side[..., shown:] for side in sides))
    whole = first + last
    return (first.centred(), last.centred(), whole) if centred else (first, last, whole)
