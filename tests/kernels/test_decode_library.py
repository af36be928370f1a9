"""The C library and its example against `onnxcomp unpack`, on whole and on damaged containers."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import math
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import decode_library as c
import numpy as np
import onnx
import pytest
from containers import model_of_many_kinds
from decode_library import Container, Library, Refused
from golden_containers import NAMES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.container import FOOTER, HEADER, Entry, cut, stream_dims
from onnxcomp.container_packing import pack
from onnxcomp.container_reader import ContainerReader
from onnxcomp.container_unpacking import unpack, verify
from onnxcomp.container_writer import ContainerWriter
from onnxcomp.errors import CorruptContainer, OnnxcompError
from onnxcomp.kernels.coding import encode, xxh3_64
from onnxcomp.number_types import (
    BFLOAT16,
    BITS,
    COMPLEX,
    FLOAT,
    FLOAT16,
    FLOATS,
    WIDENED,
    number_type,
)
from onnxcomp.representations import (
    WHOLE,
    Codebook,
    Grid,
    Integer,
    Planes,
    Representation,
    Table,
    Trellis,
    make_table,
    scale_shape,
)
from onnxcomp.testing import small_convnet

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
GOLDEN = Path(__file__).resolve().parent.parent / "golden"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = c.missing_tools()
    if missing:
        pytest.skip(f"the C library cannot be built here: {' and '.join(missing)} is missing")
    return c.build(tmp_path_factory.mktemp("decode"))


@pytest.fixture(scope="module")
def library(installed: Path) -> Library:
    return Library(installed)


@pytest.fixture(scope="module")
def example(installed: Path) -> Path:
    return c.compile_example(installed)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    (folder / "m.onnx").write_bytes(model_of_all_kinds().SerializeToString())
    pack(folder / "m.onnx", folder / "m.oxc")
    return folder / "m.oxc"


def model_of_all_kinds() -> onnx.ModelProto:
    rng, model = np.random.default_rng(0), model_of_many_kinds()
    for data_type in sorted(set(BITS)):
        for dims in ([777], [3, 5, 7, 2, 6]):
            size = Entry(0, False, 0, 0, data_type, tuple(dims), Integer()).size
            raw = bytearray(rng.bytes(size))
            spare = (
                8 * size - math.prod(dims) * (2 if data_type in COMPLEX else 1) * BITS[data_type]
            )
            raw[-1] &= 255 >> spare
            name = f"type {data_type} {dims}"
            tensor = TensorProto(name=name, data_type=data_type, dims=dims, raw_data=bytes(raw))
            model.graph.initializer.append(tensor)
    return model


def from_memory(library: Library, data: bytes, **limits: int) -> Container:
    return Container(library, "memory", data, ctypes.c_size_t(len(data)), **limits)


# --- what comes back --------------------------------------------------------------------------


def test_the_example_writes_what_unpack_writes(example: Path, packed: Path, tmp_path: Path) -> None:
    paths = [packed]
    for model in sorted(MODELS.glob("*.onnx")):
        paths.append(tmp_path / f"{model.stem}.oxc")
        pack(model, paths[-1])
    assert len(paths) >= 4
    for path in paths:
        shown = c.run(example, path, tmp_path / "c.onnx")
        unpack(path, tmp_path / "python.onnx")
        assert (tmp_path / "c.onnx").read_bytes() == (tmp_path / "python.onnx").read_bytes()
        with ContainerReader(path) as reader:
            assert all(f"{name}: " in shown for name in reader.names if not name.startswith("#"))


def test_the_commands_of_the_page_unpack_a_model(installed: Path, packed: Path) -> None:
    folder = installed.parent
    shutil.copy(packed, folder / "digits.oxc")
    c.shell(c.documented()[1], folder)
    assert (folder / "digits.onnx").read_bytes() == model_of_all_kinds().SerializeToString()
    assert len(c.EXAMPLE.read_text("utf-8").splitlines()) < 60
    for standard in ("c11", "c17"):
        c.compile_example(installed, standard)


def test_tensors_are_listed_and_decoded_as_by_the_reader(library: Library, packed: Path) -> None:
    with ContainerReader(packed) as reader, from_memory(library, packed.read_bytes()) as container:
        entries = reader.directory.entries
        assert len(container) == len(entries)
        assert {type(entry.representation).__name__ for entry in entries} == {
            *("Integer", "Planes", "Grid", "Codebook", "Same")
        }
        for index, entry in enumerate(entries):
            found = container.info(index)
            assert found.name[: found.name_length].decode() == reader.names[index]
            assert tuple(found.dims[: found.rank]) == entry.dims
            assert (found.data_type, found.size) == (entry.data_type, entry.size)
            assert (found.initializer, found.packed) == (entry.initializer, entry.packed)
            assert container.decode(index) == reader.read(index).tobytes(), reader.names[index]


def test_memory_files_and_callbacks_give_the_same(
    library: Library, packed: Path, tmp_path: Path
) -> None:
    data = packed.read_bytes()

    @c.READ
    def read(user: int, offset: int, buffer: int, length: int) -> int:
        ctypes.memmove(buffer, data[offset : offset + length], length)
        return 0

    unpack(packed, tmp_path / "m.onnx")
    expected = (tmp_path / "m.onnx").read_bytes()
    sources: list[tuple[Any, ...]] = [
        ("memory", data, ctypes.c_size_t(len(data))),
        ("file", str(packed).encode()),
        ("reader", read, None, ctypes.c_uint64(len(data))),
    ]
    for source in sources:
        with Container(library, *source) as container:
            assert container.written() == expected, source[0]
            assert not container.ask("is_delta")
            assert not container.ask("has_data_file")


def test_tensors_larger_than_a_chunk_are_cut_as_written(library: Library, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = small_convnet()
    for name, dims in {"rows": (1100, 1000), "flat": (2**20 + 77,), "wide": (2, 2**20 + 3)}.items():
        for data_type in (TensorProto.INT4, TensorProto.INT8, TensorProto.FLOAT16):
            entry = Entry(0, False, 0, 0, data_type, dims, Integer())
            raw = bytearray((rng.integers(0, 256, entry.size) & 0x33).astype(np.uint8).tobytes())
            raw[-1] &= 15
            model.graph.initializer.append(
                TensorProto(
                    name=f"{name}{data_type}", data_type=data_type, dims=dims, raw_data=bytes(raw)
                )
            )
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc", prefer="speed")
    with from_memory(library, (tmp_path / "m.oxc").read_bytes()) as container:
        assert container.written() == (tmp_path / "m.onnx").read_bytes()


def test_a_delta_package_needs_its_base(
    library: Library, example: Path, packed: Path, tmp_path: Path
) -> None:
    model = model_of_all_kinds()
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    (tmp_path / "new.onnx").write_bytes(model.SerializeToString())
    pack(tmp_path / "new.onnx", tmp_path / "new.oxc", base=packed)
    pack(tmp_path / "new.onnx", tmp_path / "whole.oxc")
    delta, whole = (tmp_path / "new.oxc").read_bytes(), (tmp_path / "whole.oxc").read_bytes()
    assert len(delta) < len(whole) / 2
    c.run(example, tmp_path / "new.oxc", tmp_path / "c.onnx", packed)
    assert (tmp_path / "c.onnx").read_bytes() == model.SerializeToString()
    with (
        from_memory(library, delta) as container,
        from_memory(library, whole) as other,
        from_memory(library, packed.read_bytes()) as base,
    ):
        assert container.ask("is_delta")
        for wrong, says in [(other, "not made from this base"), (container, "itself")]:
            with pytest.raises(Refused, match=says) as refused:
                container.set_base(wrong)
            assert refused.value.status == c.BAD_ARGUMENT
        with pytest.raises(Refused, match="no delta package"):
            other.set_base(base)
        with pytest.raises(Refused, match="needs the container that it was made from") as refused:
            container.written()
        assert refused.value.status == c.NEEDS_BASE
        container.set_base(base)
        assert container.written() == model.SerializeToString()


def test_values_of_a_data_file_are_written_apart(
    library: Library, example: Path, tmp_path: Path
) -> None:
    weights = np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32)
    model = small_convnet()
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data")
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    (tmp_path / "python").mkdir()
    (tmp_path / "c").mkdir()
    unpack(tmp_path / "m.oxc", tmp_path / "python" / "m.onnx")
    c.run(example, tmp_path / "m.oxc", tmp_path / "c" / "m.onnx")
    for name in ("m.onnx", "m.onnx.data"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "python" / name).read_bytes()
    with from_memory(library, (tmp_path / "m.oxc").read_bytes()) as container:
        assert container.ask("has_data_file")
        with ContainerReader(tmp_path / "m.oxc") as reader:
            assert container.written() == reader.skeleton()


def test_what_is_told_of_errors_is_passed_over(library: Library, tmp_path: Path) -> None:
    model = model_of_all_kinds()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    shares = {tensor.name: 10.0**-i for i, tensor in enumerate(model.graph.initializer)}
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc", errors=shares)
    with ContainerReader(tmp_path / "m.oxc") as reader:
        assert {e.error for e in reader.directory.entries} >= {1, 9001, 2**14 - 1}
    with from_memory(library, (tmp_path / "m.oxc").read_bytes()) as container:
        assert container.written() == model.SerializeToString()


def test_errors_out_of_range_are_damage_to_both(library: Library, tmp_path: Path) -> None:
    path, entry = tmp_path / "m.oxc", Entry(0, True, 0, 0, FLOAT, (0,), Integer())
    for entry.error, fits in [(2**14 - 1, True), (2**14, False)]:
        with open(path, "wb") as file:
            writer = ContainerWriter(file, b"", external=False, errors=True)
            writer.directory.entries.append(entry)
            writer.finish()
        if fits:
            from_memory(library, path.read_bytes())
            ContainerReader(path)
            continue
        with pytest.raises(Refused, match="wrong error"):
            from_memory(library, path.read_bytes())
        with pytest.raises(CorruptContainer, match="error"):
            ContainerReader(path)


# --- every representation ---------------------------------------------------------------------


@st.composite
def representations(draw: st.DrawFn) -> tuple[Entry, list[list[bytes]]]:
    """A tensor of any type, shape and representation, with payloads of codes that fit it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    data_type = draw(st.sampled_from(sorted(BITS)))
    dims = tuple(draw(st.lists(st.integers(0, 9), max_size=5)))
    kinds = [Planes, Codebook] * (BITS[data_type] >= 8) + [Grid] * 3 * (data_type in FLOATS)
    kind = draw(st.sampled_from([Integer, *kinds]))
    tables: list[Any] = []
    how: Representation = Integer()
    if kind is Planes:
        how = draw(planes(number_type(data_type)))
    elif kind is Grid:
        axes = range(len(dims)) if math.prod(dims) else ()
        axis = draw(st.sampled_from([WHOLE, *axes]))
        block = draw(st.integers(0, 5)) if axis != WHOLE else 0
        count = math.prod(scale_shape(dims, axis, block))
        scales = (rng.standard_normal(count) * 10.0 ** rng.integers(-9, 6, count)).astype(
            np.float32
        )
        table, stream = make_table(scales.view(np.uint32))
        how, tables = Grid(axis, block, table), [stream] * (table.inline is None)
        if len(dims) > 1 and draw(st.booleans()):
            how = Trellis(axis, block, table, draw(st.integers(0, len(dims) - 1)))
    elif kind is Codebook:
        values = np.frombuffer(
            rng.bytes(draw(st.integers(1, 300)) * 8), f"<u{BITS[data_type] // 8}"
        )
        table, stream = make_table(values[: draw(st.integers(1, 300))])
        how, tables = Codebook(table), [stream] * (table.inline is None)
    entry = Entry(0, True, 0, 0, data_type, dims, how)
    top = how.values.count if isinstance(how, Codebook) else 2**31
    low = 0 if isinstance(how, Codebook) else -(2**31)
    spread = draw(st.sampled_from([40, 3000, 2**31]))
    streams = []
    for shape, bits in stream_dims(entry)[: len(stream_dims(entry)) - len(tables)]:
        whole = rng.integers(max(low, -spread), min(top, spread), math.prod(shape)).astype(np.int32)
        streams.append(chunks(whole, shape, bits))
    streams += [chunks(stream, stream.shape, 8) for stream in tables]
    return entry, streams


@st.composite
def planes(draw: st.DrawFn, kind: int) -> Planes:
    source = draw(st.sampled_from([kind, *WIDENED.get(kind, ())]))
    left, widths = BITS[source], []
    while left:
        widths.append(draw(st.integers(1, min(31, left))))
        left -= widths[-1]
    return Planes(source, draw(st.booleans()), tuple(widths))


def chunks(codes: Any, shape: tuple[int, ...], bits: int) -> list[bytes]:
    place, flat = cut(shape, bits), codes.reshape(-1)
    starts = [(place.start(i), place.shape(i)) for i in range(place.chunks)]
    return [encode(flat[at : at + math.prod(s)].reshape(s).copy()) for at, s in starts]


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(representations())
def test_every_representation_gives_the_bytes_of_the_reader(
    library: Library, tmp_path: Path, tensor: tuple[Entry, list[list[bytes]]]
) -> None:
    entry, streams = tensor
    path = tmp_path / "m.oxc"
    for _ in range(2):  # the second time with the hash that the first one found
        entry.streams.clear()
        with open(path, "wb") as file:
            writer = ContainerWriter(file, b"", external=True)
            writer.add(entry, streams)
            writer.finish()
        with ContainerReader(path) as reader:
            out = np.empty(entry.size, np.uint8)
            for task in reader.tasks(0, out):
                task()
        entry.checksum = xxh3_64(out)
    with from_memory(library, path.read_bytes()) as container:
        assert container.decode(0) == out.tobytes(), entry
        assert container.written("write_data_file") == out.tobytes()


def test_narrow_floats_are_widened_and_rounded_as_by_numpy(
    library: Library, tmp_path: Path
) -> None:
    """All float16 as FLOAT and DOUBLE; products on ties and beyond the range of float16."""
    every = np.arange(2**16, dtype=np.uint16)
    finite = every[np.isfinite(every.view(np.float16))]
    codes = np.concatenate([np.arange(-70000, 70000, 7), np.arange(2**24 - 50, 2**24 + 50)])
    cases: list[tuple[int, Representation, Any]] = [
        (TensorProto.FLOAT, Planes(FLOAT16, False, (16,)), finite),
        (TensorProto.DOUBLE, Planes(FLOAT16, False, (16,)), finite),
        (TensorProto.DOUBLE, Planes(BFLOAT16, False, (16,)), every[every & 0x7F80 != 0x7F80]),
    ]
    for exponent, data_type in itertools.product(range(-30, 3), (FLOAT16, BFLOAT16, FLOAT)):
        scale = np.array([np.float32(2.0**exponent * 1.5)])
        cases.append((data_type, Grid(WHOLE, 0, make_table(scale.view(np.uint32))[0]), codes))
    with open(tmp_path / "m.oxc", "wb") as file:
        writer = ContainerWriter(file, b"", external=True)
        for data_type, how, numbers in cases:
            entry = Entry(0, True, 0, 0, data_type, numbers.shape, how)
            if isinstance(how, Grid):
                with np.errstate(over="ignore"):
                    values = numbers.astype(np.float32) * np.frombuffer(how.scales.inline, "<f4")
                    entry.checksum = xxh3_64(as_type(values, data_type).tobytes())
            else:
                values = numbers.view(np.float16).astype(np.float32)
                if how.source == BFLOAT16:
                    values = (numbers.astype(np.uint32) << 16).view(np.float32)
                wide = np.float32 if data_type == FLOAT else np.float64
                entry.checksum = xxh3_64(values.astype(wide).tobytes())
            writer.add(entry, [chunks(numbers.astype(np.int32), numbers.shape, 32)])
        writer.finish()
    with Container(library, "file", str(tmp_path / "m.oxc").encode()) as container:
        for index in range(len(cases)):
            container.decode(index)  # compares with the hash


def as_type(values: Any, data_type: int) -> Any:
    import ml_dtypes

    kinds = {FLOAT: np.float32, FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16}
    return values.astype(kinds[data_type])


# --- what is refused --------------------------------------------------------------------------


def small_container(folder: Path) -> bytes:
    rng = np.random.default_rng(0)
    tensors = {
        "half": rng.standard_normal(64).astype(np.float16).astype(np.float32),
        "grid": rng.integers(-8, 8, (6, 30)).astype(np.float32) * rng.random((6, 1), np.float32),
        "few": rng.choice(np.array([0.1, 0.7, 3, 4, 5, 6], np.float32), 200),
        "codes": rng.integers(-9, 9, 100).astype(np.int8),
    }
    tensors["same"] = tensors["half"]
    initializers = [numpy_helper.from_array(v, n) for n, v in tensors.items()]
    model = helper.make_model(helper.make_graph([], "g", [], [], initializers))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    pack(folder / "m.onnx", folder / "m.oxc")
    return (folder / "m.oxc").read_bytes()


def test_every_changed_byte_and_every_end_is_found(library: Library, tmp_path: Path) -> None:
    data = small_container(tmp_path)
    with from_memory(library, data) as container:
        assert container.written() == (tmp_path / "m.onnx").read_bytes()
    for place in range(len(data)):
        for change in (1, 128, 255):
            changed = bytearray(data)
            changed[place] ^= change
            with pytest.raises(Refused) as refused, from_memory(library, bytes(changed)) as found:
                found.written()
            assert refused.value.status in (c.CORRUPT, c.UNSUPPORTED, c.NOT_A_CONTAINER), place
    for end in range(len(data)):
        with pytest.raises(Refused), from_memory(library, data[:end]):
            pass
    with pytest.raises(Refused), from_memory(library, data + b"\0"):
        pass


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3
    )
)
def test_directories_with_right_hashes_are_judged_as_by_the_reader(
    library: Library, packed: Path, tmp_path: Path, changes: list[tuple[float, int]]
) -> None:
    """Bytes of the directory change and its hash with them: what no checksum finds."""
    data = bytearray(packed.read_bytes())
    offset, length, _, start, magic = FOOTER.unpack(data[-FOOTER.size :])
    for place, value in changes:
        data[offset + int(place * length)] = value
    hash_ = xxh3_64(bytes(data[offset : offset + length]))
    data[-FOOTER.size :] = FOOTER.pack(offset, length, hash_, start, magic)
    path = tmp_path / "m.oxc"
    path.write_bytes(data)
    try:
        unpack(path, tmp_path / "python.onnx")
        expected = (tmp_path / "python.onnx").read_bytes()
    except OnnxcompError:
        expected = None
    status, found = outcome(library, bytes(data), 2**26)
    assert status in (c.OK, c.CORRUPT, c.OVER_LIMIT, c.NEEDS_BASE)
    assert found == expected


def outcome(library: Library, data: bytes, max_bytes: int) -> tuple[int, bytes | None]:
    """(status, the model if there is one)."""
    try:
        with from_memory(library, data, max_bytes=max_bytes) as container:
            return c.OK, container.written()
    except Refused as refused:
        return refused.status, None


def test_a_skeleton_of_another_size_than_declared_is_refused(
    library: Library, tmp_path: Path
) -> None:
    for declared in (99, 101, 0):
        path = tmp_path / "m.oxc"
        with open(path, "wb") as file:
            writer = ContainerWriter(file, bytes(100), external=False)
            writer.directory.skeleton_size = declared
            writer.finish()
        with ContainerReader(path) as reader, pytest.raises(CorruptContainer, match="skeleton"):
            reader.skeleton()
        assert outcome(library, path.read_bytes(), 0) == (c.CORRUPT, None)


def test_planes_of_less_than_a_byte_are_refused(library: Library, tmp_path: Path) -> None:
    entry = Entry(0, True, 0, 0, TensorProto.INT4, (), Planes(TensorProto.INT4, False, (4,)))
    with open(tmp_path / "m.oxc", "wb") as file:
        writer = ContainerWriter(file, b"", external=True)
        writer.add(entry, [[encode(np.ones((1, 1, 1), np.int32))]])
        writer.finish()
    with pytest.raises(CorruptContainer, match="whole bytes"):
        ContainerReader(tmp_path / "m.oxc")
    with pytest.raises(Refused, match="whole bytes"):
        from_memory(library, (tmp_path / "m.oxc").read_bytes())


def test_messages_name_the_tensor_the_stream_and_the_chunk(
    library: Library, tmp_path: Path
) -> None:
    """Wrong checksums of each stream, and wrong payloads, a table's among them."""
    codes = [encode(np.full((1, 1024, 1024), i, np.int32)) for i in range(2)]
    scales = np.arange(2048, dtype=np.float32)
    table, stream = make_table(scales.view(np.uint32))
    entry = Entry(0, True, 0, 4, TensorProto.FLOAT, (2048, 1024), Grid(0, 0, table))
    streams = [codes, chunks(stream, stream.shape, 8)]
    for number, where in enumerate(["stream 0, chunk 0", "stream 0, chunk 1", "stream 1, chunk 0"]):
        for broken, says in [(False, "its checksum differs"), (True, "it ends too early")]:
            entry.streams.clear()
            with open(tmp_path / "m.oxc", "wb") as file:
                writer = ContainerWriter(file, b"name", external=True)
                parts = [list(payloads) for payloads in streams]
                if broken:
                    parts[number // 2][number % 2] = parts[number // 2][number % 2][:-1]
                writer.add(entry, parts)
                if not broken:
                    chunk = entry.streams[number // 2][number % 2]
                    entry.streams[number // 2][number % 2] = replace(chunk, checksum=1)
                writer.finish()
            expected = f"tensor 0 'name', {where}: {says}"
            with (
                from_memory(library, (tmp_path / "m.oxc").read_bytes()) as container,
                pytest.raises(Refused, match=expected),
            ):
                container.written("write_data_file")
            with pytest.raises(CorruptContainer, match=f"tensor 'name', {where}: .*{says}"):
                verify(tmp_path / "m.oxc")


def test_a_table_for_no_numbers_is_refused(library: Library, tmp_path: Path) -> None:
    table = Table(2**22, 4)
    entry = Entry(0, True, 0, 0, TensorProto.FLOAT, (2**22, 0), Grid(0, 0, table))
    with open(tmp_path / "m.oxc", "wb") as file:
        writer = ContainerWriter(file, b"", external=True)
        writer.add(entry, [[], [encode(np.zeros((1, 2**20, 1), np.int32))] * 16])
        writer.finish()
    with pytest.raises(Refused, match="scales, more than numbers"):
        from_memory(library, (tmp_path / "m.oxc").read_bytes())


@pytest.mark.parametrize(
    ("dims", "along"), [((4, 3), 2), ((12,), 0), ((), 0), ((1, 2**20 + 1), 0), ((2, 2**11, 513), 2)]
)
def test_sequences_that_no_chunk_has_are_refused(
    library: Library, tmp_path: Path, dims: tuple[int, ...], along: int
) -> None:
    entry = Entry(0, True, 0, 0, FLOAT, dims, Trellis(WHOLE, 0, Table(1, 4, bytes(4)), along))
    with open(tmp_path / "m.oxc", "wb") as file:
        writer = ContainerWriter(file, b"", external=True)
        (shape, bits), *_ = stream_dims(entry)
        writer.add(entry, [chunks(np.zeros(dims, np.int32), shape, bits)])
        writer.finish()
    with pytest.raises(Refused, match="wrong axis of its sequences"):
        from_memory(library, (tmp_path / "m.oxc").read_bytes())
    with pytest.raises(CorruptContainer, match=f"no sequences along axis {along}"):
        ContainerReader(tmp_path / "m.oxc")


def test_no_more_is_allocated_than_the_caller_allows(library: Library, packed: Path) -> None:
    data = packed.read_bytes()
    found = [outcome(library, data, limit) for limit in range(1, 400_000, 10_000)]
    enough = found.index((c.OK, model_of_all_kinds().SerializeToString()))
    assert 10 < enough < len(found) - 1
    assert set(found[:enough]) == {(c.OVER_LIMIT, None)}
    assert set(found[enough:]) == {found[enough]}
    with pytest.raises(Refused, match="max_bytes = 1000 "):
        from_memory(library, data, max_bytes=1000)


def test_a_small_file_that_declares_a_huge_tensor_is_refused(
    library: Library, tmp_path: Path
) -> None:
    for dims in [(2**36,), (2**30, 0, 2**36), (2**20, 2**20), (2**34,)]:
        entry = Entry(0, True, 0, 0, TensorProto.INT8, dims, Integer())
        entry.streams.append([])
        with open(tmp_path / "m.oxc", "wb") as file:
            writer = ContainerWriter(file, b"", external=True)
            writer.directory.entries.append(entry)
            writer.finish()
        with pytest.raises(Refused) as refused:
            Container(library, "file", str(tmp_path / "m.oxc").encode(), max_bytes=2**20)
        assert refused.value.status == c.CORRUPT, dims


def test_wrong_arguments_and_failing_callbacks_have_their_own_status(
    library: Library, packed: Path
) -> None:
    def status(action: Any) -> int:
        with pytest.raises(Refused) as refused:
            action()
        return refused.value.status

    data = packed.read_bytes()

    @c.READ
    def failing(user: int, offset: int, buffer: int, length: int) -> int:
        return 1

    size = ctypes.c_uint64(len(data))
    assert status(lambda: Container(library, "file", b"/nowhere/m.oxc")) == c.CANNOT_READ
    assert status(lambda: Container(library, "reader", failing, None, size)) == c.CANNOT_READ
    assert status(lambda: Container(library, "file", None)) == c.BAD_ARGUMENT
    assert status(lambda: from_memory(library, b"not a container at all")) == c.NOT_A_CONTAINER
    newer = bytearray(data)
    struct.pack_into("<H", newer, 8, 77)
    assert HEADER.unpack_from(newer)[1] == 77
    assert status(lambda: from_memory(library, bytes(newer))) == c.UNSUPPORTED
    with from_memory(library, data) as container:
        assert status(lambda: container.info(len(container))) == c.BAD_ARGUMENT
        assert status(lambda: container.decode(len(container), 9)) == c.BAD_ARGUMENT
        room = container.info(0).size - 1
        assert status(lambda: container.decode(0, room)) == c.BAD_ARGUMENT
        assert status(lambda: container.written("write_data_file")) == c.BAD_ARGUMENT
        full = len(container.written())
        for allowed in (0, 100):
            stop = status(lambda allowed=allowed: container.written(accept=lambda n: n < allowed))
            assert stop == c.CANNOT_WRITE
        assert len(container.written()) == full


# --- golden containers ------------------------------------------------------------------------


def with_base(library: Library, name: str, container: Container) -> Container | None:
    """The base that a golden delta package needs."""
    if not container.ask("is_delta"):
        return None
    base = from_memory(library, (GOLDEN / "model-1.oxc").read_bytes())
    container.set_base(base)
    return base


@pytest.mark.parametrize("name", NAMES)
def test_golden_containers_hold_the_known_bytes(library: Library, name: str) -> None:
    known = json.loads((GOLDEN / "containers-1.json").read_text("utf-8"))[name]
    with from_memory(library, (GOLDEN / f"{name}-1.oxc").read_bytes()) as container:
        base = with_base(library, name, container)
        external = container.ask("has_data_file")
        found = container.written("write_data_file" if external else "write_model")
        assert hashlib.sha256(found).hexdigest() == known["model.data" if external else "model"]
        assert base is None or name == "delta"


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_of_golden_containers_is_under_a_check(library: Library, name: str) -> None:
    """All 255 others of the smallest; a payload of a container that was open before."""
    data = (GOLDEN / f"{name}-1.oxc").read_bytes()
    memory = ctypes.create_string_buffer(data, len(data))
    size, flips = ctypes.c_size_t(len(data)), (0x01, 0x80, 0xFF)
    with ContainerReader(GOLDEN / f"{name}-1.oxc") as reader:
        chunks = [
            (index, chunk)
            for index, entry in enumerate(reader.directory.entries)
            for stream in entry.streams
            for chunk in stream
        ]
    owner = {chunk.offset + i: index for index, chunk in chunks for i in range(chunk.length)}
    with Container(library, "memory", memory, size) as container:
        for place, byte in enumerate(data):
            for flip in range(1, 256) if name == "tiny" else flips:
                memory[place] = byte ^ flip
                with pytest.raises(Refused) as refused:
                    container.decode(owner[place]) if place in owner else Container(
                        library, "memory", memory, size
                    )
                assert refused.value.status in (c.CORRUPT, c.UNSUPPORTED, c.NOT_A_CONTAINER)
            memory[place] = byte
        for index in {index for index, _ in chunks}:
            container.decode(index)
    for end in range(len(data)):
        with pytest.raises(Refused):
            from_memory(library, data[:end])
