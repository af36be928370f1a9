"""Model files without their large values, and back.

The skeleton of a single file is the file with the values cut out, byte for byte: putting them back
gives the same file, whoever serialized it. A model with external data is written anew, with all
of its large values in one data file; its skeleton is the model file.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.container import Entry
from onnxcomp.errors import CorruptContainer, UnsupportedModel
from onnxcomp.number_types import BITS, COMPLEX64, COMPLEX128, DOUBLE, FLOAT
from onnxcomp.representations import Integer
from onnxcomp.wire import DOUBLE_DATA, FLOAT_DATA, LENGTH, RAW_DATA, StoredTensor, find_tensors

Array = npt.NDArray[Any]
SMALLEST_HOLE = 256  # bytes; below, an entry of the directory costs more than coding saves
SMALLEST_MOVED = 2**16  # bytes; of a model with external data, values inside it move from here on
PAGE = 4096  # tensors of a data file start on pages, so that runtimes can map them
TYPES_OF = {FLOAT_DATA: (FLOAT, COMPLEX64), DOUBLE_DATA: (DOUBLE, COMPLEX128)}


@dataclass
class Hole:
    """Values that were cut out: their bytes, uint8, and the entry that describes them."""

    values: Array
    entry: Entry


@dataclass
class Skeleton:
    """A model in two parts.

    Attributes:
        data: the model file without the values.
        holes: in the order of the file that they belong to.
        external: whether that is a data file.
        size: bytes of the model, with its external data.
    """

    data: bytes
    holes: list[Hole]
    external: bool
    size: int


def cut_model(path: Path) -> Skeleton:
    """Reads a model; its values stay on disk until somebody looks at them.

    Raises:
        UnsupportedModel: it cannot be read or is no ONNX model, or its external data is missing.
    """
    data = _mapped(path)
    try:
        tensors = find_tensors(data.data)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{path}: {error}") from error
    if any(tensor.external for tensor in tensors):
        return _cut_external(path)
    holes, parts, position, removed = [], [], 0, 0
    for tensor in tensors:
        place = _large_values(tensor, data)
        if place is None:
            continue
        start, end = place
        parts.append(data[position:start])
        entry = _entry(tensor, start - position, removed)
        holes.append(Hole(data[start:end], entry))
        position, removed = end, removed + end - start
        after = tensor.name[0] > start  # a name behind the values moves with them
        if after:
            entry.name_start = tensor.name[0] - removed
    parts.append(data[position:])
    whole = b"".join(part.tobytes() for part in parts)
    return Skeleton(whole, holes, external=False, size=len(data))


def _mapped(path: Path) -> Array:
    """The bytes of a file, uint8, read when they are looked at."""
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise UnsupportedModel(f"{path}: is empty")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read ({error.strerror})") from error


def _large_values(tensor: StoredTensor, data: Array) -> tuple[int, int] | None:
    """Where the values of a tensor lie, if they can be cut out and are worth it."""
    if tensor.data_type not in BITS or len(tensor.values) != 1:
        return None
    (values,) = tensor.values
    if values.kind != LENGTH:
        return None
    if values.number != RAW_DATA and tensor.data_type not in TYPES_OF[values.number]:
        return None
    if not _is_large(tensor.data_type, tensor.dims, data[values.start : values.end]):
        return None
    return values.start, values.end


def _is_large(data_type: int, dims: Sequence[int], values: Array) -> bool:
    """Whether values are worth an entry, and as long as the type and the shape say."""
    if data_type not in BITS or values.size < SMALLEST_HOLE or min(dims, default=0) < 0:
        return False
    entry = Entry(0, False, 0, 0, data_type, tuple(dims), Integer())
    used = math.prod(entry.number_dims) * entry.bits % 8  # bits of the last byte
    return entry.size == values.size and not (used and values[-1] >> used)


def _entry(tensor: StoredTensor, gap: int, removed: int) -> Entry:
    """What the directory says of a tensor before its values are coded."""
    return Entry(
        gap=gap,
        initializer=tensor.initializer,
        name_start=tensor.name[0] - removed if tensor.name[1] else 0,
        name_length=tensor.name[1],
        data_type=tensor.data_type,
        dims=tuple(tensor.dims),
        representation=Integer(),
    )


# --- external data ----------------------------------------------------------------------------


def _cut_external(path: Path) -> Skeleton:
    from onnx import TensorProto

    from onnxcomp.model import read_proto
    from onnxcomp.stored import external_range

    model = read_proto(path)
    size, end, values = path.stat().st_size, 0, list[tuple[int, Array]]()
    for tensor in every_tensor(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            source, start, length = external_range(tensor, path.parent)
            data = _mapped(source)[start : start + length] if length else np.zeros(0, np.uint8)
            size += length
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT  # as readers that load it leave it
        elif len(tensor.raw_data) >= SMALLEST_MOVED:
            data = np.frombuffer(tensor.raw_data, np.uint8)
        else:
            continue
        if not _is_large(tensor.data_type, tensor.dims, data):
            tensor.raw_data = data.tobytes()
            continue
        tensor.ClearField("raw_data")
        offset = -(-end // PAGE) * PAGE
        values.append((offset - end, data))
        end = offset + data.size
        point_to(tensor, f"{path.name}.data", offset, data.size)
    skeleton = model.SerializeToString(deterministic=True)
    found = [tensor for tensor in find_tensors(skeleton) if tensor.external]
    holes = [
        Hole(data, _entry(tensor, gap, 0))
        for tensor, (gap, data) in zip(found, values, strict=True)
    ]
    return Skeleton(skeleton, holes, external=True, size=size)


def point_to(tensor: Any, location: str, offset: int, length: int) -> None:
    """Says that the values of a TensorProto are in a file."""
    from onnx import TensorProto

    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def every_tensor(message: Any) -> Iterator[Any]:
    """Every TensorProto within a message, in the order in which it is serialized."""
    from google.protobuf.message import Message
    from onnx import TensorProto

    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield from every_tensor(inner)


def parsed(skeleton: bytes) -> Any:
    """The skeleton of a model with external data as a ModelProto.

    Raises:
        CorruptContainer: it is none.
    """
    from google.protobuf.message import DecodeError
    from onnx import ModelProto

    try:
        return ModelProto.FromString(skeleton)
    except DecodeError:
        raise CorruptContainer("skeleton: it is no ONNX model") from None


def moved(skeleton: bytes, location: str) -> bytes:
    """The skeleton of a model with external data, whose data file is called ``location``.

    Raises:
        CorruptContainer: it is no model.
    """
    from onnx import TensorProto

    model = parsed(skeleton)
    for tensor in every_tensor(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
    data: bytes = model.SerializeToString(deterministic=True)
    return data
