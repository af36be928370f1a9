"""Weights as codes of few bits, while activations stay float: how scales and codes are chosen.

Weights are [out, d]; blocks of a row share a scale and a zero point (`block_codes`). Samples count
through the Gram matrix E[x xT] of a layer's input only: [d, d], or [groups, d, d] of a grouped
Conv, whose rows follow each other group by group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from onnxcomp.block_codes import BlockCodes, Grid, blocked
from onnxcomp.quantization import TINY, Array
from onnxcomp.rounding import gptq, loss

CHUNK = 1 << 18  # weights at once: their temporaries stay in the cache
SHRUNK = tuple(np.arange(1.0, 0.34, -0.06))  # shares of the full range that are tried
LP = 0.7  # of the norm by which HQQ tells outliers
SHARPNESS = 10.0  # beta of HQQ, with errors in steps of the scale
SHARPENED = 1.01
HALF_STEPS = 6  # of HQQ
STRENGTHS = tuple(np.linspace(0.0, 1.0, 11))  # exponents that AWQ tries
REFIT_DAMPING = 1e-4  # of the mean diagonal


def round_to_nearest(weights: Array, grid: Grid) -> BlockCodes:
    """RTN: each block's codes spread over all its weights and zero; each weight to its nearest."""
    return _by_blocks(weights, None, grid, lambda w, _: _extremes(w, grid))


def least_squares(weights: Array, grid: Grid, importance: Array | None = None) -> BlockCodes:
    """Nearest codes on the scales that lose least, sum importance * (w - w_q)^2 in each block.

    Ranges within the full one are tried, then the scale is fitted to the codes.

    Args:
        weights: [out, d].
        grid: of the codes.
        importance: [d] or [out, d], not negative; None for the same everywhere.
    """

    def fit(w: Array, h: Array) -> tuple[Array, Array]:
        low, high = _ends(w)
        best = np.full(low.shape, np.inf, np.float32)
        scale, zero = _parameters(low, high, grid)
        for share in SHRUNK:
            s, z = _parameters(low * share, high * share, grid)
            for _ in range(2):
                steps = _nearest(w, s, z, grid) - z[..., None]
                error = (h * np.square(w - steps * s[..., None])).sum(-1)
                better = error < best
                best, scale, zero = (
                    np.where(better, new, old)
                    for new, old in ((error, best), (s, scale), (z, zero))
                )
                s = _fitted((h * steps * w).sum(-1), (h * np.square(steps)).sum(-1), s)
        return scale, zero

    return _by_blocks(weights, importance, grid, fit)


def half_quadratic(weights: Array, grid: Grid) -> BlockCodes:
    """HQQ: scales and zero points fitted to all weights but the outliers, without samples.

    Badri and Shaji, "Half-quadratic quantization of large machine learning models", 2023: errors
    beyond a threshold are set aside (the proximal operator of sum |w - w_q|^0.7), and the rest is
    fitted by least squares, by turns. Here the scale is fitted as well, zero points stay integers,
    which every runtime takes, and of all turns the one of least squared error stands: the norm
    alone would give up the outliers of a block.
    """

    def fit(w: Array, _: Array) -> tuple[Array, Array]:
        low, high = _ends(w)
        scale, zero = _parameters(low, high, grid)
        best = np.full(low.shape, np.inf, np.float32)
        for share in SHRUNK[::4]:
            s, z = _parameters(low * share, high * share, grid)
            for step in range(HALF_STEPS):
                codes = _nearest(w, s, z, grid)
                steps = codes - z[..., None]
                error = w / s[..., None] - steps
                size = np.abs(error)
                norm = np.square(error).sum(-1) * np.square(s)
                better = norm < best
                best, scale, zero = (
                    np.where(better, new, old) for new, old in ((norm, best), (s, scale), (z, zero))
                )
                floor = np.maximum(size, TINY) ** (LP - 1) / (SHARPNESS * SHARPENED**step)
                aside = np.sign(error) * np.maximum(size - floor, 0)
                target = w - aside * s[..., None]
                s = _fitted((steps * target).sum(-1), np.square(steps).sum(-1), s)
                if not grid.symmetric:
                    z = np.clip(np.rint((codes - target / s[..., None]).mean(-1)), 0, grid.highest)
        return scale, zero

    return _by_blocks(weights, None, grid, fit)


def gptq_blocks(weights: Array, gram: Array, grid: Grid) -> BlockCodes:
    """GPTQ on scales fitted to the diagonal of G, which are fitted to the codes again afterwards.

    Args:
        weights: [out, d]; rows of one group of a Conv follow each other.
        gram: [d, d] or [groups, d, d].
        grid: of the codes.
    """
    start = least_squares(weights, grid, importance_of(gram, len(weights)))
    shape = (*gram.shape[:-2], -1, weights.shape[1])
    scale, zero_point = (
        start.per_weight(x).reshape(shape) for x in (start.scale, start.zero_point)
    )
    codes = gptq(weights.reshape(shape), gram, scale, zero_point, 0, grid.highest)
    flat = codes.astype(np.uint8).reshape(weights.shape)
    rounded = refitted(weights, BlockCodes(flat, start.scale, start.zero_point, grid), gram)
    before, after = (row_errors(weights, c.dequantized(), gram) for c in (start, rounded))
    worse = (after > before)[:, None]  # where G says little, the nearest codes may be the best
    codes, scales, points = (
        np.where(worse, getattr(start, part), getattr(rounded, part))
        for part in ("codes", "scale", "zero_point")
    )
    return BlockCodes(codes, scales, points, grid)


def refitted(weights: Array, rounded: BlockCodes, gram: Array) -> BlockCodes:
    """The same codes with the scales that lose least in E[((W - W_q) x)^2].

    With U the codes less their zero points, the output error of a row is quadratic in the scales
    of its blocks: A_ab = u_a G_ab u_b, b_a = u_a (G w)_a; A s = b. Rows that gain nothing, or
    would get a scale that is not positive, keep theirs.
    """
    groups = gram.reshape(-1, *gram.shape[-2:])
    each = len(weights) // len(groups)
    scale = rounded.scale.copy()
    zero = rounded.per_weight(rounded.zero_point)
    for group, first in zip(groups, range(0, len(weights), each), strict=True):
        rows = slice(first, first + each)
        steps = rounded.codes[rows] - zero[rows].astype(np.float64)
        scale[rows] = _refitted(weights[rows], steps, rounded.scale[rows], group, rounded.width)
    better = BlockCodes(rounded.codes, scale, rounded.zero_point, rounded.grid)
    before, after = (row_errors(weights, c.dequantized(), gram) for c in (rounded, better))
    chosen = np.where((after < before)[:, None], scale, rounded.scale)
    return BlockCodes(rounded.codes, chosen, rounded.zero_point, rounded.grid)


def _refitted(weights: Array, steps: Array, old: Array, gram: Array, width: int) -> Array:
    """The scales [out, blocks] of one group; the old ones in rows where they make no sense."""
    starts = np.arange(0, weights.shape[1], width)
    quadratic = np.stack(
        [
            np.add.reduceat(steps[:, a : a + width] @ gram[a : a + width] * steps, starts, 1)
            for a in starts
        ],
        axis=1,
    )
    linear = np.add.reduceat(steps * (weights.astype(np.float64) @ gram), starts, 1)
    mean = np.trace(quadratic, axis1=1, axis2=2)[:, None, None] / len(starts)
    damped = quadratic + (REFIT_DAMPING * mean + TINY) * np.eye(len(starts))
    missing = linear - np.einsum("rab,rb->ra", quadratic, old.astype(np.float64))
    new = old + np.linalg.solve(damped, missing[..., None])[..., 0]
    sane = ((new > old / 4) & (new < old * 4)).all(1, keepdims=True)
    return np.where(sane, new, old)


def input_scaling(
    weights: Array, gram: Array, quantize: Callable[[Array, Array], Array]
) -> tuple[Array, Array]:
    """AWQ: what to multiply the input channels of a weight with, so that rounding costs least.

    Lin et al., "AWQ: activation-aware weight quantization", 2023: (W diag(s)) (diag(1/s) x) is
    W x, and a channel of large activations is rounded more finely with a large s. Here
    s = rms(x)^strength, and the strength is searched by the output error itself.

    Args:
        weights: [out, d].
        gram: [d, d].
        quantize: (weights, importance [d]) -> their values after rounding.

    Returns:
        s, float32 [d], and what the output error was without and is with it.
    """
    power = np.sqrt(np.maximum(np.diagonal(gram), 0))
    power = np.maximum(power, 1e-4 * power.max(initial=0) + TINY)
    found: list[tuple[float, Array]] = []
    for strength in STRENGTHS:
        s = power**strength
        s = (s / np.sqrt(s.max() * s.min())).astype(np.float32)
        rounded = quantize(weights * s, np.diagonal(gram) / np.square(s)) / s
        found.append((float(row_errors(weights, rounded, gram).sum()), s))
    best = min(found, key=lambda pair: pair[0])
    return best[1], np.asarray([found[0][0], best[0]])


def importance_of(gram: Array, rows: int) -> Array:
    """E[x_j^2] for each weight: [d], or [rows, d] of a grouped Conv."""
    diagonal = np.diagonal(gram, axis1=-2, axis2=-1)
    return diagonal if diagonal.ndim == 1 else np.repeat(diagonal, rows // len(diagonal), axis=0)


def row_errors(weights: Array, rounded: Array, gram: Array) -> Array:
    """E[((W - W_q) x)^2] of each output channel: float64 [out]."""
    shape = (*gram.shape[:-2], -1, weights.shape[1])
    return loss(weights.reshape(shape), rounded.reshape(shape), gram, 1.0, 0.0).reshape(-1)


def _by_blocks(
    weights: Array,
    importance: Array | None,
    grid: Grid,
    fit: Callable[[Array, Array], tuple[Array, Array]],
) -> BlockCodes:
    """Nearest codes on what ``fit`` makes of blocks [n, width] of weights and importance."""
    out, d = weights.shape
    width = grid.width(d)
    shape = (out, math.ceil(d / width))
    codes = np.empty(weights.shape, np.uint8)
    scale, zero_point = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    for rows in _chunks(out, d):
        w = blocked(np.asarray(weights[rows], np.float32), width)
        h = np.ones((1, 1, width), np.float32)
        if importance is not None:
            part = importance[rows] if importance.ndim == 2 else importance[None]
            part = part / max(float(part.mean()), TINY)  # squares of float32 stay in range
            h = blocked(part.astype(np.float32), width)
        s, z = fit(w, h)
        chosen = _nearest(w, s, z, grid).reshape(len(w), -1)[:, :d]
        codes[rows], scale[rows], zero_point[rows] = chosen, s, z
    return BlockCodes(codes, scale, zero_point, grid)


def _chunks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, width))
    return (slice(first, first + step) for first in range(0, rows, step))


def _ends(w: Array) -> tuple[Array, Array]:
    return np.minimum(w.min(-1), 0), np.maximum(w.max(-1), 0)


def _extremes(w: Array, grid: Grid) -> tuple[Array, Array]:
    return _parameters(*_ends(w), grid)


def _parameters(low: Array, high: Array, grid: Grid) -> tuple[Array, Array]:
    """float32 scale and zero point of blocks for ranges that include zero."""
    if grid.symmetric:
        scale = np.maximum(high, -low) / np.float32(grid.middle - 1)
        zero = np.full(low.shape, grid.middle, np.float32)
    else:
        scale = (high - low) / np.float32(grid.highest)
        safe = np.where(scale > TINY, scale, 1)
        zero = np.clip(np.rint(-low / safe), 0, grid.highest)
    return np.where(scale > TINY, scale, 1).astype(np.float32), zero.astype(np.float32)


def _nearest(w: Array, scale: Array, zero: Array, grid: Grid) -> Array:
    codes = np.rint(w / scale[..., None]) + zero[..., None]
    return np.asarray(np.clip(codes, 0, grid.highest))


def _fitted(numerator: Array, denominator: Array, old: Array) -> Array:
    """numerator / denominator where that is a sane scale, else ``old``; float32."""
    new = np.divide(numerator, denominator, out=old.copy(), where=denominator > 0)
    return np.where((new > 0.1 * old) & (new < 10 * old), new, old).astype(np.float32)
