"""Reads .oxc files: checks everything, and allocates what the directory declares at most."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.container import (
    FOOTER,
    HEADER,
    KNOWN_FEATURES,
    MAGIC,
    VERSION,
    Cut,
    cut,
    has_scale_a_row,
    read_directory,
    stream_dims,
)
from onnxcomp.container_file import ContainerFile
from onnxcomp.errors import CorruptContainer, OnnxcompError, UnsupportedModel
from onnxcomp.kernels.coding import crc32c, decode, decode_scaled, xxh3_64
from onnxcomp.kernels.planes import decode_planes
from onnxcomp.number_types import BFLOAT16, BITS, FLOAT, FLOAT16, number_type
from onnxcomp.representations import Codebook, Grid, Planes, Same, table_values
from onnxcomp.restoring import from_codebook, from_grid, from_integer, packed_bits, widen
from onnxcomp.zstandard import decompress

Array = npt.NDArray[Any]
Task = Callable[[], None]
Run = Callable[[Iterable[Task]], None]
WIDENED_IN_PLACE = {FLOAT16: "float16", BFLOAT16: "bfloat16"}  # to float32


def run_in_order(tasks: Iterable[Task]) -> None:
    """Runs tasks one after the other."""
    for task in tasks:
        task()


def is_container(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like a container."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class ContainerReader:
    """An open container whose directory was checked.

    Attributes:
        path: of the file.
        size: its bytes.
        directory: what it holds.
        identity: hash by which a delta package knows it.
        base: the container that it needs; None where it needs none or none was given.
    """

    def __init__(self, path: str | os.PathLike[str], base: ContainerReader | None = None) -> None:
        """Opens a container.

        Raises:
            UnsupportedModel: it cannot be read, or is no container.
            CorruptContainer: it is damaged, of another version, or the base is another one.
        """
        self.path = Path(path)
        self._file = ContainerFile(self.path)
        try:
            self.size = self._file.size
            self._open()
            self.base = base
            if base is not None:
                self._check_base(base)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> ContainerReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def skeleton(self) -> bytes:
        """The model file without the values of the tensors of the directory.

        Raises:
            CorruptContainer: its frame is damaged.
        """
        return self._skeleton

    @functools.cached_property
    def _skeleton(self) -> bytes:
        frame = self._file.read(HEADER.size, self.directory.skeleton_packed)
        with self.naming():
            return decompress(frame, self.directory.skeleton_size)

    @functools.cached_property
    def names(self) -> list[str]:
        """Of each tensor the name; of one without, where it is."""
        skeleton = self.skeleton()
        return [
            skeleton[entry.name_start : entry.name_start + entry.name_length].decode(
                "utf-8", "replace"
            )
            or f"#{index}"
            for index, entry in enumerate(self.directory.entries)
        ]

    def read(self, index: int, run: Run = run_in_order) -> Array:
        """The bytes of a tensor, uint8 [size], checked against their hash.

        Raises:
            CorruptContainer: a payload or the result is damaged, or the base is missing.
        """
        out = self.allocate(self.directory.entries[index].size)
        run(self.tasks(index, out))
        self.check(index, out)
        return out

    def allocate(self, size: int) -> Array:
        """Room for so many bytes of tensors.

        Raises:
            CorruptContainer: the machine has no room for what the directory declares.
        """
        try:
            return np.empty(size, np.uint8)
        except (MemoryError, ValueError, OverflowError):
            raise CorruptContainer(
                f"{self.path}: declares tensors of {size} bytes, more than there is memory"
            ) from None

    def check(self, index: int, out: Array) -> None:
        """Compares the decoded bytes of a tensor with their hash.

        Raises:
            CorruptContainer: they differ.
        """
        if xxh3_64(out.data) != self.directory.entries[index].checksum:
            raise self._error(f"{self._label(index)}: its decoded values have another hash")

    def payloads(self, index: int, chunk: int) -> list[tuple[int, int, int, int]]:
        """Of each stream of codes (file descriptor, offset, length, CRC-32C) of a chunk."""
        entry = self.directory.entries[index]
        codes, _ = entry.representation.streams()
        found = [chunks[chunk] for chunks in entry.streams[:codes]]
        return [(self._file.descriptor, c.offset, c.length, c.checksum) for c in found]

    def payload_starts(self, index: int) -> list[bytes]:
        """Back end and profile of every payload of a tensor, two bytes each."""
        streams = self.directory.entries[index].streams
        return [self._file.read(chunk.offset, 2) for chunks in streams for chunk in chunks]

    def same_as(self, index: int) -> str | None:
        """The name of the tensor whose values another one has too."""
        how = self.directory.entries[index].representation
        if not isinstance(how, Same):
            return None
        if how.of_base:
            return f"base: {self.base.names[how.index] if self.base else f'#{how.index}'}"
        return self.names[how.index]

    def tasks(self, index: int, out: Array) -> Iterator[Task]:
        """What has to be done, in any order and thread, to fill ``out`` with a tensor."""
        entry = self.directory.entries[index]
        how = entry.representation
        if isinstance(how, Same):
            yield from self.source(index, how).tasks(how.index, out)
            return
        cuts = [cut(*dims) for dims in stream_dims(entry)]
        table = self.table(index, cuts)
        for chunk in range(cuts[0].chunks):
            yield functools.partial(self._fill, index, chunk, cuts, table, out)

    def source(self, index: int, same: Same) -> ContainerReader:
        """Whose tensor another one repeats: this container or its base."""
        if not same.of_base:
            return self
        if self.base is None:
            raise self._error("is a delta package; name the container it was made from (--base)")
        others = self.base.directory.entries
        size = self.directory.entries[index].size
        if same.index >= len(others) or others[same.index].size != size:
            raise self._error(f"{self._label(index)}: is none of the base's tensors")
        return self.base

    def table(self, index: int, cuts: list[Cut]) -> Array | None:
        """The numbers that codes of a tensor are multiplied with or looked up in."""
        table = self.directory.entries[index].representation.table
        if table is None or table.inline is not None:
            return None if table is None else table_values(table, None)
        place, planes = cuts[-1], self.allocate(table.item * table.count)
        for chunk in range(place.chunks):  # a byte a code, whatever a chunk of codes takes
            codes = self._codes(index, len(cuts) - 1, chunk, place).reshape(-1)
            planes[place.start(chunk) :][: codes.size] = codes.astype(np.uint8)
        return table_values(table, planes.reshape(table.item, table.count))

    def _fill(
        self, index: int, chunk: int, cuts: list[Cut], table: Array | None, out: Array
    ) -> None:
        """Decodes one chunk of all streams of codes into its place in ``out``."""
        entry, place = self.directory.entries[index], cuts[0]
        how, start = entry.representation, place.start(chunk)
        first = start * entry.bits // 8
        target = out[first : first + (math.prod(place.shape(chunk)) * entry.bits + 7) // 8]
        if isinstance(how, Planes):
            self._fill_planes(index, chunk, place, how, target)
            return
        if type(how) is Grid and table is not None and has_scale_a_row(entry, place):
            self._fill_rows(index, chunk, place, table.view(np.float32), target)
            return
        codes = self._codes(index, 0, chunk, place).reshape(-1)
        if isinstance(how, Grid) and table is not None:
            numbers = from_grid(codes, table, how, entry.dims, entry.data_type, start)
        elif isinstance(how, Codebook) and table is not None:
            try:
                numbers = from_codebook(codes, table)
            except IndexError:
                raise self._error(
                    f"{self._label(index)}, chunk {chunk}: a code is outside the codebook"
                ) from None
        else:
            numbers = from_integer(codes, entry.bits)
        target[:] = packed_bits(numbers, entry.bits) if entry.bits < 8 else numbers.view(np.uint8)

    def _fill_planes(self, index: int, chunk: int, place: Cut, how: Planes, target: Array) -> None:
        """Decodes one chunk of all fields, without arrays of codes in between."""
        kind, shape = number_type(self.directory.entries[index].data_type), place.shape(chunk)
        payloads = [self._payload(index, s, chunk) for s in range(len(how.widths))]
        widened = WIDENED_IN_PLACE.get(how.source, "") if kind == FLOAT else ""
        source = FLOAT if widened else how.source
        item = BITS[source] // 8
        direct = source == kind and target.ctypes.data % item == 0
        decoded = target if direct else np.empty(math.prod(shape) * item, np.uint8)
        try:
            decode_planes(payloads, how.widths, how.rotated, shape, decoded, widened=widened)
        except CorruptContainer as error:
            raise self._error(f"{self._label(index)}, chunk {chunk}: {error}") from error
        if not direct:
            target[:] = widen(decoded.view(f"u{item}"), source, kind).view(np.uint8)

    def _fill_rows(self, index: int, chunk: int, place: Cut, scales: Array, target: Array) -> None:
        """Decodes and multiplies one chunk of a float32 grid, by a scale for all or each row."""
        shape, payload = place.shape(chunk), self._payload(index, 0, chunk)
        if scales.size > 1:
            scales = scales[chunk * place.step :][: shape[0]]
        direct = target.ctypes.data % 4 == 0
        decoded = target.view(np.float32) if direct else np.empty(math.prod(shape), np.float32)
        try:
            decode_scaled(payload, shape, scales, decoded)
        except CorruptContainer as error:
            raise self._error(f"{self._label(index)}, stream 0, chunk {chunk}: {error}") from error
        if not direct:
            target[:] = decoded.view(np.uint8)

    def _codes(self, index: int, stream: int, chunk: int, place: Cut) -> Array:
        """Codes of a chunk of a stream, int32 [rows, columns, kernel]."""
        payload = self._payload(index, stream, chunk)
        try:
            return decode(payload, place.shape(chunk))
        except CorruptContainer as error:
            where = f"{self._label(index)}, stream {stream}, chunk {chunk}"
            raise self._error(f"{where}: {error}") from error

    def _payload(self, index: int, stream: int, chunk: int) -> memoryview:
        """A payload whose checksum holds; until this thread reads one of that stream again."""
        found = self.directory.entries[index].streams[stream][chunk]
        payload = self._file.read_again(stream, found.offset, found.length)
        if crc32c(payload) != found.checksum:
            where = f"{self._label(index)}, stream {stream}, chunk {chunk}"
            raise self._error(f"{where}: its checksum differs")
        return payload

    def _open(self) -> None:
        """Reads and checks header, footer and directory."""
        header = self._file.read(0, min(HEADER.size, self.size))
        if header[: len(MAGIC)] != MAGIC[: len(header)] or not header:
            raise UnsupportedModel(f"{self.path}: not an .oxc container")
        if self.size < HEADER.size + FOOTER.size:
            raise self._error("is cut short")
        _, version, reserved, features = HEADER.unpack(header)
        if version != VERSION:
            raise self._error(f"has version {version}, this onnxcomp reads {VERSION}")
        if reserved or features & ~KNOWN_FEATURES:
            raise self._error(f"needs features that this onnxcomp lacks ({features:#x})")
        footer = self._file.read(self.size - FOOTER.size, FOOTER.size)
        offset, length, directory_hash, start_hash, magic = FOOTER.unpack(footer)
        if magic != MAGIC[::-1] or offset + length + FOOTER.size != self.size:
            raise self._error("its end is missing or damaged")
        data = self._file.read(offset, length)
        if xxh3_64(data) != directory_hash:
            raise self._error("its directory has another hash")
        with self.naming():
            self.directory = read_directory(data, features)
        start = HEADER.size + self.directory.skeleton_packed
        if start + sum(entry.packed for entry in self.directory.entries) != offset:
            raise self._error("its payloads are not as long as the directory says")
        if xxh3_64(self._file.read(0, start)) != start_hash:
            raise self._error("its header or skeleton has another hash")
        self.identity = directory_hash

    def _check_base(self, base: ContainerReader) -> None:
        if self.directory.base is None:
            raise self._error("is no delta package; it needs no base")
        if base.directory.base is not None:
            raise self._error(f"needs a base that is whole; {base.path} is a delta package itself")
        if self.directory.base != base.identity:
            raise self._error(f"was not made from {base.path}; name the container that it was")

    def _label(self, index: int) -> str:
        return f"tensor {self.names[index]!r}"

    def _error(self, what: str) -> CorruptContainer:
        return CorruptContainer(f"{self.path}: {what}")

    def naming(self) -> _Naming:
        """A context that puts the path before what is wrong with a part of the file."""
        return _Naming(self.path)


class _Naming:
    """Puts the path before what went wrong inside."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OnnxcompError):
            raise CorruptContainer(f"{self._path}: {error}") from error
        if isinstance(error, MemoryError):
            raise CorruptContainer(f"{self._path}: declares more than there is memory") from None
