"""Thin layers in a row for the kernel of a Conv: Tucker-2 and spatial factors.

Pure numpy, float64. Errors are tr dW G dWT of the kernel read as [out, in * kh * kw] under the
im2col G = E[x xT] of that width, as for matrices. There is no closed form for that: factors are
found under what G says of the channels alone, then improved under the whole (`factor_descent`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxcomp.factor_descent import Repeated, best_head, descend, marginal
from onnxcomp.gram import Array
from onnxcomp.lowrank import lost_energy, spectrum

CUT = 1e-12  # of the largest eigenvalue: the least that a direction counts in whitening
ROUNDS = 50
SETTLED = 1e-4  # of what is lost: smaller gains end the iteration
SWEEPS = 2


def tucker2(
    kernel: Array,
    ranks: tuple[int, int],
    gram: Array | None = None,
    out_gram: Array | None = None,
    *,
    sweeps: int = SWEEPS,
) -> tuple[Array, Array, Array]:
    """A 1 x 1 Conv to fewer channels, the kernel between those, and a 1 x 1 Conv back.

    Higher-order orthogonal iteration (De Lathauwer, De Moor and Vandewalle, "On the best rank-1
    and rank-(R1, ..., RN) approximation of higher-order tensors", 2000; for kernels Kim et al.,
    2016) on a kernel whose input channels are whitened by the G between channels.

    Args:
        kernel: [out, in, *spatial].
        ranks: channels behind the kernel, at most out, and before it, at most in.
        gram: of the channels, [in, in], or of the patches, [in * s, in * s], s = prod(spatial).
        out_gram: what errors of the outputs count, [out, out]: the error is then
            tr out_gram dW G dWT.
        sweeps: of improvement under the G of the patches.

    Returns:
        core [r_out, r_in, *spatial], outward [out, r_out] and inward [r_in, in].

    Raises:
        ValueError: ranks or Gram matrices that do not fit.
    """
    out, width, *spatial = kernel.shape
    size = math.prod(spatial)
    for rank, most in zip(ranks, (out, width), strict=True):
        if not 1 <= rank <= most:
            raise ValueError(f"rank {rank} is not one of 1 to {most}, the channels")
    between = channel_gram(gram, width, size)
    root, unroot = roots(between, width)
    out_root, out_unroot = roots(out_gram, out)
    weights = np.tensordot(out_root, kernel.reshape(out, width, size).astype(np.float64), 1)
    white = root.T @ weights
    outward, basis, core = orthogonal_iteration(white, ranks)
    inward, core = _orthonormal(unroot @ basis, core)
    if gram is not None and len(gram) != width:
        starts = [inward]
        if ranks[1] < width:  # else all of them read the same
            starts += [
                _orthonormal(unroot @ _of_inputs(white, ranks[1]), core)[0],
                _of_inputs(weights, ranks[1]).T,
            ]
        head = outward @ core.reshape(len(core), -1)
        flat = weights.reshape(out, -1)
        head, inward = _descended(flat, gram, size, head, starts, sweeps, ranks[0])
        split = spectrum(head, most_rank=ranks[0])
        outward, core = np.zeros_like(outward), np.zeros_like(core)
        outward[:, : split.left.shape[1]] = split.left
        core[: len(split.right)] = split.right.reshape(-1, *core.shape[1:])
    core, outward, inward = _balanced(core, out_unroot @ outward, inward)
    return core.reshape(*core.shape[:2], *spatial), outward, inward


def _orthonormal(reading: Array, core: Array) -> tuple[Array, Array]:
    """Rows that read the same channels as columns do, and a core that fits them.

    What is large in the inverse of a G that no sample used stays out of the factors.
    """
    rows, triangle = np.linalg.qr(reading)
    return rows.T, triangle @ core


def _of_inputs(tensor: Array, rank: int) -> Array:
    """The basis, [in, rank], that the higher-order SVD of T [out, in, s] has for its inputs."""
    return _leading(tensor.transpose(1, 0, 2).reshape(tensor.shape[1], -1), rank)


def _descended(
    weights: Array,
    gram: Array,
    size: int,
    head: Array,
    starts: Sequence[Array],
    sweeps: int,
    most_rank: int,
) -> tuple[Array, Array]:
    """Head and inward, from that start which loses least once it has the best head under G.

    What was found under the G of channels alone may lose more under that of patches than the
    higher-order SVD it began with, under the G of channels or without any: those are starts, too,
    and no start can have a better head, so that the result loses no more than any of them.
    """
    expansion = Repeated(size)
    found = [(head, starts[0])] + [
        (expansion.lift(start, weights.T).T, start) for start in starts[1:]
    ]
    best: tuple[float, Array, Array] | None = None
    for head, inward in found:
        felt = (weights - expansion.drop(inward, head.T).T) @ gram
        head = best_head(gram, expansion, head, inward, felt, most_rank)
        error = lost_energy(weights - expansion.drop(inward, head.T).T, gram)
        if best is None or error < best[0]:
            best = error, head, inward
    assert best is not None
    if not sweeps:
        return best[1:]
    return descend(weights, gram, expansion, *best[1:], sweeps=sweeps, most_rank=most_rank)


def tucker2_errors(kernel: Array, gram: Array | None = None) -> Array:
    """About what `tucker2` loses with every pair of ranks, [out + 1, in + 1]; for choosing pairs.

    Of the truncated higher-order singular value decomposition, under the G of the channels: more
    than the iteration loses under that, and not what counts under the G of patches. Arguments as
    in `tucker2`.
    """
    tensor = _whitened(kernel, gram)
    out, width, _ = tensor.shape
    first, second = _leading(tensor.reshape(out, -1), out), _of_inputs(tensor, width)
    core = second.T @ np.tensordot(first, tensor, (0, 0))
    kept = np.zeros((out + 1, width + 1))
    kept[1:, 1:] = np.square(core).sum(axis=2).cumsum(axis=0).cumsum(axis=1)
    return np.asarray((kept[-1, -1] - kept).clip(min=0))


def tucker1_errors(kernel: Array, gram: Array | None = None) -> Array:
    """The last row of `tucker2_errors`, [in + 1], in less time."""
    tensor = _whitened(kernel, gram).transpose(1, 0, 2).reshape(kernel.shape[1], -1)
    energies = np.linalg.eigvalsh(tensor @ tensor.T).clip(min=0)
    return np.concatenate([[0.0], np.cumsum(energies)])[::-1]


def _whitened(kernel: Array, gram: Array | None) -> Array:
    """The kernel, [out, in, s], under the mean G of its channels."""
    out, width, *spatial = kernel.shape
    size = math.prod(spatial)
    between = channel_gram(gram, width, size)
    if gram is not None and between is not None and len(gram) != width:
        between = between / size
    tensor = kernel.reshape(out, width, size).astype(np.float64)
    if between is not None:
        tensor = roots(between, width)[0].T @ tensor
    return tensor


def tucker2_kernel(core: Array, outward: Array, inward: Array) -> Array:
    """The kernel, [out, in, *spatial], that the three layers of `tucker2` make."""
    product = np.tensordot(outward, core, 1)
    return np.moveaxis(np.tensordot(product, inward, (1, 0)), -1, 1)


def tucker1(
    kernel: Array, rank: int, gram: Array | None = None, *, sweeps: int = SWEEPS
) -> tuple[Array, Array]:
    """A 1 x 1 Conv to fewer channels, then the kernel on those: `tucker2` without the last.

    Args:
        kernel: [out, in, *spatial].
        rank: channels between, at most in.
        gram: as in `tucker2`.
        sweeps: as in `tucker2`.

    Returns:
        core [out, rank, *spatial] and inward [rank, in].
    """
    core, outward, inward = tucker2(kernel, (len(kernel), rank), gram, sweeps=sweeps)
    return np.tensordot(outward, core, 1), inward


def spatial(
    kernel: Array, rank: int, gram: Array | None = None, *, sweeps: int = SWEEPS
) -> tuple[Array, Array]:
    """A Conv with a kh x 1 kernel, then one with 1 x kw.

    Jaderberg, Vedaldi and Zisserman, "Speeding up convolutional neural networks with low rank
    expansions", 2014, scheme 2: a matrix [out * kw, in * kh], here under the G of its columns.

    Args:
        kernel: [out, in, kh, kw].
        rank: channels between, at most min(out * kw, in * kh).
        gram: of the channels, [in, in], or of the patches, [in * kh * kw, in * kh * kw].
        sweeps: of improvement under the G of the patches.

    Returns:
        vertical [rank, in, kh, 1] and horizontal [out, rank, 1, kw].

    Raises:
        ValueError: a kernel that is not of two spatial axes, a rank or G that does not fit.
    """
    if kernel.ndim != 4:
        raise ValueError(f"a kernel {kernel.shape} has no two spatial axes to take apart")
    out, width, high, wide = kernel.shape
    if not 1 <= rank <= min(out * wide, width * high):
        raise ValueError(f"rank {rank} is not one of 1 to {min(out * wide, width * high)}")
    rows = kernel.transpose(0, 3, 1, 2).reshape(out * wide, width * high)
    columns = channel_gram(gram, width, high * wide)
    patches = gram is not None and len(gram) != width
    if columns is not None:
        columns = np.kron(columns, np.eye(high))
    if gram is not None and patches:
        columns = marginal(gram, wide)
    left, vertical = spectrum(rows, columns).factors(rank)
    head = left.reshape(out, wide, rank).transpose(0, 2, 1).reshape(out, -1)
    if gram is not None and patches:
        flat = kernel.reshape(out, -1).astype(np.float64)
        head, vertical = descend(flat, gram, Repeated(wide), head, vertical, sweeps=sweeps)
    horizontal = head.reshape(out, rank, 1, wide)
    return vertical.reshape(rank, width, high, 1), horizontal


def spatial_kernel(vertical: Array, horizontal: Array) -> Array:
    """The kernel, [out, in, kh, kw], that the two layers of `spatial` make."""
    made = np.tensordot(horizontal[:, :, 0], vertical[..., 0], (1, 0))  # [out, kw, in, kh]
    return made.transpose(0, 2, 3, 1)


def channel_gram(gram: Array | None, width: int, size: int) -> Array | None:
    """The G between channels, [in, in], of one of channels or of patches.

    Raises:
        ValueError: G is neither.
    """
    if gram is None or gram.shape == (width, width):
        return gram
    if gram.shape != (width * size, width * size):
        raise ValueError(
            f"a Gram matrix {gram.shape} does not fit {width} channels of {size} positions"
        )
    return marginal(gram, size)


def roots(gram: Array | None, width: int) -> tuple[Array, Array]:
    """G^1/2 and its inverse, [width, width]; eigenvalues under CUT count as much as that.

    Raises:
        ValueError: G is of another width or not finite.
    """
    if gram is None:
        return np.eye(width), np.eye(width)
    if gram.shape != (width, width) or not np.isfinite(gram).all():
        raise ValueError(f"a Gram matrix {gram.shape} is not finite or not of {width} channels")
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    values = values.clip(min=CUT * values[-1]) if values[-1] > 0 else np.ones(width)
    scale = np.sqrt(values)
    return (vectors * scale) @ vectors.T, (vectors / scale) @ vectors.T


def orthogonal_iteration(tensor: Array, ranks: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Bases U [a, r_a] and V [b, r_b] of the first two axes of T [a, b, s], and T between them.

    From the leading singular vectors of both unfoldings (the higher-order singular value
    decomposition), each basis in turn becomes the best given the other.
    """
    first, second = (
        _leading(tensor.reshape(len(tensor), -1), ranks[0]),
        _of_inputs(tensor, ranks[1]),
    )
    total, kept = float(np.vdot(tensor, tensor)), 0.0
    for _ in range(ROUNDS):
        narrow = second.T @ tensor  # [a, r_b, s]
        first = _leading(narrow.reshape(len(tensor), -1), ranks[0])
        narrow = np.tensordot(first, tensor, (0, 0))  # [r_a, b, s]
        second = _of_inputs(narrow, ranks[1])
        core = second.T @ narrow
        before, kept = kept, float(np.vdot(core, core))
        if kept - before <= SETTLED * abs(total - kept):
            break
    return first, second, core


def _leading(unfolded: Array, rank: int) -> Array:
    return np.asarray(np.linalg.eigh(unfolded @ unfolded.T)[1][:, ::-1][:, :rank])


def _balanced(core: Array, outward: Array, inward: Array) -> tuple[Array, Array, Array]:
    """The same kernel with channels between the layers of like size on both sides."""
    for _ in range(2):
        ratio = _ratio(inward, core.transpose(1, 0, 2))
        inward, core = inward / ratio[:, None], core * ratio[None, :, None]
        ratio = _ratio(outward.T, core)
        outward, core = outward / ratio, core * ratio[:, None, None]
    return core, outward, inward


def _ratio(rows: Array, slices: Array) -> Array:
    """By what to divide each row, and multiply its slice, for equal root mean squares."""
    sizes = np.sqrt(np.mean(np.square(rows), axis=1))
    others = np.sqrt(np.mean(np.square(slices), axis=(1, 2)))
    fine = (sizes > 0) & (others > 0)
    return np.asarray(np.sqrt(np.divide(sizes, others, out=np.ones_like(sizes), where=fine)))
