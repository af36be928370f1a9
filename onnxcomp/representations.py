"""How the bytes of a tensor come from integers: the arithmetic of docs/container.md.

Each representation says which streams it reads and turns the codes of one chunk of each into
numbers, as unsigned integers of their bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnxcomp.kernels.coding import MAX_CODES
from onnxcomp.number_types import BITS, FLOATS, NAMES, WIDENED, number_type
from onnxcomp.varints import Cursor, varint

Array = npt.NDArray[Any]
LARGEST_TABLE = 4096  # values of a codebook
SMALLEST_STREAM = 17  # bytes of a table; below, it is part of the directory
WHOLE = 255  # for an axis: none


class Representation:
    """The base of all: reads no streams."""

    kind: ClassVar[int]
    name: ClassVar[str]

    def to_bytes(self) -> bytes:
        """As the directory has it."""
        return bytes([self.kind])

    def streams(self) -> tuple[int, list[tuple[int, ...]]]:
        """(streams of codes shaped as the tensor, shapes of the streams of tables)."""
        return 0, []

    @property
    def table(self) -> Table | None:
        """What it reads besides codes."""
        return None

    def describe(self) -> str:
        """In a word or two, for people."""
        return self.name


@dataclass(frozen=True)
class Table:
    """Numbers that codes are looked up in or multiplied with.

    Attributes:
        count: of numbers.
        item: bytes of a number.
        inline: the bytes as the directory has them, where they are few.
    """

    count: int
    item: int
    inline: bytes | None = None

    @property
    def dims(self) -> list[tuple[int, ...]]:
        """Shape of its stream: bytes of the numbers, the most significant ones first."""
        return [] if self.inline is not None else [(self.item, self.count)]


def make_table(values: Array) -> tuple[Table, Array]:
    """A table and the codes of its stream [item, count]; of few bytes, no codes.

    Args:
        values: unsigned integers.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    item = flat.dtype.itemsize
    data = flat.astype(flat.dtype.newbyteorder("<")).tobytes()
    if len(data) < SMALLEST_STREAM:
        return Table(flat.size, item, data), np.zeros((0, 0), np.int32)
    columns = np.frombuffer(data, np.uint8).reshape(-1, item)
    return Table(flat.size, item), columns[:, ::-1].T.astype(np.int32)


def table_values(table: Table, codes: Array | None) -> Array:
    """The numbers of a table as unsigned integers; ``codes`` [item, count] of its stream."""
    if codes is None:
        return np.frombuffer(table.inline or b"", f"<u{table.item}")
    data = np.ascontiguousarray(codes.astype(np.uint8)[::-1].T)
    return data.view(f"<u{table.item}").reshape(-1)


def _read_table(cursor: Cursor, count: int, item: int) -> Table:
    if count * item < SMALLEST_STREAM:
        return Table(count, item, cursor.take(count * item, "table"))
    return Table(count, item)


@dataclass(frozen=True)
class Integer(Representation):
    """number = code, modulo 2^bits."""

    kind, name = 1, "integer"

    def streams(self) -> tuple[int, list[tuple[int, ...]]]:
        """One."""
        return 1, []


@dataclass(frozen=True)
class Planes(Representation):
    """Bit fields of the number, from the top; with ``rotated`` the sign bit comes last.

    Attributes:
        source: data type of what the fields make up; numbers are widened from it exactly.
        rotated: whether the bits were rotated left by one.
        widths: of the fields.
    """

    source: int
    rotated: bool
    widths: tuple[int, ...]
    kind, name = 2, "planes"

    def to_bytes(self) -> bytes:
        """Kind, source, rotated, number of fields, widths."""
        return bytes([self.kind, self.source, self.rotated, len(self.widths), *self.widths])

    def streams(self) -> tuple[int, list[tuple[int, ...]]]:
        """One a field."""
        return len(self.widths), []

    def describe(self) -> str:
        """With the type its values have, and the bits of its fields."""
        return f"{NAMES[self.source].lower()} as {'+'.join(map(str, self.widths))}"


@dataclass(frozen=True)
class Grid(Representation):
    """number = float32(code) * scale, rounded to the type of the tensor.

    Attributes:
        axis: of the tensor along which scales differ, or WHOLE.
        block: elements along ``axis`` that share a scale; 0: each index has one, for all others.
        scales: float32.
    """

    axis: int
    block: int
    scales: Table
    kind, name = 3, "grid"

    def to_bytes(self) -> bytes:
        """Kind, axis, block, scales where they are few."""
        return bytes([self.kind, self.axis]) + varint(self.block) + (self.scales.inline or b"")

    def streams(self) -> tuple[int, list[tuple[int, ...]]]:
        """Codes, and scales where they are many."""
        return 1, self.scales.dims

    @property
    def table(self) -> Table:
        """The scales."""
        return self.scales

    def describe(self) -> str:
        """With the number of scales."""
        return f"grid, {self.scales.count} scale{'s' if self.scales.count != 1 else ''}"


@dataclass(frozen=True)
class Trellis(Grid):
    """As `Grid`, of integers that depend on the codes before.

    Attributes:
        along: axis of the tensor that sequences of codes run along, each chunk from its start.
    """

    along: int
    kind, name = 6, "trellis"

    def to_bytes(self) -> bytes:
        """Kind, axis of the sequences, and as `Grid`."""
        return bytes([self.kind, self.along]) + super().to_bytes()[1:]

    def describe(self) -> str:
        """With the number of scales."""
        return super().describe().replace("grid", self.name)


@dataclass(frozen=True)
class Codebook(Representation):
    """number = values[code]."""

    values: Table
    kind, name = 4, "codebook"

    def to_bytes(self) -> bytes:
        """Kind, number of values, and the values where they are few."""
        return bytes([self.kind]) + varint(self.values.count) + (self.values.inline or b"")

    def streams(self) -> tuple[int, list[tuple[int, ...]]]:
        """Codes, and values where they are many."""
        return 1, self.values.dims

    @property
    def table(self) -> Table:
        """The values."""
        return self.values

    def describe(self) -> str:
        """With the number of values."""
        return f"codebook of {self.values.count}"


@dataclass(frozen=True)
class Same(Representation):
    """The bytes of an earlier tensor of this container, or of a tensor of its base.

    Attributes:
        index: of the entry.
        of_base: whether it is one of the base.
    """

    index: int
    of_base: bool
    kind, name = 5, "same"

    def to_bytes(self) -> bytes:
        """Kind, which file, index."""
        return bytes([self.kind, self.of_base]) + varint(self.index)


def scale_shape(dims: tuple[int, ...], axis: int, block: int) -> tuple[int, ...]:
    """Shape of the scales of a grid: of all, of each index of an axis, or of blocks along it."""
    if axis == WHOLE:
        return ()
    if not block:
        return (dims[axis],)
    return (*dims[:axis], -(-dims[axis] // block), *dims[axis + 1 :])


def has_trellis(dims: tuple[int, ...]) -> bool:
    """Whether chunks of such a tensor are whole rows, which sequences of codes need."""
    return len(dims) > 1 and math.prod(dims[1:]) <= MAX_CODES


def read_representation(cursor: Cursor, data_type: int, dims: tuple[int, ...]) -> Representation:
    """The representation of a tensor, with what belongs to it.

    Raises:
        CorruptContainer: it is unknown or does not fit the tensor.
    """
    kind = cursor.number(127, "representation")
    if kind == Integer.kind:
        return Integer()
    if kind == Planes.kind:
        return _read_planes(cursor, data_type)
    if kind == Grid.kind:
        return _read_grid(cursor, data_type, dims)
    if kind == Trellis.kind:
        (along,) = cursor.take(1, "axis of its sequences")
        if along >= len(dims) or not has_trellis(dims):
            raise cursor.wrong(f"a shape of {len(dims)} axes has no sequences along axis {along}")
        grid = _read_grid(cursor, data_type, dims)
        return Trellis(grid.axis, grid.block, grid.scales, along)
    if kind == Codebook.kind:
        count = cursor.number(LARGEST_TABLE, "size of its codebook")
        if BITS[data_type] < 8:
            raise cursor.wrong("its type has no whole bytes")
        return Codebook(_read_table(cursor, count, BITS[data_type] // 8))
    if kind == Same.kind:
        of_base = cursor.number(1, "file of the same tensor")
        return Same(cursor.number(2**31, "index of the same tensor"), bool(of_base))
    raise cursor.wrong(f"representation {kind} is unknown")


def _read_planes(cursor: Cursor, data_type: int) -> Planes:
    if BITS[data_type] < 8:
        raise cursor.wrong("its type has no whole bytes")
    kind = number_type(data_type)
    source = cursor.number(255, "source type")
    if source != kind and source not in WIDENED.get(kind, ()):
        raise cursor.wrong(f"its numbers cannot come from data type {source}")
    rotated = cursor.number(1, "rotation")
    count = cursor.number(64, "number of fields")
    widths = tuple(cursor.take(count, "widths of its fields"))
    if sum(widths) != BITS[source] or not all(0 < width < 32 for width in widths):
        raise cursor.wrong(f"its fields of {widths} bits do not make up data type {source}")
    return Planes(source, bool(rotated), widths)


def _read_grid(cursor: Cursor, data_type: int, dims: tuple[int, ...]) -> Grid:
    if data_type not in FLOATS:
        raise cursor.wrong(f"data type {data_type} has no grid")
    (axis,) = cursor.take(1, "axis of its scales")
    if axis != WHOLE and axis >= len(dims):
        raise cursor.wrong(f"its scales have axis {axis} of {len(dims)}")
    block = cursor.number(2**31, "block of its scales")
    if axis == WHOLE and block:
        raise cursor.wrong("its scales have blocks of no axis")
    count = math.prod(scale_shape(dims, axis, block))
    if axis != WHOLE and count > math.prod(dims):  # a tensor without numbers would have a table
        raise cursor.wrong("it has more scales than numbers")
    return Grid(axis, block, _read_table(cursor, count, 4))
