"""Models in files: the only place that reads and writes them.

Weights in files of their own (external data) are mapped when somebody looks at them and copied
from file to file when the model is saved, so that a model larger than memory passes through.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from onnxcomp.errors import OutputError, UnsupportedModel
from onnxcomp.exporting import Store, data_type_of, inline, to_proto
from onnxcomp.graph import Graph
from onnxcomp.importing import from_proto, tensors_of
from onnxcomp.runtime import one_line
from onnxcomp.stored import StoredSparse, StoredValues, external_range, stored_bytes

LARGEST_PROTO = 2**31 - 2**26  # bytes; protobuf refuses 2 GiB, and other fields need room
SMALLEST_EXTERNAL = 1024  # bytes; smaller tensors stay in the model file
PAGE = 4096  # external tensors start on pages, so that runtimes can map them
LENGTH_PREFIXES = 6  # bytes by which the lengths of a large tensor and its data are longer
CHUNK = 2**26  # bytes copied between two chances to interrupt


@dataclass
class Model:
    """A model read from ``path``.

    Attributes:
        graph: what passes edit.
        path: where it came from.
        bytes: of the file and its external data that the model uses.
        external: whether weights were in files of their own.
    """

    graph: Graph
    path: Path
    bytes: int
    external: bool


def load_model(path: str | os.PathLike[str]) -> Model:
    """Reads and checks a model.

    Raises:
        UnsupportedModel: missing, empty, cut short, not ONNX, or refused by onnx's checker.
    """
    file = Path(path)
    proto = read_proto(file)
    external = [t for t in tensors_of(proto.graph) if t.data_location == TensorProto.EXTERNAL]
    size = file.stat().st_size + sum(external_range(t, file.parent)[2] for t in external)
    check_file(file)
    return Model(from_proto(proto, file.parent), file, size, bool(external))


def bytes_on_disk(path: Path) -> int:
    """Bytes of a model that `save_model` wrote, its data file included."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)


def read_proto(path: Path) -> onnx.ModelProto:
    """Parses a model file; external data stays on disk.

    Raises:
        UnsupportedModel: not a file, unreadable, empty or not a ModelProto.
    """
    if not path.is_file():
        raise UnsupportedModel(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise UnsupportedModel(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:
        raise UnsupportedModel(
            f"{path}: not an ONNX model, or cut short; export or copy it again"
        ) from error
    if not model.graph.node and not model.graph.output:
        raise UnsupportedModel(f"{path}: not an ONNX model, it holds no graph")
    return model


def check_file(path: Path) -> None:
    """Has onnx's checker look at a file.

    Raises:
        UnsupportedModel: with what the checker found.
    """
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:
        raise UnsupportedModel(f"{path}: not a valid ONNX model: {one_line(error)}") from error


def check_graph(graph: gs.Graph) -> None:
    """Has onnx's checker look at a graph; its large weights appear as inputs, so none is copied.

    Raises:
        UnsupportedModel: with what the checker found.
    """
    large: dict[str, gs.Constant] = {}

    def store(constant: gs.Constant, scope: str) -> TensorProto:
        if scope or constant_bytes(constant) <= SMALLEST_EXTERNAL:
            return inline(constant)
        large[constant.name] = constant
        return TensorProto(name=constant.name)

    proto = to_proto(graph, store)
    kept = [t for t in proto.graph.initializer if t.name not in large]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    declared = {value.name for value in proto.graph.input}
    for constant in large.values():
        if constant.name in declared:
            continue
        data_type = data_type_of(constant.dtype)
        proto.graph.input.append(
            helper.make_tensor_value_info(constant.name, data_type, constant.shape)
        )
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        raise UnsupportedModel(f"not a valid ONNX model: {one_line(error)}") from error


def graph_bytes(graph: gs.Graph) -> int:
    """Bytes of ``graph`` as a file to within a few, weights included, without writing it."""
    total = 0

    def store(constant: gs.Constant, scope: str) -> TensorProto:
        nonlocal total
        if constant_bytes(constant) <= SMALLEST_EXTERNAL:
            return inline(constant)
        stub = TensorProto(name=constant.name, data_type=1, dims=constant.shape, raw_data=b"")
        total += constant_bytes(constant) + LENGTH_PREFIXES
        return stub

    return int(to_proto(graph, store).ByteSize()) + total


def constant_bytes(constant: gs.Constant) -> int:
    """Bytes the values of a constant take in a file, 4-bit types packed."""
    if isinstance(constant._values, StoredSparse):
        return int(constant._values.nbytes)
    return stored_bytes(data_type_of(constant.dtype), math.prod(constant.shape))


def save_model(
    graph: gs.Graph,
    path: str | os.PathLike[str],
    *,
    external: bool = False,
    verify: Callable[[Path], None] | None = None,
) -> int:
    """Writes ``graph`` so that it appears under ``path`` complete or not at all.

    Args:
        graph: the same graph gives the same bytes.
        path: an existing file is replaced.
        external: put weights into ``<path>.data``; done anyway where one file cannot hold them.
        verify: called with the complete file before it takes its name; what it raises stops
            everything.

    Returns:
        Bytes written.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full.
    """
    target = Path(path)
    external = external or graph_bytes(graph) > LARGEST_PROTO
    with _replacing(target) as folder:
        written = _write(graph, folder, target.name, external)
        if verify is not None:
            verify(written[-1])
        size = sum(file.stat().st_size for file in written)
        for file in written:  # the data first: a model never lacks its weights
            os.replace(file, target.parent / file.name)
    return size


def copy_model(model: Model, path: str | os.PathLike[str]) -> int:
    """Writes an untouched model again: byte for byte, or with its external data in one file.

    Raises:
        OutputError: it cannot be written.
    """
    if model.external:
        return save_model(model.graph, path, external=True)
    target = Path(path)
    with _replacing(target) as folder:
        shutil.copyfile(model.path, folder / target.name)
        os.replace(folder / target.name, target)
    return target.stat().st_size


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write in, gone afterwards whatever happens."""
    try:
        with tempfile.TemporaryDirectory(prefix=".onnxcomp-", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"{target}: cannot be written ({reason}); nothing was changed") from error


def _write(graph: gs.Graph, folder: Path, name: str, external: bool) -> list[Path]:
    """Writes the model as folder/name; the files made, the model last."""
    path = folder / name
    if not external:
        path.write_bytes(to_proto(graph).SerializeToString(deterministic=True))
        return [path]
    data = folder / f"{name}.data"
    with open(data, "wb") as file:
        proto = to_proto(graph, _external_store(file, data.name))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    if not data.stat().st_size:
        data.unlink()
        return [path]
    return [data, path]


def _external_store(file: BinaryIO, location: str) -> Store:
    """A store that appends the values to ``file``."""

    def store(constant: gs.Constant, scope: str) -> TensorProto:
        if constant_bytes(constant) < SMALLEST_EXTERNAL:
            return inline(constant)
        file.seek(-(-file.tell() // PAGE) * PAGE)
        return _append(constant, file, location)

    return store


def _append(constant: gs.Constant, file: BinaryIO, location: str) -> TensorProto:
    values, offset = constant._values, file.tell()
    tensor = TensorProto(name=constant.name)
    if isinstance(values, StoredValues) and values.is_external:
        tensor.data_type = values.tensor.data_type
        tensor.dims.extend(values.shape)
        source, start, length = external_range(values.tensor, values.folder)
        copy_range(source, start, length, file)
    else:
        whole = inline(constant)
        tensor.data_type = whole.data_type
        tensor.dims.extend(whole.dims)
        if not whole.HasField("raw_data"):
            whole = onnx.numpy_helper.from_array(np.asarray(constant.values), constant.name)
        file.write(whole.raw_data)
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": file.tell() - offset}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def copy_range(source: Path, start: int, length: int, target: BinaryIO) -> None:
    """Appends ``length`` bytes of ``source`` to ``target``, inside the kernel where it can."""
    with open(source, "rb") as file:
        file.seek(start)
        done = 0
        if hasattr(os, "copy_file_range"):
            target.flush()
            with contextlib.suppress(OSError):  # not between all file systems
                while done < length:
                    count = min(CHUNK, length - done)
                    moved = os.copy_file_range(file.fileno(), target.fileno(), count, start + done)
                    if not moved:
                        break
                    done += moved
            target.seek(0, os.SEEK_END)
            file.seek(start + done)
        while done < length:
            chunk = file.read(min(CHUNK, length - done))
            target.write(chunk)
            done += len(chunk)
