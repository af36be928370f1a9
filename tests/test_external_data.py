"""Weights in files of their own: read lazily, kept inside the folder, written complete or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.errors import OutputError, UnsupportedModel
from onnxcomp.graph import constants
from onnxcomp.model import bytes_on_disk, copy_model, load_model, save_model
from onnxcomp.optimize import optimize
from onnxcomp.serializing import PAGE, copy_range
from onnxcomp.stored import StoredValues
from onnxcomp.testing import assert_same_answers, model_of

SIZE = 65  # of the square weights, which then end within a page
PACKINGS = ("FLOAT16", "BFLOAT16", "INT4", "UINT2", "FLOAT6E2M3", "BOOL")
needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="limits memory and files by rlimit"
)


def external_model(
    folder: Path, name: str = "m.onnx", data: str = "m.bin", count: int = 3, offset: int = 4
) -> Path:
    """x [N, 65] -> ``count`` MatMuls with weights in one file at offsets that are no pages."""
    rng = np.random.default_rng(0)
    names = [f"w{i}" for i in range(count)]
    steps = [f"t{i + 1} = MatMul (t{i}, w{i})" for i in range(count)]
    body = " ".join(steps).replace("t0", "x").replace(f"t{count} ", "y ")
    model = model_of(f"m (float[N, {SIZE}] x) => (float[N, {SIZE}] y) {{ {body} }}")
    with open(folder / data, "wb") as file:
        for weight in names:
            file.write(b"\xaa" * offset)
            values = rng.standard_normal((SIZE, SIZE), np.float32)
            add_external(model, weight, data, file.tell(), [SIZE, SIZE])
            file.write(values.tobytes())
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def add_external(
    model: onnx.ModelProto,
    name: str,
    location: str,
    offset: Any,
    dims: list[int],
    data_type: int = TensorProto.FLOAT,
) -> onnx.TensorProto:
    tensor = model.graph.initializer.add(name=name, data_type=data_type, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def entries(path: Path) -> dict[str, dict[str, str]]:
    model = onnx.load_model(path, load_external_data=False)
    return {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}


# --- reading ----------------------------------------------------------------------------------


def test_weights_are_mapped_and_only_when_somebody_looks(tmp_path: Path) -> None:
    model = load_model(external_model(tmp_path))
    weight = constants(model.graph)["w1"]
    assert isinstance(weight._values, StoredValues)
    offset = 2 * 4 + SIZE * SIZE * 4
    with open(tmp_path / "m.bin", "r+b") as file:  # what is read later is what is there later
        file.seek(offset)
        file.write(np.float32(7).tobytes())
    assert weight.values[0, 0] == 7
    assert not weight.values.flags.writeable
    assert not weight.values.flags.owndata, "a view of the mapped file"
    assert isinstance(weight._values, StoredValues), "looking does not load it for good"
    assert (model.external, model.bytes) == (True, model.path.stat().st_size + 3 * SIZE * SIZE * 4)


@pytest.mark.parametrize("name", [n for n in PACKINGS if hasattr(TensorProto, n)])
def test_external_weights_of_every_packing_are_read(name: str, tmp_path: Path) -> None:
    data_type = getattr(TensorProto, name)
    dtype = helper.tensor_dtype_to_np_dtype(data_type)
    values = np.random.default_rng(0).integers(0, 2, 4001).astype(dtype)
    raw = onnx.numpy_helper.from_array(values).raw_data
    (tmp_path / "w.bin").write_bytes(b"123" + raw)
    model = model_of("m () => (float[3] y) { y = Identity (w) }")
    model.graph.output[0].type.Clear()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", data_type, [4001]))
    model.opset_import[0].version, model.ir_version = 25, 13
    add_external(model, "w", "w.bin", 3, [4001], data_type)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    loaded = load_model(tmp_path / "m.onnx")
    assert constants(loaded.graph)["w"].values.tobytes() == values.tobytes()
    save_model(loaded.graph, tmp_path / "out.onnx", external=True)
    length = entries(tmp_path / "out.onnx")["w"].get("length")
    assert length in (str(len(raw)), None), "None: smaller than is worth a file"
    again = constants(load_model(tmp_path / "out.onnx").graph)["w"].values
    assert again.tobytes() == values.tobytes()


@needs_linux
def test_a_model_larger_than_memory_passes_through(tmp_path: Path) -> None:
    """8 GB of zeros in a sparse file, in a process that may take 4 GB of address space."""
    side = 2**15
    kind = f"float[N, {side}]"
    model = model_of(f"m ({kind} x) => ({kind} y) {{ t = MatMul (x, a) y = MatMul (t, b) }}")
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(2 * side * side * 4)
    add_external(model, "a", "w.bin", 0, [side, side])
    add_external(model, "b", "w.bin", side * side * 4, [side, side])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    code = """if True:
        import resource, sys
        from onnxcomp.model import check_graph, graph_bytes, load_model
        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
        model = load_model(sys.argv[1])
        copy = model.graph.copy()
        check_graph(copy)
        assert graph_bytes(copy) > 2**33
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(status["VmHWM"].split()[0])"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.onnx")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 400_000, "kilobytes"


def refuse(tmp_path: Path, location: str, offset: Any = 0, length: Any = None) -> str:
    model = model_of("m (float[N, 65] x) => (float[N, 65] y) { y = MatMul (x, w) }")
    tensor = add_external(model, "w", location, offset, [SIZE, SIZE])
    if length is not None:
        tensor.external_data.add(key="length", value=str(length))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedModel) as caught:
        load_model(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert "'w'" in str(caught.value)
    return str(caught.value)


def test_locations_outside_the_folder_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "w.bin"
    outside.write_bytes(bytes(SIZE * SIZE * 4))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link.bin").symlink_to(outside)
    (folder / "sub").symlink_to(tmp_path)
    for location in (
        "../w.bin",
        str(outside),
        "link.bin",
        "sub/w.bin",
        "a/../../w.bin",
        "/etc/passwd",
    ):
        assert "outside the model's folder" in refuse(folder, location), location
    assert "outside the model's folder" in refuse(folder, "")


def test_missing_short_and_odd_data_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "missing" in refuse(tmp_path, "w.bin")
    size = SIZE * SIZE * 4
    (tmp_path / "w.bin").write_bytes(bytes(size))
    assert f"needs {size} bytes at 4 of w.bin" in refuse(tmp_path, "w.bin", 4)
    assert "needs" in refuse(tmp_path, "w.bin", -4)
    assert "declares 4" in refuse(tmp_path, "w.bin", 0, 4)
    assert "no number" in refuse(tmp_path, "w.bin", "zero")
    assert "not the name of a file" in refuse(tmp_path, "w" * 5000)
    assert "not the name of a file" in refuse(tmp_path, "w\0.bin")
    (tmp_path / "folder.bin").mkdir()
    assert "missing" in refuse(tmp_path, "folder.bin")


def test_data_that_shrinks_while_it_is_copied_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(100))
    with open(tmp_path / "out", "wb") as file, pytest.raises(UnsupportedModel, match="ended"):
        copy_range(tmp_path / "w.bin", 50, 51, file)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_ranges_are_copied_exactly(
    in_kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr("onnxcomp.serializing.CHUNK", 1000)
    content = np.random.default_rng(0).bytes(5003)
    (tmp_path / "w.bin").write_bytes(content)
    with open(tmp_path / "out", "wb") as file:
        file.write(b"before")
        copy_range(tmp_path / "w.bin", 7, 4001, file)
        file.write(b"after")
    assert (tmp_path / "out").read_bytes() == b"before" + content[7:4008] + b"after"


# --- writing ----------------------------------------------------------------------------------


def test_external_weights_are_written_again_on_pages(tmp_path: Path) -> None:
    source = external_model(tmp_path)
    model = load_model(source)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "n.onnx"
    size = save_model(model.graph, target, external=True)
    assert sorted(p.name for p in target.parent.iterdir()) == ["n.onnx", "n.onnx.data"]
    assert size == sum(p.stat().st_size for p in target.parent.iterdir())
    assert bytes_on_disk(target) == target.stat().st_size + 3 * SIZE * SIZE * 4
    for entry in entries(target).values():
        assert entry["location"] == "n.onnx.data"
        assert int(entry["offset"]) % PAGE == 0
        assert entry["length"] == str(SIZE * SIZE * 4)
    expected = tmp_path / "expected"
    expected.mkdir()
    (tmp_path / "m.bin").unlink()
    assert_same_answers(external_model(expected), target)


def test_small_weights_that_a_pass_made_stay_in_the_model_file(tmp_path: Path) -> None:
    graph = load_model(external_model(tmp_path)).graph
    constants(graph)["w1"].values = np.eye(SIZE, dtype=np.float32)
    save_model(graph, tmp_path / "n.onnx", external=True)
    places = {name: bool(entry) for name, entry in entries(tmp_path / "n.onnx").items()}
    assert places == {"w0": True, "w1": False, "w2": True}


def test_an_external_model_saved_as_one_file_answers_as_before(tmp_path: Path) -> None:
    source = external_model(tmp_path)
    save_model(load_model(source).graph, tmp_path / "one.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.onnx", "one.onnx"]
    assert_same_answers(source, tmp_path / "one.onnx")


def test_what_one_file_cannot_hold_gets_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.model.LARGEST_PROTO", 3 * SIZE * SIZE * 4)
    source = external_model(tmp_path)
    save_model(load_model(source).graph, tmp_path / "n.onnx")
    assert (tmp_path / "n.onnx.data").is_file()
    assert_same_answers(source, tmp_path / "n.onnx")


def test_defaults_of_inputs_stay_external(tmp_path: Path) -> None:
    source = external_model(tmp_path, count=1)
    model = onnx.load_model(source, load_external_data=False)
    model.graph.input.append(helper.make_tensor_value_info("w0", TensorProto.FLOAT, [SIZE, SIZE]))
    source.write_bytes(model.SerializeToString())
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "n.onnx"
    save_model(load_model(source).graph, target, external=True)
    assert entries(target)["w0"]["location"] == "n.onnx.data"
    x = np.ones((1, SIZE), np.float32)
    assert_same_answers(source, target, [{"x": x}, {"x": x, "w0": np.eye(SIZE, dtype=np.float32)}])


def test_the_data_of_the_input_is_never_overwritten(tmp_path: Path) -> None:
    source = external_model(tmp_path, "m.onnx", "m2.onnx.data")
    model = load_model(source)
    before = (tmp_path / "m2.onnx.data").read_bytes()
    for write in (
        lambda: save_model(model.graph, tmp_path / "m2.onnx", external=True),
        lambda: save_model(model.graph.copy(), tmp_path / "m2.onnx.data"),
        lambda: copy_model(model, tmp_path / "m2.onnx"),
        lambda: optimize(source, "simplify", output=tmp_path / "m2.onnx"),
        lambda: optimize(source, "simplify").save(tmp_path / "m2.onnx"),
    ):
        with pytest.raises(OutputError, match="is an input"):
            write()
    assert (tmp_path / "m2.onnx.data").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m2.onnx.data"]


def test_a_failed_move_puts_everything_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(external_model(tmp_path))
    target = tmp_path / "out.onnx"
    (tmp_path / "out.onnx").write_text("old model")
    (tmp_path / "out.onnx.data").write_text("old data")
    replace = os.replace

    def failing(start: Any, end: Any) -> None:
        if Path(end) == target and Path(start).read_bytes()[:3] != b"old":
            assert not target.exists(), "an old model beside new weights"
            raise OSError(5, "Input/output error")
        replace(start, end)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OutputError, match="nothing was changed"):
        save_model(model.graph, target, external=True)
    assert target.read_text() == "old model"
    assert (tmp_path / "out.onnx.data").read_text() == "old data"
    assert len(list(tmp_path.iterdir())) == 4


@needs_linux
@pytest.mark.parametrize("external", [True, False])
def test_a_full_disk_leaves_nothing_and_says_so(external: bool, tmp_path: Path) -> None:
    source = external_model(tmp_path)
    code = f"""if True:
        import resource, sys
        from onnxcomp.errors import OutputError
        from onnxcomp.model import load_model, save_model
        model = load_model(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            save_model(model.graph, sys.argv[2], external={external})
        except OutputError as error:
            print(error)"""
    target = tmp_path / "out.onnx"
    run = subprocess.run(
        [sys.executable, "-c", code, str(source), str(target)], capture_output=True, text=True
    )
    assert run.stdout == f"{target}: cannot be written (File too large); nothing was changed\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin", "m.onnx"]
