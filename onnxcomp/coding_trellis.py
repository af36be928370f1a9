"""Integers chosen for what an entropy coder spends on them, one by one or along a trellis.

A rounding costs squared error, a code costs bits; lambda says how much error a bit is worth. What a
code costs is told by how often it occurs. Dependent integers (docs/container.md, `trellis`) err
less at the same entropy: Joshi, Fischer, Marcellin, "Entropy-constrained trellis coded
quantization", 1992. Inside GPTQ the errors of a column count alike in all rows, so sequences run
through the rows of a column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxcomp.container import cut
from onnxcomp.kernels.trellis import choose, codes_of
from onnxcomp.quantization import Array
from onnxcomp.representations import has_trellis
from onnxcomp.restoring import restore_trellis
from onnxcomp.weight_sites import Layout

TRIED = 2**16  # elements that prices are found on
FEWEST_ROWS = 8  # of a matrix; sequences shorter than that choose among too little


@dataclass(frozen=True)
class Trellis:
    """Where the sequences of a weight run.

    Attributes:
        along: axis of the constant.
        period: rows of the matrix after which they start again, because a chunk ends.
    """

    along: int
    period: int

    @classmethod
    def of(cls, layout: Layout) -> Trellis | None:
        """Of a weight whose rows are the indices of one axis; None for others."""
        rows = [axis for axis in layout.order[: layout.outputs] if layout.shape[axis] != 1]
        if len(rows) != 1 or layout.rows < FEWEST_ROWS or not has_trellis(layout.shape):
            return None
        along = rows[0]
        return cls(along, cut(layout.shape).step if along == 0 else layout.rows)

    def integers(self, targets: Array, prices: Array) -> Array:
        """The best integers for targets [rows, columns], in units of an integer."""
        integers: Array = choose(np.ascontiguousarray(targets.T), prices, self.period)[0].T
        return integers

    def prices(self, targets: Array, rate_weight: float) -> Array:
        """Prices of codes by how often they occur where they are chosen for those prices.

        Args:
            targets: [rows, columns], of which some columns are tried.
            rate_weight: squared error that a bit is worth.
        """
        some = targets[:, :: max(1, targets.size // TRIED)]
        prices = prices_of(np.rint(some / 2), rate_weight)
        return prices_of(codes_of(self.integers(some, prices)), rate_weight)


def prices_of(codes: Array, rate_weight: float) -> Array:
    """What the codes 0, 1, 2 ... cost, float32, with their signs.

    Args:
        codes: integers, as often as they occur; others cost a bit more than any that does.
        rate_weight: price of a bit.
    """
    counts = np.bincount(np.abs(codes).astype(np.int64).ravel(), minlength=1) + 0.5
    counts = np.append(counts, 0.25)
    bits = np.log2(counts.sum()) - np.log2(counts)
    bits[1:] += 1
    return np.asarray(rate_weight * bits, np.float32)


def cheapest(targets: Array, prices: Array) -> Array:
    """The integer of each target with the least squared error and price, as floats.

    Args:
        targets: any shape, in units of an integer.
        prices: of the magnitudes 0, 1, 2 ...; larger ones cost what the last does.
    """
    size = np.abs(targets)
    best = np.rint(size)
    least = (size - best) ** 2 + _price(best, prices)
    for other in (np.maximum(best - 1, 0), np.zeros_like(best)):
        cost = (size - other) ** 2 + _price(other, prices)
        wins = cost < least
        best, least = np.where(wins, other, best), np.where(wins, cost, least)
    return np.copysign(best, targets)


def trellis_integers(codes: Array, along: int) -> Array:
    """What the codes of a constant stand for, int32, as a decoder of its chunks finds it."""
    integers = np.array(codes, np.int32, order="C")
    flat, place = integers.reshape(-1), cut(codes.shape)
    for chunk in range(place.chunks):
        part = flat[place.start(chunk) :][: math.prod(place.shape(chunk))]
        restore_trellis(part, codes.shape, along)
    return integers


def _price(magnitudes: Array, prices: Array) -> Array:
    return np.asarray(prices[np.minimum(magnitudes, len(prices) - 1).astype(np.int64)])
