"""Writes .oxc files: the start, payloads as they come, then the directory that describes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import BinaryIO

from onnxcomp.container import (
    EXTERNAL_DATA,
    FOOTER,
    HEADER,
    MAGIC,
    NEEDS_BASE,
    TELLS_ERRORS,
    VERSION,
    Chunk,
    Directory,
    Entry,
)
from onnxcomp.kernels.coding import crc32c, xxh3_64
from onnxcomp.zstandard import compress


class ContainerWriter:
    """A container being written.

    Attributes:
        directory: of what was added so far.
    """

    def __init__(
        self,
        file: BinaryIO,
        skeleton: bytes,
        *,
        external: bool,
        base: int | None = None,
        errors: bool = False,
    ) -> None:
        frame = compress(skeleton)
        features = (EXTERNAL_DATA if external else 0) | (0 if base is None else NEEDS_BASE)
        features |= TELLS_ERRORS if errors else 0
        start = HEADER.pack(MAGIC, VERSION, 0, features) + frame
        file.write(start)
        self._file, self._start_hash, self._end = file, xxh3_64(start), len(start)
        self.directory = Directory(len(skeleton), len(frame), [], external, base, errors)

    def add(self, entry: Entry, streams: Iterable[Sequence[bytes]]) -> None:
        """Appends a tensor: of each stream its payloads, in order."""
        for payloads in streams:
            chunks = []
            for payload in payloads:
                chunks.append(Chunk(self._end, len(payload), crc32c(payload)))
                self._file.write(payload)
                self._end += len(payload)
            entry.streams.append(chunks)
        self.directory.entries.append(entry)

    def finish(self) -> int:
        """Writes directory and footer; bytes of the whole file."""
        data = self.directory.to_bytes()
        footer = (self._end, len(data), xxh3_64(data), self._start_hash, MAGIC[::-1])
        self._file.write(data + FOOTER.pack(*footer))
        return self._end + len(data) + FOOTER.size
