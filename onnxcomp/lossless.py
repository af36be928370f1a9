"""Tensor -> representation and payloads that give back its bytes, the shortest of those that do."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnxcomp.container import Entry, cut, stream_dims
from onnxcomp.kernels.coding import encode
from onnxcomp.lattices import codebook, grids, narrowed
from onnxcomp.number_types import (
    BFLOAT16,
    BITS,
    DOUBLE,
    FLOAT,
    FLOAT16,
    FLOATS,
    SIGNED,
    number_type,
)
from onnxcomp.representations import (
    WHOLE,
    Codebook,
    Grid,
    Integer,
    Planes,
    Representation,
    Table,
    Trellis,
    make_table,
)
from onnxcomp.restoring import unpacked_bits

Array = npt.NDArray[Any]
Prefer = Literal["size", "speed"]
EXPONENTS = {FLOAT: 8, FLOAT16: 5, DOUBLE: 11, BFLOAT16: 8}  # bits
MORE_BITS = range(4)  # of the mantissa that the exponent's field may take along
WIDEST_RAW = 24  # bits of a field that is stored as it is
SYMBOL_BITS = 12  # what a table takes for each value that occurs, about
SAMPLE = 2**18  # numbers of a tensor that its fields are chosen on
RUN = 2**12  # of them that stand together
PAYS = 0.005  # share of its bits that coding a field has to save


@dataclass
class Coded:
    """A tensor ready to be written: payloads of each chunk of each stream."""

    representation: Representation
    streams: list[list[bytes]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes in the container, about: checksums and lengths of chunks count."""
        chunks = [payload for stream in self.streams for payload in stream]
        return sum(map(len, chunks)) + 7 * len(chunks) + len(self.representation.to_bytes())


def encode_lossless(entry: Entry, values: Array, *, prefer: Prefer = "size") -> Coded:
    """The shortest coding of a tensor.

    Args:
        entry: type and shape; its representation does not matter.
        values: its bytes, uint8.
        prefer: "size" or "speed", of decoding.
    """
    candidates = (
        _coded(entry, how, codes, tables, prefer)
        for how, codes, tables in _candidates(entry, values)
    )
    return min(candidates, key=lambda coded: coded.size)


def encode_grid(
    entry: Entry,
    codes: Array,
    scales: Array,
    axis: int | None,
    along: int | None = None,
    *,
    prefer: Prefer = "size",
) -> Coded:
    """A FLOAT tensor as float32(code) * scale.

    Args:
        entry: its shape.
        codes: int32, as many as it has elements.
        scales: float32 [1], or one for each index along ``axis``.
        axis: None for a single scale.
        along: axis that sequences of trellis codes run along; None where codes are the integers.
        prefer: "size" or "speed", of decoding.
    """
    table, stream = make_table(np.ascontiguousarray(scales, np.float32).view(np.uint32))
    grid = Grid(WHOLE if axis is None else axis, 0, table)
    if along is not None:
        grid = Trellis(grid.axis, grid.block, table, along)
    return _coded(entry, grid, [_of_array(codes)], _streams(table, stream), prefer)


Source = Callable[[int, int], Array]  # codes of the numbers from one on, to before another
Candidate = tuple[Representation, list[Source], list[Source]]


def _candidates(entry: Entry, values: Array) -> Iterator[Candidate]:
    """Representations with the codes [n] of their streams and the codes of their tables."""
    bits, kind = entry.bits, number_type(entry.data_type)
    if bits < 8:
        yield Integer(), [functools.partial(_of_bits, values, bits, kind in SIGNED)], []
        return
    numbers = values.view(f"<u{bits // 8}")
    if kind in FLOATS:
        yield from _of_floats(numbers, kind, entry)
        return
    if bits <= 32 or _fits(numbers, kind in SIGNED):
        yield Integer(), [functools.partial(_of_integers, numbers, bits, kind in SIGNED)], []
    if bits == 8 and _are_pairs(numbers):
        yield _fields(numbers, Planes(kind, False, (4, 4)))
    if bits > 16:
        yield _fields(numbers, Planes(kind, False, (16,) * (bits // 16)))


def _of_floats(numbers: Array, kind: int, entry: Entry) -> Iterator[Candidate]:
    source = narrowed(numbers, kind)
    yield _fields(*_best_planes(*(source or (kind, numbers))))
    if not numbers.size:
        return
    book = codebook(numbers)
    if book is not None:
        table, stream = make_table(book[0])
        yield Codebook(table), [_of_array(book[1])], _streams(table, stream)
    if entry.data_type == FLOAT:  # the numbers of complex types have no grid
        for grid in grids(numbers, entry.number_dims):
            table, stream = make_table(grid.scales.view(np.uint32))
            yield Grid(grid.axis, 0, table), [_of_array(grid.codes)], _streams(table, stream)


def _coded(
    entry: Entry, how: Representation, codes: list[Source], tables: list[Source], prefer: Prefer
) -> Coded:
    """Cuts the codes of each stream into chunks and encodes them."""
    described = Entry(0, False, 0, 0, entry.data_type, entry.dims, how)
    result = Coded(how)
    for index, ((dims, bits), source) in enumerate(
        zip(stream_dims(described), [*codes, *tables], strict=True)
    ):
        place = cut(dims, bits)
        raw = isinstance(how, Planes) and how.widths[index] > 16
        payloads = []
        for chunk in range(place.chunks):
            shape, start = place.shape(chunk), place.start(chunk)
            part = source(start, start + math.prod(shape)).astype(np.int32, copy=False)
            part = np.ascontiguousarray(part).reshape(shape)
            payloads.append(encode(part, prefer=prefer, backend="raw" if raw else "auto"))
        result.streams.append(payloads)
    return result


def _of_array(codes: Array) -> Source:
    flat = codes.reshape(-1)
    return lambda start, stop: flat[start:stop]


def _streams(table: Table, codes: Array) -> list[Source]:
    """The streams of a table: none where it is part of the directory."""
    return [_of_array(codes)] if table.inline is None else []


def _of_bits(values: Array, bits: int, signed: bool, start: int, stop: int) -> Array:
    """Codes of numbers under 8 bits; ``start`` is one that starts a byte."""
    data = values[start * bits // 8 : -(-stop * bits // 8)]
    half = 2 ** (bits - 1) if signed else 0
    numbers: Array = unpacked_bits(data, bits, stop - start).astype(np.int32)
    return (numbers ^ half) - half


def _of_integers(numbers: Array, bits: int, signed: bool, start: int, stop: int) -> Array:
    """Codes of unsigned numbers that stand for integers."""
    part = numbers[start:stop]
    if bits == 64:
        return part.view(np.int64).astype(np.int32)
    if signed or bits == 32:
        return part.view(f"i{bits // 8}").astype(np.int32)
    return part.astype(np.int32)


def _fits(numbers: Array, signed: bool) -> bool:
    """Whether numbers of 64 bits are codes of 32."""
    if signed:
        values = numbers.view(np.int64)
        return bool((values == values.astype(np.int32)).all())
    return bool((numbers < 2**31).all())


def _are_pairs(numbers: Array) -> bool:
    """Whether bytes look like two codes of 4 bits each that know nothing of each other."""
    some = _some(numbers)
    halves = _coded_bits(some >> np.uint8(4)) + _coded_bits(some & np.uint8(15))
    return some.size > 0 and halves < _coded_bits(some)


def _fields(numbers: Array, planes: Planes) -> Candidate:
    """The bit fields of numbers, each as codes."""
    left, sources = BITS[planes.source], list[Source]()
    for width in planes.widths:
        left -= width
        sources.append(functools.partial(_of_field, numbers, planes, left, width))
    return planes, sources, []


def _of_field(
    numbers: Array, planes: Planes, shift: int, width: int, start: int, stop: int
) -> Array:
    """Codes of one field, ``width`` bits from bit ``shift`` on."""
    part, kind = numbers[start:stop], numbers.dtype.type
    if planes.rotated:
        part = (part << kind(1)) | (part >> kind(BITS[planes.source] - 1))
    codes: Array = (part >> kind(shift) & kind(2**width - 1)).astype(np.int32)
    return codes


def _best_planes(source: int, numbers: Array) -> tuple[Array, Planes]:
    """Fields of floats: exponent with some bits of the mantissa, then what is left.

    The sign, which no coder shortens, is rotated to the end. Fields that coding would not shorten
    are joined, so that they cost as little time as they can.
    """
    bits, some = BITS[source], _some(numbers)
    kind = numbers.dtype.type
    rotated = (some << kind(1)) | (some >> kind(bits - 1))
    best, top = None, 0
    for more in MORE_BITS:
        width = EXPONENTS[source] + more
        size = _coded_bits(rotated >> kind(bits - width)) + (bits - width) * some.size
        if best is None or size < best:
            best, top = size, width
    left, widths, joined = bits - top, [top], 0
    while left:
        width = left % 8 or 8
        left -= width
        plane = rotated >> kind(left) & kind(2**width - 1)
        pays = _coded_bits(plane) < (1 - PAYS) * width * some.size
        if pays or joined + width > WIDEST_RAW:
            widths += [joined] if joined else []
            joined = 0
        if pays:
            widths.append(width)
        else:
            joined += width
    widths += [joined] if joined else []
    return numbers, Planes(source, True, tuple(widths))


def _some(numbers: Array) -> Array:
    """At most SAMPLE numbers in runs, which no period of the tensor can deceive."""
    if numbers.size <= SAMPLE:
        return numbers
    starts = np.linspace(0, numbers.size - RUN, SAMPLE // RUN).astype(np.int64)
    some: Array = numbers[(starts[:, None] + np.arange(RUN)).reshape(-1)]
    return some


def _coded_bits(symbols: Array) -> float:
    """What an entropy coder needs for symbols of at most 16 bits, tables included."""
    counts = np.bincount(symbols.astype(np.int64))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / symbols.size)).sum()) + SYMBOL_BITS * counts.size
