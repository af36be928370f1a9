"""E[y yT] of what a weight makes of a tensor, streamed: W G WT where G itself would be too wide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.errors import CalibrationError
from onnxcomp.gram import NOTHING_SEEN, Array, Gram

BLOCK_ELEMENTS = 1 << 22  # of inputs and of outputs at once: 16 MB of float32


@dataclass(frozen=True)
class OutputMomentsResult:
    """Second moments of y = W x, not centred.

    Attributes:
        matrix: E[y yT], float64 [out, out].
        mean_square: E|x|^2 / in, the mean of G's diagonal.
        count: rows behind the averages.
    """

    matrix: Array
    mean_square: float
    count: int


class OutputMoments:
    """E[y yT] of y = W x, where x runs along ``axis``. Memory is out x out."""

    def __init__(self, weights: Array, axis: int = -1) -> None:
        """Of ``weights`` W, [out, in], and of x along ``axis`` as ONNX counts it."""
        self._weights, self._axis = weights, axis
        self._made = Gram(-1)
        self._squares, self._count = 0.0, 0

    def update(self, values: Array) -> None:
        """``values``: any shape with ``axis`` of length in."""
        rows = np.moveaxis(values, self._axis, -1).reshape(-1, self._weights.shape[1])
        step = max(1, BLOCK_ELEMENTS // max(self._weights.shape))
        for first in range(0, len(rows), step):
            block = rows[first : first + step]
            self._made.update(block @ self._weights.T)
            self._squares += float(np.square(block, dtype=np.float64).sum())
        self._count += len(rows)

    def result(self) -> OutputMomentsResult:
        """The averages so far.

        Raises:
            CalibrationError: nothing was seen.
        """
        if not self._count:
            raise CalibrationError(NOTHING_SEEN)
        made = self._made.result()
        mean = self._squares / (self._count * self._weights.shape[1])
        return OutputMomentsResult(np.asarray(made.matrix, np.float64), mean, self._count)
