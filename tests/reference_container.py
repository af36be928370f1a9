"""A second decoder of .oxc files: docs/container.md in plain numpy, checksums of others.

Nothing of it is shared with `container_reader` but the parser of the directory.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
import numpy.typing as npt
import xxhash

from onnxcomp.container import Entry, cut, read_directory
from onnxcomp.kernels import coding_reference
from onnxcomp.kernels.planes_reference import join_fields
from onnxcomp.number_types import BFLOAT16, BITS, DOUBLE, FLOAT, FLOAT16, number_type
from onnxcomp.representations import Codebook, Grid, Planes, Same, Trellis
from onnxcomp.zstandard import decompress

Array = npt.NDArray[Any]
DTYPES = {FLOAT: "f4", FLOAT16: "f2", DOUBLE: "f8", BFLOAT16: ml_dtypes.bfloat16}


class Reference:
    """A container in memory; every check that fails is an AssertionError."""

    def __init__(self, data: bytes, base: Reference | None = None) -> None:
        self.data, self.base = data, base
        magic, version, reserved, features = struct.unpack_from("<8sHHI", data)
        offset, length, found, start, end = struct.unpack_from("<QQQQ8s", data, len(data) - 40)
        assert magic == end[::-1] == b"\x89OXC\r\n\x1a\n"
        assert (version, reserved) == (1, 0)
        assert offset + length + 40 == len(data)
        self.identity = xxhash.xxh3_64_intdigest(data[offset : offset + length])
        assert self.identity == found
        self.directory = read_directory(data[offset : offset + length], features)
        packed = self.directory.skeleton_packed
        assert xxhash.xxh3_64_intdigest(data[: 16 + packed]) == start
        self.skeleton = decompress(data[16 : 16 + packed], self.directory.skeleton_size)
        if features & 1:
            assert base is not None
            assert base.identity == self.directory.base

    def file(self) -> bytes:
        """The model file; of a container with a data file, that."""
        parts, position = [], 0
        for index, entry in enumerate(self.directory.entries):
            gap = self.skeleton[position : position + entry.gap]
            parts += [bytes(entry.gap) if self.directory.external else gap, self.tensor(index)]
            position += entry.gap
        if not self.directory.external:
            parts.append(self.skeleton[position:])
        return b"".join(parts)

    def tensor(self, index: int) -> bytes:
        """The bytes of a tensor."""
        entry = self.directory.entries[index]
        how = entry.representation
        if isinstance(how, Same):
            source = self.base if how.of_base else self
            assert source is not None
            values = source.tensor(how.index)
        else:
            values = decoded(entry, [self.stream(entry, s) for s in range(len(entry.streams))])
        assert xxhash.xxh3_64_intdigest(values) == entry.checksum
        return values

    def stream(self, entry: Entry, number: int) -> list[Array]:
        """Codes of each chunk, [rows, columns, kernel]."""
        codes, _ = entry.representation.streams()
        table = entry.representation.table
        dims, bits = entry.number_dims, entry.bits
        if number >= codes:
            assert table is not None
            dims, bits = (table.item, table.count), 8
        place, found = cut(dims, bits), []
        for index, chunk in enumerate(entry.streams[number]):
            payload = self.data[chunk.offset : chunk.offset + chunk.length]
            assert google_crc32c.value(payload) == chunk.checksum
            found.append(coding_reference.decode(payload, place.shape(index)))
        return found


def decoded(entry: Entry, streams: list[list[Array]]) -> bytes:
    """Bytes of a tensor from the codes of the chunks of its streams."""
    how = entry.representation
    flat = [np.concatenate([c.reshape(-1) for c in chunks] or [np.zeros(0, np.int32)])
            for chunks in streams]  # fmt: skip
    kind = number_type(entry.data_type)
    if isinstance(how, Planes):
        whole = join_fields(flat, how.widths, how.rotated)
        return widened(whole, how.source, kind).tobytes()
    if isinstance(how, Codebook):
        return table_of(how.values, flat)[flat[0]].tobytes()
    if isinstance(how, Grid):
        codes = np.concatenate([restored(c, how.along, entry.dims).reshape(-1) for c in streams[0]]
                               ) if isinstance(how, Trellis) else flat[0]  # fmt: skip
        scales = table_of(how.scales, flat).view(np.float32)
        values = codes.astype(np.float32).reshape(entry.dims) * spread(scales, how, entry.dims)
        return values.astype(DTYPES[kind]).tobytes()
    numbers = flat[0].astype(np.int64) & (2**entry.bits - 1 if entry.bits < 64 else -1)
    bits = numbers[:, None].view(np.uint8).reshape(numbers.size, 8)
    each = np.unpackbits(bits, axis=1, bitorder="little")[:, : entry.bits]
    return np.packbits(each, bitorder="little").tobytes()


def table_of(table: Any, flat: list[Array]) -> Array:
    if table.inline is not None:
        return np.frombuffer(table.inline, f"<u{table.item}")
    rows = flat[-1].reshape(table.item, table.count).astype(np.uint64)
    shifts = np.arange(table.item)[::-1, None].astype(np.uint64) * np.uint64(8)
    values: Array = (rows << shifts).sum(axis=0, dtype=np.uint64).astype(f"<u{table.item}")
    return values


def spread(scales: Array, grid: Grid, dims: tuple[int, ...]) -> Array:
    """The scales in a shape that multiplies the tensor."""
    if grid.axis == 255:
        return scales.reshape(())
    if not grid.block:
        return scales.reshape([-1 if axis == grid.axis else 1 for axis in range(len(dims))])
    shape = list(dims)
    shape[grid.axis] = -(-dims[grid.axis] // grid.block)
    place = np.arange(dims[grid.axis]) // grid.block
    return np.take(scales.reshape(shape), place, axis=grid.axis)


def restored(chunk: Array, along: int, dims: tuple[int, ...]) -> Array:
    """Integers of one chunk of a trellis."""
    shape = (-1, *dims[1:])
    found = np.zeros(chunk.size, np.int64).reshape(chunk.reshape(shape).shape)
    codes = np.moveaxis(chunk.reshape(shape).astype(np.int64), along, -1)
    out = np.moveaxis(found, along, -1)
    for index in np.ndindex(codes.shape[:-1]):
        state = 0
        for place, code in enumerate(codes[index].tolist()):
            sign = (code > 0) - (code < 0)
            out[(*index, place)] = 2 * code - sign * (state >> 3)
            state = ((state << 1) & 15) ^ (9 if state >> 3 else 0) ^ (4 if code % 2 else 0)
    return ((found + 2**31) % 2**32 - 2**31).astype(np.int64)


def widened(numbers: Array, source: int, kind: int) -> Array:
    """Bits of floats of one type as bits of a wider one, from sign, exponent and fraction."""
    if source == kind:
        return numbers
    layouts = {FLOAT16: (5, 10), BFLOAT16: (8, 7), FLOAT: (8, 23), DOUBLE: (11, 52)}
    (exponent_bits, fraction_bits), (wide_exponent, wide_fraction) = layouts[source], layouts[kind]
    found = []
    for number in numbers.tolist():
        fraction = number & (1 << fraction_bits) - 1
        exponent = number >> fraction_bits & (1 << exponent_bits) - 1
        sign = number >> (fraction_bits + exponent_bits)
        top, bias = (1 << exponent_bits) - 1, (1 << exponent_bits - 1) - 1
        if exponent == top:
            wide = (1 << wide_exponent) - 1 << wide_fraction
            wide |= fraction << wide_fraction - fraction_bits
        else:
            value = math.ldexp(fraction, 1 - bias - fraction_bits)
            if exponent:
                value = math.ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits)
            layout = "<fI" if kind == FLOAT else "<dQ"
            (wide,) = struct.unpack(f"<{layout[2]}", struct.pack(layout[:2], value))
        found.append(sign << wide_exponent + wide_fraction | wide)
    return np.array(found, f"<u{BITS[kind] // 8}")
