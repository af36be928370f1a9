"""The Python twin of the back end cabac: decodes as docs/codec.md specifies, slowly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcomp.kernels.coding_reference_tables import BitReader, refuse

Integers = npt.NDArray[np.int64]
Shape = tuple[int, int, int]

_MAX_POSITIONS = 64
_FASTEST = 1 << 10
_COUNTED = 511


def _signed(reader: BitReader, width: int) -> int:
    value = reader.read(width)
    return value - (1 << width) if value >> (width - 1) else value


@dataclass(frozen=True)
class Model:
    """A payload's header; weights[positions] are 5 of codes, 6 of magnitudes and the bias."""

    depth: int
    center: int
    scale_levels: int
    mean_levels: int
    scale_shift: int
    mean_shift: int
    start: int
    weights: list[list[int]]

    @property
    def clip(self) -> int:
        """What neighbours see of large codes."""
        return min(127, 2 << self.depth)


def read_model(reader: BitReader, profile: int, shape: Shape) -> Model:
    """Raises CorruptContainer for a field out of its range."""
    positions = shape[2] if profile == 2 else 1
    if positions > _MAX_POSITIONS:
        refuse("its shape is not that of its profile")
    depth, center = reader.read(3), reader.read_signed_golomb(1)
    if depth > 6 or not -(2**31) <= center < 2**31:
        refuse("a field of its header is out of range")
    if profile == 0:
        return Model(depth, center, 1, 1, 0, 0, 0, [[0] * 12])
    scale_levels, mean_levels = 1 + reader.read(3), 1 + 2 * reader.read(2)
    scale_shift, mean_shift = reader.read(4), reader.read(4)
    start = reader.read_golomb(6)
    if start > 127 * 32:
        refuse("a field of its header is out of range")
    weights = [
        [_signed(reader, 8) for _ in range(11)] + [_signed(reader, 14)] for _ in range(positions)
    ]
    return Model(depth, center, scale_levels, mean_levels, scale_shift, mean_shift, start, weights)


class Estimate:
    """The probability that a bit is one, as two estimates times 2^16."""

    __slots__ = ("count", "fast", "slow")

    def __init__(self) -> None:
        self.fast = self.slow = 1 << 15
        self.count = 0

    def update(self, bit: int) -> None:
        """Moves both estimates towards `bit`."""
        rate = (1 << 17) // (2 * self.count + 3)
        flip = 0xFFFF if bit else 0
        fast, slow = self.fast ^ flip, self.slow ^ flip
        self.fast = (fast - (fast * max(rate, _FASTEST) >> 16)) ^ flip
        self.slow = (slow - (slow * rate >> 16)) ^ flip
        self.count = min(self.count + 1, _COUNTED)


class Decoder:
    """The arithmetic decoder: `code` lies in an interval of length `length`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._next = 8
        self.length = (1 << 64) - 1
        self.code = int.from_bytes(data[:8].ljust(8, b"\0"), "big")

    def _renormalise(self) -> None:
        if self.length < 1 << 32:
            word = self._data[self._next : self._next + 4].ljust(4, b"\0")
            self._next += 4
            self.length <<= 32
            self.code = self.code << 32 | int.from_bytes(word, "big")

    def bit(self, estimate: Estimate) -> int:
        """The next bit with an estimate, which learns from it."""
        bound = (self.length >> 17) * (estimate.fast + estimate.slow)
        value = int(self.code < bound)
        if value:
            self.length = bound
        else:
            self.length -= bound
            self.code -= bound
        estimate.update(value)
        self._renormalise()
        return value

    def raw(self) -> int:
        """The next bit that is as likely one as zero."""
        self.length >>= 1
        value = int(self.code >= self.length)
        self.code -= self.length * value
        self._renormalise()
        return value

    def close(self) -> None:
        """Raises CorruptContainer unless the encoder ended here."""
        if self._next < len(self._data):
            refuse("bytes are left over at its end")
        if self._next - len(self._data) > 8:
            refuse("it ends too early")
        if self.code >= self.length >> 8:
            refuse("the decoder's final state is not the encoder's first")


class Symbols:
    """Signed numbers as bits: significance, sign, tree of magnitudes, remainder."""

    def __init__(self, model: Model, data: bytes) -> None:
        self.decoder = Decoder(data)
        self._depth = model.depth
        self._half = model.mean_levels // 2
        self._nodes = [
            [[Estimate() for _ in range(1 << model.depth)] for _ in range(model.mean_levels)]
            for _ in range(model.scale_levels)
        ]
        self._signs = [Estimate() for _ in range(model.mean_levels)]
        self._prefix = [Estimate() for _ in range(32)]

    def read(self, level: int, side: int) -> int:
        """The next number, where neighbours tell its `level` and `side`."""
        bit, half = self.decoder.bit, self._half
        sides = self._nodes[level]
        if not bit(sides[half + abs(side)][0]):
            return 0
        negative = bit(self._signs[half + side])
        nodes, node = sides[half - side if negative else half + side], 1
        for _ in range(self._depth):
            node = 2 * node + bit(nodes[node])
        magnitude = node - (1 << self._depth) + 1
        if magnitude == 1 << self._depth:
            magnitude += self._remainder()
        return -magnitude if negative else magnitude

    def _remainder(self) -> int:
        top = self._depth
        while self.decoder.bit(self._prefix[top]):
            top += 1
            if top == 32:
                refuse("its escaped codes do not fit")
        value = 1
        for _ in range(top):
            value = 2 * value + self.decoder.raw()
        if value > 1 << 31:
            refuse("its escaped codes do not fit")
        return value - (1 << self._depth)


def decode_cabac(payload: bytes, shape: Shape) -> Integers:
    """The codes of a cabac payload, in C order. Raises CorruptContainer."""
    reader = BitReader(payload[2:])
    model = read_model(reader, payload[1], shape)
    symbols = Symbols(model, payload[2 + reader.to_byte() :])
    rows, length = shape[0], shape[1] * shape[2]
    far = shape[2] if shape[2] > 4 else 5
    above, columns = [0] * length, [model.start >> 2] * length
    codes = np.empty((rows, length), np.int64)
    for row in range(rows):
        # Zeros in front for the neighbours of the first codes.
        kept, magnitude = [0] * far, model.start
        for j in range(length):
            weights = model.weights[j % len(model.weights)]
            near = [kept[-1], kept[-2], kept[-3], kept[-far]]
            level, side = _context(model, weights, near, above[j], magnitude, columns[j])
            number = symbols.read(level, side)
            codes[row, j] = number + model.center
            kept.append(max(-model.clip, min(model.clip, number)))
            magnitude += abs(kept[-1]) - (magnitude >> 5)
            columns[j] += abs(kept[-1]) - (columns[j] >> 3)
        above = kept[far:]
    symbols.decoder.close()
    # Codes are congruent modulo 2^32.
    return codes.ravel().astype(np.int32).astype(np.int64)


def _context(
    model: Model, weights: list[int], near: list[int], above: int, row: int, column: int
) -> tuple[int, int]:
    """The level of magnitudes and the side that the neighbours lean to."""
    mean = sum(w * c for w, c in zip(weights, [*near, above], strict=False))
    scale = sum(w * abs(c) for w, c in zip(weights[5:9], near, strict=True)) + weights[11]
    scale = 32 * scale + weights[9] * row + 4 * weights[10] * column
    half = model.mean_levels // 2
    side = max(-half, min(half, (mean + (1 << model.mean_shift >> 1)) >> model.mean_shift))
    level = max(0, min(model.scale_levels - 1, scale >> (model.scale_shift + 5)))
    return level, side
