"""The best thin factors of a matrix under its data, for all ranks at once.

Pure numpy, float64. A layer y = W x, W [out, in], that becomes y = L (R x) with L [out, rank] and
R [rank, in] is wrong by E|dW x|^2 = tr dW G dWT over samples with G = E[x xT]. With G = S ST that
is |dW S|^2, least where L R S keeps the leading singular vectors U of W S (Eckart and Young, "The
approximation of one matrix by another of lower rank", 1936): L R = U UT W. No inverse of S is
needed, so that G may be singular, and with all vectors the product is W itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from onnxcomp.gram import Array

TIE = 1e-13  # share of the energy by which weights that no sample used still count
SMALL = 1e-6  # of the energy
MOST_CONDITION = 1e5  # of G's root: by so much times 1e-16 is what all products make wrong
RANDOMIZED_ABOVE = 1024  # rows and columns
FEW = 0.25  # of the ranks: fewer are found from random vectors
SETTLED = 1e-3  # of what is lost: smaller gains end the search for them
MOST_ITERATIONS = 20
BLOCK_ELEMENTS = 1 << 23  # of weights that are taken to float64 at once
SMALL_TRIANGLE = 128  # rows


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a layer makes of its samples, in place of a G that would be wider than that.

    Attributes:
        matrix: E[y yT] of y = W x, which is W G WT, [out, out], out <= in.
        damping: what is added to the diagonal of G.
        mean_square: E|x|^2 / in, the mean of G's diagonal without that.
    """

    matrix: Array
    damping: float = 0.0
    mean_square: float = 0.0


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One matrix W, [out, in], as a sum of outer products, that which saves most first.

    Attributes:
        errors: tr dW G dWT when the first 0, 1, ... n products are kept, n = min(out, in) or
            fewer, [n + 1]; |dW|^2 without G. Never rises, and ends with 0 where n = min(out, in).
        outward: matrices whose product is the left vectors, [out, n]. They stay apart, as few
            ranks need a small part of what takes as long as everything else.
        inward: the same of the right vectors, [n, in].
    """

    errors: Array
    outward: tuple[Array, ...]
    inward: tuple[Array, ...]

    @property
    def left(self) -> Array:
        """All left vectors, float64 [out, n]."""
        return self._left(len(self.errors) - 1)

    @property
    def right(self) -> Array:
        """All right vectors, float64 [n, in]."""
        return self._right(len(self.errors) - 1)

    def factors(self, rank: int) -> tuple[Array, Array]:
        """[out, rank] and [rank, in]: each column of one as long as its row of the other.

        Raises:
            ValueError: no such rank.
        """
        if not 0 <= rank < len(self.errors):
            raise ValueError(f"rank {rank} is not one of 0 to {len(self.errors) - 1}")
        left, right = self._left(rank), self._right(rank)
        lengths, heights = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
        some = (lengths > 0) & (heights > 0)
        scale = np.sqrt(np.divide(heights, lengths, out=np.ones(rank), where=some))
        return left * scale, right / scale[:, None]

    def _left(self, rank: int) -> Array:
        *before, last = self.outward
        return reduce(lambda product, matrix: matrix @ product, before[::-1], last[:, :rank])

    def _right(self, rank: int) -> Array:
        first, *behind = self.inward
        return reduce(np.matmul, behind, first[:rank])


def damped(gram: Array | Outputs, share: float) -> Array | Outputs:
    """G, [in, in], or what stands for it, plus a share of the mean of its diagonal."""
    if isinstance(gram, Outputs):
        return replace(gram, damping=gram.damping + share * gram.mean_square)
    raised = gram.astype(np.float64)
    np.einsum("ii->i", raised)[:] += share * float(np.trace(gram)) / len(gram)
    return raised


def lost_energy(difference: Array, gram: Array | None = None) -> float:
    """tr dW G dWT of dW [out, ...], read as [out, in].

    ``gram``: G, [in, in], or its diagonal, [in]; without it |dW|^2.
    """
    rows = difference.reshape(len(difference), -1).astype(np.float64, copy=False)
    return max(0.0, float(np.vdot(_times(rows, gram), rows)))


def spectrum(
    weights: Array,
    gram: Array | Outputs | None = None,
    *,
    most_rank: int | None = None,
    seed: int = 0,
) -> Spectrum:
    """The best factors of every rank under the data.

    From the eigenvectors of W G WT or, with more rows than columns, of ST WT W S: energies are
    exact but for rounding errors of |W|^2 |G|, those that G itself has. What no sample used costs
    nothing; among such directions the larger weights come first. Takes O(min(out, in)^2 (out + in))
    operations, half a minute of one core for [11008, 4096]; nothing as large as the weights is kept
    beside them.

    Args:
        weights: [out, in], float; the factors refer to them.
        gram: E[x xT], [in, in], or its diagonal where the rest is 0, [in], or what the samples
            made; of less than full rank too. Without it the plain singular value decomposition.
        most_rank: higher ranks are not asked for. Few of many are found by subspace iteration
            from random vectors (Halko, Martinsson and Tropp, "Finding structure with randomness",
            2011), until another round saves less than 0.1 % of what is lost.
        seed: of the random vectors.

    Raises:
        ValueError: shapes that do not fit, or numbers that are not finite.
    """
    weights = np.asarray(weights)
    _check(weights, gram)
    full = min(weights.shape)
    n = full if most_rank is None else max(0, min(most_rank, full))
    if full > RANDOMIZED_ABOVE and n < FEW * full and not isinstance(gram, Outputs):
        return _randomized(weights.astype(np.float64), gram, n, seed)
    if isinstance(gram, Outputs):
        energies, basis = _falling(gram.matrix + gram.damping * _square(weights))
        parts: _Parts = (basis,), (basis.T, weights)
    elif weights.shape[0] > weights.shape[1]:
        energies, parts = _tall(weights, gram)
    else:
        energies, basis = _leading(weights.astype(np.float64), gram)
        parts = (basis,), (basis.T, weights)
    errors = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
    return Spectrum(errors[: n + 1], *parts)


_Parts = tuple[tuple[Array, ...], tuple[Array, ...]]  # outward and inward


def _check(weights: Array, gram: Array | Outputs | None) -> None:
    if weights.ndim != 2:
        raise ValueError(f"weights of shape {weights.shape} are not a matrix")
    out, width = weights.shape
    values = gram.matrix if isinstance(gram, Outputs) else gram
    if isinstance(gram, Outputs):
        if out > width or gram.matrix.shape != (out, out):
            raise ValueError(f"outputs {gram.matrix.shape} do not fit weights {weights.shape}")
    elif gram is not None and gram.shape not in ((width, width), (width,)):
        raise ValueError(f"a Gram matrix {gram.shape} does not fit {width} inputs")
    if not (np.isfinite(weights).all() and (values is None or np.isfinite(values).all())):
        raise ValueError("weights or Gram matrix are not finite")


def _times(weights: Array, gram: Array | None) -> Array:
    if gram is None:
        return weights
    return np.asarray(weights * gram if gram.ndim == 1 else weights @ gram)


def _square(rows: Array) -> Array:
    """A AT of [m, n], float64, some columns at a time."""
    step = max(1, BLOCK_ELEMENTS // max(1, len(rows)))
    total = np.zeros((len(rows), len(rows)))
    for first in range(0, rows.shape[1], step):
        block = rows[:, first : first + step].astype(np.float64)
        total += block @ block.T
    return total


def _falling(square: Array) -> tuple[Array, Array]:
    """Eigenvalues, the largest first and none below 0, and their vectors, a column each."""
    values, basis = np.linalg.eigh(square)
    return values[::-1].clip(min=0), np.asfortranarray(basis[:, ::-1])


def _leading(matrix: Array, gram: Array | None) -> tuple[Array, Array]:
    """What AT of each eigenvector of A G AT has of energy, falling, and these vectors."""
    plain = _square(matrix)
    if gram is None:
        return _falling(plain)
    square = _times(matrix, gram) @ matrix.T
    total = float(np.trace(square))
    share = TIE * total / float(np.trace(plain) or 1.0) if total > 0 else 1.0
    energies, basis = _falling(square + share * plain)
    # of the small ones the share is a part
    small = basis[:, energies <= max(SMALL * total, 2 * share * np.trace(plain))]
    energies[len(energies) - small.shape[1] :] = np.einsum("ij,ij->j", square @ small, small)
    return energies.clip(min=0), basis


def _tall(weights: Array, gram: Array | None) -> tuple[Array, _Parts]:
    """Of more rows than columns, from a matrix of columns alone.

    With V the eigenvectors of ST WT W S the factors are W S V and VT S^-1. Where S can hardly be
    inverted, those of R with W = Q R serve, which takes several times as long.
    """
    if gram is None:
        energies, basis = _falling(_square(weights.T))
        return energies, ((weights, basis), (basis.T,))
    pair = _root(np.diag(gram) if gram.ndim == 1 else gram)
    if pair is None:
        columns, triangle = np.linalg.qr(weights.astype(np.float64))
        energies, basis = _leading(triangle, gram)
        return energies, ((columns, basis), (basis.T, triangle))
    root, inverse = pair
    energies, basis = _falling(root.T @ (_square(weights.T) @ root))
    return energies, ((weights, root, basis), (basis.T, inverse))


def _root(gram: Array) -> tuple[Array, Array] | None:
    """Triangular S with S ST = G, and its inverse; None where that is far from exact."""
    try:
        root = np.linalg.cholesky(gram.astype(np.float64, copy=False))
    except np.linalg.LinAlgError:
        return None
    if np.diag(root).max() > MOST_CONDITION * np.diag(root).min():
        return None
    inverse = _inverse_of_lower(root)
    # the largest over the smallest singular value, or at most the number of columns times that
    condition = np.linalg.norm(root) * np.linalg.norm(inverse) / len(root)
    return (root, inverse) if condition < MOST_CONDITION else None


def _inverse_of_lower(triangle: Array) -> Array:
    """By halves: products are several times as fast as the inverse of a general matrix."""
    half = len(triangle) // 2
    if len(triangle) <= SMALL_TRIANGLE:
        return np.tril(np.linalg.inv(triangle))
    inverse = np.zeros_like(triangle)
    first = inverse[:half, :half] = _inverse_of_lower(triangle[:half, :half])
    last = inverse[half:, half:] = _inverse_of_lower(triangle[half:, half:])
    inverse[half:, :half] = -last @ (triangle[half:, :half] @ first)
    return inverse


def _randomized(weights: Array, gram: Array | None, n: int, seed: int) -> Spectrum:
    """The first n products; W G WT is applied until the energy of the best ones has settled."""
    product = _times(weights, gram)
    total = float(np.vdot(product, weights))
    width = min(n + max(16, n // 4), *weights.shape)
    image = np.random.default_rng(seed).standard_normal((weights.shape[1], width))
    image, saved = weights @ image, 0.0
    for _ in range(MOST_ITERATIONS):
        basis = np.linalg.qr(image)[0]
        image = product @ (weights.T @ basis)
        small = basis.T @ image
        values, vectors = np.linalg.eigh((small + small.T) / 2)
        before, saved = saved, float(values[::-1][:n].clip(min=0).sum())
        if saved - before <= max(SETTLED * (total - saved), TIE * total):
            break
    left = basis @ vectors[:, ::-1][:, :n]
    energies = values[::-1][:n].clip(min=0)
    errors = (total - np.concatenate([[0.0], np.cumsum(energies)])).clip(min=0)
    return Spectrum(errors, (left,), (left.T @ weights,))
