"""Weights -> codes on a grid without bounds, for an entropy coder: any integer is a code.

Where the Gram matrix of a layer's inputs is known, codes are found by `rounding.gptq`, column after
column; elsewhere they are the nearest ones. Scales are fitted to the codes afterwards, so that
outputs do not shrink.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnxcomp.coding_trellis import Trellis, cheapest, prices_of, trellis_integers
from onnxcomp.kernels.trellis import codes_of
from onnxcomp.quantization import Array
from onnxcomp.rounding import gptq, nearest
from onnxcomp.weight_sites import Layout

LARGEST_CODE = 2**22  # far from where float32(code) is inexact
DAMPING = 0.01
LOW_RATE = 2.2  # bits a weight: above, codes that cost less cost the outputs as much
TRELLIS_RATE = 1.5  # below, where most codes are zero, that gains more than trellis codes do
RATE_WEIGHT = 0.03  # of a squared step, what a bit of a code is worth
TRELLIS_STEP = 0.62  # of theirs: what leaves about the same error
TRELLIS_WEIGHT = 0.08  # of their squared step
SEEN = 2**16  # weights that a rate is estimated from


@dataclass(frozen=True)
class CodedWeight:
    """A constant as float32(integer) * scale, one float32 product; a code is an integer.

    Attributes:
        codes: int32, in the shape of the constant.
        scales: float32, [1] or one for each index along ``axis``.
        axis: of the constant along which scales differ; None for a single one.
        along: axis that sequences of trellis codes run along; None where codes are the integers.
    """

    codes: Array
    scales: Array
    axis: int | None = None
    along: int | None = None

    @property
    def values(self) -> Array:
        """float32, as a decoder computes them."""
        scales = self.scales
        if self.axis is not None:
            shape = [1] * self.codes.ndim
            shape[self.axis] = -1
            scales = scales.reshape(shape)
        return np.asarray(self.integers.astype(np.float32) * scales)

    @property
    def integers(self) -> Array:
        """int32, what the codes stand for."""
        return self.codes if self.along is None else trellis_integers(self.codes, self.along)


def quantize_weight(
    values: Array,
    layout: Layout,
    gram: Array | None,
    step: float,
    *,
    multiples: Array | None = None,
    damping: float = DAMPING,
    act_order: bool = True,
    trellis: bool = False,
) -> CodedWeight:
    """Codes of a weight and the scale that suits them best.

    Args:
        values: the constant, float32.
        layout: how it is a matrix [rows, d].
        gram: E[x xT] of its inputs, [d, d] or [groups, d, d] of a grouped Conv, whose rows are in
            the order of the groups; None rounds to the nearest code.
        step: distance of neighbouring values, about; of trellis codes, of those of one state.
        multiples: of it, for each row, powers of two; errors of rows then count by their inverse
            squares. Not with groups.
        damping, act_order: of `rounding.gptq`.
        trellis: let integers depend on those before, where the layout allows it and the rate is
            not too low.
    """
    matrix = layout.matrix(values).astype(np.float64)
    step = max(step, float(np.abs(matrix).max(initial=0.0)) / LARGEST_CODE)
    if multiples is not None:
        matrix /= multiples[:, None]
    rate = _rate(matrix, step)
    whole = gram is None or gram.ndim == 2
    sequences = Trellis.of(layout) if trellis and whole and rate > TRELLIS_RATE else None
    unit = step if sequences is None else step * TRELLIS_STEP
    rounding = _rounding(matrix / unit, sequences, rate)
    if gram is not None and gram.ndim == 3:
        matrix = matrix.reshape(len(gram), -1, matrix.shape[1])
    if gram is None:
        integers = np.asarray(rounding(matrix / unit), np.int32)
    else:
        integers = gptq(
            matrix,
            gram,
            unit,
            0,
            -2 * LARGEST_CODE,
            2 * LARGEST_CODE,
            damping=damping,
            act_order=act_order,
            choose=rounding,
        )
    scale = fitted_scale(matrix, integers, gram, unit)
    return _restored(integers, scale, layout, multiples, sequences)


def _rounding(targets: Array, sequences: Trellis | None, rate: float) -> Callable[[Array], Array]:
    """What turns targets, in units of an integer, into integers: of a column, or of a matrix.

    Args:
        targets: all of them before anything is carried on, to see what codes occur.
        sequences: of trellis codes.
        rate: bits a weight, about.
    """
    if sequences is not None:
        prices = sequences.prices(targets, TRELLIS_WEIGHT)

        def along(columns: Array) -> Array:
            return sequences.integers(columns.reshape(len(columns), -1), prices).reshape(
                columns.shape
            )

        return along
    if rate > LOW_RATE:
        return np.rint
    return partial(cheapest, prices=prices_of(np.rint(targets), RATE_WEIGHT))


def fitted_scale(matrix: Array, codes: Array, gram: Array | None, step: float) -> float:
    """The scale s with tr W G (W - sQ)T = 0: outputs that are neither larger nor smaller.

    Codes that err least make outputs smaller, since errors are no part of them; least squares does
    so as well. That costs nothing in one layer, but all layers do it to the same outputs.

    Args:
        matrix, codes: W and Q, [*groups, rows, d].
        gram: G; None for the identity.
        step: what the codes were found with, and the scale where all codes are zero.
    """
    weighted = matrix if gram is None else matrix @ np.asarray(gram, np.float64)
    below = float(np.sum(weighted * codes))
    scale = float(np.sum(weighted * matrix)) / below if below > 0 else step
    return scale if math.isfinite(scale) and step / 2 < scale < step * 2 else step


def quantize_vector(values: Array, step: float) -> CodedWeight:
    """Nearest codes of a constant that is nothing but added or multiplied."""
    step = max(step, float(np.abs(values).max(initial=0.0)) / LARGEST_CODE)
    codes = nearest(values, step, 0, -LARGEST_CODE, LARGEST_CODE)
    return CodedWeight(codes, np.asarray([step], np.float32))


def _restored(
    integers: Array,
    scale: float,
    layout: Layout,
    multiples: Array | None,
    sequences: Trellis | None,
) -> CodedWeight:
    codes = integers if sequences is None else codes_of(integers)
    restored = layout.restored(codes.reshape(layout.rows, -1))
    along = None if sequences is None else sequences.along
    if multiples is None:
        return CodedWeight(restored, np.asarray([scale], np.float32), along=along)
    scales = np.float32(scale) * multiples.astype(np.float32)
    return CodedWeight(restored, scales, layout.order[0], along)


def _rate(matrix: Array, step: float) -> float:
    """Bits a weight of the nearest codes, by how often each occurs."""
    some = matrix.reshape(-1)[:: matrix.size // SEEN | 1]
    counts = np.unique(np.rint(some / step), return_counts=True)[1]
    return float(-np.sum(counts * np.log2(counts / some.size)) / max(1, some.size))
