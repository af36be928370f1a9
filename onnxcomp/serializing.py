"""Graph -> bytes on disk, one weight at a time: no second copy of the model is ever in memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper

from onnxcomp.errors import UnsupportedModel
from onnxcomp.exporting import data_type_of, inline, to_proto
from onnxcomp.stored import SUB_BYTE, StoredValues, constant_bytes, external_range
from onnxcomp.wire import prefix

SMALLEST_EXTERNAL = 1024  # bytes; tensors that came in files of their own stay there from here on
SMALLEST_MOVED = 2**16  # bytes; others are put there only from here on
SMALLEST_STREAMED = 2**16  # bytes; smaller tensors of a single file are serialized together
PAGE = 4096  # external tensors start on pages, so that runtimes can map them
CHUNK = 2**26  # bytes copied between two chances to interrupt
GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
RAW_DATA = TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number
M = TypeVar("M", onnx.ModelProto, onnx.GraphProto, TensorProto)


def write_single(graph: gs.Graph, file: BinaryIO) -> None:
    """Writes a model with its weights inside: the bytes that serializing `to_proto` would give."""
    before, weights, after = _parts(graph)
    file.write(before)
    for weight in weights:
        file.write(weight.prefix)
        for part in weight.parts():
            file.write(part)
    file.write(after)


def single_bytes(graph: gs.Graph) -> int:
    """Bytes that `write_single` writes."""
    before, weights, after = _parts(graph)
    return len(before) + len(after) + _total(weights)


def _parts(graph: gs.Graph) -> tuple[bytes, list[_Weight], bytes]:
    """A serialized model as what is before its weights, the weights, and what is after them."""
    large: dict[str, gs.Constant] = {}

    def store(constant: gs.Constant, scope: str) -> TensorProto:
        if scope or constant_bytes(constant) < SMALLEST_STREAMED or _has_typed_values(constant):
            return inline(constant)
        large[constant.name] = constant
        return TensorProto(name=constant.name)

    model = to_proto(graph, store)
    first, last = _split(model.graph, INITIALIZER)
    weights = [_Weight(large.get(t.name), t) for t in model.graph.initializer]
    model.ClearField("graph")
    before, after = _split(model, GRAPH)
    size = len(first) + len(last) + _total(weights)
    return before + prefix(GRAPH, size) + first, weights, last + after


def write_external(graph: gs.Graph, data: BinaryIO, location: str) -> onnx.ModelProto:
    """Writes the weights to ``data`` and returns the model, which finds them at ``location``."""

    def store(constant: gs.Constant, scope: str) -> TensorProto:
        limit = SMALLEST_EXTERNAL if _is_external(constant) else SMALLEST_MOVED
        if constant_bytes(constant) < limit:
            return inline(constant)
        data.seek(-(-data.tell() // PAGE) * PAGE)
        return _append(constant, data, location)

    return to_proto(graph, store)


def copy_range(source: Path, start: int, length: int, target: BinaryIO) -> None:
    """Appends ``length`` bytes of ``source`` to ``target``, inside the kernel where it can.

    Raises:
        UnsupportedModel: the source became shorter meanwhile.
    """
    with open(source, "rb") as file:
        done = _copy_in_kernel(file, start, length, target) if hasattr(os, "copy_file_range") else 0
        file.seek(start + done)
        while done < length:
            chunk = file.read(min(CHUNK, length - done))
            if not chunk:
                raise UnsupportedModel(f"external data file {source} ended while it was copied")
            target.write(chunk)
            done += len(chunk)


class _Weight:
    """An initializer as a field of GraphProto: ``prefix`` and then ``size`` bytes of ``parts``.

    Asking protobuf for the size of a message serializes it, so large values are counted apart.
    """

    def __init__(self, constant: gs.Constant | None, proto: TensorProto) -> None:
        self._constant, length = constant, 0
        if constant is None:
            self._first, self._last = proto.SerializeToString(deterministic=True), b""
        else:
            length = constant_bytes(constant)
            first, self._last = _split(_header(constant), RAW_DATA)
            self._first = first + prefix(RAW_DATA, length)
        self.size = len(self._first) + length + len(self._last)
        self.prefix = prefix(INITIALIZER, self.size)

    def parts(self) -> Iterator[Any]:
        """What to write, one after the other."""
        yield self._first
        if self._constant is not None:
            yield _raw_bytes(self._constant)
        yield self._last


def _is_external(constant: gs.Constant) -> bool:
    """Whether the values came in a file of their own."""
    values = constant._values
    return isinstance(values, StoredValues) and values.is_external


def _has_typed_values(constant: gs.Constant) -> bool:
    """Whether the values came in float_data, int32_data ..., to be written as they are."""
    values = constant._values
    if not isinstance(values, StoredValues) or values.is_external:
        return False
    return not values.tensor.HasField("raw_data")


def _total(weights: list[_Weight]) -> int:
    return sum(len(weight.prefix) + weight.size for weight in weights)


def _header(constant: gs.Constant) -> TensorProto:
    """A constant without its values."""
    tensor, values = TensorProto(), constant._values
    if isinstance(values, StoredValues):
        tensor.doc_string = values.tensor.doc_string
        tensor.metadata_props.extend(values.tensor.metadata_props)
        if not tensor.doc_string:
            tensor.ClearField("doc_string")
    tensor.name = constant.name
    tensor.data_type = data_type_of(constant.dtype)
    tensor.dims.extend(constant.shape)
    return tensor


def _raw_bytes(constant: gs.Constant) -> Any:
    """The values as raw_data has them, without a copy where they lie so already."""
    stored = constant._values
    if isinstance(stored, StoredValues) and stored.tensor.HasField("raw_data"):
        return stored.tensor.raw_data
    values = np.asarray(constant.values)
    if data_type_of(values.dtype) in SUB_BYTE:
        return numpy_helper.from_array(values).raw_data
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _append(constant: gs.Constant, file: BinaryIO, location: str) -> TensorProto:
    values, offset = constant._values, file.tell()
    if _is_external(constant):
        source, start, length = external_range(values.tensor, values.folder)
        copy_range(source, start, length, file)
    else:
        file.write(_raw_bytes(constant))
    tensor = _header(constant)
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": file.tell() - offset}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _copy_in_kernel(file: BinaryIO, start: int, length: int, target: BinaryIO) -> int:
    """Bytes that copy_file_range moved; it does not work between all file systems."""
    done = 0
    target.flush()
    with contextlib.suppress(OSError):
        while done < length:
            count = min(CHUNK, length - done)
            moved = os.copy_file_range(file.fileno(), target.fileno(), count, start + done)
            if not moved:
                break
            done += moved
    target.seek(0, os.SEEK_END)  # its buffer does not know that the file grew
    return done


def _split(message: M, number: int) -> tuple[bytes, bytes]:
    """A message as bytes before and after one field, which is left out."""
    halves = type(message)(), type(message)()
    for half, wanted in zip(halves, (range(number), range(number + 1, 2**29)), strict=True):
        half.CopyFrom(message)
        for field, _ in message.ListFields():
            if field.number not in wanted:
                half.ClearField(field.name)
    first, last = (half.SerializeToString(deterministic=True) for half in halves)
    return first, last
