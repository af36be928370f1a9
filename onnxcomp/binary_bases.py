"""Weights as a few scaled matrices of signs, fitted to what a layer makes of its inputs.

W [out, d] becomes V, a sum of bases: each is a matrix of -1 and +1 with a scale for every output
(Rastegari et al., "XNOR-Net", 2016, has one; Lin et al., "Towards accurate binary convolutional
neural networks", 2017, several). What is lost is tr (W - V) G (W - V)T with G = E[x xT]. The scales
that suit given signs solve normal equations, and signs are exchanged column after column for the
best there are while all others are held; both only ever lower the loss.

Inputs that are M signs of each channel instead of floats make d = M * width columns; they are
``blocks`` with bases of their own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from onnxcomp.quantization import Array

ROUNDS = 8  # of scales and signs; twice as many lower the loss by 1 %
LEAF = 64  # columns whose signs change before a matrix product tells the others
SINGULAR = 1e-10  # share of the largest eigenvalue below which normal equations have none
MOST = 6  # bases: all combinations of their signs are tried for each weight


@dataclass(frozen=True)
class BinaryBases:
    """V as signs and scales.

    Attributes:
        signs: -1 and +1, int8 [blocks, bases, out, width].
        scales: float64 [blocks, bases, out].
    """

    signs: Array
    scales: Array

    @property
    def values(self) -> Array:
        """V, float64 [out, blocks * width]."""
        parts = np.einsum("bkow,bko->obw", self.signs, self.scales)
        return np.asarray(parts.reshape(len(parts), -1))


def fit_bases(
    weights: Array, gram: Array, count: int, *, blocks: int = 1, rounds: int = ROUNDS
) -> BinaryBases:
    """Bases one after another, each begun with the signs of what those before it leave.

    Args:
        weights: W, [out, blocks * width].
        gram: G, [d, d], symmetric, positive semidefinite.
        count: bases of each block, 1 to MOST.
        blocks: of columns with bases of their own.
        rounds: of signs and scales, at most, after every base.

    Raises:
        ValueError: ``count`` is out of range.
    """
    if not 1 <= count <= MOST:
        raise ValueError(f"there can be 1 to {MOST} bases, not {count}")
    weights, gram = np.asarray(weights, np.float64), np.asarray(gram, np.float64)
    rows, width = len(weights), weights.shape[1] // blocks
    bases = BinaryBases(np.zeros((blocks, 0, rows, width), np.int8), np.zeros((blocks, 0, rows)))
    for _ in range(count):
        left = (weights - bases.values).reshape(rows, blocks, width).swapaxes(0, 1)
        more = np.where(left < 0, -1, 1).astype(np.int8)
        signs = np.concatenate([bases.signs, more[:, None]], axis=1)
        bases = BinaryBases(signs, best_scales(weights, gram, signs))
        for _ in range(rounds):
            signs = best_signs(weights, gram, bases)
            if np.array_equal(signs, bases.signs):
                break
            bases = BinaryBases(signs, best_scales(weights, gram, signs))
    return _positive(bases)


def best_scales(weights: Array, gram: Array, signs: Array) -> Array:
    """The scales with the least loss, [blocks, bases, out]; the smallest where several have it.

    Of each output alone (F G FT) a = F G w, where F has its row of every base.

    Args:
        weights: W, [out, blocks * width].
        gram: G, [d, d].
        signs: [blocks, bases, out, width].
    """
    blocks, count, rows, width = signs.shape
    turned = signs.reshape(blocks, count * rows, width).astype(np.float64)
    turned = turned @ gram.reshape(blocks, width, -1)  # F G, [blocks, bases * out, d]
    turned = turned.reshape(blocks, count, rows, blocks, width)
    normal = np.einsum("bkocw,clow->obkcl", turned, signs, optimize=True)
    wanted = np.einsum("bkocw,ocw->obk", turned, weights.reshape(rows, blocks, width))
    terms = blocks * count
    inverse = np.linalg.pinv(normal.reshape(rows, terms, terms), rcond=SINGULAR, hermitian=True)
    scales = np.einsum("ots,os->to", inverse, wanted.reshape(rows, terms))
    return np.asarray(scales.reshape(blocks, count, rows))


def best_signs(weights: Array, gram: Array, bases: BinaryBases) -> Array:
    """Signs after one go over the columns, each given its best while the others are held.

    Of one column the loss is a parabola in its value: of all that the scales can make, the one
    nearest to where it is least is taken.

    Args:
        weights: W, [out, blocks * width].
        gram: G, [d, d].
        bases: where to start.

    Returns:
        int8 [blocks, bases, out, width].
    """
    blocks, count, rows, width = bases.signs.shape
    patterns = np.array(list(itertools.product((-1, 1), repeat=count)), np.int8)
    levels = np.einsum("pk,bko->bpo", patterns, bases.scales)
    values = np.ascontiguousarray(bases.values.T)  # [d, out]: a column lies together
    slopes = gram @ (values - weights.T)
    signs = np.ascontiguousarray(bases.signs.transpose(0, 3, 1, 2)).reshape(-1, count, rows)
    each = np.arange(rows)
    for first in range(0, len(gram), LEAF):
        part = slice(first, first + LEAF)
        square, inside = gram[part, part], slopes[part]
        moved = np.zeros_like(inside)
        for at in range(len(square)):
            if square[at, at] <= 0:
                continue
            own, column = levels[(first + at) // width], values[first + at]
            target = column - inside[at] / square[at, at]
            chosen = np.abs(own - target).argmin(axis=0)
            best = own[chosen, each]
            better = np.abs(best - target) < np.abs(column - target)
            step = np.where(better, best - column, 0.0)
            signs[first + at] = np.where(better, patterns[chosen].T, signs[first + at])
            values[first + at] += step
            moved[at] = step
            inside += square[:, at, None] * step
        slopes[first + len(square) :] += gram[first + len(square) :, part] @ moved
    return np.ascontiguousarray(signs.reshape(blocks, width, count, rows).transpose(0, 2, 3, 1))


def _positive(bases: BinaryBases) -> BinaryBases:
    """The same V with scales that are not negative."""
    turned = np.where(bases.scales < 0, -1, 1).astype(np.int8)
    return replace(bases, signs=bases.signs * turned[..., None], scales=np.abs(bases.scales))
