"""CRC-32C and XXH3-64 against published values, other implementations and each other."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest
import xxhash

from onnxcomp.kernels import _native, coding

LENGTHS = [*range(300), 511, 512, 1023, 1024, 1025, 1088, 2047, 2048, 2049, 6143, 6144, 6153, 70001]


def test_crc32c_is_that_of_rfc_3720() -> None:
    assert coding.crc32c(bytes(32)) == 0x8A9136AA
    assert coding.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert coding.crc32c(bytes(range(32))) == 0x46DD794E
    assert coding.crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("start", range(3))
def test_checksums_agree_with_other_implementations(start: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, max(LENGTHS) + 3, np.uint8)
    for length in LENGTHS:
        part = data[start : start + length].tobytes()
        assert coding.crc32c(part) == google_crc32c.value(part), length
        assert _native.crc32c_portable(part) == coding.crc32c(part), length
        assert coding.xxh3_64(part) == xxhash.xxh3_64_intdigest(part), length
        assert _native.xxh3_64_portable(part) == coding.xxh3_64(part), length


def test_arrays_and_views_are_read_in_place() -> None:
    array = np.arange(100, dtype=np.float32)
    assert coding.crc32c(array) == coding.crc32c(array.tobytes())
    assert coding.xxh3_64(memoryview(array)[10:]) == coding.xxh3_64(array[10:].tobytes())
    with pytest.raises((BufferError, ValueError)):
        coding.crc32c(array[::2])
