"""Containers: what is written comes back, and what is damaged is named."""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from containers import model_of_many_kinds, through
from hypothesis import given, settings
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.container import FOOTER, HEADER, MOST_CODES, VERSION, Entry, cut, error_field
from onnxcomp.container_packing import pack
from onnxcomp.container_reader import ContainerReader, is_container
from onnxcomp.container_unpacking import unpack, verify
from onnxcomp.errors import CorruptContainer, OnnxcompError, OutputError, UnsupportedModel
from onnxcomp.kernels.coding import xxh3_64
from onnxcomp.representations import Codebook, Grid, Integer
from onnxcomp.skeleton import point_to
from onnxcomp.stored import SUB_BYTE
from onnxcomp.testing import small_convnet
from random_graphs import models

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small_convnet with a duplicated, a half-like and an integer tensor, packed."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "m.onnx").write_bytes(model_of_many_kinds().SerializeToString())
    pack(folder / "m.onnx", folder / "m.oxc")
    return folder / "m.oxc"


# --- what comes back --------------------------------------------------------------------------


def every_type() -> Iterator[tuple[str, TensorProto]]:
    rng = np.random.default_rng(0)
    for name, data_type in TensorProto.DataType.items():
        for dims in ([], [0], [0, 4], [777], [13, 65], [3, 5, 7, 2, 6]):
            tensor = TensorProto(name=f"{name}{dims}", data_type=data_type, dims=dims)
            count = math.prod(dims)
            if name == "UNDEFINED":
                continue
            if name == "STRING":
                tensor.string_data.extend([b"\xff\x00text"] * count)
            else:
                dtype = helper.tensor_dtype_to_np_dtype(data_type)
                whole = rng.integers(0, 256, (count, np.dtype(dtype).itemsize)).astype(np.uint8)
                if name == "BOOL":
                    whole &= 1
                elif data_type in SUB_BYTE:
                    whole &= 2 ** SUB_BYTE[data_type] - 1
                values = np.ascontiguousarray(whole).view(dtype).reshape(dims)
                tensor.raw_data = numpy_helper.from_array(values).raw_data
            yield tensor.name, tensor


def test_every_type_and_rank_comes_back_byte_for_byte(tmp_path: Path) -> None:
    tensors = dict(every_type())
    assert len({t.data_type for t in tensors.values()}) == len(TensorProto.DataType.items()) - 1
    model = helper.make_model(helper.make_graph([], "g", [], [], list(tensors.values())))
    source, back = tmp_path / "m.onnx", tmp_path / "back.onnx"
    source.write_bytes(model.SerializeToString())
    found = pack(source, tmp_path / "m.oxc")
    assert {t.data_type for t in found.tensors} >= {"INT4", "UINT2", "BFLOAT16", "COMPLEX128"}
    assert verify(tmp_path / "m.oxc") == len(found.tensors)
    assert unpack(tmp_path / "m.oxc", back) == source.stat().st_size
    assert back.read_bytes() == source.read_bytes()


def test_typed_fields_and_strange_encodings_come_back(tmp_path: Path) -> None:
    """float_data, double_data, varints, values before the name, values of the wrong length."""
    values = np.random.default_rng(0).standard_normal(200)
    model = small_convnet()
    add = model.graph.initializer.add
    add(name="f", data_type=1, dims=[200]).float_data.extend(values.tolist())
    add(name="c", data_type=14, dims=[100]).float_data.extend(values.tolist())
    add(name="d", data_type=11, dims=[200]).double_data.extend(values.tolist())
    add(name="i", data_type=6, dims=[200]).int32_data.extend(range(-100, 100))
    add(name="wrong", data_type=1, dims=[3], raw_data=values.tobytes())
    add(name="odd", data_type=TensorProto.INT4, dims=[999], raw_data=b"\xff" * 500)
    early = TensorProto(data_type=1, dims=[400], raw_data=values.tobytes()).SerializeToString()
    early += TensorProto(name="late").SerializeToString()
    graph = model.graph.SerializeToString() + b"\x2a" + _varint(len(early)) + early
    model.ClearField("graph")
    data = model.SerializeToString() + b"\x3a" + _varint(len(graph)) + graph
    (tmp_path / "m.onnx").write_bytes(data)
    found = pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    assert {"f", "c", "d", "late"} <= {t.name for t in found.tensors}
    assert not {"i", "wrong", "odd"} & {t.name for t in found.tensors}
    unpack(tmp_path / "m.oxc", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == data


def _varint(value: int) -> bytes:
    from onnxcomp.varints import varint

    return varint(value)


def test_tensors_in_bodies_functions_and_attributes_are_coded(tmp_path: Path) -> None:
    from test_wire import nested_model

    model = nested_model()
    large = numpy_helper.from_array(np.arange(500, dtype=np.float32))
    model.graph.node[0].attribute[2].g.initializer.append(large)
    model.functions[0].node[0].attribute[0].t.CopyFrom(large)
    model.graph.sparse_initializer[0].values.raw_data = large.raw_data
    model.graph.sparse_initializer[0].values.dims[:] = [500]
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    assert [t.same_as is None for t in found.tensors] == [True, False, False]
    unpack(tmp_path / "m.oxc", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == model.SerializeToString()


@pytest.mark.parametrize("large", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_models_of_the_corpus_come_back_byte_for_byte(
    large: bool, shared: Path, tmp_path: Path
) -> None:
    folders = [shared / "kit" / name for name in ("corpus", "models")]
    paths = [path for folder in folders for path in folder.glob("*.onnx")]
    paths = [path for path in paths if (path.stat().st_size > 500_000) == large]
    assert len(paths) > 20
    for path in paths:
        found = pack(path, tmp_path / "m.oxc")
        assert found.bytes < 0.87 * path.stat().st_size, path.name
        unpack(tmp_path / "m.oxc", tmp_path / "back.onnx")
        assert (tmp_path / "back.onnx").read_bytes() == path.read_bytes(), path.name


def test_external_data_comes_back_in_one_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((3, 65, 65), np.float32)
    model = small_convnet()
    for index, size in enumerate((65, 65, 3)):
        data = values[index, :size].tobytes()
        (tmp_path / f"{index}.bin").write_bytes(b"before" + data + b"after")
        tensor = model.graph.initializer.add(name=f"w{index}", data_type=1, dims=[size, 65])
        point_to(tensor, f"{index}.bin", 6, len(data))
    inside = rng_tensor("inside", 200, 100)
    model.graph.initializer.extend([inside, rng_tensor("small", 2, 2)])
    source = tmp_path / "m.onnx"
    source.write_bytes(model.SerializeToString())
    found = pack(source, tmp_path / "m.oxc")
    assert found.model_bytes == source.stat().st_size + (65 + 65 + 3) * 65 * 4
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "n.onnx"
    written = unpack(tmp_path / "m.oxc", target)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert set(sizes) == {"n.onnx", "n.onnx.data"}
    assert sum(sizes.values()) == written
    expected, back = onnx.load(source), onnx.load(target)
    for tensor in back.graph.initializer:
        if tensor.name == "inside":
            tensor.ClearField("data_location")
    assert back == expected
    onnx.checker.check_model(str(target))


def test_small_external_values_move_into_the_model(tmp_path: Path) -> None:
    model = small_convnet()
    model.graph.initializer.extend([rng_tensor("small", 2, 2), rng_tensor("large", 30, 30)])
    expected = model.SerializeToString()
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    unpack(tmp_path / "m.oxc", tmp_path / "back.onnx")
    back = onnx.load(tmp_path / "back.onnx")
    for tensor in back.graph.initializer:
        tensor.ClearField("data_location")
    assert back.SerializeToString() == expected


def test_values_that_say_they_are_inside_come_back_byte_for_byte(tmp_path: Path) -> None:
    model = small_convnet()
    for tensor in model.graph.initializer:  # as onnx leaves models whose external data it loaded
        tensor.data_location = TensorProto.DEFAULT
    model.graph.initializer[0].external_data.add(key="location", value="forgotten")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    unpack(tmp_path / "m.oxc", tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def rng_tensor(name: str, *dims: int) -> TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(dims, np.float32)
    return numpy_helper.from_array(values, name)


@settings(max_examples=25, deadline=None)
@given(models())
def test_random_graphs_come_back_byte_for_byte(model: onnx.ModelProto) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, back = Path(folder) / "m.onnx", Path(folder) / "back.onnx"
        source.write_bytes(model.SerializeToString())
        pack(source, Path(folder) / "m.oxc")
        unpack(Path(folder) / "m.oxc", back)
        assert back.read_bytes() == source.read_bytes()


def test_the_same_model_gives_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    pack(packed.with_name("m.onnx"), tmp_path / "a.oxc", threads=1)
    pack(packed.with_name("m.onnx"), tmp_path / "b.oxc", threads=5)
    assert (tmp_path / "a.oxc").read_bytes() == packed.read_bytes()
    assert (tmp_path / "b.oxc").read_bytes() == packed.read_bytes()


# --- chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "bits", "chunks"),
    [
        ((), 32, 1),
        ((0,), 32, 0),
        ((4, 0, 3), 8, 0),
        ((MOST_CODES + 1,), 8, 2),
        ((3, MOST_CODES), 8, 3),
        ((3, 2**18, 5), 8, 4),  # a row does not fit: pieces of the whole
        ((1025, 1000), 8, 1),
        ((1049, 1000), 8, 2),
        ((2097, 999), 8, 2),
        ((2097, 999), 4, 3),  # 1048 of the 1049 rows that fit
        ((5, 349525), 4, 2),  # 3 rows fit, but no 8
    ],
)
def test_chunks_cover_a_tensor_in_whole_rows(dims: tuple[int, ...], bits: int, chunks: int) -> None:
    found = cut(dims, bits)
    assert found.chunks == chunks
    position = 0
    for chunk in range(chunks):
        assert found.start(chunk) == position
        assert position * bits % 8 == 0
        size = math.prod(found.shape(chunk))
        assert 0 < size <= MOST_CODES
        position += size
    assert position == math.prod(dims)


@pytest.mark.parametrize("bits", [4, 16])
def test_tensors_of_several_chunks_come_back(bits: int) -> None:
    data_type = {4: TensorProto.INT4, 16: TensorProto.FLOAT16}[bits]
    values = np.random.default_rng(0).integers(0, 9, 1500 * 1001 * bits // 8).astype(np.uint8)
    entry = Entry(0, True, 0, 0, data_type, (1500, 1001), Integer())
    assert (through(entry, values) == values).all()
    assert len(entry.streams[0]) == 2


@pytest.mark.parametrize("dims", [(2100, 1000), (40, 20), (3, 2**19 + 1), (2**20 + 9,)])
@pytest.mark.parametrize("rows", [True, False])
def test_grids_of_several_chunks_are_multiplied_by_the_scale_of_their_row(
    dims: tuple[int, ...], rows: bool
) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-99, 100, dims).astype(np.float32)
    shape = (dims[0], *[1] * (len(dims) - 1)) if rows and len(dims) > 1 else ()
    values = codes * (rng.random(shape, np.float32) + np.float32(0.1))
    entry = Entry(0, True, 0, 0, TensorProto.FLOAT, dims, Integer())
    assert (
        through(entry, values.reshape(-1).view(np.uint8)) == values.view(np.uint8).reshape(-1)
    ).all()
    assert isinstance(entry.representation, Grid | Codebook)


# --- damage -----------------------------------------------------------------------------------


def read_all(path: Path) -> list[bytes]:
    with ContainerReader(path) as reader:
        return [reader.skeleton(), *(reader.read(i).tobytes() for i in range(len(reader.names)))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A container of about a kilobyte with a tensor of every representation."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "m.onnx").write_bytes(tiny_model().SerializeToString())
    found = pack(folder / "m.onnx", folder / "m.oxc")
    kinds = {tensor.representation.split()[0].rstrip(",") for tensor in found.tensors}
    assert kinds == {"integer", "float", "grid", "codebook", "same"}
    assert found.bytes < 1800, "every byte of it is damaged in turn"
    return (folder / "m.oxc").read_bytes()


def tiny_model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    floats = rng.standard_normal(64, np.float32)
    tensors = {
        "a": floats,
        "b": floats,
        "grid": np.arange(-40, 40, dtype=np.float32).reshape(8, 10) * np.float32(0.3),
        "rows": rng.integers(-8, 8, (6, 90)).astype(np.float32) * rng.random((6, 1), np.float32),
        "few": np.repeat(rng.standard_normal(6).astype(np.float32), 20),
        "codes": rng.integers(-9, 9, 300).astype(np.int8),
    }
    initializers = [numpy_helper.from_array(v, n) for n, v in tensors.items()]
    return helper.make_model(helper.make_graph([], "g", [], [], initializers))


def test_every_damaged_byte_is_noticed(tiny: bytes, tmp_path: Path) -> None:
    copy = tmp_path / "m.oxc"
    copy.write_bytes(tiny)
    with open(copy, "r+b", buffering=0) as file:
        for position, byte in enumerate(tiny):
            for flipped in (1, 0x80, 0xFF):
                file.seek(position)
                file.write(bytes([byte ^ flipped]))
                with pytest.raises((CorruptContainer, UnsupportedModel)) as caught:
                    read_all(copy)
                assert "\n" not in str(caught.value)
                assert str(copy) in str(caught.value)
            file.seek(position)
            file.write(bytes([byte]))
    assert read_all(copy)


def test_every_truncation_and_extension_is_noticed(tiny: bytes, tmp_path: Path) -> None:
    copy = tmp_path / "m.oxc"
    copy.write_bytes(tiny + b"\0")
    with open(copy, "r+b") as file:
        for length in [len(tiny) + 1, *reversed(range(len(tiny)))]:
            file.truncate(length)
            with pytest.raises((CorruptContainer, UnsupportedModel)):
                ContainerReader(copy)


def test_messages_name_the_tensor_and_the_chunk(packed: Path, tmp_path: Path) -> None:
    with ContainerReader(packed) as reader:
        index = reader.names.index("half")
        chunk = reader.directory.entries[index].streams[1][0]
    broken = bytearray(packed.read_bytes())
    broken[chunk.offset + chunk.length - 1] ^= 1
    (tmp_path / "m.oxc").write_bytes(broken)
    with pytest.raises(CorruptContainer, match="tensor 'half', stream 1, chunk 0: its checksum"):
        verify(tmp_path / "m.oxc")
    with pytest.raises(CorruptContainer, match="tensor 'half'"):
        unpack(tmp_path / "m.oxc", tmp_path / "back.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.oxc"]


def forged(packed: Path, directory: bytes, features: int = 0, version: int = VERSION) -> bytes:
    """A container with another directory, whose hashes all hold."""
    data = packed.read_bytes()
    offset, _, _, _, magic = FOOTER.unpack(data[-FOOTER.size :])
    with ContainerReader(packed) as reader:
        end = HEADER.size + reader.directory.skeleton_packed
    start = HEADER.pack(data[:8], version, 0, features) + data[HEADER.size : end]
    footer = FOOTER.pack(offset, len(directory), xxh3_64(directory), xxh3_64(start), magic)
    return start + data[end:offset] + directory + footer


def test_directories_that_lie_do_no_harm(tiny: bytes, tmp_path: Path) -> None:
    copy, whole = tmp_path / "m.oxc", tmp_path / "whole.oxc"
    whole.write_bytes(tiny)
    expected = read_all(whole)
    offset, length, *_ = FOOTER.unpack(tiny[-FOOTER.size :])
    directory = tiny[offset : offset + length]
    rng, same = np.random.default_rng(0), 0
    for position in range(length):
        for _ in range(4):
            broken = bytearray(directory)
            broken[position] = rng.integers(256)
            copy.write_bytes(forged(whole, bytes(broken)))
            try:
                same += read_all(copy) == expected
            except (CorruptContainer, UnsupportedModel) as error:
                assert "\n" not in str(error)  # noqa: PT017
    assert same < length, "most bytes matter"


def huge(dims: list[int], chunks: int) -> bytes:
    """A directory that declares one tensor of bytes."""
    parts = [_varint(0), _varint(9), _varint(1), b"\0", _varint(0), _varint(0), _varint(2)]
    parts += [_varint(len(dims)), *map(_varint, dims), b"\1", (b"\2" + bytes(4)) * chunks]
    return b"".join([*parts, struct.pack("<Q", 0)])


@pytest.mark.parametrize("dims", [[2**40], [2**20, 2**20], [2**35] * 60, [0, 2**40], [2**35]])
def test_sizes_are_capped(dims: list[int], packed: Path, tmp_path: Path) -> None:
    (tmp_path / "m.oxc").write_bytes(forged(packed, huge(dims, 3)))
    with pytest.raises(CorruptContainer, match=r"too large|out of range|cut short"):
        ContainerReader(tmp_path / "m.oxc")


def test_other_versions_and_features_are_named(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    offset, length, *_ = FOOTER.unpack(data[-FOOTER.size :])
    directory = data[offset : offset + length]
    (tmp_path / "m.oxc").write_bytes(forged(packed, directory, version=77))
    with pytest.raises(CorruptContainer, match="version 77"):
        ContainerReader(tmp_path / "m.oxc")
    (tmp_path / "m.oxc").write_bytes(forged(packed, directory, features=0x100))
    with pytest.raises(CorruptContainer, match="features"):
        ContainerReader(tmp_path / "m.oxc")


def test_what_is_no_container_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(small_convnet().SerializeToString())
    assert not is_container(tmp_path / "m.onnx")
    assert not is_container(tmp_path / "none")
    for path in (tmp_path / "m.onnx", tmp_path / "none", tmp_path):
        with pytest.raises(UnsupportedModel):
            ContainerReader(path)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "field"),
    [
        (0.0, 0),
        (1e-4, 4001),
        (0.5, 302),  # 3.01 dB
        (1.0, 1),
        (30.0, 1),
        (math.inf, 1),
        (math.nan, 0),
        (1e-300, 2**14 - 1),
    ],
)
def test_errors_are_hundredths_of_a_decibel(share: float, field: int) -> None:
    assert error_field(share) == field


def test_errors_come_back_and_cost_nothing_where_there_are_none(
    packed: Path, tmp_path: Path
) -> None:
    model, told, plain = (tmp_path / name for name in ("m.onnx", "told.oxc", "plain.oxc"))
    model.write_bytes(model_of_many_kinds().SerializeToString())
    pack(model, told, errors={"half": 1e-4, "few": 2e-3, "nobody": 1.0})
    with ContainerReader(told) as reader:
        found = dict(zip(reader.names, reader.directory.entries, strict=True))
        assert reader.directory.errors
    assert {name: entry.error_db for name, entry in found.items() if entry.error} == {
        "half": -40.0,
        "few": -26.99,
    }
    pack(model, plain, errors={})
    assert plain.read_bytes() == packed.read_bytes()
    assert told.stat().st_size == packed.stat().st_size + len(found) + 2
    assert told.read_bytes()[12:16] == struct.pack("<I", 4)
    unpack(told, tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == model.read_bytes()


def test_errors_out_of_range_are_damage(packed: Path, tmp_path: Path) -> None:
    one = [_varint(0), _varint(9), _varint(1), b"\0", _varint(0), _varint(0), _varint(2)]
    empty = [_varint(1), _varint(0), b"\1"]  # no numbers, integers
    directory = b"".join([*one, *empty, _varint(2**14), bytes(8)])
    (tmp_path / "m.oxc").write_bytes(forged(packed, directory, features=4))
    with pytest.raises(CorruptContainer, match="error"):
        ContainerReader(tmp_path / "m.oxc")


# --- deltas -----------------------------------------------------------------------------------


def test_a_delta_holds_what_changed_and_needs_its_base(packed: Path, tmp_path: Path) -> None:
    model = model_of_many_kinds()
    changed = np.random.default_rng(5).standard_normal((9, 40), np.float32)
    for tensor in model.graph.initializer:
        if tensor.name == "two":
            tensor.raw_data = changed.tobytes()
    source, delta, back = (tmp_path / name for name in ("n.onnx", "d.oxc", "back.onnx"))
    source.write_bytes(model.SerializeToString())
    found = pack(source, delta, base=packed)
    own = [t.name for t in found.tensors if t.same_as is None]
    assert own == ["two"]
    assert found.needs_base
    assert found.bytes < 0.7 * pack(source, tmp_path / "whole.oxc").bytes
    unpack(delta, back, base=packed)
    assert back.read_bytes() == source.read_bytes()
    assert verify(delta, base=packed) == len(found.tensors)
    with pytest.raises(CorruptContainer, match="delta package"):
        unpack(delta, back)
    with pytest.raises(CorruptContainer, match="was not made from"):
        unpack(delta, back, base=tmp_path / "whole.oxc")
    with pytest.raises(CorruptContainer, match="no base"):
        unpack(packed, back, base=packed)
    with pytest.raises(OnnxcompError, match="delta package itself"):
        pack(source, tmp_path / "x.oxc", base=delta)


# --- writing ----------------------------------------------------------------------------------


def test_inputs_are_never_replaced(packed: Path, tmp_path: Path) -> None:
    source = packed.with_name("m.onnx")
    before = source.read_bytes(), packed.read_bytes()
    for attempt in (
        lambda: pack(source, source),
        lambda: pack(source, packed, base=packed),
        lambda: unpack(packed, packed),
    ):
        with pytest.raises(OutputError, match="is an input"):
            attempt()
    assert (source.read_bytes(), packed.read_bytes()) == before


def test_a_model_that_the_disk_cannot_hold_is_not_begun(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(OutputError, match="the disk has 5000 left"):
        unpack(packed, tmp_path / "back.onnx")
    assert not list(tmp_path.iterdir())
