"""Gram: E[x xT] of what a layer multiplies its weights with, streamed.

The one statistic that pruning, sparsity, rounding and low rank share. For a Conv, x is the patch
under the kernel, and patches are gathered a few output rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.errors import CalibrationError

Array = np.ndarray[Any, np.dtype[Any]]

NOTHING_SEEN = "a statistic saw no finite values: its tensor was empty or not finite"
BLOCK_ELEMENTS = 1 << 20  # of patches gathered at once: 4 MB of float32
PENDING_ROWS = 256  # few rows a sample are collected first: adding d x d per row would dominate


@dataclass(frozen=True, kw_only=True)
class Window:
    """How a Conv reads its input; the fields are the attributes of ONNX's Conv.

    Attributes:
        kernel: sizes of the kernel's spatial axes.
        strides, dilations: one per spatial axis; empty means 1.
        pads: all begins, then all ends; empty means 0. Not used unless auto_pad is NOTSET.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    auto_pad: str = "NOTSET"

    @classmethod
    def of_conv(cls, attributes: Mapping[str, Any], weight_shape: Sequence[int]) -> Window:
        """From a Conv's attributes and its weight, [out, in / group, *kernel]."""
        return cls(
            kernel=tuple(weight_shape[2:]),
            strides=tuple(attributes.get("strides", ())),
            pads=tuple(attributes.get("pads", ())),
            dilations=tuple(attributes.get("dilations", ())),
            group=int(attributes.get("group", 1)),
            auto_pad=str(attributes.get("auto_pad", "NOTSET")),
        )

    def padding(self, spatial: Sequence[int]) -> list[tuple[int, int]]:
        """(begin, end) per spatial axis for an input of this size (ONNX Conv, auto_pad)."""
        rank = len(self.kernel)
        if self.auto_pad == "NOTSET":
            pads = self.pads or (0,) * (2 * rank)
            return list(zip(pads[:rank], pads[rank:], strict=True))
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        strides = self.strides or (1,) * rank
        needed = [
            max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
            for size, stride, extent in zip(spatial, strides, self.extents, strict=True)
        ]
        halves = [(total // 2, total - total // 2) for total in needed]
        return halves if self.auto_pad == "SAME_UPPER" else [(b, a) for a, b in halves]

    @property
    def extents(self) -> tuple[int, ...]:
        """Input elements that the dilated kernel spans, per spatial axis."""
        dilations = self.dilations or (1,) * len(self.kernel)
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, dilations, strict=True))

    def patches(self, sample: Array) -> Iterator[Array]:
        """One sample [channels, *spatial] -> blocks [group, channels/group * prod(kernel), rows].

        A patch is laid out as ``weight.reshape(out, -1)`` is; a row is one output position.
        """
        channels, *spatial = sample.shape
        rank = len(self.kernel)
        padding = self.padding(spatial)
        if any(pad for pair in padding for pad in pair):
            sample = np.pad(sample, [(0, 0), *padding])
        axes = tuple(range(1, rank + 1))
        view = np.lib.stride_tricks.sliding_window_view(sample, self.extents, axes)
        strides, dilations = self.strides or (1,) * rank, self.dilations or (1,) * rank
        view = view[(slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))]
        view = view.transpose(0, *range(rank + 1, 2 * rank + 1), *axes)
        height = channels * math.prod(self.kernel)
        lines = max(1, BLOCK_ELEMENTS // max(1, height * math.prod(view.shape[rank + 2 :])))
        for first in range(0, view.shape[rank + 1], lines):
            chosen = (slice(None),) * (rank + 1) + (slice(first, first + lines),)
            yield view[chosen].reshape(self.group, height // self.group, -1)


@dataclass(frozen=True)
class GramResult:
    """Second moments of x, not centred.

    Attributes:
        matrix: E[x xT], [d, d] of an axis or [group, d, d] of a Conv; symmetric.
        mean: E[x], [d] or [group, d].
        count: rows behind the averages.
    """

    matrix: Array
    mean: Array
    count: int


class Gram:
    """E[x xT], where x runs along ``axis`` or, given a ``window``, over the patches of a Conv.

    Products of a block are taken in the tensor's own precision (at least float32) by a symmetric
    BLAS update; blocks are summed in ``dtype``. Memory is d x d per group.
    """

    def __init__(
        self,
        axis: int = -1,
        *,
        window: Window | None = None,
        dtype: type[np.floating[Any]] = np.float64,
    ) -> None:
        """Along ``axis`` as ONNX counts it; ``axis`` is not used with a ``window``."""
        self.axis, self.window, self.dtype = axis, window, dtype
        self._sum: Array | None = None
        self._total: Array | None = None
        self._count = 0
        self._pending: list[Array] = []
        self._pending_rows = 0

    def update(self, values: Array) -> None:
        """``values``: any shape with ``axis``; [batch, channels, *spatial] for a window."""
        if values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float32)
        for block in self._blocks(values):
            if block.shape[2] >= PENDING_ROWS:
                self._add(block)
                continue
            self._pending.append(block.copy())
            self._pending_rows += block.shape[2]
            if self._pending_rows >= PENDING_ROWS:
                self._flush()

    def _blocks(self, values: Array) -> Iterator[Array]:
        """[group, d, rows], a bounded number of elements each."""
        if self.window is not None:
            for sample in values:
                yield from self.window.patches(sample)
            return
        axis = self.axis % values.ndim
        width = values.shape[axis]
        if axis == values.ndim - 1:
            tables = [values.reshape(-1, width).T]
        else:  # a view for each index of the axes before: no transposed copy of the whole
            tables = list(values.reshape(-1, width, math.prod(values.shape[axis + 1 :])))
        step = max(1, BLOCK_ELEMENTS // max(1, width))
        for table in tables:
            for first in range(0, table.shape[1], step):
                yield table[None, :, first : first + step]

    def _flush(self) -> None:
        if self._pending:
            self._add(np.concatenate(self._pending, axis=2))
        self._pending, self._pending_rows = [], 0

    def _add(self, block: Array) -> None:
        product = block @ block.transpose(0, 2, 1)
        total = block.sum(axis=2, dtype=np.float64)
        if self._sum is None or self._total is None:
            self._sum, self._total = product.astype(self.dtype), total
        else:
            self._sum += product
            self._total += total
        self._count += block.shape[2]

    def result(self) -> GramResult:
        """The averages so far; [d, d] for an axis, [group, d, d] for a window."""
        self._flush()
        if self._sum is None or self._total is None or self._count == 0:
            raise CalibrationError(NOTHING_SEEN)
        matrix, mean = self._sum / self._count, self._total / self._count
        if self.window is None:
            matrix, mean = matrix[0], mean[0]
        return GramResult(matrix, mean, self._count)
