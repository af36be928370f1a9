"""The weights that a sparse layer keeps, fitted to what the dense one makes of its inputs.

All three look for V with few elements and a small tr (W - V) G (W - V)T. `sparse_gpt` goes through
the columns once. `alternate` looks at all of them together, over and over, and ends far lower for
ten times the work. `refit` takes the zeros as they are. Shapes as in `sparsity`.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.gram_factor import upper_factor
from onnxcomp.quantization import Array
from onnxcomp.sparsity import Pattern, magnitude

DAMPING = 0.01  # added to the diagonal of G, as a share of its mean
BLOCK_COLUMNS = 128  # of SparseGPT: masks are chosen for so many columns at once
ROUNDS = 100
FIRST_PENALTY, GROWTH, GROWS_EVERY = 0.1, 1.15, 3
REFITS = 40  # steps of conjugate gradients


def sparse_gpt(
    weights: Array,
    gram: Array,
    pattern: Pattern,
    sparsity: float,
    *,
    damping: float = DAMPING,
    block: int = BLOCK_COLUMNS,
) -> Array:
    """Removes weights column after column, later ones making up for those removed before.

    Frantar and Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot",
    2023, without its inverse.

    With G = R RT, R upper triangular, the loss is the squared norm of (W - V) R, whose column j
    depends on columns 0..j of V only. A weight that stays is put where that column is zero, at
    w_j + sum_{i<j} (w_i - v_i) R_ij / R_jj; one that goes leaves it at that times R_jj, which is
    its score. Masks are chosen ``block`` columns at a time, with what columns before them have
    left to make up for.

    Args:
        weights: W, [out, d].
        gram: G, [d, d], symmetric, positive semidefinite.
        pattern: of the zeros.
        sparsity: the fraction of blocks that become zero; of n:m the pattern says it.
        damping: added to the diagonal of G, as a share of its mean.
        block: columns whose masks are chosen together.

    Returns:
        V, float64 [out, d].
    """
    factor = upper_factor(gram, np.arange(len(gram)), damping)
    columns = np.ascontiguousarray(weights.T, np.float64)  # [d, out]: a column lies together
    carried = np.zeros_like(columns)  # sum of (w_i - v_i) R_ij over the columns done
    sparse = np.empty_like(columns)
    step = pattern.of or max(pattern.width, block // pattern.width * pattern.width)
    for first in range(0, len(columns), step):
        part = slice(first, first + step)
        square = factor[part, part]
        scores = _scores(columns[part], carried[part], square, pattern)
        kept = pattern.mask(scores.T, sparsity).T
        for j in range(len(square)):
            at = first + j
            target = columns[at] + carried[at] / square[j, j]
            sparse[at] = np.where(kept[j], target, 0.0)
            error = columns[at] - sparse[at]
            carried[at + 1 : first + len(square)] += square[j, j + 1 :, None] * error
        done = columns[part] - sparse[part]
        carried[first + len(square) :] += factor[part, first + len(square) :].T @ done
    return np.ascontiguousarray(sparse.T)


def _scores(weights: Array, carried: Array, square: Array, pattern: Pattern) -> Array:
    """What is lost with each weight of some columns if it goes, [columns, out].

    Of a block of columns, the norm of what they leave in their columns of (W - V) R together.

    Args:
        weights, carried: of these columns, as in `sparse_gpt`.
        square: R of these columns.
        pattern: whose blocks have so many columns.
    """
    block = np.arange(len(square)) // pattern.columns
    within = np.where(block[:, None] == block, square, 0.0)
    return np.asarray(np.square(within.T @ weights + carried))


def alternate(
    weights: Array,
    gram: Array,
    pattern: Pattern,
    sparsity: float,
    *,
    damping: float = DAMPING,
    rounds: int = ROUNDS,
) -> Array:
    """Looks for the mask and the weights at once, by alternating directions.

    One copy X of the weights is free and near W under G, the other, V, has the zeros; a penalty
    that grows draws them together (Boyd et al., "Distributed optimization and statistical learning
    via the alternating direction method of multipliers", 2011; for pruning Meng et al., "ALPS",
    2024). Columns are measured in units of their inputs' size, so that V takes what matters most.
    With the eigenvectors of G a round costs two products, of float32, which differ in what
    another round would change.

    Args:
        weights, gram, pattern, sparsity, damping: as for `sparse_gpt`.
        rounds: of X, V and the multiplier.

    Returns:
        V, float64 [out, d].
    """
    damped = _damped(gram, damping)
    size = np.sqrt(np.diagonal(damped))
    scaled = weights * size
    values, vectors = np.linalg.eigh(damped / size / size[:, None])
    scaled, values, vectors = (x.astype(np.float32) for x in (scaled, values, vectors))
    wanted = ((scaled @ vectors) * values) @ vectors.T
    sparse = np.where(pattern.mask(magnitude(scaled), sparsity), scaled, 0.0)
    multiplier = np.zeros_like(sparse)
    penalty = FIRST_PENALTY
    for at in range(1, rounds + 1):
        free = (
            ((wanted - multiplier + penalty * sparse) @ vectors) / (values + penalty)
        ) @ vectors.T
        near = free + multiplier / penalty
        sparse = np.where(pattern.mask(magnitude(near), sparsity), near, 0.0)
        multiplier += penalty * (free - sparse)
        penalty *= GROWTH if at % GROWS_EVERY == 0 else 1.0
    return np.asarray(sparse / size, np.float64)


def refit(
    weights: Array,
    gram: Array,
    sparse: Array,
    *,
    damping: float = DAMPING,
    steps: int = REFITS,
) -> Array:
    """The weights that stay, moved to where they do best with the zeros as they are.

    Conjugate gradients on all rows at once, preconditioned by the diagonal of G.

    Args:
        weights, gram, damping: as for `sparse_gpt`.
        sparse: V to start at, [out, d]; what is zero in it stays zero.
        steps: at most.

    Returns:
        V, float64 [out, d].
    """
    damped = _damped(gram, damping)
    kept, found = sparse != 0, sparse.astype(np.float64)
    scale = 1 / np.diagonal(damped)
    left = ((weights - found) @ damped) * kept
    ahead = left * scale
    slope = np.sum(left * ahead, axis=1, keepdims=True)
    for _ in range(steps):
        pull = (ahead @ damped) * kept
        far = _ratio(slope, np.sum(ahead * pull, axis=1, keepdims=True))
        found += far * ahead
        left -= far * pull
        fresh = left * scale
        before, slope = slope, np.sum(left * fresh, axis=1, keepdims=True)
        ahead = fresh + _ratio(slope, before) * ahead
    return found


def _damped(gram: Array, damping: float) -> Array:
    mean = float(np.trace(gram, dtype=np.float64)) / max(1, len(gram))
    return np.asarray(gram + damping * (mean if mean > 0 else 1.0) * np.eye(len(gram)))


def _ratio(dividend: Array, divisor: Array) -> Array:
    """0 where a row has arrived."""
    return np.asarray(np.divide(dividend, divisor, where=divisor > 0, out=np.zeros_like(dividend)))
