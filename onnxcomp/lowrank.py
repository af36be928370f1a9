"""The best thin factors of a matrix under its data, for all ranks at once.

Pure numpy, float64. A layer y = W x, W [out, in], that becomes y = L (R x) with L [out, rank] and
R [rank, in] is wrong by E|dW x|^2 = tr dW G dWT over samples with G = E[x xT]. With G = S ST that
is |dW S|^2, least where L R S keeps the leading singular vectors U of W S (Eckart and Young, "The
approximation of one matrix by another of lower rank", 1936): L R = U UT W. No inverse of S is
needed, so that G may be singular, and with all vectors the product is W itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.gram import Array

TIE = 1e-13  # share of the energy by which weights that no sample used still count
MOST_CONDITION = 1e5  # its square times 1e-16 is how far columns are from orthonormal
RANDOMIZED_ABOVE = 1024  # rows and columns
FEW = 0.25  # of the ranks: fewer are found from random vectors
SETTLED = 1e-3  # of what is lost: smaller gains end the search for them
MOST_ITERATIONS = 20


@dataclass(frozen=True, eq=False)
class Spectrum:
    """One matrix W, [out, in], as a sum of outer products, that which saves most first.

    Attributes:
        left: orthonormal columns, float64 [out, n], n = min(out, in) or fewer.
        right: what W is between them, left transposed times W, [n, in].
        errors: tr dW G dWT when the first 0, 1, ... n products are kept, [n + 1]; |dW|^2 without
            G. Never rises, and ends with 0 where n = min(out, in).
    """

    left: Array
    right: Array
    errors: Array

    def factors(self, rank: int) -> tuple[Array, Array]:
        """[out, rank] and [rank, in]: each column of one as long as its row of the other.

        Raises:
            ValueError: no such rank.
        """
        if not 0 <= rank < len(self.errors):
            raise ValueError(f"rank {rank} is not one of 0 to {len(self.errors) - 1}")
        left, right = self.left[:, :rank], self.right[:rank]
        scale = np.sqrt(np.linalg.norm(right, axis=1))
        scale[scale == 0] = 1
        return left * scale, right / scale[:, None]


def lost_energy(difference: Array, gram: Array | None = None) -> float:
    """tr dW G dWT of dW [out, ...], read as [out, in].

    ``gram``: G, [in, in], or its diagonal, [in]; without it |dW|^2.
    """
    rows = difference.reshape(len(difference), -1).astype(np.float64, copy=False)
    return max(0.0, float(np.vdot(_times(rows, gram), rows)))


def spectrum(
    weights: Array, gram: Array | None = None, *, most_rank: int | None = None, seed: int = 0
) -> Spectrum:
    """The best factors of every rank under the data.

    From the eigenvectors of W G WT, or of R G RT with W = Q R with more rows than columns:
    energies are exact but for rounding errors of |W|^2 |G|, those that G itself has. What no
    sample used costs nothing; among such directions the larger weights come first. Takes
    O(min(out, in)^3 + out in^2) operations, 45 s of one core for [11008, 4096] and half as long
    again where that is nearly singular.

    Args:
        weights: [out, in].
        gram: E[x xT], [in, in], or its diagonal where the rest is 0, [in]; of less than full rank
            too. Without it the plain singular value decomposition.
        most_rank: higher ranks are not asked for. Few of many are found by subspace iteration
            from random vectors (Halko, Martinsson and Tropp, "Finding structure with randomness",
            2011), until another round saves less than 0.1 % of what is lost.
        seed: of the random vectors.

    Raises:
        ValueError: shapes that do not fit, or numbers that are not finite.
    """
    weights = np.asarray(weights, np.float64)
    _check(weights, gram)
    full = min(weights.shape)
    n = full if most_rank is None else max(0, min(most_rank, full))
    if full > RANDOMIZED_ABOVE and n < FEW * full:
        return _randomized(weights, gram, n, seed)
    if weights.shape[0] > weights.shape[1]:
        columns, turn, triangle = _orthogonalized(weights)
        basis, energies = _leading(triangle, gram)
        left, right = columns @ (turn @ basis[:, :n]), basis[:, :n].T @ triangle
    else:
        basis, energies = _leading(weights, gram)
        left, right = basis[:, :n], basis[:, :n].T @ weights
    errors = np.concatenate([np.cumsum(energies[::-1])[::-1], [0.0]])
    return Spectrum(left, right, errors[: n + 1])


def _check(weights: Array, gram: Array | None) -> None:
    if weights.ndim != 2:
        raise ValueError(f"weights of shape {weights.shape} are not a matrix")
    width = weights.shape[1]
    if gram is not None and gram.shape not in ((width, width), (width,)):
        raise ValueError(f"a Gram matrix {gram.shape} does not fit {width} inputs")
    if not (np.isfinite(weights).all() and (gram is None or np.isfinite(gram).all())):
        raise ValueError("weights or Gram matrix are not finite")


def _times(weights: Array, gram: Array | None) -> Array:
    if gram is None:
        return weights
    return np.asarray(weights * gram if gram.ndim == 1 else weights @ gram)


def _leading(matrix: Array, gram: Array | None) -> tuple[Array, Array]:
    """Eigenvectors of A G AT, a column each, and what AT of each has of energy; falling."""
    plain = matrix @ matrix.T
    square = plain if gram is None else _times(matrix, gram) @ matrix.T
    total = float(np.trace(square))
    ranked = square
    if gram is not None:
        share = TIE * total / float(np.trace(plain) or 1.0) if total > 0 else 1.0
        ranked = square + share * plain
    basis = np.linalg.eigh(ranked)[1][:, ::-1]
    return basis, np.einsum("ij,ij->j", square @ basis, basis).clip(min=0)


def _orthogonalized(weights: Array) -> tuple[Array, Array, Array]:
    """C, T and R of W = C T R where C T has orthonormal columns and R, [in, in], is triangular."""
    try:
        triangle = np.linalg.cholesky(weights.T @ weights).T
        inverse = np.linalg.inv(triangle)
        if np.linalg.norm(triangle) * np.linalg.norm(inverse) < MOST_CONDITION:
            return weights, inverse, triangle
    except np.linalg.LinAlgError:
        pass
    # Householder's way takes several times as long, and always works
    columns, triangle = np.linalg.qr(weights)
    return columns, np.eye(len(triangle)), triangle


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
    return Spectrum(left, left.T @ weights, errors)
