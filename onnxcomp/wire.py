"""Where the values of tensors lie in a serialized ModelProto, found without parsing it whole.

Protobuf's wire format (protobuf.dev/programming-guides/encoding) is walked down the few messages
that can hold a tensor; everything else is stepped over. So a mapped file is never copied, and its
bytes can be given back exactly, however they were serialized.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from onnxcomp.errors import UnsupportedModel
from onnxcomp.varints import varint

Buffer = bytes | bytearray | memoryview
DEEPEST = 200  # messages within each other; protobuf itself stops at 100
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
# Field numbers of onnx.proto: message -> field -> the message it holds.
MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {
        5: "tensor",
        6: "graph",
        10: "tensor",
        11: "graph",
        22: "sparse",
        23: "sparse",
    },
    "sparse": {1: "tensor", 2: "tensor"},
}
GRAPH, INITIALIZER = 7, 5  # of the model and of its graph
DIMS, DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA, DOUBLE_DATA = 1, 2, 4, 8, 9, 10
EXTERNAL_DATA, DATA_LOCATION = 13, 14
EXTERNAL = 1  # of TensorProto.DataLocation
VALUES = (FLOAT_DATA, RAW_DATA, DOUBLE_DATA)  # fields whose payload is plain little-endian numbers


@dataclass(frozen=True)
class Field:
    """One field: ``number``, wire type ``kind``, its value in [start, end), its tag at ``tag``."""

    number: int
    kind: int
    tag: int
    start: int
    end: int


@dataclass
class StoredTensor:
    """A TensorProto in a buffer.

    Attributes:
        start: where the message starts.
        end: where it ends.
        initializer: whether it is an initializer of the outermost graph.
        data_type: of TensorProto.DataType.
        dims: its shape.
        name: (position, length) of its name in the buffer.
        values: the fields of VALUES that it has.
        external: whether it says that its values are in another file.
    """

    start: int
    end: int
    initializer: bool
    data_type: int = 0
    dims: list[int] = field(default_factory=list)
    name: tuple[int, int] = (0, 0)
    values: list[Field] = field(default_factory=list)
    external: bool = False


def read_varint(data: Buffer, position: int, end: int) -> tuple[int, int]:
    """(value, position behind it).

    Raises:
        UnsupportedModel: it runs beyond ``end`` or 64 bits.
    """
    value = shift = 0
    while position < end and shift < 64:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & (2**64 - 1), position
        shift += 7
    raise _broken(position)


def prefix(number: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return varint(number << 3 | LENGTH) + varint(length)


def fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """The fields of a message in [start, end).

    Raises:
        UnsupportedModel: the bytes are no message.
    """
    position = start
    while position < end:
        tag = position
        key, position = read_varint(data, position, end)
        number, kind = key >> 3, key & 7
        begin = position
        if kind == VARINT:
            _, position = read_varint(data, position, end)
        elif kind == LENGTH:
            length, begin = read_varint(data, position, end)
            position = begin + length
        elif kind in (FIXED64, FIXED32):
            position += 8 if kind == FIXED64 else 4
        else:
            raise _broken(tag)
        if position > end or not number:
            raise _broken(tag)
        yield Field(number, kind, tag, begin, position)


def find_tensors(data: Buffer) -> list[StoredTensor]:
    """Every TensorProto of a serialized ModelProto, in the order of the file.

    Raises:
        UnsupportedModel: the bytes are no ModelProto, or hold no graph.
    """
    found: list[StoredTensor] = []
    todo = [("model", 0, len(data), 0, False)]
    graphs = 0
    while todo:
        message, start, end, depth, outermost = todo.pop()
        if message == "tensor":
            found.append(_tensor(data, start, end, outermost))
            continue
        if depth > DEEPEST:
            raise UnsupportedModel(f"not an ONNX model: messages within messages, {depth} deep")
        inner = MESSAGES[message]
        for item in fields(data, start, end):
            kind = inner.get(item.number) if item.kind == LENGTH else None
            if kind is not None:
                graphs += message == "model" and kind == "graph"
                top = (message == "model" and kind == "graph") or (
                    outermost and message == "graph" and kind == "tensor"
                )
                todo.append((kind, item.start, item.end, depth + 1, top))
    if graphs != 1:
        raise UnsupportedModel(f"not an ONNX model, it holds {graphs or 'no'} graphs")
    return sorted(found, key=lambda tensor: tensor.start)


def _tensor(data: Buffer, start: int, end: int, initializer: bool) -> StoredTensor:
    tensor = StoredTensor(start, end, initializer)
    for item in fields(data, start, end):
        if item.number == DIMS:
            tensor.dims += _numbers(data, item)
        elif item.number == DATA_TYPE and item.kind == VARINT:
            tensor.data_type = read_varint(data, item.start, item.end)[0]
        elif item.number == NAME and item.kind == LENGTH:
            tensor.name = item.start, item.end - item.start
        elif item.number in VALUES:
            tensor.values.append(item)
        elif item.number == DATA_LOCATION and item.kind == VARINT:
            tensor.external = read_varint(data, item.start, item.end)[0] == EXTERNAL
    return tensor


def _numbers(data: Buffer, item: Field) -> list[int]:
    """The numbers of a repeated integer field, packed or not."""
    numbers, position = [], item.start
    while position < item.end:
        value, position = read_varint(data, position, item.end)
        numbers.append(value)
    return numbers


def _broken(position: int) -> UnsupportedModel:
    return UnsupportedModel(
        f"not an ONNX model, or cut short: no protobuf field at byte {position}"
    )
