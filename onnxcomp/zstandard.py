"""Frames of zstd (RFC 8878) with the module that Python has since 3.14, or its backport."""

from __future__ import annotations

import sys

from onnxcomp.errors import CorruptContainer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL = 19  # the highest that takes no more memory to decompress than the data itself
PIECE = 2**20  # bytes asked for at a time


def compress(data: bytes) -> bytes:
    """One frame that declares its size."""
    frame: bytes = zstd.compress(data, LEVEL)
    return frame


def decompress(frame: bytes, size: int) -> bytes:
    """The ``size`` bytes of a frame; never more are allocated, whatever it declares.

    Raises:
        CorruptContainer: it is no frame, or not of that size.
    """
    decoder, parts, left = zstd.ZstdDecompressor(), list[bytes](), size
    try:
        part = decoder.decompress(frame, min(left, PIECE))
        while part or (not decoder.eof and not decoder.needs_input):
            parts.append(part)
            left -= len(part)
            part = decoder.decompress(b"", min(left, PIECE) or 1)
            if len(part) > left:  # the frame holds more
                left = -1
                break
    except (zstd.ZstdError, EOFError) as error:
        if left or not decoder.eof:
            raise CorruptContainer(f"skeleton: {error}") from error
    if left or not decoder.eof or decoder.unused_data:
        raise CorruptContainer(f"skeleton: its frame does not hold {size} bytes")
    return b"".join(parts)
