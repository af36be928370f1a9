"""Thin factors of a table that rows are looked up in and outputs are multiplied with.

Pure numpy, float64. A lookup of row i, which p_i of all lookups are, is wrong by |dW_i|^2, and
y = W x by sum_i dW_i G dW_i^T with G = E[x xT]. In the eigenvectors of G, with eigenvalues g_j, a
weighted sum of both is sum_ij (a p_i + b g_j) dW_ij^2: low rank with weights, where each weight
is one of its row plus one of its column. Two such factors are found in turn, each in closed form
(alternating least squares, as Srebro and Jaakkola, "Weighted low-rank approximations", 2003).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.gram import Array

ROUNDS = 8
SETTLED = 1e-3  # of what is lost: smaller gains end the rounds


@dataclass(frozen=True, eq=False)
class Tied:
    """What is known of both uses of a table [rows, d].

    Attributes:
        lookups: p, [rows].
        products: G, [d, d].
    """

    lookups: Array
    products: Array


class TiedSpectrum:
    """Factors of every rank, [rows, rank] and [rank, d], and about what they lose.

    Of the energies of lookups and of products an equal share counts alike: what is lost is the
    mean of both shares, 0 to 1.

    Attributes:
        errors: what rank 0, 1, ... loses at most, [min(rows, d) + 1]. Never rises.
    """

    def __init__(self, table: Array, tied: Tied) -> None:
        """Starts with the best factors where each weight is one of its row times one of its
        column; of those ``errors`` is told.

        Raises:
            ValueError: shapes that do not fit.
        """
        rows, width = table.shape
        if tied.lookups.shape != (rows,) or tied.products.shape != (width, width):
            raise ValueError(f"what is known of a table {table.shape} does not fit")
        values, self._turn = np.linalg.eigh(tied.products)
        self._turned = table.astype(np.float64) @ self._turn
        squares = self._turned**2
        self._of_rows, self._of_columns = tied.lookups.astype(np.float64), values.clip(min=0)
        for part, energy in (
            (self._of_rows, float(self._of_rows @ squares.sum(axis=1))),
            (self._of_columns, float(squares.sum(axis=0) @ self._of_columns)),
        ):
            part /= 2 * energy or 1.0
        # no row and no column costs nothing: what weighs nothing could become anything
        mean = (self._of_rows.mean() + self._of_columns.mean()) or 1.0
        self._of_rows += 1e-9 * mean
        by_row = np.sqrt(self._of_rows + self._of_columns.mean())
        by_column = np.sqrt(self._of_rows.mean() + self._of_columns)
        scaled = by_row[:, None] * self._turned * by_column
        left, singular, right = _thin_svd(scaled)
        self._left, self._right = left / by_row[:, None], singular[:, None] * right / by_column
        self.errors = self._all_errors()

    def factors(self, rank: int) -> tuple[Array, Array]:
        """[rows, rank] and [rank, d]: each column of one as long as its row of the other."""
        left, right = self._left[:, :rank], self._right[:rank]
        lost = self._lost(left, right)
        for _ in range(ROUNDS if rank else 0):
            before = lost
            found_left = self._rows_for(right)
            found_right = self._columns_for(found_left)
            lost = self._lost(found_left, found_right)
            if not lost < before:
                break
            left, right = found_left, found_right
            if before - lost <= SETTLED * before:
                break
        right = right @ self._turn.T
        scale = np.sqrt(np.linalg.norm(right, axis=1) / np.maximum(_lengths(left), 1e-300))
        scale[~np.isfinite(scale) | (scale == 0)] = 1
        return left * scale, right / scale[:, None]

    def error(self, left: Array, right: Array) -> float:
        """What factors of the table lose."""
        return self._lost(left, right @ self._turn)

    def _lost(self, left: Array, right: Array) -> float:
        wrong = (self._turned - left @ right) ** 2
        return float(self._of_rows @ wrong.sum(axis=1) + wrong.sum(axis=0) @ self._of_columns)

    def _rows_for(self, right: Array) -> Array:
        """The best left factor."""
        basis, weights = _diagonal_in_both(right @ right.T, (right * self._of_columns) @ right.T)
        right = basis.T @ right
        wanted = self._of_rows[:, None] * (self._turned @ right.T)
        wanted += (self._turned * self._of_columns) @ right.T
        return np.asarray(wanted / (self._of_rows[:, None] + weights) @ basis.T)

    def _columns_for(self, left: Array) -> Array:
        """The best right factor."""
        basis, weights = _diagonal_in_both(left.T @ left, (left.T * self._of_rows) @ left)
        left = left @ basis
        wanted = (left.T * self._of_rows) @ self._turned
        wanted += (left.T @ self._turned) * self._of_columns
        return np.asarray(basis @ (wanted / (weights[:, None] + self._of_columns)))

    def _all_errors(self) -> Array:
        """Of the first 0, 1, ... products, from sums over pairs of them."""
        left, right = self._left, self._right
        weighted = self._of_rows[:, None] * self._turned + self._turned * self._of_columns
        total = float(np.vdot(weighted, self._turned))
        saved = 2 * np.einsum("ir,ir->r", left, weighted @ right.T)
        pairs = ((left.T * self._of_rows) @ left) * (right @ right.T)
        pairs += (left.T @ left) * ((right * self._of_columns) @ right.T)
        square = np.concatenate([[0.0], np.diagonal(pairs.cumsum(axis=0).cumsum(axis=1))])
        errors = total - np.concatenate([[0.0], np.cumsum(saved)]) + square
        errors[-1] = 0.0
        return np.minimum.accumulate(errors.clip(min=0))


def _thin_svd(matrix: Array) -> tuple[Array, Array, Array]:
    """By the eigenvectors of the smaller side: what is lost of the least values costs nothing."""
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = _thin_svd(matrix.T)
        return left.T, values, right.T
    squares, vectors = np.linalg.eigh(matrix.T @ matrix)
    vectors = vectors[:, ::-1]
    image = matrix @ vectors
    values = np.sqrt(squares[::-1].clip(min=0))
    return image / np.where(values > 0, values, 1), values, vectors.T


def _diagonal_in_both(first: Array, second: Array) -> tuple[Array, Array]:
    """T and t of T' first T = 1 and T' second T = diag(t), on what ``first`` reaches."""
    values, vectors = np.linalg.eigh(first)
    reached = values > 1e-12 * values[-1:].sum()
    whiten = vectors[:, reached] / np.sqrt(values[reached])
    weights, turn = np.linalg.eigh(whiten.T @ second @ whiten)
    return whiten @ turn, weights.clip(min=0)


def _lengths(left: Array) -> Array:
    return np.asarray(np.linalg.norm(left, axis=0))
