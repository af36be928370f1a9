"""`load_session`: an onnxruntime session of a container, without a model file in between.

The skeleton becomes a model whose large initializers are external; their values are decoded in
threads straight into arrays that onnxruntime is handed. What it cannot be handed (values in bodies,
types that numpy lacks, small constants) is put into the model.
"""

from __future__ import annotations

import functools
import itertools
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxcomp.container import Entry
from onnxcomp.container_reader import ContainerReader, Run, run_in_order
from onnxcomp.container_restoring import restore
from onnxcomp.container_unpacking import in_threads, open_container
from onnxcomp.errors import CorruptContainer, UnsupportedModel
from onnxcomp.number_types import (
    BOOL,
    DOUBLE,
    FLOAT,
    FLOAT16,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
)
from onnxcomp.runtime import one_line, with_our_own
from onnxcomp.skeleton import every_tensor, parsed
from onnxcomp.varints import varint
from onnxcomp.wire import (
    DATA_LOCATION,
    EXTERNAL_DATA,
    GRAPH,
    INITIALIZER,
    LENGTH,
    Field,
    fields,
    prefix,
)

if TYPE_CHECKING:
    import onnxruntime

Array = npt.NDArray[Any]
SMALLEST_HANDED = 2**14  # bytes; smaller values are put into the model, optimizers look at them
DTYPES = {FLOAT: "f4", DOUBLE: "f8", FLOAT16: "f2", BOOL: "?", INT8: "i1", UINT8: "u1"}
DTYPES |= {INT16: "i2", UINT16: "u2", INT32: "i4", UINT32: "u4", INT64: "i8", UINT64: "u8"}
WORTH_THREADS = 2**20  # bytes of values in the model; fewer are decoded by one thread
ALIGNMENT = 64  # bytes, of values that are handed over
LOCATION = b"handed"


def load_session(
    path: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    options: onnxruntime.SessionOptions | None = None,
    providers: list[Any] | None = None,
    threads: int | None = None,
) -> onnxruntime.InferenceSession:
    """Opens a container as onnxruntime opens a model; nothing is written to disk.

    Args:
        path: of the container.
        base: the container that a delta package was made from.
        options: of the session; the weights are added to them, and our operators where the model
            has some.
        providers: execution providers; None for the CPU.
        threads: that decode; None for one a processor.

    Raises:
        UnsupportedModel: the container cannot be read, or onnxruntime refuses the model.
        CorruptContainer: it is damaged, or the base is missing or another one.
    """
    import onnxruntime as ort

    with open_container(path, base) as reader:
        model, weights = decoded(reader, threads)
    options = options or ort.SessionOptions()
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
    if values:
        options.add_external_initializers(list(weights), values)

    def load() -> ort.InferenceSession:
        return ort.InferenceSession(model, options, providers=providers or ["CPUExecutionProvider"])

    try:
        session = with_our_own(load, options)
    except Exception as error:
        raise UnsupportedModel(f"{path}: onnxruntime cannot load it: {one_line(error)}") from error
    session._onnxcomp_weights = values  # it reads some of them where they are
    return session


def decoded(reader: ContainerReader, threads: int | None) -> tuple[bytes, dict[str, Array]]:
    """A serialized model and the values of the initializers that it lacks, by name."""
    entries = reader.directory.entries
    handed = [_is_handed(entry) for entry in entries]
    with in_threads(threads) as run:
        if reader.directory.external:
            values = _room(reader, handed=[True] * len(entries))
            restore(reader, dict(enumerate(values)), run, threads)
            skeleton = reader.skeleton()
            with reader.naming():
                model = _with_values(skeleton, values, handed)
        else:
            values, models = _room(reader, handed), list[bytes]()
            inside = sum(entries[i].size for i, alone in enumerate(handed) if not alone)
            build = functools.partial(_build, reader, handed, models)
            others = {index: room for index, room in enumerate(values) if handed[index]}
            if inside > WORTH_THREADS:
                build(run, threads)
                restore(reader, others, run, threads)
            else:  # meanwhile another thread decodes
                restore(reader, others, run, threads, [functools.partial(build, run_in_order, 1)])
            model = models[0]
    weights = {
        reader.names[index]: values[index].view(DTYPES[entry.data_type]).reshape(entry.dims)
        for index, entry in enumerate(entries)
        if handed[index]
    }
    return model, weights


def _is_handed(entry: Entry) -> bool:
    large = entry.initializer and entry.size >= SMALLEST_HANDED and entry.name_length > 0
    return large and entry.data_type in DTYPES


def _room(reader: ContainerReader, handed: list[bool]) -> list[Array]:
    """An array for each tensor that is handed over, cut from one: the system gives large pages."""
    entries = reader.directory.entries
    sizes = [
        -(-entry.size // ALIGNMENT) * ALIGNMENT if alone else 0
        for entry, alone in zip(entries, handed, strict=True)
    ]
    whole = reader.allocate(sum(sizes) + ALIGNMENT)
    first = -whole.ctypes.data % ALIGNMENT
    starts = itertools.accumulate(sizes, initial=first)
    return [
        whole[start : start + (entry.size if alone else 0)]
        for start, entry, alone in zip(starts, entries, handed, strict=False)
    ]


# --- a single file ----------------------------------------------------------------------------


def _places(reader: ContainerReader) -> list[int]:
    """Where the values of each tensor start in the model file."""
    places, position = [], 0
    for entry in reader.directory.entries:
        position += entry.gap
        places.append(position)
        position += entry.size
    return places


def _with_room(reader: ContainerReader, places: list[int]) -> Array:
    """The model file with zeros for values, which start at ``places``."""
    directory = reader.directory
    size = directory.skeleton_size + sum(entry.size for entry in directory.entries)
    if size >= 2**31:
        raise UnsupportedModel(f"{reader.path}: declares a model file of {size} bytes")
    try:
        pages = mmap.mmap(-1, max(size, 1))  # those that nobody writes take no memory,
    except (OSError, MemoryError):
        raise CorruptContainer(
            f"{reader.path}: declares a model file of {size} bytes, more than there is memory"
        ) from None
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # which large ones would
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    whole = np.frombuffer(pages, np.uint8, size)
    skeleton = np.frombuffer(reader.skeleton(), np.uint8)
    read = 0
    for entry, place in zip(directory.entries, places, strict=True):
        whole[place - entry.gap : place] = skeleton[read : read + entry.gap]
        read += entry.gap
    left = skeleton.size - read
    whole[size - left :] = skeleton[read:]
    return whole


def _build(
    reader: ContainerReader,
    handed: list[bool],
    models: list[bytes],
    run: Run,
    threads: int | None,
) -> None:
    """Adds the model with the values that are not handed over; the others become external."""
    entries, places = reader.directory.entries, _places(reader)
    whole = _with_room(reader, places)
    inside = {
        index: whole[place : place + entries[index].size]
        for index, place in enumerate(places)
        if not handed[index]
    }
    restore(reader, inside, run, threads)
    with reader.naming():
        cut = {places[i]: entries[i] for i, alone in enumerate(handed) if alone}
        models.append(_with_external(whole, cut))


def _with_external(whole: Array, cut: dict[int, Entry]) -> bytes:
    """The model file with the initializers whose values start at ``cut`` made external."""
    data = whole.data
    parts: list[bytes] = []
    for item in fields(data, 0, len(data)):
        if item.number != GRAPH or item.kind != LENGTH:
            parts.append(bytes(data[item.tag : item.end]))
            continue
        inner = []
        for part in fields(data, item.start, item.end):
            if part.number == INITIALIZER and part.kind == LENGTH:
                inner.append(_external(data, part, cut))
            else:
                inner.append(bytes(data[part.tag : part.end]))
        graph = b"".join(inner)
        parts += [prefix(GRAPH, len(graph)), graph]
    return b"".join(parts)


def _external(data: memoryview, item: Field, cut: dict[int, Entry]) -> bytes:
    """An initializer as a field of the graph, without its values if they are handed."""
    found = list(fields(data, item.start, item.end))
    kept = [part for part in found if part.start not in cut]
    if len(kept) == len(found):
        return bytes(data[item.tag : item.end])
    pair = prefix(1, 8) + b"location" + prefix(2, len(LOCATION)) + LOCATION
    tensor = b"".join(bytes(data[part.tag : part.end]) for part in kept)
    tensor += prefix(EXTERNAL_DATA, len(pair)) + pair + varint(DATA_LOCATION << 3) + b"\x01"
    return prefix(INITIALIZER, len(tensor)) + tensor


# --- external data ----------------------------------------------------------------------------


def _with_values(skeleton: bytes, values: list[Array], handed: list[bool]) -> bytes:
    """A model with external data, those values put in that are not handed.

    Raises:
        CorruptContainer: it is no model, or has other tensors than the directory.
    """
    if all(handed):
        return skeleton
    from onnx import TensorProto

    model = parsed(skeleton)
    external = [t for t in every_tensor(model) if t.data_location == TensorProto.EXTERNAL]
    if len(external) != len(values):
        raise CorruptContainer(
            f"skeleton: it has {len(external)} external tensors, the directory {len(values)}"
        )
    for tensor, array, alone in zip(external, values, handed, strict=True):
        if not alone:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = array.tobytes()
    data: bytes = model.SerializeToString()
    return data
