"""Bytes of a container's file: read from many threads, payloads without new memory for each."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from onnxcomp.errors import CorruptContainer, UnsupportedModel


class ContainerFile:
    """An open file.

    Attributes:
        path: of the file.
        descriptor: the operating system's number of it.
        size: its bytes.
    """

    def __init__(self, path: Path) -> None:
        """Raises UnsupportedModel when the file cannot be read."""
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close
        except OSError as error:
            raise UnsupportedModel(f"{path}: cannot be read ({error.strerror})") from error
        self.path = path
        self.descriptor = self._file.fileno()
        self.size = os.fstat(self._file.fileno()).st_size
        self._lock = threading.Lock()
        self._local = threading.local()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``.

        Raises:
            CorruptContainer: the file has none there any more.
        """
        data = bytearray(length)
        self._fill(memoryview(data), offset)
        return bytes(data)

    def read_again(self, slot: int, offset: int, length: int) -> memoryview:
        """As `read`; the bytes stay until this thread reads into the same slot again.

        New memory for each payload would cost more than decoding it: the system clears it first.
        """
        slots: dict[int, bytearray] = self._local.__dict__.setdefault("slots", {})
        if slot not in slots or len(slots[slot]) < length:
            slots[slot] = bytearray(length + length // 4)
        view = memoryview(slots[slot])[:length]
        self._fill(view, offset)
        return view

    def _fill(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < len(view):
            count = self._read_into(view[done:], offset + done)
            if not count:
                raise CorruptContainer(f"{self.path}: became shorter while it was read")
            done += count

    def _read_into(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(view) or 0
