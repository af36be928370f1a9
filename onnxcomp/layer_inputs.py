"""What a layer multiplies with its weights: rows at random places, and the mean over all places."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxcomp.gram import Array, Window


def rows_and_means(
    values: Array, window: Window | None, count: int, seed: Sequence[int]
) -> tuple[Array, Array]:
    """Some of what a layer multiplies with its weights, as `sampled_rows`, and the mean of all.

    Returns:
        rows [samples, groups, d, count] and means [samples, groups, d], float32.
    """
    rows = sampled_rows(values, window, count, seed)
    if window is None:
        table = values.reshape(len(values), -1, values.shape[-1])
        return rows, table.mean(axis=1, dtype=np.float64).astype(np.float32)[:, None]
    return rows, _means(values, window).reshape(len(values), window.group, -1)


def sampled_rows(values: Array, window: Window | None, count: int, seed: Sequence[int]) -> Array:
    """What a layer multiplies with its weights, at some places.

    Args:
        values: what the layer reads, of a few samples: [samples, channels, *spatial] for a Conv,
            else [samples, ..., d].
        window: how a Conv reads it; None for a product with a matrix.
        count: at most so many places of each sample.
        seed: the same seed and shape give the same places, which all samples share.

    Returns:
        rows [samples, groups, d, count].
    """
    rng = np.random.default_rng(seed)
    if window is None:
        table = values.reshape(len(values), -1, values.shape[-1])
        return table[:, _places(rng, table.shape[1], count)].swapaxes(1, 2)[:, None]
    padded, sizes = _padded(values, window)
    places = np.unravel_index(_places(rng, int(np.prod(sizes)), count), sizes)
    spatial, at = padded.shape[2:], np.zeros((1, len(places[0])), np.intp)
    for axis, (offsets, step) in enumerate(_offsets(window)):
        here = places[axis] * step + offsets[:, None]
        at = (at[:, None] * spatial[axis] + here).reshape(-1, at.shape[1])
    rows = padded.reshape(*padded.shape[:2], -1).take(at, axis=2)
    return rows.reshape(len(values), window.group, -1, at.shape[1])


def _means(values: Array, window: Window) -> Array:
    """Of [samples, channels, *spatial], the mean that each element of the kernel meets.

    Axis after axis, as products with ones where it is met: padding adds nothing to a sum.
    """
    axes = zip(window.padding(values.shape[2:]), window.extents, _offsets(window), strict=True)
    for axis, ((begin, end), extent, (offsets, step)) in enumerate(axes, start=2):
        length = values.shape[axis]
        size = (length + begin + end - extent) // step + 1
        met = np.arange(size)[:, None] * step + offsets - begin
        ones = np.zeros((length, len(offsets)), values.dtype)
        places, elements = np.nonzero((met >= 0) & (met < length))
        ones[met[places, elements], elements] = 1
        table = values.reshape(math.prod(values.shape[:axis]), length, -1)
        sums = ones.T @ table if table.shape[2] > 1 else table[..., 0] @ ones
        values = sums.reshape(*values.shape[:axis], -1, *values.shape[axis + 1 :]) / size
    return values


def _places(rng: np.random.Generator, total: int, count: int) -> Array:
    if total <= count:
        return np.arange(total)
    return np.sort(rng.choice(total, count, replace=False))


def _padded(values: Array, window: Window) -> tuple[Array, list[int]]:
    """Samples [samples, channels, *spatial] with padding, and the sizes of the output's axes."""
    padding = window.padding(values.shape[2:])
    if any(pad for pair in padding for pad in pair):
        inside = [slice(b, b + n) for (b, _), n in zip(padding, values.shape[2:], strict=True)]
        grown = [n + b + e for (b, e), n in zip(padding, values.shape[2:], strict=True)]
        whole = np.zeros((*values.shape[:2], *grown), values.dtype)
        whole[(slice(None), slice(None), *inside)] = values
        values = whole
    strides = window.strides or (1,) * len(window.kernel)
    sizes = [
        (size - extent) // stride + 1
        for size, extent, stride in zip(values.shape[2:], window.extents, strides, strict=True)
    ]
    return values, sizes


def _offsets(window: Window) -> list[tuple[Array, int]]:
    """Of each spatial axis: where the kernel's elements lie, and the stride."""
    ones = (1,) * len(window.kernel)
    axes = zip(window.kernel, window.dilations or ones, window.strides or ones, strict=True)
    return [(np.arange(size) * dilation, stride) for size, dilation, stride in axes]
