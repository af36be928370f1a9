"""Layers that read signs instead of floats: each input is compared with a few levels.

M levels of a channel tell M + 1 ranges apart (Lin et al., "Towards accurate binary convolutional
neural networks", 2017, section 3.2); they are those of the quantizer with the least squared error
(Lloyd, "Least squares quantization in PCM", 1982). What a layer then multiplies its weights with is
M signs in place of each input, and padding still adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.linear_layers import LinearLayer
from onnxcomp.quantization import Array

PLACES = 64  # at which sorted values may be cut at first
STEPS = 10  # of Lloyd's iteration from there
VALUES = 2048  # of each channel that levels are chosen on


@dataclass(frozen=True)
class SignReader:
    """A layer that reads signs; told of like a `LinearLayer`.

    Attributes:
        whole: the layer that reads floats.
        levels: what inputs are compared with, float32 [signs, channels].
        slopes: what each sign adds to the float it stands for, [signs, channels].
    """

    whole: LinearLayer
    levels: Array
    slopes: Array

    @classmethod
    def of(cls, layer: LinearLayer, samples: Sequence[Array], signs: int) -> SignReader:
        """With the levels that suit what ``layer`` reads of some samples."""
        axis = 1 if layer.reads_channels else -1
        tables = [np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in samples]
        each = max(1, VALUES // len(tables))
        few = [table[:, :: max(1, table.shape[1] // each)] for table in tables]
        return cls(layer, *sign_levels(np.concatenate(few, axis=1), signs))

    @property
    def source(self) -> str:
        """Name of the tensor it reads."""
        return self.whole.source

    @property
    def groups(self) -> int:
        """Of the layer."""
        return self.whole.groups

    @property
    def reads_channels(self) -> bool:
        """Whether its input is [batch, channels, *spatial] and not [..., d]."""
        return self.whole.reads_channels

    @property
    def weights(self) -> Array:
        """What the layer's own weights are for signs, [groups, out, signs * d]."""
        weights = self.whole.weights
        groups, _, d = weights.shape
        each = self.slopes.reshape(len(self.slopes), groups, 1, -1)
        parts = weights * np.repeat(each, d // each.shape[-1], axis=-1)
        return np.concatenate(list(parts), axis=-1)

    def inputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows of signs, those of the first level first, [samples, groups, signs * d, count]."""
        shape = (-1, *[1] * (values.ndim - 2)) if self.reads_channels else (-1,)
        rows = [
            self.whole.inputs(
                np.where(values >= level.reshape(shape), np.float32(1), np.float32(-1)), count, seed
            )
            for level in self.levels
        ]
        return np.concatenate(rows, axis=2)

    def outputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows of what the layer makes, at the same places."""
        return self.whole.outputs(values, count, seed)


def sign_levels(values: Array, signs: int) -> tuple[Array, Array]:
    """Levels of each channel, ascending, and half of the way between the means beside each.

    Args:
        values: [channels, count].
        signs: levels of a channel.

    Returns:
        float32 levels and float64 slopes, [signs, channels].
    """
    values = np.sort(values.astype(np.float64), axis=1)
    count = values.shape[1]
    sums = np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))
    ends = _best_ends(values, signs + 1)
    for _ in range(STEPS):
        number = np.diff(ends, axis=1)
        totals = np.diff(np.take_along_axis(sums, ends, axis=1), axis=1)
        at = np.take_along_axis(values, np.minimum(ends[:, :-1], count - 1), axis=1)
        means = np.where(number > 0, totals / np.maximum(number, 1), at)
        levels = (means[:, 1:] + means[:, :-1]) / 2
        below = np.sum(values[:, None, :] < levels[:, :, None], axis=2)
        ends = np.pad(below, ((0, 0), (1, 1)), constant_values=((0, 0), (0, count)))
    return levels.T.astype(np.float32), np.diff(means, axis=1).T / 2


def _best_ends(values: Array, parts: int) -> Array:
    """Where to cut sorted values so that they are nearest to the mean of their part.

    By dynamic programming over PLACES (Bruce, "Optimum quantization", 1965).

    Args:
        values: [channels, count], ascending.
        parts: to make.

    Returns:
        indices, ascending, the first 0 and the last the count, [channels, parts + 1].
    """
    places = np.linspace(0, values.shape[1], PLACES + 1).astype(np.intp)
    centred = values - values.mean(axis=1, keepdims=True)
    sums, squares = (
        np.pad(np.cumsum(x, axis=1), ((0, 0), (1, 0)))[:, places] for x in (centred, centred**2)
    )
    number = np.maximum(places - places[:, None], 1)
    cost = squares[:, None] - squares[:, :, None]  # [channels, from, to]
    cost -= (sums[:, None] - sums[:, :, None]) ** 2 / number
    cost[:, places[:, None] > places] = np.inf
    best, cuts = cost[:, 0], []
    for _ in range(parts - 1):
        whole = best[:, :, None] + cost
        cuts.append(whole.argmin(axis=1))
        best = whole.min(axis=1)
    at = np.full((len(values), 1), PLACES)
    ends = [at]
    for cut in reversed(cuts):
        at = np.take_along_axis(cut, at, axis=1)
        ends.insert(0, at)
    return np.asarray(places[np.concatenate([np.zeros_like(at), *ends], axis=1)])
