"""The numpy twin of headers and frequency tables of rans payloads (docs/codec.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import CorruptContainer

Integers = npt.NDArray[np.int64]

_ONE = 1 << 16
_SERIES = (1073741824, 744261118, 257941248, 59597083, 10327387)  # ln(2)^k / k!, 30 bits


def refuse(what: str) -> NoReturn:
    """Raises CorruptContainer with what is wrong."""
    raise CorruptContainer(what)


class BitReader:
    """Bit i of the stream is bit i % 8 of byte i // 8; numbers have their lowest bit first."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data, "little")
        self._size = 8 * len(data)
        self._position = 0

    def read(self, width: int) -> int:
        """The next `width` bits. Raises CorruptContainer behind the end."""
        if self._position + width > self._size:
            refuse("it ends too early")
        value = (self._bits >> self._position) & ((1 << width) - 1)
        self._position += width
        return value

    def read_golomb(self, order: int) -> int:
        """An Exp-Golomb number of at most 39 bits."""
        top = order
        while self.read(1):
            top += 1
            if top == 40:
                refuse("it ends too early")
        return self.read(top) + (1 << top) - (1 << order)

    def read_signed_golomb(self, order: int) -> int:
        """0, -1, 1, -2, 2 ... are written as 0, 1, 2, 3, 4 ..."""
        folded = self.read_golomb(order)
        return -(folded + 1) // 2 if folded % 2 else folded // 2

    def to_byte(self) -> int:
        """Bytes read so far; the rest of the last one must be zeros."""
        if self.read(-self._position % 8):
            refuse("a field of its header is out of range")
        return self._position // 8


@dataclass(frozen=True)
class Header:
    """What every rans payload begins with."""

    lanes: int
    resolution: int
    low_bits: int
    symbols: int
    lowest: int
    escape: int
    escape_order: int
    side_bytes: int


def read_header(reader: BitReader) -> Header:
    """Raises CorruptContainer for a field out of its range."""
    lanes, resolution = 1 << reader.read(3), 8 + reader.read(3)
    low_bits, symbols = reader.read(5), 1 + reader.read(8)
    lowest, escape = reader.read_signed_golomb(3), reader.read(1)
    order, side_bytes = (reader.read(5), reader.read_golomb(6)) if escape else (0, 0)
    header = Header(lanes, resolution, low_bits, symbols, lowest, escape, order, side_bytes)
    highest = ((lowest + symbols - escape) << low_bits) - 1
    fits = lowest << low_bits >= -(2**31) and highest < 2**31
    if lanes > 32 or resolution > 12 or low_bits > 24 or symbols < 2 or not fits:
        refuse("a field of its header is out of range")
    return header


def read_frequencies(reader: BitReader, symbols: int, resolution: int) -> Integers:
    """Frequencies [symbols] written one by one; the last is what is left."""
    frequency = np.zeros(symbols, np.int64)
    left, order = 1 << resolution, resolution - 3
    for s in range(symbols):
        f = reader.read_golomb(order) if s + 1 < symbols else left
        if f >= 1 << resolution or f > left:
            refuse("its frequencies do not sum to the resolution")
        frequency[s] = f
        left -= f
        order = max(f, 1).bit_length() - 1
    return frequency


def read_classes(reader: BitReader, header: Header, classes: int) -> Integers:
    """Frequencies [classes, symbols], each class one by one or as a Gaussian."""
    shape, slots = 3 + reader.read(4), 1 << header.resolution
    alphabet = header.symbols - header.escape
    escape_frequency = reader.read_golomb(2) if header.escape else 0
    if (header.escape and escape_frequency == 0) or alphabet + escape_frequency > slots:
        refuse("its frequencies do not sum to the resolution")
    spread, mean = 0, 8 * alphabet
    frequency = np.zeros((classes, header.symbols), np.int64)
    for c in range(classes):
        if not reader.read(1):
            frequency[c] = read_frequencies(reader, header.symbols, header.resolution)
            continue
        spread += reader.read_signed_golomb(1)
        mean += reader.read_signed_golomb(3)
        if abs(spread) > 96 or abs(mean) > 8192:
            refuse("its frequencies do not sum to the resolution")
        rest = slots - escape_frequency
        frequency[c, :alphabet] = gaussian_frequencies(mean, spread, shape, alphabet, rest)
        if header.escape:
            frequency[c, -1] = escape_frequency
    return frequency


def gaussian_frequencies(mean: int, spread: int, shape: int, alphabet: int, slots: int) -> Integers:
    """Frequencies [alphabet] that sum to slots.

    A symbol weighs the sum of 2^-(|x - mean| / spread)^shape at two points of its interval, a
    generalised Gaussian (S. Nadarajah, Journal of Applied Statistics 32, 2005) in fixed point.
    """
    points = 64 * np.arange(alphabet)[:, None] + np.array([-18, 18]) - 4 * mean
    ratio = _log2(np.maximum(abs(points), 1)) - 6 * _ONE - spread * (_ONE // 8)
    power = _exp2(np.clip((ratio * shape) >> 3, -16 * _ONE, 16 * _ONE))
    weights = _exp2(-np.minimum(power, 40 * _ONE)).sum(1)
    total = int(weights.sum())
    frequency: Integers = 1 + (
        weights * (slots - alphabet) // total if total else np.zeros_like(weights)
    )
    frequency[weights.argmax()] += slots - frequency.sum()
    return frequency


def _log2(values: Integers) -> Integers:
    """log2 of numbers below 2^30, with 16 fractional bits."""
    top = np.frexp(values.astype(np.float64))[1] - 1
    mantissa = values << (30 - top)
    fraction = np.zeros_like(values)
    for _ in range(16):
        mantissa = (mantissa * mantissa) >> 30
        carry = mantissa >> 31
        mantissa >>= carry
        fraction = 2 * fraction + carry
    return top * _ONE + fraction


def _exp2(exponents: Integers) -> Integers:
    """2^exponent, both with 16 fractional bits."""
    x = (exponents & 0xFFFF) << 14
    total = np.full_like(x, _SERIES[-1])
    for coefficient in _SERIES[-2::-1]:
        total = ((total * x) >> 30) + coefficient
    shift = 14 - (exponents >> 16)
    down, up = np.clip(shift, 0, 63), np.clip(-shift, 0, 30)
    result: Integers = np.where(shift >= 0, total >> down, total << up)
    return result
