"""What a layer multiplies with its weights: rows at random places, and the mean over all places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxcomp.gram import Array, Window


def chosen_rows(value: Array, window: Window | None, count: int, seed: Sequence[int]) -> Array:
    """What a layer multiplies with its weights at ``count`` places of each sample in a batch.

    Args:
        value: what the layer reads: [batch, channels, *spatial] for a Conv, else [..., d].
        window: how a Conv reads it; None for a product with a matrix.
        count: at most so many places of each sample, or of the whole of a matrix.
        seed: the same seed and shape give the same places.

    Returns:
        float32 [groups, d, rows].
    """
    rng = np.random.default_rng(seed)
    if window is None:
        table = value.reshape(-1, value.shape[-1])
        return np.asarray(table[_places(rng, len(table), count)].T[None], np.float32)
    blocks = []
    for sample in value:
        padded, sizes = _padded(sample, window)
        places = np.unravel_index(_places(rng, int(np.prod(sizes)), count), sizes)
        at: list[Array] = []
        for axis, (offsets, step) in enumerate(_offsets(window)):
            shape = [1] * (len(sizes) + 1)
            shape[axis] = -1
            at.append(places[axis] * step + offsets.reshape(shape))
        rows = padded[(slice(None), *at)]
        blocks.append(rows.reshape(window.group, -1, rows.shape[-1]))
    return np.asarray(np.concatenate(blocks, axis=2), np.float32)


def mean_row(value: Array, window: Window | None) -> Array:
    """The mean, over all places of a sample, of what a layer multiplies: [groups, d]."""
    if window is None:
        return np.asarray(value.reshape(-1, value.shape[-1]).mean(axis=0, dtype=np.float64)[None])
    means = []
    for sample in value:
        values, sizes = _padded(sample, window)
        axes = zip(sizes, _offsets(window), strict=True)
        for axis, (size, (offsets, step)) in reversed(list(enumerate(axes, start=1))):
            spans = [slice(o, o + (size - 1) * step + 1, step) for o in offsets.tolist()]
            before = (slice(None),) * axis
            values = np.stack([values[(*before, at)].mean(axis=axis) for at in spans], axis=axis)
        means.append(values.reshape(window.group, -1))
    return np.asarray(np.mean(means, axis=0, dtype=np.float64))


def _places(rng: np.random.Generator, total: int, count: int) -> Array:
    if total <= count:
        return np.arange(total)
    return np.sort(rng.choice(total, count, replace=False))


def _padded(sample: Array, window: Window) -> tuple[Array, list[int]]:
    """A sample [channels, *spatial] with its padding, and the sizes of the output's axes."""
    padding = window.padding(sample.shape[1:])
    if any(pad for pair in padding for pad in pair):
        sample = np.pad(sample, [(0, 0), *padding])
    strides = window.strides or (1,) * len(window.kernel)
    sizes = [
        (size - extent) // stride + 1
        for size, extent, stride in zip(sample.shape[1:], window.extents, strides, strict=True)
    ]
    return sample, sizes


def _offsets(window: Window) -> list[tuple[Array, int]]:
    """Of each spatial axis: where the kernel's elements lie, and the stride."""
    ones = (1,) * len(window.kernel)
    axes = zip(window.kernel, window.dilations or ones, window.strides or ones, strict=True)
    return [(np.arange(size) * dilation, stride) for size, dilation, stride in axes]
