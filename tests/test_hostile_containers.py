"""Containers that somebody made to do harm: a reader says what is wrong, and stays in bounds.

Hashes and checksums are right again after every change, so that they protect nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_seeds import container_seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onnxcomp.container import (
    FOOTER,
    HEADER,
    MAGIC,
    NEEDS_BASE,
    VERSION,
    Chunk,
    Directory,
    Entry,
    read_directory,
    stream_dims,
)
from onnxcomp.container_contents import contents
from onnxcomp.container_loading import decoded
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_unpacking import unpack
from onnxcomp.container_writer import ContainerWriter
from onnxcomp.errors import CorruptContainer, OutputError, UnsupportedModel
from onnxcomp.kernels.coding import crc32c, encode, xxh3_64
from onnxcomp.number_types import BITS
from onnxcomp.representations import (
    Codebook,
    Grid,
    Integer,
    Planes,
    Same,
    Table,
    Trellis,
)
from onnxcomp.zstandard import compress

ROOM = 64 * 2**20  # bytes that a reader may take besides what a container declares
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits memory by RLIMIT_AS")


@dataclasses.dataclass(repr=False)
class Parts:
    """A container taken apart; `whole` puts it together with hashes that hold."""

    features: int
    skeleton: bytes  # its frame
    payloads: list[bytes]
    directory: Directory
    base: bytes

    def __repr__(self) -> str:  # examples are told by what was drawn
        return f"<{len(self.payloads)} payloads>"

    def whole(self, directory: bytes | None = None) -> bytes:
        payloads = iter(self.payloads)
        for entry in self.directory.entries:
            for stream in entry.streams:
                for index, chunk in enumerate(stream):
                    payload = next(payloads, b"")
                    stream[index] = Chunk(chunk.offset, chunk.length, crc32c(payload))
        data = self.directory.to_bytes() if directory is None else directory
        start = HEADER.pack(MAGIC, VERSION, 0, self.features) + self.skeleton
        body = start + b"".join(self.payloads)
        hashes = xxh3_64(data), xxh3_64(start)
        return body + data + FOOTER.pack(len(body), len(data), *hashes, MAGIC[::-1])


def take_apart(seed: bytes) -> Parts:
    """A seed of the fuzz targets: u16 length of a base, the base, a container."""
    (length,) = struct.unpack_from("<H", seed)
    base, data = seed[2 : 2 + length], seed[2 + length :]
    _, _, _, features = HEADER.unpack_from(data)
    offset, size, *_ = FOOTER.unpack(data[-FOOTER.size :])
    directory = read_directory(data[offset : offset + size], features)
    chunks = [c for entry in directory.entries for stream in entry.streams for c in stream]
    payloads = [data[chunk.offset : chunk.offset + chunk.length] for chunk in chunks]
    frame = data[HEADER.size : HEADER.size + directory.skeleton_packed]
    parts = Parts(features, frame, payloads, directory, base)
    assert parts.whole() == data
    return parts


@pytest.fixture(scope="module")
def seeds() -> list[Parts]:
    return [take_apart(seed) for seed in container_seeds()]


# --- whatever they hold -----------------------------------------------------------------------

EDGES = [0, 1, 2, 7, 8, 9, 127, 128, 255, 256, 2**16, 2**20, 2**24, 2**31 - 1, 2**31, 2**36, 2**37]
sizes = st.one_of(st.sampled_from(EDGES), st.integers(0, 300))
places = st.floats(0, 1, exclude_max=True)
bytes_changed = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=3)


@st.composite
def hostile(draw: st.DrawFn, seeds: list[Parts]) -> Parts | bytes:
    """A container with some of its parts changed."""
    parts = copy.deepcopy(seeds[draw(st.integers(0, len(seeds) - 1))])
    what = draw(st.sampled_from(["payload", "skeleton", "directory", "entry", "entry", "features"]))
    if what == "payload":
        index = draw(st.integers(0, len(parts.payloads) - 1))
        parts.payloads[index] = changed(draw, parts.payloads[index])
        fit_lengths(parts)
    elif what == "skeleton":
        parts.skeleton = changed(draw, parts.skeleton)
        parts.directory.skeleton_packed = len(parts.skeleton)
    elif what == "directory":
        data = changed(draw, parts.directory.to_bytes())
        return Parts(**vars(parts)).whole(data)
    elif what == "features":
        parts.features = draw(st.integers(0, 15))
    else:
        change_entry(draw, draw(st.sampled_from(parts.directory.entries)))
    return parts


def changed(draw: st.DrawFn, data: bytes) -> bytes:
    result = bytearray(data)
    for place, value in draw(bytes_changed):
        if result:
            result[int(place * len(result))] = value
    cut = draw(st.sampled_from([None, None, None, "cut", "longer"]))
    if cut == "cut":
        del result[int(draw(places) * len(result)) :]
    elif cut == "longer":
        result += draw(st.binary(max_size=9))
    return bytes(result)


def fit_lengths(parts: Parts) -> None:
    """The directory says how long payloads are now."""
    lengths = iter(parts.payloads)
    for entry in parts.directory.entries:
        for stream in entry.streams:
            stream[:] = [Chunk(c.offset, len(next(lengths)), c.checksum) for c in stream]


def change_entry(draw: st.DrawFn, entry: Entry) -> None:
    what = draw(st.sampled_from(["dims", "type", "representation", "gap", "name", "length"]))
    if what == "dims":
        entry.dims = tuple(draw(st.lists(sizes, max_size=5)))
    elif what == "type":
        entry.data_type = draw(st.sampled_from(sorted(BITS)))
    elif what == "gap":
        entry.gap = draw(sizes)
    elif what == "name":
        entry.name_start, entry.name_length = draw(sizes), draw(sizes)
    elif what == "length" and entry.streams and entry.streams[0]:
        first = entry.streams[0][0]
        entry.streams[0][0] = Chunk(first.offset, draw(sizes), first.checksum)
    else:
        table = Table(draw(sizes), draw(st.sampled_from([1, 2, 4, 8])), b"")
        entry.representation = draw(
            st.one_of(
                st.just(Integer()),
                st.builds(Same, sizes, st.booleans()),
                st.builds(Grid, st.integers(0, 255), sizes, st.just(table)),
                st.builds(Trellis, st.integers(0, 255), sizes, st.just(table), st.integers(0, 5)),
                st.builds(Codebook, st.just(table)),
                st.builds(
                    Planes,
                    st.sampled_from(sorted(BITS)),
                    st.booleans(),
                    st.lists(st.integers(0, 40), max_size=9).map(tuple),
                ),
            )
        )


def declared(path: Path) -> int:
    """Bytes that a container says it needs; 0 for one that cannot be opened."""
    try:
        with ContainerReader(path) as reader:
            entries = reader.directory.entries
            return reader.directory.skeleton_size + sum(entry.size + entry.gap for entry in entries)
    except (CorruptContainer, UnsupportedModel):
        return 0


@contextmanager
def at_most(limit: int) -> Iterator[None]:
    """Fails where more memory is taken inside."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] <= limit
    finally:
        tracemalloc.stop()


def use(path: Path, base: Path | None, target: Path) -> None:
    """Everything that reads containers; what it refuses is said in a line that names the file."""

    def said(action: Any) -> str:
        try:
            action()
        except (CorruptContainer, UnsupportedModel) as error:
            return str(error)
        except OutputError:
            pass
        return f"{path}: was read"

    def load() -> None:
        with ContainerReader(path, ContainerReader(base) if base else None) as reader:
            decoded(reader, threads=1)

    def show() -> None:
        with ContainerReader(path) as reader:
            contents(reader).as_dict()

    for action in (lambda: unpack(path, target, base=base, threads=1), load, show):
        line = said(action)
        assert line.startswith((f"{path}: ", f"{base}: "))
        assert "\n" not in line


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_a_container_holds_its_reader_says_what_is_wrong(
    seeds: list[Parts], data: st.DataObject
) -> None:
    made = data.draw(hostile(seeds))
    with tempfile.TemporaryDirectory() as name:
        path, base = Path(name) / "m.oxc", None
        try:
            path.write_bytes(made if isinstance(made, bytes) else made.whole())
        except (ValueError, struct.error):  # a field that cannot even be written
            return
        if isinstance(made, Parts) and made.base:
            base = Path(name) / "base.oxc"
            base.write_bytes(made.base)
        total = declared(path)
        if total > 2**28:  # as it says; what there is no room for is refused below
            return
        with at_most(ROOM + 3 * total):
            use(path, base, Path(name) / "back.onnx")


# --- what was made by hand --------------------------------------------------------------------


def single(
    path: Path, entry: Entry, streams: list[list[bytes]], *, external: bool = True, **options: Any
) -> Path:
    """A container of one tensor, with the hash of what a reader makes of it where that can be."""
    with open(path, "wb") as file:
        writer = ContainerWriter(file, b"", external=external, **options)
        writer.add(entry, streams)
        writer.finish()
    return path


ZERO = encode(np.zeros((1, 2**20, 1), np.int32))


def test_a_table_for_no_numbers_is_refused(tmp_path: Path) -> None:
    count = 2**22
    entry = Entry(0, True, 0, 0, TensorProto.FLOAT, (count, 0), Grid(0, 0, Table(count, 4)))
    streams = [[], [ZERO] * 16]
    single(tmp_path / "m.oxc", entry, streams)
    with pytest.raises(CorruptContainer, match="more scales than numbers"):
        ContainerReader(tmp_path / "m.oxc")


def test_many_scales_take_their_own_bytes_twice_at_most(tmp_path: Path) -> None:
    count = 2**22
    entry = Entry(0, True, 0, 0, TensorProto.FLOAT, (count,), Grid(0, 1, Table(count, 4)))
    assert [dims for dims, _ in stream_dims(entry)] == [(count,), (4, count)]
    single(tmp_path / "m.oxc", entry, [[ZERO] * 4, [ZERO] * 16])
    with ContainerReader(tmp_path / "m.oxc") as reader, at_most(ROOM + 3 * 4 * count):
        out = np.ones(4 * count, np.uint8)
        for task in reader.tasks(0, out):
            task()
    assert not out.any()


def test_a_base_that_is_a_delta_package_is_refused(seeds: list[Parts], tmp_path: Path) -> None:
    delta = next(parts for parts in seeds if parts.features & NEEDS_BASE)
    paths = [tmp_path / name for name in ("whole.oxc", "delta.oxc", "second.oxc")]
    paths[0].write_bytes(delta.base)
    paths[1].write_bytes(delta.whole())
    second = copy.deepcopy(delta)
    second.directory.base = xxh3_64(delta.directory.to_bytes())
    paths[2].write_bytes(second.whole())
    with ContainerReader(paths[0]) as whole, ContainerReader(paths[1], whole) as middle:
        with pytest.raises(CorruptContainer, match="is a delta package itself"):
            ContainerReader(paths[2], middle)
        assert middle.read(0).size


@pytest.mark.parametrize("values", [300, 5000])
def test_a_skeleton_that_is_no_model_is_named(values: int, tmp_path: Path) -> None:
    """Of a model with external data it has to be parsed."""
    frame = compress(b"\xff" * 40)
    entry = Entry(0, True, 0, 4, TensorProto.FLOAT, (values,), Integer())
    parts = Parts(
        2,
        frame,
        [encode(np.zeros((1, values, 1), np.int32))],
        Directory(40, len(frame), [entry], True),
        b"",
    )
    entry.streams.append([Chunk(0, len(parts.payloads[0]), 0)])
    entry.checksum = xxh3_64(bytes(4 * values))
    path = tmp_path / "m.oxc"
    path.write_bytes(parts.whole())
    with pytest.raises(CorruptContainer, match=r"m\.oxc: skeleton: it is no ONNX model"):
        unpack(path, tmp_path / "m.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["m.oxc"]
    with ContainerReader(path) as reader:
        if values == 300:
            with pytest.raises(CorruptContainer, match=r"m\.oxc: skeleton: it is no ONNX model"):
                decoded(reader, threads=1)


@needs_linux
@pytest.mark.parametrize("what", ["tensor", "skeleton", "table"])
def test_what_there_is_no_memory_for_is_said(what: str, tmp_path: Path) -> None:
    """In a process of 1 GB: a container of a few kilobytes that declares 2 GB and more."""
    path = tmp_path / "m.oxc"
    if what == "skeleton":
        frame = long_frame(2**31 - 1)
        path.write_bytes(Parts(0, frame, [], Directory(2**31 - 1, len(frame), []), b"").whole())
    elif what == "tensor":
        entry = Entry(0, True, 0, 0, TensorProto.INT8, (2**31,), Integer())
        single(path, entry, [[ZERO] * 2**11])
    else:
        count = 2**29
        entry = Entry(0, True, 0, 0, TensorProto.FLOAT16, (count,), Grid(0, 1, Table(count, 4)))
        single(path, entry, [[ZERO] * 2**9, [ZERO] * 2**11])
    assert path.stat().st_size < 100_000
    code = """if True:
        import resource, sys
        from onnxcomp.container_loading import decoded
        from onnxcomp.container_reader import ContainerReader
        from onnxcomp.container_unpacking import verify
        from onnxcomp.errors import CorruptContainer, UnsupportedModel
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        def load():
            with ContainerReader(sys.argv[1]) as reader:
                decoded(reader, 1)
        for action in (lambda: verify(sys.argv[1], threads=1), load):
            try:
                action()
            except (CorruptContainer, UnsupportedModel) as error:
                print(error)"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) == 2
    assert all("m.oxc" in line and "than there is memory" in line for line in lines)


def long_frame(size: int) -> bytes:
    """A zstd frame of so many zeros."""
    from onnxcomp.zstandard import zstd

    compressor = zstd.ZstdCompressor(level=1)
    parts = [compressor.compress(bytes(2**20)) for _ in range(size >> 20)]
    return b"".join([*parts, compressor.compress(bytes(size % 2**20), compressor.FLUSH_FRAME)])
