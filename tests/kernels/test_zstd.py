"""The decoder of zstd frames against frames of the reference implementation, whole and damaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.kernels._native import decode_zstd
from onnxcomp.zstandard import zstd

LEVELS = [-7, -1, *range(1, 23)]
SIZES = [0, 1, 2, 5, 63, 64, 255, 256, 257, 1000, 65_535, 65_792, 131_072, 131_073, 300_000]
Option = zstd.CompressionParameter


def compress(data: bytes, level: int, checksum: bool = True, size: bool = True) -> bytes:
    options = {
        Option.compression_level: level,
        Option.checksum_flag: int(checksum),
        Option.content_size_flag: int(size),
    }
    frame: bytes = zstd.compress(data, options=options)
    return frame


def random_bytes(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def skewed(size: int) -> bytes:
    return np.random.default_rng(size).geometric(0.2, size).astype(np.uint8).tobytes()


def names(size: int) -> bytes:
    rng = np.random.default_rng(size)
    lines = (b"node_%d/Conv weight [%d]\n" % (i, rng.integers(0, 1000)) for i in range(size))
    return b"".join(line for line, _ in zip(lines, range(size // 20 + 1), strict=False))[:size]


def copies(size: int) -> bytes:
    """Noise with pieces of itself."""
    rng = np.random.default_rng(size)
    data = bytearray(rng.bytes(size))
    for _ in range(size // 40):
        source, target, length = *rng.integers(0, size, 2), rng.integers(3, 70)
        piece = data[source : source + length]
        data[target : target + len(piece)] = piece
    return bytes(data[:size])


def repeated(size: int) -> bytes:
    return (random_bytes(37) * (size // 37 + 1))[:size]


KINDS = [bytes, random_bytes, skewed, names, copies, repeated]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_frames_of_every_level_and_size_are_unpacked(kind: type[bytes]) -> None:
    for size in SIZES:
        data = kind(size)
        for level in LEVELS if size <= 1000 else [-5, 1, 3, 7, 19]:
            assert decode_zstd(compress(data, level), size) == data, (size, level)
        assert decode_zstd(compress(data, 3, checksum=False, size=False), size) == data, size


@pytest.mark.parametrize("level", [1, 12, 19, 22])
def test_a_megabyte_of_many_blocks_is_unpacked(level: int) -> None:
    data = names(400_000) + copies(300_000) + bytes(200_000) + skewed(148_576)
    assert decode_zstd(compress(data, level), len(data)) == data


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.integers(1, 90)), max_size=30),
    st.sampled_from(LEVELS),
    st.booleans(),
    st.booleans(),
)
def test_whatever_was_packed_comes_back(
    pieces: list[tuple[bytes, int]], level: int, checksum: bool, declared: bool
) -> None:
    data = b"".join(piece * times for piece, times in pieces)
    assert decode_zstd(compress(data, level, checksum, declared), len(data)) == data


def test_frames_without_an_end_or_of_another_size_are_named() -> None:
    data = names(3000)
    for size in (True, False):
        frame = compress(data, 19, size=size)
        for wrong in (0, 2999, 3001, 10**6):
            assert isinstance(decode_zstd(frame, wrong), str), wrong
        for end in range(len(frame)):
            assert isinstance(decode_zstd(frame[:end], len(data)), str), end
    assert decode_zstd(frame + b"\0", 3000) == "bytes follow it"
    assert decode_zstd(frame[:-1] + bytes([frame[-1] ^ 1]), 3000) == "its checksum differs"
    assert decode_zstd(b"\x50\x2a\x4d\x18\0\0\0\0", 0) == "it is no zstd frame"


def test_a_dictionary_is_not_made_up() -> None:
    trained = zstd.train_dict([names(200 + i) for i in range(200)], 2000)
    data = names(500)
    frame = zstd.compress(data, zstd_dict=trained)
    assert decode_zstd(frame, 500) == "it needs a dictionary"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_changed_bit_is_found_or_harmless(kind: type[bytes]) -> None:
    data = kind(400)
    for level in (1, 19):
        frame = compress(data, level)
        for bit in range(8 * len(frame)):
            changed = bytearray(frame)
            changed[bit // 8] ^= 1 << bit % 8
            result = decode_zstd(bytes(changed), len(data))
            assert isinstance(result, str) or result == data, (level, bit)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.sampled_from([1, 3, 19]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=5),
)
def test_damaged_frames_end_without_a_checksum_too(
    kind: type[bytes], level: int, changes: list[tuple[float, int]]
) -> None:
    data = kind(5000)
    frame = bytearray(compress(data, level, checksum=False))
    for place, value in changes:
        frame[int(place * len(frame))] = value
    result = decode_zstd(bytes(frame), len(data))
    assert isinstance(result, str) or len(result) == len(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_behind_a_header_is_refused_or_of_the_declared_size(noise: bytes) -> None:
    block = (len(noise) << 3 | 5).to_bytes(3, "little")  # compressed, the last one
    frame = b"\x28\xb5\x2f\xfd\x00\x58" + block + noise
    result = decode_zstd(frame, 1000)
    assert isinstance(result, str) or len(result) == 1000
