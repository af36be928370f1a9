"""Floats that came from few values: fewer bits, an integer grid or a codebook, found exactly.

Nothing here is an approximation: what is found gives back every bit, or it is not found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.number_types import BFLOAT16, DOUBLE, FLOAT, FLOAT16, WIDENED
from onnxcomp.representations import LARGEST_TABLE, WHOLE
from onnxcomp.restoring import widen

Array = npt.NDArray[Any]
MOST_LEVELS = 256  # the largest code of a grid that is looked for: INT8 with any zero point
PROBES = 32  # numbers of a row that a scale is guessed from, chosen in each of three ways
ULPS = (0, -1, 1, -2, 2)  # of a guessed scale
SAMPLE = 2**16
UNUSED = {  # low bits of the mantissa that are zero in numbers that came from a narrower type
    (FLOAT, FLOAT16): 13,
    (FLOAT, BFLOAT16): 16,
    (DOUBLE, FLOAT16): 42,
    (DOUBLE, BFLOAT16): 45,
    (DOUBLE, FLOAT): 29,
}


def narrowed(numbers: Array, data_type: int) -> tuple[int, Array] | None:
    """A narrower type that holds the same values, and their bits in it; None if there is none.

    Args:
        numbers: bits, unsigned [n].
        data_type: their type.
    """
    for source in WIDENED.get(data_type, ()):
        unused = numbers.dtype.type(2 ** UNUSED[data_type, source] - 1)
        if np.bitwise_or.reduce(numbers) & unused:
            continue
        narrow = _cast(numbers, data_type, source)
        if (widen(narrow, source, data_type) == numbers).all():
            return source, narrow
    return None


def _cast(numbers: Array, data_type: int, source: int) -> Array:
    """Bits of the nearest values of a narrower type."""
    values = numbers.view(np.float32 if data_type == FLOAT else np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if source == FLOAT16:
            return values.astype(np.float16).view(np.uint16)
        single = values.astype(np.float32).view(np.uint32)
    return single if source == FLOAT else (single >> np.uint32(16)).astype(np.uint16)


def codebook(numbers: Array) -> tuple[Array, Array] | None:
    """(distinct numbers in order of their values, index of each number), if they are few.

    Args:
        numbers: bits of floats, unsigned [n].
    """
    values = np.unique(numbers[:SAMPLE])
    for start in range(SAMPLE, numbers.size, SAMPLE * 16):
        if values.size > LARGEST_TABLE:
            return None
        values = np.union1d(values, numbers[start : start + SAMPLE * 16])
    if values.size > min(LARGEST_TABLE, numbers.size // 2):
        return None
    sign = values >> values.dtype.type(values.dtype.itemsize * 8 - 1)
    negative, positive = values[sign == 1][::-1], values[sign == 0]
    order = np.argsort(np.concatenate([negative, positive]), kind="stable")
    indices = order[np.searchsorted(values, numbers)].astype(np.int32)
    return np.concatenate([negative, positive]), indices


@dataclass(frozen=True)
class Lattice:
    """number = float32(code) * scale of its index along ``axis``: codes [n], scales float32."""

    axis: int
    codes: Array
    scales: Array


def grids(numbers: Array, dims: tuple[int, ...]) -> Iterator[Lattice]:
    """The integer grids that float32 numbers lie on: of all, or of each index of an axis.

    Args:
        numbers: bits of float32 [n].
        dims: of the tensor.
    """
    values = numbers.view(np.float32)
    axes = [axis for axis in sorted({0, 1, len(dims) - 1}) if axis < len(dims)]
    for axis in [WHOLE, *axes]:
        rows = values.reshape(1, -1) if axis == WHOLE else _rows(values.reshape(dims), axis)
        if axis != WHOLE and rows.shape[1] < 4:
            continue
        scales = _scales(rows)
        if scales is None:
            continue
        codes = np.rint(rows / scales[:, None].astype(np.float64)).astype(np.int32)
        if axis != WHOLE:
            shape = (dims[axis], *dims[:axis], *dims[axis + 1 :])
            codes = np.moveaxis(codes.reshape(shape), 0, axis)
        yield Lattice(axis, np.ascontiguousarray(codes).reshape(-1), scales)
        return  # a scale for each index costs more


def _rows(values: Array, axis: int) -> Array:
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _scales(rows: Array) -> Array | None:
    """The coarsest scale of each row that gives back all of its numbers, float32 [rows]."""
    for row in (rows[:1, :SAMPLE], rows[-1:, :SAMPLE]):
        if _guess(row) is None:
            return None  # almost every tensor of floats ends here
    if not np.isfinite(rows).all() or (rows.view(np.uint32) == 0x80000000).any():
        return None
    guesses = _guess(rows)
    if guesses is None:
        return None
    scales, found = guesses.astype(np.float32), np.zeros(len(rows), bool)
    for ulps in ULPS:
        trial = (guesses.astype(np.float32).view(np.int32) + ulps).view(np.float32)
        codes = np.rint(rows / trial[:, None].astype(np.float64)).astype(np.float32)
        fits = (codes * trial[:, None] == rows).all(1) & ~found
        scales[fits] = trial[fits]
        found |= fits
    return scales if found.all() else None


def _guess(rows: Array) -> Array | None:
    """Scales, float64 [rows], on whose grid the largest and some more numbers of each row lie."""
    sizes = np.sort(np.abs(rows), axis=1).astype(np.float64)
    width, top = sizes.shape[1], sizes[:, -1]
    ranks = np.arange(PROBES)  # from the largest: some may be clipped, others zero
    back = np.concatenate([ranks, 2.0**ranks - 1, np.linspace(0, width - 1, PROBES)])
    sizes = sizes[:, np.unique(width - 1 - back[back < width].astype(np.int64))]
    if not np.isfinite(top).all():
        return None
    filled = np.where(top > 0, top, 1.0)
    guesses = np.zeros(len(rows))
    for levels in range(1, MOST_LEVELS + 1):
        steps = sizes * (levels / filled[:, None])
        fits = (np.abs(steps - np.rint(steps)).max(1) < 1e-4) & (guesses == 0)
        guesses[fits] = filled[fits] / levels
    return guesses if guesses.all() else None
