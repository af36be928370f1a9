"""Codes -> numbers: what every representation computes, on whole chunks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.kernels.trellis import restore
from onnxcomp.number_types import BFLOAT16, FLOAT, FLOAT16
from onnxcomp.representations import WHOLE, Grid, Trellis, scale_shape

Array = npt.NDArray[Any]


def from_integer(codes: Array, bits: int) -> Array:
    """Codes int32 -> unsigned numbers, modulo 2^bits; a byte each where bits are fewer."""
    if bits == 64:
        return codes.astype(np.int64).view(np.uint64)
    numbers = codes.view(np.uint32).astype(f"u{max(bits, 8) // 8}", copy=False)
    return numbers & np.uint8(2**bits - 1) if bits < 8 else numbers


def widen(numbers: Array, source: int, data_type: int) -> Array:
    """Bits of floats of one type -> bits of the same values in a wider one.

    A NaN keeps its sign and its payload, zeros behind it: processors would make it a quiet one.
    """
    if source == data_type:
        return numbers
    if source == BFLOAT16:
        single = numbers.astype(np.uint32) << np.uint32(16)
    else:
        single = _single_of_half(numbers) if source == FLOAT16 else numbers
    return single if data_type == FLOAT else _double_of_single(single)


def _single_of_half(numbers: Array) -> Array:
    values = numbers.view(np.float16)
    bits: Array = values.astype(np.float32).view(np.uint32)
    unordered = np.isnan(values)
    found = numbers[unordered].astype(np.uint32)
    bits[unordered] = (found & 0x8000) << 16 | 0x7F800000 | (found & 0x3FF) << 13
    return bits


def _double_of_single(numbers: Array) -> Array:
    values = numbers.view(np.float32)
    with np.errstate(invalid="ignore"):
        bits: Array = values.astype(np.float64).view(np.uint64)
    unordered = np.isnan(values)
    found = numbers[unordered].astype(np.uint64)
    bits[unordered] = (found & 0x80000000) << 32 | 0x7FF0000000000000 | (found & 0x7FFFFF) << 29
    return bits


def from_grid(
    codes: Array, scales: Array, grid: Grid, dims: tuple[int, ...], data_type: int, start: int
) -> Array:
    """Codes int32 [n], numbers ``start`` and on of a tensor -> bits of code * scale.

    Args:
        codes: flat; those of a trellis become integers in their place.
        scales: bits of float32, flat.
        grid: which scale belongs to which number.
        dims: of the tensor.
        data_type: of the tensor.
        start: number of the tensor that the first code is.
    """
    if isinstance(grid, Trellis):
        restore_trellis(codes, dims, grid.along)
    values = codes.astype(np.float32)
    steps = scales.view(np.float32)
    if grid.axis == WHOLE:
        values *= steps[0]
    else:
        values *= _of_each(steps, grid, dims, start, codes.size)
    if data_type == FLOAT:
        return values.view(np.uint32)
    if data_type == FLOAT16:
        with np.errstate(over="ignore"):  # infinite, as IEEE 754 has it
            return values.astype(np.float16).view(np.uint16)
    if data_type == BFLOAT16:  # to nearest, ties to even
        bits = values.view(np.uint32)
        rounding = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
        return (bits + rounding >> np.uint32(16)).astype(np.uint16)
    return values.astype(np.float64).view(np.uint64)


def restore_trellis(codes: Array, dims: tuple[int, ...], along: int) -> None:
    """Codes int32 [n] of one chunk -> integers, in their place.

    Args:
        codes: of whole rows of a tensor, flat and contiguous.
        dims: of the tensor.
        along: axis that sequences run along; they start with the chunk.
    """
    inner = math.prod(dims[along + 1 :])
    length = dims[along] if along else codes.size // inner
    restore(codes.reshape(-1, length, inner))


def from_codebook(codes: Array, values: Array) -> Array:
    """Codes -> values[code].

    Raises:
        IndexError: a code is none of the table's.
    """
    indices = codes.view(np.uint32)
    if indices.size and indices.max() >= values.size:
        raise IndexError
    return values[indices]


def _of_each(steps: Array, grid: Grid, dims: tuple[int, ...], start: int, count: int) -> Array:
    """The scale of each of ``count`` numbers from ``start``."""
    inner = int(np.prod(dims[grid.axis + 1 :], dtype=np.int64))
    length = dims[grid.axis]
    if not grid.block:  # runs of ``inner`` numbers share one
        first, last = start // inner, (start + count - 1) // inner
        runs = steps[np.arange(first, last + 1) % length]
        return np.repeat(runs, inner)[start - first * inner :][:count]
    flat = np.arange(start, start + count)
    blocks = scale_shape(dims, grid.axis, grid.block)[grid.axis]
    outer, place = np.divmod(flat // inner, length)
    scales: Array = steps[(outer * blocks + place // grid.block) * inner + flat % inner]
    return scales


def packed_bits(numbers: Array, bits: int) -> Array:
    """Numbers of ``bits`` bits, a byte each -> bytes, filled from the lowest bit up."""
    each = np.unpackbits(numbers[:, None], axis=1, bitorder="little")[:, :bits]
    data: Array = np.packbits(each, bitorder="little")
    return data


def unpacked_bits(data: Array, bits: int, count: int) -> Array:
    """The inverse of `packed_bits`."""
    each: Array = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    numbers: Array = np.packbits(each, axis=1, bitorder="little")[:, 0]
    return numbers
