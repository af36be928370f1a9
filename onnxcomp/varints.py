"""Numbers of any size in bytes (LEB128, as in protobuf), read with every bound checked."""

from __future__ import annotations

import struct

from onnxcomp.errors import CorruptContainer


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


class Cursor:
    """Reads fields one after the other.

    Attributes:
        where: what is being read, for messages.
    """

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._position, self.where = data, 0, where

    def number(self, largest: int, what: str) -> int:
        """The next varint, at most ``largest``, in as few bytes as it can have.

        Raises:
            CorruptContainer: it is cut short, too large or padded.
        """
        value = shift = 0
        for byte in self._data[self._position : self._position + 10]:
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                self._position += shift // 7
                if value > largest or (not byte and shift > 7):
                    raise self.wrong(f"{what} is out of range")
                return value
        raise self.wrong(f"{what} is cut short")

    def fixed(self, layout: str) -> int:
        """The next integer of a fixed size, as `struct` writes it."""
        (value,) = struct.unpack(layout, self.take(struct.calcsize(layout), "a checksum"))
        return int(value)

    def take(self, count: int, what: str) -> bytes:
        """The next bytes."""
        if count > len(self._data) - self._position:
            raise self.wrong(f"{what} is cut short")
        self._position += count
        return self._data[self._position - count : self._position]

    def finish(self) -> None:
        """Refuses what is left over."""
        if self._position != len(self._data):
            raise self.wrong("bytes are left over")

    def wrong(self, what: str) -> CorruptContainer:
        """The error to raise."""
        return CorruptContainer(f"{self.where}: {what}")
