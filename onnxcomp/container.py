"""The layout of .oxc files: docs/container.md in code, without anything that decodes values."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

from onnxcomp.number_types import BITS, COMPLEX, FLOAT
from onnxcomp.representations import WHOLE, Grid, Representation, Same, read_representation
from onnxcomp.varints import Cursor, varint

MAGIC = b"\x89OXC\r\n\x1a\n"
VERSION = 1  # tests/golden has files of it, which are read for ever
NEEDS_BASE, EXTERNAL_DATA, TELLS_ERRORS = 1, 2, 4  # feature bits
KNOWN_FEATURES = NEEDS_BASE | EXTERNAL_DATA | TELLS_ERRORS
HEADER = struct.Struct("<8sHHI")  # magic, version, reserved, feature bits
FOOTER = struct.Struct("<QQQQ8s")  # directory offset, length, hash; hash of the start; magic
MOST_CODES = 2**20  # of a chunk
LONGEST_PAYLOAD = 2**24  # bytes
LARGEST_TENSOR = 2**36  # bytes
LARGEST_DATA = 2**42  # bytes of a data file
LARGEST_SKELETON = 2**31 - 1  # bytes: protobuf's own limit
MOST_DIMS = 64
SMALLEST_ERROR = 2**14 - 1  # 164 dB below the outputs, where float32 has long ended


@dataclass(frozen=True)
class Cut:
    """How the numbers of a tensor, [rows, columns, kernel], are cut into chunks.

    Attributes:
        rows: of the whole tensor.
        columns: likewise.
        kernel: likewise.
        step: rows of a chunk; 0: a chunk is the next MOST_CODES numbers, as [1, n, 1].
    """

    rows: int
    columns: int
    kernel: int
    step: int

    @property
    def count(self) -> int:
        """Numbers of the tensor."""
        return self.rows * self.columns * self.kernel

    @property
    def chunks(self) -> int:
        """How many there are."""
        if not self.count:
            return 0
        return -(-self.rows // self.step) if self.step else -(-self.count // MOST_CODES)

    def start(self, chunk: int) -> int:
        """The first number of a chunk."""
        return chunk * (self.step * self.columns * self.kernel if self.step else MOST_CODES)

    def shape(self, chunk: int) -> tuple[int, int, int]:
        """[rows, columns, kernel] of a chunk."""
        if not self.step:
            return 1, min(MOST_CODES, self.count - self.start(chunk)), 1
        return min(self.step, self.rows - chunk * self.step), self.columns, self.kernel


def cut(dims: tuple[int, ...], bits: int = 8) -> Cut:
    """The chunks of a tensor of numbers.

    Args:
        dims: its shape.
        bits: of a number; under 8, chunks start at whole bytes.
    """
    rows, columns, kernel = 1, 1, 1
    if len(dims) == 1:
        columns = dims[0]
    elif dims:
        rows, columns, kernel = dims[0], dims[1], math.prod(dims[2:])
    length = columns * kernel
    step = min(MOST_CODES // length, rows) if length else 1
    if bits < 8 and step < rows:
        step -= step % 8
    return Cut(rows, columns, kernel, step)


@dataclass(frozen=True)
class Chunk:
    """A payload: where it lies in the file, and its CRC-32C."""

    offset: int
    length: int
    checksum: int


@dataclass
class Entry:
    """A tensor whose values are not in the skeleton.

    Attributes:
        gap: bytes between the values before and these: of the skeleton, or of zeros in a data file.
        initializer: whether it is an initializer of the outermost graph.
        name_start: where the bytes of its name start in the skeleton.
        name_length: how many there are.
        data_type: TensorProto.DataType.
        dims: its shape.
        representation: how its bytes come from streams.
        streams: of each stream its chunks.
        checksum: XXH3-64 of its bytes.
        error: that it alone causes at the outputs, as `error_field` gives it.
    """

    gap: int
    initializer: bool
    name_start: int
    name_length: int
    data_type: int
    dims: tuple[int, ...]
    representation: Representation
    streams: list[list[Chunk]] = field(default_factory=list)
    checksum: int = 0
    error: int = 0

    @property
    def number_dims(self) -> tuple[int, ...]:
        """Its shape in numbers."""
        return (*self.dims, 2) if self.data_type in COMPLEX else self.dims

    @property
    def bits(self) -> int:
        """Of a number."""
        return BITS[self.data_type]

    @property
    def size(self) -> int:
        """Bytes of its values in the model."""
        return (math.prod(self.number_dims) * self.bits + 7) // 8

    @property
    def packed(self) -> int:
        """Bytes of its payloads."""
        return sum(chunk.length for stream in self.streams for chunk in stream)

    @property
    def error_db(self) -> float | None:
        """The error that it alone causes at the outputs, against their energy; None for none."""
        return (1 - self.error) / 100 if self.error else None


def has_scale_a_row(entry: Entry, place: Cut) -> bool:
    """Whether chunks of a float32 grid are whole rows with a scale each, or all share one."""
    grid = entry.representation
    if not isinstance(grid, Grid) or entry.data_type != FLOAT or grid.block:
        return False
    return grid.axis == WHOLE or (grid.axis == 0 and place.step > 0 and len(entry.dims) > 1)


def error_field(share: float) -> int:
    """What the directory holds of an error: 1 + hundredths of a dB below the outputs; 0 for none.

    Args:
        share: energy of the error over that of the outputs.
    """
    if not share > 0:
        return 0
    below = round(-1000 * math.log10(share)) if math.isfinite(share) else 0
    return min(max(below + 1, 1), SMALLEST_ERROR)


@dataclass
class Directory:
    """What a container holds.

    Attributes:
        skeleton_size: bytes of the skeleton.
        skeleton_packed: bytes of its zstd frame.
        entries: in the order of their values in the file.
        external: whether they belong into a data file beside the model, else into its holes.
        base: hash of the container that a delta package needs.
        errors: whether it tells the error of each tensor.
    """

    skeleton_size: int
    skeleton_packed: int
    entries: list[Entry]
    external: bool = False
    base: int | None = None
    errors: bool = False

    def to_bytes(self) -> bytes:
        """As it is written."""
        parts = [varint(self.skeleton_size), varint(self.skeleton_packed)]
        if self.base is not None:
            parts.append(struct.pack("<Q", self.base))
        parts.append(varint(len(self.entries)))
        parts += [_entry_bytes(entry, self.errors) for entry in self.entries]
        return b"".join(parts)


def read_directory(data: bytes, features: int) -> Directory:
    """Parses a directory; offsets of chunks follow from their lengths.

    Raises:
        CorruptContainer: a field is missing, out of its range or beyond a limit.
    """
    cursor = Cursor(data, "directory")
    size = cursor.number(LARGEST_SKELETON, "size of the skeleton")
    packed = cursor.number(2**31, "length of the skeleton")
    base = cursor.fixed("<Q") if features & NEEDS_BASE else None
    count = cursor.number(len(data), "number of tensors")
    external = bool(features & EXTERNAL_DATA)
    left, offset, entries = LARGEST_DATA if external else size, HEADER.size + packed, list[Entry]()
    for index in range(count):
        cursor.where = f"directory: tensor {index}"
        entry = _read_entry(cursor, entries, offset, features)
        left -= entry.gap + (entry.size if external else 0)
        if left < 0:
            raise cursor.wrong("its place is outside the file")
        if entry.name_start + entry.name_length > size:
            raise cursor.wrong("its name is outside the skeleton")
        offset += entry.packed
        entries.append(entry)
    cursor.where = "directory"
    cursor.finish()
    return Directory(size, packed, entries, external, base, bool(features & TELLS_ERRORS))


def _entry_bytes(entry: Entry, errors: bool) -> bytes:
    parts = [bytes([entry.initializer]), varint(entry.gap), varint(entry.name_length)]
    if entry.name_length:
        parts.append(varint(entry.name_start))
    parts += [varint(entry.data_type), varint(len(entry.dims)), *map(varint, entry.dims)]
    parts.append(entry.representation.to_bytes())
    for stream in entry.streams:
        for chunk in stream:
            parts += [varint(chunk.length), struct.pack("<I", chunk.checksum)]
    if errors:
        parts.append(varint(entry.error))
    parts.append(struct.pack("<Q", entry.checksum))
    return b"".join(parts)


def _read_entry(cursor: Cursor, before: list[Entry], offset: int, features: int) -> Entry:
    initializer = cursor.number(1, "flags")
    gap = cursor.number(LARGEST_TENSOR, "gap")
    name_length = cursor.number(LARGEST_SKELETON, "length of its name")
    name_start = cursor.number(LARGEST_SKELETON, "place of its name") if name_length else 0
    data_type = cursor.number(255, "data type")
    if data_type not in BITS:
        raise cursor.wrong(f"data type {data_type} is unknown")
    rank = cursor.number(MOST_DIMS, "rank")
    dims = tuple(cursor.number(LARGEST_TENSOR, "dimension") for _ in range(rank))
    if math.prod(max(size, 1) for size in dims) > LARGEST_TENSOR:
        raise cursor.wrong("it is too large")
    entry = Entry(
        gap,
        bool(initializer),
        name_start,
        name_length,
        data_type,
        dims,
        read_representation(cursor, data_type, dims),
    )
    if entry.size > LARGEST_TENSOR:
        raise cursor.wrong("it is too large")
    same = entry.representation
    if isinstance(same, Same):
        _check_same(cursor, same, entry.size, before, features)
    for dims, bits in stream_dims(entry):
        stream = []
        for _ in range(cut(dims, bits).chunks):
            length = cursor.number(LONGEST_PAYLOAD, "length of a chunk")
            stream.append(Chunk(offset, length, cursor.fixed("<I")))
            offset += length
        entry.streams.append(stream)
    if features & TELLS_ERRORS:
        entry.error = cursor.number(SMALLEST_ERROR, "error")
    entry.checksum = cursor.fixed("<Q")
    return entry


def _check_same(cursor: Cursor, same: Same, size: int, before: list[Entry], features: int) -> None:
    if same.of_base:
        if not features & NEEDS_BASE:
            raise cursor.wrong("it refers to a base that the header does not announce")
        return
    other = before[same.index] if same.index < len(before) else None
    if other is None or other.size != size or isinstance(other.representation, Same):
        raise cursor.wrong(f"it cannot be the same as tensor {same.index}")


def stream_dims(entry: Entry) -> list[tuple[tuple[int, ...], int]]:
    """Of each stream the shape that it is cut by, and the bits of a number."""
    codes, tables = entry.representation.streams()
    return [(entry.number_dims, entry.bits)] * codes + [(dims, 8) for dims in tables]
