"""Models with everything that ONNX has come back: byte for byte, or with the same tensors."""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxcomp.container import Entry
from onnxcomp.container_packing import pack
from onnxcomp.container_unpacking import unpack, verify
from onnxcomp.lossless import Prefer
from onnxcomp.number_types import BITS, number_type
from onnxcomp.representations import Integer
from onnxcomp.skeleton import every_tensor, point_to

PREFER: tuple[Prefer, ...] = ("size", "speed")
SHAPES = [(), (0,), (3, 0, 2), (1,), (70,), (9, 40), (4, 3, 5, 5), (2, 3, 4, 3, 5), (600,)]
FLOATS = {1: np.float32, 10: np.float16, 11: np.float64}
PLACES = ["initializer", "sparse", "attribute", "list", "body", "function", "training", "unused"]


def numbers(data_type: int, count: int, kind: str, rng: np.random.Generator) -> bytes:
    """Bytes of ``count`` numbers of a type, of one of the kinds that a packer looks for."""
    size = (count * BITS[data_type] + 7) // 8
    whole = np.frombuffer(rng.bytes(size), np.uint8).copy()
    if kind == "few":
        whole = whole[rng.integers(0, min(size, 3), size)] if size else whole
    elif kind == "constant":
        whole[:] = 0x3B
    elif kind == "counting":
        item = max(BITS[data_type] // 8, 1)
        values = np.arange(size // item) - size // (2 * item)
        whole = values.astype(f"<i{item}").view(np.uint8).copy()
    elif kind in ("grid", "rows", "normal", "special") and data_type in FLOATS:
        whole = floats(data_type, count, kind, rng)
    if data_type == TensorProto.BOOL:
        whole &= 1
    if count * BITS[data_type] % 8:
        whole[-1] &= 2 ** (count * BITS[data_type] % 8) - 1
    return whole.tobytes()


def floats(
    data_type: int, count: int, kind: str, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    values = rng.standard_normal(count)
    if kind == "grid":
        values = np.rint(values * 9) * np.float32(0.037)
    elif kind == "rows":
        values = np.rint(values * 9) * np.repeat([0.5, 0.013], -(-count // 2))[:count]
    found = values.astype(FLOATS[data_type])
    if kind == "special" and count:
        exotic = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-7]
        found[rng.integers(0, count, 9)] = np.array(exotic, FLOATS[data_type])[
            rng.integers(0, 7, 9)
        ]
        bits = found.view(f"u{found.itemsize}")
        bits[np.isnan(found)] |= rng.integers(1, 500, np.isnan(found).sum()).astype(bits.dtype)
    return found.view(np.uint8)


@st.composite
def tensors(draw: st.DrawFn) -> TensorProto:
    data_type = draw(st.sampled_from([1, 1, *sorted(BITS), TensorProto.STRING]))
    dims = draw(st.sampled_from(SHAPES))
    tensor = TensorProto(name=draw(st.sampled_from("abcd")), data_type=data_type, dims=dims)
    count = math.prod(dims)
    if data_type == TensorProto.STRING:
        tensor.string_data.extend([draw(st.binary(max_size=4))] * count)
        return tensor
    count *= 2 if number_type(data_type) != data_type else 1
    kind = draw(
        st.sampled_from(
            ["noise", "few", "constant", "counting", "grid", "rows", "normal", "special"]
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 3)))  # few, so that tensors are alike
    data = numbers(number_type(data_type), count, kind, rng)
    assert len(data) == Entry(0, False, 0, 0, data_type, dims, Integer()).size
    if data_type in (1, 14) and draw(st.booleans()):
        values = np.frombuffer(data, np.float32)
        tensor.float_data.extend(values[~np.isnan(values)].tolist())  # may have another length
    else:
        tensor.raw_data = data
    if draw(st.integers(0, 9)) == 0:
        tensor.doc_string = "of a tensor"
        tensor.data_location = TensorProto.DEFAULT
        tensor.metadata_props.add(key="of", value="a tensor")
    return tensor


@st.composite
def whole_models(draw: st.DrawFn) -> onnx.ModelProto:
    """Tensors of every type in every place, with metadata; nothing that could be run."""
    model = helper.make_model(
        helper.make_graph([], "g", [], [], doc_string=draw(st.sampled_from(["", "x" * 400])))
    )
    graph = model.graph
    body, function = onnx.GraphProto(name="body"), model.functions.add(name="f", domain="d")
    node = helper.make_node("Op", [], ["y"], domain="d")
    for tensor in draw(st.lists(tensors(), max_size=6)):
        place = draw(st.sampled_from(PLACES))
        if place == "initializer":
            graph.initializer.append(tensor)
        elif place == "sparse":
            graph.sparse_initializer.add(values=tensor, dims=[9, 9]).indices.CopyFrom(tensor)
        elif place == "attribute":
            node.attribute.append(helper.make_attribute("t", tensor))
        elif place == "list":
            node.attribute.append(helper.make_attribute("ts", [tensor, tensor]))
        elif place == "body":
            body.initializer.append(tensor)
        elif place == "function":
            function.node.add(op_type="Constant").attribute.append(
                helper.make_attribute("value", tensor)
            )
        elif place == "training":
            model.training_info.add().algorithm.initializer.append(tensor)
    node.attribute.append(helper.make_attribute("g", body))
    graph.node.append(node)
    graph.quantization_annotation.add(tensor_name="a")
    helper.set_model_props(model, {"key": "value", "": "é"})
    return model


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(whole_models(), st.sampled_from(PREFER))
def test_models_with_everything_come_back_byte_for_byte(
    model: onnx.ModelProto, prefer: Prefer
) -> None:
    data = model.SerializeToString()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "m.onnx").write_bytes(data)
        found = pack(folder / "m.onnx", folder / "m.oxc", prefer=prefer, threads=1)
        assert verify(folder / "m.oxc", threads=1) == len(found.tensors)
        unpack(folder / "m.oxc", folder / "back.onnx", threads=1)
        assert (folder / "back.onnx").read_bytes() == data


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(whole_models())
def test_models_with_external_data_come_back_with_the_same_tensors(model: onnx.ModelProto) -> None:
    for index, tensor in enumerate(model.graph.initializer):
        tensor.name = f"w{index}"
    before = [values_of(tensor) for tensor in every_tensor(model)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        onnx.save(model, folder / "in" / "m.onnx", save_as_external_data=True, size_threshold=100)
        pack(folder / "in" / "m.onnx", folder / "m.oxc", threads=1)
        unpack(folder / "m.oxc", folder / "back.onnx", threads=1)
        back = onnx.load(folder / "back.onnx")
        assert [values_of(tensor) for tensor in every_tensor(back)] == before


def values_of(tensor: TensorProto) -> tuple[Any, ...]:
    """Name, type, shape and bytes, wherever they were."""
    fields = tuple(tensor.string_data), tuple(np.float32(tensor.float_data).tobytes())
    return tensor.name, tensor.data_type, tuple(tensor.dims), tensor.raw_data, *fields


def same_as(path: Path, back: Path) -> bool:
    """Whether a model came back: its bytes, or with external data its tensors."""
    model = onnx.load(path, load_external_data=False)
    if not any(t.data_location == TensorProto.EXTERNAL for t in every_tensor(model)):
        return path.read_bytes() == back.read_bytes()
    pair = onnx.load(path), onnx.load(back)
    found, expected = ([values_of(t) for t in every_tensor(m)] for m in pair)
    return found == expected


@pytest.mark.slow
@pytest.mark.parametrize("prefer", PREFER)
def test_every_shared_model_comes_back(
    prefer: Prefer, shared: Path, hydrate: ModuleType, tmp_path: Path
) -> None:
    paths = sorted((shared / "kit").rglob("*.onnx"))
    assert len(paths) > 40
    for name in [*paths, *hydrate.names()]:
        path = name
        if isinstance(name, str):
            path = tmp_path / "hydrated.onnx"
            onnx.save(hydrate.load(name), path)
        pack(path, tmp_path / "m.oxc", prefer=prefer)
        unpack(tmp_path / "m.oxc", tmp_path / "back.onnx")
        assert same_as(path, tmp_path / "back.onnx"), name


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tensor_of_two_gigabytes_comes_back_within_its_size_and_64_mb(tmp_path: Path) -> None:
    rows, columns = 2**15, 2**14 + 3
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "m.onnx"
    with open(tmp_path / "in" / "w.bin", "wb") as file:
        for row in range(0, rows, 512):
            rng = np.random.default_rng(row)
            file.write(rng.standard_normal((512, columns), np.float32).tobytes())
    size = (tmp_path / "in" / "w.bin").stat().st_size
    assert size > 2**31
    node = helper.make_node("Identity", ["w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], []))
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[rows, columns])
    point_to(tensor, "w.bin", 0, size)
    path.write_bytes(model.SerializeToString())
    found = pack(path, tmp_path / "m.oxc", prefer="speed")
    assert found.bytes < 0.9 * size
    code = """if True:
        import sys
        from onnxcomp.container_unpacking import unpack
        def peak():
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            return int(status["VmHWM"].split()[0]) * 1024
        before = peak()
        unpack(sys.argv[1], sys.argv[2], threads=2)
        print(peak() - before)"""
    command = [sys.executable, "-c", code, str(tmp_path / "m.oxc"), str(tmp_path / "back.onnx")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    print(f"\na tensor of {size} bytes: {int(run.stdout)} bytes more memory")
    assert size < int(run.stdout) < size + 64 * 2**20
    with open(tmp_path / "in" / "w.bin", "rb") as a, open(tmp_path / "back.onnx.data", "rb") as b:
        while piece := a.read(2**24):
            assert piece == b.read(2**24)
        assert not b.read(1)
