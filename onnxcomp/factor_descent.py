"""The factors of a kernel, one after the other, each the best with the others held.

Pure numpy. A kernel W, [out, d * s], is approximated by H E(A): ``inward``, A [rank, d], reads the
inputs and ``head``, H [out, features], makes the outputs of that. E is linear in A; so is the
product in H and in A, and each, given the other, is a linear least-squares problem under
tr dW G dWT with the whole G = E[x xT], [d * s, d * s]: no step makes the error larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from onnxcomp.gram import Array
from onnxcomp.lowrank import spectrum

RIDGE = 1e-10  # of the mean diagonal, towards the factor there is: what data leave open stays
BLUNT = 1e-6  # of the mean diagonal, in what steers A: rounding errors grow by its inverse
STEPS = 8  # of conjugate gradients


class Expansion(Protocol):
    """E(A), [features, d * s], of A [rank, d]."""

    def lift(self, inward: Array, columns: Array) -> Array:
        """E(A) X of X [d * s, m]: [features, m]."""

    def drop(self, inward: Array, columns: Array) -> Array:
        """E(A)T Y of Y [features, m]: [d * s, m]."""

    def pull(self, head: Array, rows: Array) -> Array:
        """The gradient by A of <D, H E(A)>, D [out, d * s]: [rank, d]."""

    def weight(self, head: Array) -> Array:
        """How much the products of two rows of A count, [rank, rank]."""


@dataclass(frozen=True)
class Repeated:
    """A reads each of ``size`` last positions alike: E(A) = kron(A, I), features rank * size."""

    size: int

    def lift(self, inward: Array, columns: Array) -> Array:
        """As in `Expansion`."""
        product = inward @ columns.reshape(inward.shape[1], -1)
        return product.reshape(-1, columns.shape[1])

    def drop(self, inward: Array, columns: Array) -> Array:
        """As in `Expansion`."""
        product = inward.T @ columns.reshape(len(inward), -1)
        return product.reshape(-1, columns.shape[1])

    def pull(self, head: Array, rows: Array) -> Array:
        """As in `Expansion`."""
        return np.tensordot(self._split(head), self._split(rows), ([0, 2], [0, 2]))

    def weight(self, head: Array) -> Array:
        """As in `Expansion`."""
        return np.tensordot(self._split(head), self._split(head), ([0, 2], [0, 2]))

    def _split(self, rows: Array) -> Array:
        return rows.reshape(len(rows), -1, self.size)


@dataclass(frozen=True, eq=False)
class Patterned:
    """Each row of A has a pattern p, [rank, s], over the last positions: a feature is their
    outer product."""

    patterns: Array

    def lift(self, inward: Array, columns: Array) -> Array:
        """As in `Expansion`."""
        return np.asarray(self._whole(inward) @ columns)

    def drop(self, inward: Array, columns: Array) -> Array:
        """As in `Expansion`."""
        return np.asarray(self._whole(inward).T @ columns)

    def pull(self, head: Array, rows: Array) -> Array:
        """As in `Expansion`."""
        rank, size = self.patterns.shape
        return np.asarray(
            np.einsum("rds,rs->rd", (head.T @ rows).reshape(rank, -1, size), self.patterns)
        )

    def weight(self, head: Array) -> Array:
        """As in `Expansion`."""
        return np.asarray((head.T @ head) * (self.patterns @ self.patterns.T))

    def _whole(self, inward: Array) -> Array:
        return (inward[:, :, None] * self.patterns[:, None, :]).reshape(len(inward), -1)


def descend(
    weights: Array,
    gram: Array,
    expansion: Expansion,
    head: Array,
    inward: Array,
    *,
    sweeps: int,
    most_rank: int | None = None,
) -> tuple[Array, Array]:
    """Head, inward and head again, ``sweeps`` times; a step that loses more is not taken.

    Given A the best head under G is a closed form; of rank ``most_rank`` too (reduced-rank
    regression, Izenman 1975: the best head, then its `spectrum` under E G ET). Given H, A is
    found by a few conjugate gradients, as its own system is rank * d wide.

    Args:
        weights: the kernel W, float64 [out, d * s].
        gram: G, [d * s, d * s].
        expansion: how A makes features.
        head: H to start from, [out, features].
        inward: A to start from, [rank, d].
        sweeps: how often A is improved.
        most_rank: of the head.

    Returns:
        Head and inward.
    """
    wrong = weights - _product(expansion, head, inward)
    felt = wrong @ gram
    for step in range(2 * sweeps + 1):
        if step % 2:
            found = head, _best_inward(gram, expansion, head, inward, felt)
        else:
            found = best_head(gram, expansion, head, inward, felt, most_rank), inward
        left = weights - _product(expansion, *found)
        left_felt = left @ gram
        if np.vdot(left_felt, left) <= np.vdot(felt, wrong):
            (head, inward), wrong, felt = found, left, left_felt
    return head, inward


def marginal(gram: Array, size: int) -> Array:
    """G [d * s, d * s] summed over equal last positions, s = ``size``: [d, d]."""
    width = len(gram) // size
    return np.asarray(np.einsum("isjs->ij", gram.reshape(width, size, width, size)))


def _product(expansion: Expansion, head: Array, inward: Array) -> Array:
    return expansion.drop(inward, head.T).T


def best_head(
    gram: Array,
    expansion: Expansion,
    head: Array,
    inward: Array,
    felt: Array,
    most_rank: int | None = None,
) -> Array:
    """The head that loses least given A, near ``head`` where the data leave it open.

    Args:
        gram: G, [d * s, d * s].
        expansion: how A makes features.
        head: H, [out, features].
        inward: A, [rank, d].
        felt: what H E(A) makes wrong, times G, [out, d * s].
        most_rank: of the head.
    """
    seen = expansion.lift(inward, expansion.lift(inward, gram).T)
    best = head + np.linalg.solve(_ridged(seen, RIDGE), expansion.lift(inward, felt.T)).T
    if most_rank is None or most_rank >= min(best.shape):
        return np.asarray(best)
    left, right = spectrum(best, seen).factors(most_rank)
    return left @ right


def _best_inward(
    gram: Array, expansion: Expansion, head: Array, inward: Array, felt: Array
) -> Array:
    """Conjugate gradients, preconditioned by what rows of A and inputs count on their own.

    A share of that is added to what is minimized, as a distance from where A was: directions that
    no sample used have no curvature but rounding errors.
    """
    rows = _ridged(expansion.weight(head), BLUNT)
    inputs = _ridged(marginal(gram, len(gram) // inward.shape[1]), BLUNT)
    unrows, uninputs = np.linalg.inv(rows), np.linalg.inv(inputs)
    slope = expansion.pull(head, felt)
    direction = solved = unrows @ slope @ uninputs
    gain = float(np.vdot(slope, solved))
    for _ in range(STEPS):
        if gain <= 0:
            break
        seen = _product(expansion, head, direction) @ gram
        bend = expansion.pull(head, seen) + BLUNT * (rows @ direction @ inputs)
        step = gain / float(np.vdot(direction, bend))
        inward = inward + step * direction
        slope = slope - step * bend
        solved = unrows @ slope @ uninputs
        before, gain = gain, float(np.vdot(slope, solved))
        direction = solved + gain / before * direction
    return inward


def _ridged(square: Array, share: float) -> Array:
    mean = float(np.trace(square)) / len(square)
    return np.asarray(square + (share * mean if mean > 0 else 1.0) * np.eye(len(square)))
