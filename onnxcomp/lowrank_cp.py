"""A Conv as four thin ones: the kernel as a sum of outer products of four vectors.

Pure numpy, float64. The canonical polyadic decomposition by alternating least squares (for kernels
Lebedev et al., "Speeding-up convolutional neural networks using fine-tuned CP-decomposition",
2015), here of a kernel whose input channels are whitened by what G = E[x xT] says of them, then
improved under the G of whole patches. Alternating least squares finds a local optimum.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxcomp.factor_descent import Patterned, descend
from onnxcomp.gram import Array
from onnxcomp.lowrank_tensors import SWEEPS, channel_gram, roots

RANDOM_STARTS = 3
FIRST_ROUNDS = 10  # from each start
ROUNDS = 200
SETTLED = 1e-5  # of what is lost, in a round: smaller gains end it
EXACT = 1e-14  # of the energy
DRAG = 1e-8  # of the mean diagonal, towards the factor there is: near-parallel terms stay finite


def cp(
    kernel: Array,
    rank: int,
    gram: Array | None = None,
    *,
    sweeps: int = SWEEPS,
    seed: int = 0,
) -> tuple[Array, Array, Array, Array]:
    """A 1 x 1 Conv to ``rank`` channels, a kh x 1 and a 1 x kw depthwise, and a 1 x 1 Conv.

    Args:
        kernel: [out, in, kh, kw].
        rank: of terms; with kh * kw * min(out, in) the kernel itself is made.
        gram: of the channels, [in, in], or of the patches, [in * kh * kw, in * kh * kw].
        sweeps: of improvement of the outer factors under the G of the patches.
        seed: of three random starts; another is the largest singular vectors at each position.

    Returns:
        inward [rank, in], first [rank, kh], second [rank, kw] and outward [out, rank], each term
        of like size in all.

    Raises:
        ValueError: a kernel that is not of two spatial axes, a rank or G that does not fit.
    """
    if kernel.ndim != 4:
        raise ValueError(f"a kernel {kernel.shape} has no two spatial axes to take apart")
    if rank < 1:
        raise ValueError(f"rank {rank} is not 1 or more")
    out, width, high, wide = kernel.shape
    root, unroot = roots(channel_gram(gram, width, high * wide), width)
    weights = kernel.astype(np.float64)
    solver = _Alternation(np.einsum("oihw,ij->ojhw", weights, root))
    starts = [_of_positions(solver.tensor, rank), *_random(solver.tensor, rank, seed)]
    tried = [solver.run(start, FIRST_ROUNDS) for start in starts]
    (outward, inward, first, second), _ = solver.run(min(tried, key=lambda t: t[1])[0], ROUNDS)
    rows = inward.T @ unroot
    if gram is not None and len(gram) != width:
        patterns = (first[:, None] * second[None, :]).reshape(high * wide, rank).T
        flat = weights.reshape(out, -1)
        outward, rows = descend(flat, gram, Patterned(patterns), outward, rows, sweeps=sweeps)
    return _balanced(rows, first.T, second.T, outward)


def cp_kernel(inward: Array, first: Array, second: Array, outward: Array) -> Array:
    """The kernel, [out, in, kh, kw], that the four layers of `cp` make."""
    columns = np.einsum("ri,rh,rw->rihw", inward, first, second)
    return np.asarray(np.tensordot(outward, columns, 1))


Factors = tuple[Array, Array, Array, Array]  # each [length of its axis, rank]


class _Alternation:
    """Each factor of T [a, b, h, w] in turn as the best given the others."""

    def __init__(self, tensor: Array) -> None:
        self.tensor = tensor
        out, width = tensor.shape[:2]
        self._by_first = tensor.reshape(out, -1)
        self._by_second = tensor.transpose(1, 0, 2, 3).reshape(width, -1)
        self._energy = float(np.vdot(tensor, tensor))

    def run(self, factors: Factors, rounds: int) -> tuple[Factors, float]:
        """Factors after at most so many rounds, and what they lose, |T - sum|^2."""
        error = self._lost(factors)
        for _ in range(rounds):
            if error <= EXACT * self._energy:
                break
            new = self._round(factors)
            before, left = error, self._lost(new)
            if left > before:
                break
            factors, error = new, left
            if before - error <= SETTLED * error:
                break
        return factors, error

    def _lost(self, factors: Factors) -> float:
        columns = _products(*factors[1:])
        wrong = self._by_first - factors[0] @ columns.T
        return float(np.vdot(wrong, wrong))

    def _round(self, factors: Factors) -> Factors:
        a, b, h, w = factors
        a = _solved(a, self._by_first @ _products(b, h, w), b, h, w)
        b = _solved(b, self._by_second @ _products(a, h, w), a, h, w)
        # what the small axes see of T once the large ones are contracted, [rank, h, w]
        rows = (a.T @ self._by_first).reshape(a.shape[1], *self.tensor.shape[1:])
        seen = np.einsum("rbhw,br->rhw", rows, b)
        h = _solved(h, np.einsum("rhw,wr->hr", seen, w), a, b, w)
        w = _solved(w, np.einsum("rhw,hr->wr", seen, h), a, b, h)
        h, sizes = _unit(h)
        a = a * sizes
        w, sizes = _unit(w)
        a = a * sizes
        b, sizes = _unit(b)
        return a * sizes, b, h, w


def _solved(factor: Array, product: Array, *others: Array) -> Array:
    square = np.ones((factor.shape[1],) * 2)
    for other in others:
        square = square * (other.T @ other)
    drag = DRAG * float(np.trace(square)) / len(square) or 1.0
    square = square + drag * np.eye(len(square))
    return np.asarray(np.linalg.solve(square, (product + drag * factor).T).T)


def _products(*factors: Array) -> Array:
    """Column-wise Kronecker products, [product of the lengths, rank]."""
    rank = factors[0].shape[1]
    found = factors[0]
    for factor in factors[1:]:
        found = (found[:, None] * factor[None, :]).reshape(-1, rank)
    return found


def _unit(factor: Array) -> tuple[Array, Array]:
    sizes = np.linalg.norm(factor, axis=0)
    sizes[sizes == 0] = 1
    return factor / sizes, sizes


def _of_positions(tensor: Array, rank: int) -> Factors:
    """The largest singular vectors of all T[:, :, h, w]: the whole of T with enough of them."""
    out, width, high, wide = tensor.shape
    left, sizes, right = np.linalg.svd(tensor.transpose(2, 3, 0, 1), full_matrices=False)
    chosen = np.argsort(-sizes, axis=None, kind="stable")[:rank]
    h, w, k = np.unravel_index(chosen, sizes.shape)
    count = len(chosen)
    factors = [np.zeros((length, rank)) for length in (out, width, high, wide)]
    factors[0][:, :count] = left[h, w, :, k].T * sizes[h, w, k]
    factors[1][:, :count] = right[h, w, k].T
    factors[2][h, np.arange(count)] = 1
    factors[3][w, np.arange(count)] = 1
    return factors[0], factors[1], factors[2], factors[3]


def _random(tensor: Array, rank: int, seed: int) -> Iterator[Factors]:
    rng = np.random.default_rng(seed)
    for _ in range(RANDOM_STARTS):
        b, h, w = (rng.standard_normal((length, rank)) for length in tensor.shape[1:])
        yield np.zeros((len(tensor), rank)), b, h, w


def _balanced(inward: Array, first: Array, second: Array, outward: Array) -> Factors:
    parts = [inward, first, second, outward.T]
    sizes = np.array([np.sqrt(np.mean(np.square(part), axis=1)) for part in parts])
    alive = (sizes > 0).all(axis=0)
    mean = np.exp(np.mean(np.log(np.where(sizes > 0, sizes, 1)), axis=0))
    scale = np.where(alive, mean / np.where(sizes > 0, sizes, 1), 1)
    inward, first, second, rows = (p * s[:, None] for p, s in zip(parts, scale, strict=True))
    return inward, first, second, rows.T
