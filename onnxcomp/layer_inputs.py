"""What a layer multiplies with its weights: rows at random places, and the mean over all places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    padded, sizes = _padded(values, window)
    axes = zip(sizes, _offsets(window), strict=True)
    for axis, (size, (offsets, step)) in reversed(list(enumerate(axes, start=2))):
        spans = [slice(o, o + (size - 1) * step + 1, step) for o in offsets.tolist()]
        before = (slice(None),) * axis
        padded = np.stack([padded[(*before, span)].mean(axis=axis) for span in spans], axis=axis)
    return rows, padded.reshape(len(values), window.group, -1)


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
    at: list[Any] = []
    for axis, (offsets, step) in enumerate(_offsets(window)):
        shape = [1] * (len(sizes) + 1)
        shape[axis] = -1
        at.append(places[axis] * step + offsets.reshape(shape))
    rows = padded[(slice(None), slice(None), *at)]
    return np.asarray(rows.reshape(len(values), window.group, -1, rows.shape[-1]))


def _places(rng: np.random.Generator, total: int, count: int) -> Array:
    if total <= count:
        return np.arange(total)
    return np.sort(rng.choice(total, count, replace=False))


def _padded(values: Array, window: Window) -> tuple[Array, list[int]]:
    """Samples [samples, channels, *spatial] with padding, and the sizes of the output's axes."""
    padding = window.padding(values.shape[2:])
    if any(pad for pair in padding for pad in pair):
        values = np.pad(values, [(0, 0), (0, 0), *padding])
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
