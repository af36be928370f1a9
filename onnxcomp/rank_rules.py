"""How many ranks to keep where no budget says so: by what is lost, or by what stands out of noise.

Pure numpy. Budgets are the planner's, over all layers at once.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.gram import Array

ROUNDING = 1e-12  # of the energy
GRID = 400  # noise variances tried between the bounds
REFINEMENTS = 60  # of the best of them, by golden section
GOLDEN = (np.sqrt(5) - 1) / 2


def rank_for_energy(errors: Array, energy: float) -> int:
    """The least rank that keeps this share of what the outputs have.

    Args:
        errors: what ranks 0, 1, ... lose, as in `Spectrum`; never rises.
        energy: 0 to 1; 1 asks for the first rank that loses nothing but rounding errors.

    Raises:
        ValueError: a share that is none, or too few ranks are known to keep it.
    """
    if not 0 <= energy <= 1:
        raise ValueError(f"energy {energy} is not a share from 0 to 1")
    enough = np.flatnonzero(errors[0] - errors >= (energy - ROUNDING) * errors[0])
    if not len(enough):
        kept = 1 - errors[-1] / errors[0]
        raise ValueError(
            f"rank {len(errors) - 1}, the highest known, keeps {kept:.1%} of the energy"
        )
    return int(enough[0])


def evbmf_rank(weights: Array) -> int:
    """How many singular values of a matrix, [out, in], are more than noise would give it.

    Empirical variational Bayesian matrix factorization in closed form, the variance of the noise
    estimated too (Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of
    fully-observed variational Bayesian matrix factorization", 2013, theorem 2, and "Perfect
    dimensionality recovery by variational Bayesian PCA", 2012): a value stands out if its square
    is over M * variance * (1 + tau) (1 + alpha / tau), with alpha = L / M, L <= M the sizes, and
    tau about 2.5129 sqrt(alpha). Takes noise to be alike and independent in all elements.

    Raises:
        ValueError: not a matrix, or numbers that are not finite.
    """
    if weights.ndim != 2 or not np.isfinite(weights).all():
        raise ValueError(f"weights of shape {weights.shape} are not a finite matrix")
    rows = weights.astype(np.float64)
    if rows.shape[0] > rows.shape[1]:
        rows = rows.T
    largest = float(np.abs(rows).max(initial=0))
    if largest == 0:
        return 0
    rows = rows / largest
    squares = np.linalg.eigvalsh(rows @ rows.T)[::-1]
    # rounding errors are noise as well: zeros would have no logarithm
    floor = squares[0] * rows.shape[1] * np.finfo(np.float64).eps
    return _standing_out(squares.clip(min=floor), rows.shape[1])


def _standing_out(squares: Array, most: int) -> int:
    """Of the squared singular values, [L], falling, of a matrix L x ``most``."""
    alpha = len(squares) / most
    tau = 2.5129 * np.sqrt(alpha)
    threshold = (1 + tau) * (1 + alpha / tau)
    variance = _noise_variance(squares, most, threshold)
    return int(np.count_nonzero(squares > most * variance * threshold))


def _noise_variance(squares: Array, most: int, threshold: float) -> float:
    """The minimum of the free energy, between the bounds that the theorem gives."""
    length = len(squares)
    alpha = length / most
    highest = float(squares.sum()) / (length * most)
    # at least this many values are noise
    noise = max(min(int(np.ceil(length / (1 + alpha))) - 1, length - 1), 0)
    tail = squares[noise:]
    lowest = max(float(tail[0]) / (most * threshold), float(tail.mean()) / most)
    if lowest >= highest:
        return highest

    def energy(log_variance: Array) -> Array:
        return _free_energy(squares, most, threshold, np.exp(log_variance))

    grid = np.linspace(np.log(lowest), np.log(highest), GRID)
    best = int(np.argmin(energy(grid)))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    for _ in range(REFINEMENTS):
        inner = np.array([high - GOLDEN * (high - low), low + GOLDEN * (high - low)])
        left, right = energy(inner)
        low, high = (low, inner[1]) if left <= right else (inner[0], high)
    return float(np.exp((low + high) / 2))


def _free_energy(squares: Array, most: int, threshold: float, variances: Array) -> Array:
    """Up to a constant and a factor, for each noise variance, [n]."""
    alpha = len(squares) / most
    x = squares / (most * variances[:, None])
    total = x - np.log(x)
    signal = x > threshold
    above = np.where(signal, x, threshold)
    tau = (above - (1 + alpha) + np.sqrt((above - (1 + alpha)) ** 2 - 4 * alpha)) / 2
    gain = np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau
    return np.asarray((total + np.where(signal, gain, 0)).sum(axis=1))
