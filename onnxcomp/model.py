"""Models in files: the only place that reads and writes them.

Weights in files of their own (external data) are mapped when somebody looks at them and copied
from file to file when the model is saved, so that a model larger than memory passes through.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from onnxcomp.errors import UnsupportedModel
from onnxcomp.exporting import data_type_of, inline, to_proto
from onnxcomp.graph import Graph, carried_of
from onnxcomp.importing import from_proto, tensors_of
from onnxcomp.runtime import one_line
from onnxcomp.serializing import SMALLEST_EXTERNAL, single_bytes, write_external, write_single
from onnxcomp.stored import constant_bytes, external_range, stored_bytes
from onnxcomp.writing import appear, check_target, replacing

LARGEST_CHECKED = (
    2**28
)  # bytes of a file that the checker may read again, which takes twice as many
LARGEST_PROTO = 2**31 - 2**26  # bytes; protobuf refuses 2 GiB, and other fields need room


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
    ranges = _external_ranges(proto, file)
    size = file.stat().st_size + sum(length for _, _, length in ranges)
    check_file(file, proto)
    try:
        graph = from_proto(proto, file.parent)
    except (KeyError, TypeError, ValueError) as error:  # types and strings the checker lets pass
        found = f"data type {error}?" if isinstance(error, KeyError) else one_line(error)
        raise UnsupportedModel(f"{file}: not a valid ONNX model: {found}") from error
    graph.carried.sources = frozenset([file.resolve(), *(place for place, _, _ in ranges)])
    return Model(graph, file, size, bool(ranges))


def bytes_on_disk(path: Path) -> int:
    """Bytes of a model that `save_model` wrote and of its weights, without the gaps for pages."""
    size = path.stat().st_size
    if not _data_file(path).exists():
        return size
    return size + sum(length for _, _, length in _external_ranges(read_proto(path), path))


def _external_ranges(model: onnx.ModelProto, path: Path) -> list[tuple[Path, int, int]]:
    external = (t for t in tensors_of(model.graph) if t.data_location == TensorProto.EXTERNAL)
    return [external_range(tensor, path.parent) for tensor in external]


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


def check_file(path: Path, model: onnx.ModelProto) -> None:
    """Has onnx's checker look at a file.

    Args:
        path: the file, which the checker reads itself unless it is large.
        model: what was read from it; its weights are checked one by one where it is large.

    Raises:
        UnsupportedModel: with what the checker found.
    """
    try:
        if path.stat().st_size <= LARGEST_CHECKED:
            onnx.checker.check_model(str(path))
            return
        rest = onnx.ModelProto()
        rest.CopyFrom(model)
        large = [t for t in model.graph.initializer if math.prod(t.dims) > SMALLEST_EXTERNAL]
        for tensor in large:
            _check_tensor(tensor)
        _make_inputs(rest.graph, {t.name: (t.data_type, t.dims) for t in large})
        onnx.checker.check_model(rest)
    except Exception as error:
        raise UnsupportedModel(f"{path}: not a valid ONNX model: {one_line(error)}") from error


def _check_tensor(tensor: TensorProto) -> None:
    """What onnx's checker finds in a tensor, without a copy of it where it is large."""
    if not tensor.HasField("raw_data"):
        onnx.checker.check_tensor(tensor)
        return
    wanted, found = stored_bytes(tensor.data_type, math.prod(tensor.dims)), len(tensor.raw_data)
    if found != wanted:
        raise ValueError(f"tensor {tensor.name!r} has {found} bytes, its shape needs {wanted}")


def check_graph(graph: gs.Graph) -> None:
    """Has onnx's checker look at a graph; its large weights appear as inputs, so none is copied.

    Raises:
        UnsupportedModel: with what the checker found.
    """
    large: dict[str, tuple[int, Sequence[int]]] = {}

    def store(constant: gs.Constant, scope: str) -> TensorProto:
        if scope or constant_bytes(constant) <= SMALLEST_EXTERNAL:
            return inline(constant)
        large[constant.name] = data_type_of(constant.dtype), constant.shape
        return TensorProto(name=constant.name)

    proto = to_proto(graph, store)
    _make_inputs(proto.graph, large)
    try:
        onnx.checker.check_model(proto)
    except Exception as error:
        raise UnsupportedModel(f"not a valid ONNX model: {one_line(error)}") from error


def _make_inputs(graph: onnx.GraphProto, weights: Mapping[str, tuple[int, Sequence[int]]]) -> None:
    """Turns initializers, given as (data type, shape) by name, into inputs."""
    kept = [tensor for tensor in graph.initializer if tensor.name not in weights]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    declared = {value.name for value in graph.input}
    for name, (data_type, shape) in weights.items():
        if name not in declared:
            graph.input.append(helper.make_tensor_value_info(name, data_type, shape))


def graph_bytes(graph: gs.Graph) -> int:
    """Bytes of ``graph`` as one file, weights included, without writing it."""
    return single_bytes(graph)


def check_output(graph: gs.Graph, path: Path, external: bool) -> None:
    """Refuses, before any work is done, a place where `save_model` could not write.

    Raises:
        OutputError: it would replace a file that the graph was read from, it is a folder, or its
            folder is missing or not writable.
    """
    sources = carried_of(graph).sources
    check_target(path, sources, "output")
    if external:
        check_target(_data_file(path), sources, f"output {path}: its weights")


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
        path: an existing file is replaced, but never one that the graph was read from.
        external: put weights into ``<path>.data``; done anyway where one file cannot hold them.
        verify: called with the complete file before it takes its name; what it raises stops
            everything.

    Returns:
        Bytes written.

    Raises:
        OutputError: the folder is missing or not writable, the disk is full, or a file that the
            graph was read from would be replaced.
    """
    target = Path(path)
    external = external or graph_bytes(graph) > LARGEST_PROTO
    check_output(graph, target, external)
    with replacing(target) as folder:
        written = _write(graph, folder, target.name, external)
        if verify is not None:
            verify(written[-1])
        size = sum(file.stat().st_size for file in written)
        appear(written, target.parent, folder)
    return size


def copy_model(model: Model, path: str | os.PathLike[str]) -> int:
    """Writes an untouched model again: byte for byte, or with its external data in one file.

    Raises:
        OutputError: it cannot be written.
    """
    if model.external:
        return save_model(model.graph, path, external=True)
    target = Path(path)
    check_output(model.graph, target, external=False)
    with replacing(target) as folder:
        shutil.copyfile(model.path, folder / target.name)
        appear([folder / target.name], target.parent, folder)
    return target.stat().st_size


def _data_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.data")


def _write(graph: gs.Graph, folder: Path, name: str, external: bool) -> list[Path]:
    """Writes the model as folder/name; the files made, the model last."""
    path = folder / name
    if not external:
        with open(path, "wb") as file:
            write_single(graph, file)
        return [path]
    data = _data_file(path)
    with open(data, "wb") as file:
        proto = write_external(graph, file, data.name)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    if not data.stat().st_size:
        data.unlink()
        return [path]
    return [data, path]
