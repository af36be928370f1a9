"""Many tensors at once: what the reader reads one by one, and what it says of damage."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxcomp.container_packing import pack
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_restoring import restore
from onnxcomp.container_unpacking import in_threads
from onnxcomp.errors import CorruptContainer
from onnxcomp.kernels.coding import encode
from onnxcomp.kernels.restoring import Restoring

GOLDEN = Path(__file__).resolve().parent / "golden"
NAMES = ("chunks", "delta", "external", "model", "profiles", "representations", "tiny", "types")

Array = npt.NDArray[Any]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[ContainerReader]:
    with contextlib.ExitStack() as stack:
        is_delta = path.name.startswith("delta")
        base = stack.enter_context(ContainerReader(GOLDEN / "model-1.oxc")) if is_delta else None
        yield stack.enter_context(ContainerReader(path, base))


def restored(reader: ContainerReader, threads: int, shift: int) -> dict[int, Array]:
    """All tensors, in memory that starts ``shift`` bytes behind an aligned place."""
    outs = {}
    for index, entry in enumerate(reader.directory.entries):
        room = np.full(entry.size + 64, 0xA5, np.uint8)
        outs[index] = room[-room.ctypes.data % 16 + shift :][: entry.size]
    with in_threads(threads) as run:
        restore(reader, outs, run, threads)
    return outs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("threads", "shift"), [(1, 0), (3, 0), (2, 1), (1, 4)])
def test_every_kind_is_what_the_reader_reads(name: str, threads: int, shift: int) -> None:
    with opened(GOLDEN / f"{name}-1.oxc") as reader:
        for index, out in restored(reader, threads, shift).items():
            np.testing.assert_array_equal(out, reader.read(index))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chunks of a large tensor, and floats of 16 bits in 32."""
    rng = np.random.default_rng(0)
    large = rng.standard_normal((2100, 1100)).astype(np.float32)
    half = rng.standard_normal((70, 80)).astype(np.float16).astype(np.float32)
    brain = (rng.standard_normal((70, 80)).astype(np.float32).view(np.uint32) >> 16 << 16).view(
        "f4"
    )
    weights = {"large": large, "half": half, "brain": brain}
    graph = helper.make_graph([], "g", [], [])
    graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    folder = tmp_path_factory.mktemp("restoring")
    onnx.save(helper.make_model(graph), folder / "m.onnx")
    pack(folder / "m.onnx", folder / "m.oxc")
    return folder / "m.oxc"


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_chunks_come_together_in_threads(packed: Path, threads: int) -> None:
    with opened(packed) as reader:
        assert sorted(len(e.streams[0]) for e in reader.directory.entries) == [1, 1, 3]
        for index, out in restored(reader, threads, 0).items():
            np.testing.assert_array_equal(out, reader.read(index))


def test_what_is_wrong_is_said_as_the_reader_says_it(packed: Path, tmp_path: Path) -> None:
    data, copy = packed.read_bytes(), tmp_path / "m.oxc"
    with opened(packed) as reader:
        chunks = [c for e in reader.directory.entries for s in e.streams for c in s]
    assert len(chunks) > 5
    for chunk in chunks:
        damaged = bytearray(data)
        damaged[chunk.offset + chunk.length // 2] ^= 4
        copy.write_bytes(damaged)
        with opened(copy) as reader:
            with pytest.raises(CorruptContainer, match="checksum differs") as told:
                read_all(reader)
            with pytest.raises(CorruptContainer) as found:
                restored(reader, 2, 0)
        assert str(found.value) == str(told.value)


def read_all(reader: ContainerReader) -> list[Array]:
    return [reader.read(index) for index in range(len(reader.directory.entries))]


@pytest.mark.parametrize("name", NAMES)
def test_the_interpreter_alone_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.container_restoring.restores_files", False)
    with opened(GOLDEN / f"{name}-1.oxc") as reader:
        for out, expected in zip(restored(reader, 2, 0).values(), read_all(reader), strict=True):
            np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_another_hash_is_found(packed: Path, index: int) -> None:
    with opened(packed) as reader:
        entries = reader.directory.entries
        entries[index] = dataclasses.replace(entries[index], checksum=entries[index].checksum ^ 1)
        with pytest.raises(CorruptContainer, match="its decoded values have another hash"):
            restored(reader, 2, 0)


def test_a_file_that_became_shorter_is_told(packed: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m.oxc"
    copy.write_bytes(packed.read_bytes())
    with opened(copy) as reader:
        with open(copy, "r+b") as file:
            file.truncate(reader.size // 2)
        with pytest.raises(CorruptContainer, match="became shorter while it was read"):
            restored(reader, 2, 0)


def test_what_does_not_fit_is_refused() -> None:
    payload = [(0, 0, len(encode(np.zeros((1, 4, 1), np.int32))), 0)]
    values, scale = np.zeros(16, np.uint8), np.ones(1, np.float32)
    native = Restoring()
    native.add_tensor(values, 0)
    shape = (1, 4, 1)
    for wrong in (
        lambda: native.add_planes(payload, shape, values[:12], 0, bytes([32]), False, 0),
        lambda: native.add_planes(payload, shape, values, 0, bytes([8, 8]), False, 1),
        lambda: native.add_planes(payload, shape, values, 0, bytes([16]), False, 3),
        lambda: native.add_planes(payload, shape, values, 1, bytes([16]), False, 1),
        lambda: native.add_planes(payload, (2**11, 2**11, 1), values, 0, bytes([16]), False, 1),
        lambda: native.add_planes(payload, shape, np.zeros(16, np.uint8), 0, bytes([16]), False, 1),
        lambda: native.add_scaled(payload, shape, values, 0, np.ones(2, np.float32), 0, 0),
        lambda: native.add_scaled(payload, shape, values, 0, scale, 3, 1),
        lambda: native.add_scaled(payload, shape, values, 0, scale, 4, 0),
        lambda: native.add_scaled(payload, shape, values[:8], 0, scale, 0, 0),
        lambda: native.add_scaled([], shape, values, 0, scale, 0, 0),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            wrong()
