"""What a layer really loses with some of its inputs: fitted to most samples, judged by the others.

A Gram matrix of few samples explains what it should not: behind a global pooling a sample is one
row, and as many inputs as rows make any output. Such units seem to cost nothing until other samples
come.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.errors import CalibrationError
from onnxcomp.gram import Array, Gram, GramResult, Window

HELD_EVERY = 4  # one sample in so many judges the fit made from the others
FEWEST = 8  # samples of which some are held back
RIDGES = (1e-3, 1e-1)  # shares of the mean diagonal
LEVELS = 24  # numbers of units left at which a loss is computed; between them it is interpolated


def is_held(index: int) -> bool:
    """Whether the ``index``-th sample is one to judge by."""
    return index % HELD_EVERY == HELD_EVERY - 1


@dataclass(frozen=True)
class SplitGram:
    """Second moments of what a layer reads, in two parts of the samples.

    Attributes:
        shown: of the samples to fit, about their mean, [..., d, d].
        held: of the samples to judge by, about the same mean, [..., d, d].
        mean: of the samples to fit, [..., d].
    """

    shown: Array
    held: Array
    mean: Array

    def __getitem__(self, index: int | None) -> SplitGram:
        """Of one group; with None, of the only one there is, [1, d, d]."""
        return SplitGram(self.shown[index], self.held[index], self.mean[index])

    def loss(self, weights: Array, left: Array) -> float:
        """E|W x - b - W' x'|^2 over samples held back, W' fitted without them to the x' left.

        Args:
            weights: W, [out, d].
            left: whether each input stays, bool [d].
        """
        return self._best(weights, left)[1]

    def fitted(self, weights: Array, left: Array) -> tuple[Array, Array]:
        """W' of `loss`, [out, d] with zeros for what does not stay, and what it adds to a bias."""
        fit = np.where(left, weights, 0.0)
        fit[:, left] += self._best(weights, left)[0]
        return fit, (weights - fit) @ self.mean

    def _best(self, weights: Array, left: Array) -> tuple[Array, float]:
        """What is added to the weights of the inputs that stay, [out, left], and the loss."""
        gone = ~left
        lost = weights[:, gone]
        shown, held = self.shown[np.ix_(left, left)], self.held[np.ix_(left, left)]
        whole = float(np.sum((lost @ self.held[np.ix_(gone, gone)]) * lost))
        best = np.zeros((len(weights), len(shown))), whole  # a new bias alone
        missing = (lost @ self.shown[np.ix_(gone, left)]).T
        crossed = lost @ self.held[np.ix_(gone, left)]
        scale = float(np.trace(self.shown)) / len(left)
        for ridge in RIDGES if left.any() and scale > 0 else ():
            added = np.linalg.solve(shown + ridge * scale * np.eye(len(shown)), missing).T
            loss = whole + float(np.sum((added @ held - 2 * crossed) * added))
            best = min(best, (added, loss), key=lambda fit: fit[1])
        return best[0], max(0.0, best[1])


class SplitMoments:
    """E[x xT] as `Gram` takes it, of all samples and of those that are held back or not."""

    def __init__(self, axis: int = -1, *, window: Window | None = None) -> None:
        """As for `Gram`."""
        self._parts = Gram(axis, window=window), Gram(axis, window=window)
        self._samples = 0

    def update(self, values: Array) -> None:
        """``values``: those of one sample."""
        self._parts[is_held(self._samples)].update(values)
        self._samples += 1

    def result(self) -> tuple[GramResult, SplitGram | None]:
        """Moments of all samples, and unless they are few or not finite of the two parts.

        Raises:
            CalibrationError: no value was seen.
        """
        try:
            held = self._parts[True].result()
        except CalibrationError:
            return self._parts[False].result(), None
        try:
            shown = self._parts[False].result()
        except CalibrationError:
            return held, None
        count = shown.count + held.count
        share = held.count / count
        whole = GramResult(
            shown.matrix + share * (held.matrix - shown.matrix),
            shown.mean + share * (held.mean - shown.mean),
            count,
        )
        split = SplitGram(about(shown, shown.mean), about(held, shown.mean), shown.mean)
        seen = np.isfinite(split.shown).all() and np.isfinite(split.held).all()
        return whole, split if seen and self._samples >= FEWEST else None


def about(moments: GramResult, centre: Array) -> Array:
    """E[(x - centre)(x - centre)T], [..., d, d]."""
    mean, centre = moments.mean.astype(np.float64), centre.astype(np.float64)
    across = mean[..., :, None] * centre[..., None, :]
    square = centre[..., :, None] * centre[..., None, :]
    return np.asarray(moments.matrix - across - across.swapaxes(-1, -2) + square)


def counts_to_judge(units: int) -> Array:
    """Numbers of units removed at which losses are computed, ascending, the last all of them."""
    return np.unique(np.linspace(1, units, min(units, LEVELS)).round().astype(np.int64))
