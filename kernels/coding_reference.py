"""The numpy twin of the compiled codec: decodes every payload as docs/codec.md specifies.

Slow, one step of all lanes at a time, and written to be read beside the specification.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcomp.kernels.coding_reference_cabac import decode_cabac
from onnxcomp.kernels.coding_reference_tables import (
    BitReader,
    Header,
    read_classes,
    read_frequencies,
    read_header,
    refuse,
)

Codes = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]
Shape = tuple[int, int, int]

_LOWEST_STATE = 1 << 16
_MAX_CLASSES = 84


def decode(payload: bytes, shape: Shape) -> Codes:
    """The codes[rows, columns, kernel] of a payload. Raises CorruptContainer."""
    if len(payload) < 2:
        refuse("it ends too early")
    back_end, profile = payload[0], payload[1]
    count = shape[0] * shape[1] * shape[2]
    if back_end == 0:
        values = _decode_raw(payload, count)
    elif back_end == 1 and profile < 4 and count > 0:
        values = _decode_rans(payload, shape)
    elif back_end == 2 and profile < 3 and count > 0:
        values = decode_cabac(payload, shape)
    else:
        refuse("its back end or its profile is unknown")
    if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
        refuse("a code does not fit 32 bits")
    return values.astype(np.int32).reshape(shape)


def _decode_raw(payload: bytes, count: int) -> Integers:
    width = payload[1]
    reader = BitReader(payload[2:])
    offset = reader.read_signed_golomb(6)
    body = payload[2 + reader.to_byte() :]
    if width > 32 or len(body) != (count * width + 7) // 8:
        refuse("its length is not that of its codes")
    return _low_bits(body, count, width) + offset


def _low_bits(body: bytes, count: int, width: int) -> Integers:
    """Numbers of `width` bits each, the lowest bit first."""
    bits = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little").astype(np.int64)
    if bits[count * width :].any():
        refuse("its last byte is not filled with zeros")
    return bits[: count * width].reshape(count, width) @ (1 << np.arange(width, dtype=np.int64))


def _decode_rans(payload: bytes, shape: Shape) -> Integers:
    reader = BitReader(payload[2:])
    header = read_header(reader)
    profile, count = payload[1], shape[0] * shape[1] * shape[2]
    classes: Integers | None = None
    model: RowModel | None = None
    if profile == 0:
        frequency = read_frequencies(reader, header.symbols, header.resolution)[None]
    elif profile == 1:
        frequency = read_classes(reader, header, 1)
    elif profile == 2:
        classes, number = _read_tiles(reader, count)
        frequency = read_classes(reader, header, number)
    else:
        model = read_row_model(reader, shape)
        frequency = read_classes(reader, header, model.mean_levels * model.scale_levels)
    rest = payload[2 + reader.to_byte() :]
    low_bytes = (count * header.low_bits + 7) // 8
    side, rest = rest[: header.side_bytes], rest[header.side_bytes :]
    low, rest = rest[:low_bytes], rest[low_bytes:]
    if len(low) < low_bytes or len(rest) < 4 * header.lanes or len(rest) % 2:
        refuse("it ends too early")
    lanes = Lanes(rest, header, frequency)
    if model is not None:
        symbols = decode_rows(lanes, model, header, shape)
    else:
        symbols = _decode_in_order(lanes, count, classes)
    lanes.close()
    values = _fill_escapes(symbols, header, side)
    if header.low_bits:
        values = (values << header.low_bits) + _low_bits(low, count, header.low_bits)
    return values


def _read_tiles(reader: BitReader, count: int) -> tuple[Integers, int]:
    """The class of every code, and how many classes there are."""
    length = 1 << (5 + reader.read(4))
    number = 1 + reader.read(4)
    width = (2 * number - 1).bit_length() - 1
    classes = [reader.read(width) for _ in range(-(-count // length))]
    if max(classes) >= number:
        refuse("a field of its header is out of range")
    return np.repeat(np.array(classes, np.int64), length)[:count], number


class Lanes:
    """The interleaved decoders of one payload: states, and the words they share."""

    def __init__(self, rest: bytes, header: Header, frequency: Integers) -> None:
        self.count = header.lanes
        self.resolution = header.resolution
        self.states = np.frombuffer(rest[: 4 * self.count], "<u4").astype(np.int64)
        self.words = np.frombuffer(rest[4 * self.count :], "<u2").astype(np.int64)
        self.next_word = 0
        slots = 1 << header.resolution
        symbols = np.broadcast_to(np.arange(header.symbols), frequency.shape).ravel()
        self._symbol = np.repeat(symbols, frequency.ravel()).reshape(-1, slots)
        self._frequency = frequency
        self._first = frequency.cumsum(1) - frequency

    def decode(self, classes: Integers) -> Integers:
        """The next symbol of the first len(classes) lanes, each with its own class."""
        states = self.states[: len(classes)]
        slots = states & ((1 << self.resolution) - 1)
        symbols: Integers = self._symbol[classes, slots]
        bias = slots - self._first[classes, symbols]
        states = self._frequency[classes, symbols] * (states >> self.resolution) + bias
        takes = states < _LOWEST_STATE
        words = self.words[self.next_word : self.next_word + int(takes.sum())]
        if len(words) < takes.sum():
            refuse("it ends too early")
        states[takes] = states[takes] << 16 | words
        self.next_word += len(words)
        self.states[: len(classes)] = states
        return symbols

    def close(self) -> None:
        """Raises CorruptContainer unless everything ends where the encoder began."""
        if (self.states != _LOWEST_STATE).any():
            refuse("the decoder's final state is not the encoder's first")
        if self.next_word != len(self.words):
            refuse("bytes are left over at its end")


def _decode_in_order(lanes: Lanes, count: int, classes: Integers | None) -> Integers:
    symbols = np.empty(count, np.int64)
    for begin in range(0, count, lanes.count):
        end = min(count, begin + lanes.count)
        now = np.zeros(end - begin, np.int64) if classes is None else classes[begin:end]
        symbols[begin:end] = lanes.decode(now)
    return symbols


def _fill_escapes(symbols: Integers, header: Header, side: bytes) -> Integers:
    values = symbols + header.lowest
    reader = BitReader(side)
    alphabet = header.symbols - header.escape
    for at in np.flatnonzero(symbols == alphabet) if header.escape else ():
        above = reader.read(1)
        distance = reader.read_golomb(header.escape_order)
        values[at] = header.lowest + (alphabet + distance if above else -1 - distance)
    if reader.to_byte() != len(side):
        refuse("its escaped codes do not fit")
    return values


@dataclass(frozen=True)
class RowModel:
    """Contexts of the profile rows; weights[positions, 10] are 5 + 4 and the bias."""

    mean_levels: int
    scale_levels: int
    center: int
    start_row: int
    start_column: int
    weights: Integers
    far: int


def read_row_model(reader: BitReader, shape: Shape) -> RowModel:
    """What the header says of contexts. Raises CorruptContainer."""
    mean_levels, scale_levels = 1 + 2 * reader.read(3), 1 + reader.read(5)
    center = reader.read(8)
    start_row, start_column = reader.read_golomb(6), reader.read_golomb(6)
    positions = shape[2] if reader.read(1) else 1
    if mean_levels * scale_levels > _MAX_CLASSES or shape[1] * shape[2] > 1 << 15:
        refuse("a field of its header is out of range")
    if start_row > 127 * 32 or start_column > 127 * 64:
        refuse("a field of its header is out of range")
    weights = np.zeros((positions, 10), np.int64)
    for row in weights:
        if mean_levels > 1:
            row[:5] = [reader.read_signed_golomb(4) for _ in range(5)]
        if scale_levels > 1:
            row[5:9] = [reader.read_signed_golomb(4) for _ in range(4)]
            row[9] = reader.read_signed_golomb(7)
    if abs(weights[:, :9]).max() > 4096 or abs(weights[:, 9]).max() > 1 << 24:
        refuse("a field of its header is out of range")
    far = shape[2] if shape[2] > 4 else 5
    return RowModel(mean_levels, scale_levels, center, start_row, start_column, weights, far)


def decode_rows(lanes: Lanes, model: RowModel, header: Header, shape: Shape) -> Integers:
    """The symbols of all rows, in C order."""
    rows, length = shape[0], shape[1] * shape[2]
    symbols = np.empty((rows, length), np.int64)
    columns = np.full(length, model.start_column, np.int64)
    for first in range(0, rows, lanes.count):
        group = symbols[first : first + lanes.count]
        contexts = _decode_group(lanes, model, header, columns, group)
        columns = (columns >> 1) + abs(contexts).sum(0) * (32 // lanes.count)
    return symbols.ravel()


def _decode_group(
    lanes: Lanes, model: RowModel, header: Header, columns: Integers, symbols: Integers
) -> Integers:
    """Fills symbols[active, length]; the contexts [active, length] they become."""
    active, length = symbols.shape
    # Enough zeros in front for every neighbour of the first code.
    contexts = np.zeros((active, model.far + length), np.int64)
    magnitude = np.full(active, model.start_row, np.int64)
    half = model.mean_levels // 2
    for j in range(length):
        weights = model.weights[j % len(model.weights)]
        now = model.far + j
        near = contexts[:, [now - 1, now - 2, now - 3, now - 4, now - model.far]]
        sizes = abs(near)
        scale = weights[9] + weights[5] * sizes[:, :3].sum(1) + weights[6] * sizes[:, 4]
        scale += weights[7] * (magnitude >> 3) + weights[8] * (columns[j] >> 4)
        mean_level = np.clip((near @ weights[:5] + 32) >> 6, -half, half) + half
        scale_level = np.clip(scale >> 8, 0, model.scale_levels - 1)
        symbols[:, j] = lanes.decode(scale_level * model.mean_levels + mean_level)
        context = np.clip(symbols[:, j] - model.center, -127, 127)
        context[symbols[:, j] == header.symbols - header.escape] = 0
        contexts[:, now] = context
        magnitude += abs(context) - (magnitude >> 5)
    return contexts[:, model.far :]
