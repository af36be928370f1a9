"""Weights -> codes on a grid without bounds, for an entropy coder: any integer is a code.

Where the Gram matrix of a layer's inputs is known, codes are found by `rounding.gptq`, column after
column; elsewhere they are the nearest ones. Scales are fitted to the codes afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from onnxcomp.quantization import Array
from onnxcomp.rounding import gptq, nearest
from onnxcomp.weight_sites import Layout

LARGEST_CODE = 2**22  # far from where float32(code) is inexact
DAMPING = 0.01


@dataclass(frozen=True)
class CodedWeight:
    """A constant as float32(code) * scale, one float32 product.

    Attributes:
        codes: int32, in the shape of the constant.
        scales: float32, [1] or one for each index along ``axis``.
        axis: of the constant along which scales differ; None for a single one.
    """

    codes: Array
    scales: Array
    axis: int | None = None

    @property
    def values(self) -> Array:
        """float32, as a decoder computes them."""
        scales = self.scales
        if self.axis is not None:
            shape = [1] * self.codes.ndim
            shape[self.axis] = -1
            scales = scales.reshape(shape)
        return np.asarray(self.codes.astype(np.float32) * scales)


def quantize_weight(
    values: Array,
    layout: Layout,
    gram: Array | None,
    step: float,
    *,
    multiples: Array | None = None,
    damping: float = DAMPING,
    act_order: bool = True,
) -> CodedWeight:
    """Codes of a weight and the scale that suits them best.

    Args:
        values: the constant, float32.
        layout: how it is a matrix [rows, d].
        gram: E[x xT] of its inputs, [d, d] or [groups, d, d] of a grouped Conv, whose rows are in
            the order of the groups; None rounds to the nearest code.
        step: distance of neighbouring values, about.
        multiples: of it, for each row, powers of two; not with ``gram``.
        damping, act_order: of `rounding.gptq`.
    """
    matrix = layout.matrix(values).astype(np.float64)
    step = max(step, float(np.abs(matrix).max(initial=0.0)) / LARGEST_CODE)
    if gram is None:
        if multiples is not None:
            matrix /= multiples[:, None]
        codes = nearest(matrix, step, 0, -LARGEST_CODE, LARGEST_CODE)
        return _restored(codes, fitted_scale(matrix, codes, None, step), layout, multiples)
    if gram.ndim == 3:
        matrix = matrix.reshape(len(gram), -1, matrix.shape[1])
    codes = gptq(
        matrix,
        gram,
        step,
        0,
        -LARGEST_CODE,
        LARGEST_CODE,
        damping=damping,
        act_order=act_order,
    )
    return _restored(codes, fitted_scale(matrix, codes, gram, step), layout)


def fitted_scale(matrix: Array, codes: Array, gram: Array | None, step: float) -> float:
    """The scale s with the least tr (W - sQ) G (W - sQ)T; ``step`` where all codes are zero.

    Args:
        matrix, codes: W and Q, [*groups, rows, d].
        gram: G; None for the identity.
        step: what the codes were found with.
    """
    weighted = codes.astype(np.float64)
    if gram is not None:
        weighted = weighted @ np.asarray(gram, np.float64)
    below = float(np.sum(weighted * codes))
    scale = float(np.sum(weighted * matrix)) / below if below > 0 else step
    return scale if math.isfinite(scale) and step / 2 < scale < step * 2 else step


def quantize_vector(values: Array, step: float) -> CodedWeight:
    """Nearest codes of a constant that is nothing but added or multiplied."""
    step = max(step, float(np.abs(values).max(initial=0.0)) / LARGEST_CODE)
    codes = nearest(values, step, 0, -LARGEST_CODE, LARGEST_CODE)
    return CodedWeight(codes, np.asarray([step], np.float32))


def _restored(
    codes: Array, scale: float, layout: Layout, multiples: Array | None = None
) -> CodedWeight:
    restored = layout.restored(codes.reshape(layout.rows, -1))
    if multiples is None:
        return CodedWeight(restored, np.asarray([scale], np.float32))
    return CodedWeight(restored, np.float32(scale) * multiples.astype(np.float32), layout.order[0])
