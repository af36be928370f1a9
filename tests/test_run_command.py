"""`onnxcomp run` as a user meets it: arrays in, the answers of onnxruntime out, or one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import Result
from onnx import helper
from sparse_models import save_sparse_model

from onnxcomp.container_packing import pack
from onnxcomp.testing import model_of, small_attention, small_mlp

X = np.random.default_rng(0).standard_normal((3, 16), np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    onnx.save(small_mlp(), tmp_path / "model.onnx")
    np.savez(tmp_path / "x.npz", x=X)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    return command_line.run("run", *arguments, code=code)


def refused(*arguments: str) -> str:
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def written(path: str | Path) -> dict[str, Any]:
    with np.load(path) as archive:
        return dict(archive)


def by_onnxruntime(path: Path | str, feed: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def test_several_inputs_get_the_answers_of_onnxruntime(folder: Path) -> None:
    onnx.save(small_attention("dynamo"), folder / "attention.onnx")
    rng = np.random.default_rng(2)
    feed = {
        "mask": rng.standard_normal((2, 1, 1, 7), np.float32),
        "x": rng.standard_normal((2, 7, 32), np.float32),
    }
    np.savez_compressed(folder / "in.npz", **feed)
    shown = run("attention.onnx", "--inputs", "in.npz", "-o", "out.npz").stdout
    assert shown == f"out.npz: 1 array, {(folder / 'out.npz').stat().st_size:,} bytes\n"
    (y,) = by_onnxruntime("attention.onnx", feed).values()
    out = written("out.npz")
    assert set(out) == {"y"}
    np.testing.assert_allclose(out["y"], y, rtol=1e-5, atol=1e-5)
    again = (folder / "out.npz").read_bytes()
    run("attention.onnx", "--inputs", "in.npz", "-o", "out.npz")
    assert (folder / "out.npz").read_bytes() == again


def test_our_operators_are_known_in_models_and_in_containers(folder: Path) -> None:
    weight = save_sparse_model(folder / "sparse.onnx")
    pack(folder / "sparse.onnx", folder / "sparse.oxc")
    x = np.random.default_rng(3).standard_normal((5, 256), np.float32)
    np.savez(folder / "in.npz", X=x)
    dense = model_of("m (float[n, 256] X) => (float[n, 128] Y) { Y = MatMul (X, w) }", w=weight)
    onnx.save(dense, folder / "dense.onnx")
    wanted = by_onnxruntime("dense.onnx", {"X": x})["Y"]
    for name in ("sparse.onnx", "sparse.oxc"):
        run(name, "--inputs", "in.npz", "-o", "out.npz")
        np.testing.assert_allclose(written("out.npz")["Y"], wanted, rtol=1e-4, atol=1e-4)


def test_a_delta_package_runs_with_its_base(folder: Path) -> None:
    weight = save_sparse_model(folder / "sparse.onnx")
    pack(folder / "sparse.onnx", folder / "old.oxc")
    pack(folder / "sparse.onnx", folder / "delta.oxc", base=folder / "old.oxc")
    np.savez(folder / "in.npz", X=np.eye(256, dtype=np.float32))
    run("delta.oxc", "--base", "old.oxc", "--inputs", "in.npz", "-o", "out.npz")
    np.testing.assert_array_equal(written("out.npz")["Y"], weight)
    assert "base" in refused("delta.oxc", "--inputs", "in.npz")
    assert "model.onnx is no container" in refused(
        "model.onnx", "--base", "old.oxc", "--inputs", "x.npz"
    )


def test_every_kind_of_tensor_and_name_goes_there_and_back(folder: Path) -> None:
    kinds = {
        "float": [[1.5, np.nan, -np.inf]],
        "double": [1e300],
        "float16": [0.1],
        "bool": [True, False],
        "int8": [-128],
        "uint8": [255],
        "int16": [-(2**15)],
        "uint16": [2**16 - 1],
        "int32": [-(2**31)],
        "uint32": [2**32 - 1],
        "int64": [[-(2**63)], [2**63 - 1]],
        "uint64": 2**64 - 1,  # a scalar
        "string": ["", "two words", "größer"],
    }
    numpy_name = {"float": "float32", "double": "float64", "string": "str"}
    feed = {kind: np.array(x, numpy_name.get(kind, kind)) for kind, x in kinds.items()}
    feed["int8"], feed["int64"] = np.asfortranarray(feed["int8"]), feed["int64"].astype(">i8")
    odd = {"double": "file", "int8": "self"}  # what numpy calls arguments of its own
    graph = onnx.GraphProto(name="m")
    for kind, array in feed.items():
        output = odd.get(kind, f"/{kind}/y")
        graph.node.append(helper.make_node("Identity", [kind], [output]))
        data_type = onnx.TensorProto.DataType.Value(kind.upper())
        for where, name in ((graph.input, kind), (graph.output, output)):
            where.append(helper.make_tensor_value_info(name, data_type, array.shape))
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, folder / "kinds.onnx")
    np.savez(folder / "in.npz", **feed)
    run("kinds.onnx", "--inputs", "in.npz", "-o", "out.npz")
    out = written("out.npz")
    assert list(out) == [value.name for value in model.graph.output]
    for node in model.graph.node:
        given, found = feed[node.input[0]], out[node.output[0]]
        assert (found.dtype, found.shape) == (given.dtype.newbyteorder("="), given.shape)
        np.testing.assert_array_equal(found, given)
    shown = json.loads(run("kinds.onnx", "--inputs", "in.npz", "--json").stdout)["outputs"]
    assert shown[0] == {
        **{"name": "/float/y", "dtype": "float32", "shape": [1, 3]},
        "values": [1.5, None, "-inf"],
    }
    assert shown[-1]["dtype"] == "string"
    assert shown[-1]["values"] == ["", "two words", "größer"]


def test_an_initializer_may_be_fed_and_a_model_without_inputs_needs_no_file(folder: Path) -> None:
    model = model_of(
        "m (float[2] x, float[2] w) => (float[2] y) { y = Add (x, w) }", w=np.float32([1, 2])
    )
    onnx.save(model, folder / "add.onnx")
    for feed, wanted in (({}, [11, 12]), ({"w": np.float32([5, 6])}, [15, 16])):
        np.savez(folder / "in.npz", x=np.float32([10, 10]), **feed)
        shown = json.loads(run("add.onnx", "--inputs", "in.npz", "--json").stdout)
        assert shown["outputs"][0]["values"] == wanted
    constant = model_of("m () => (float[1] y) { y = Identity (c) }", c=np.float32([7]))
    onnx.save(constant, folder / "constant.onnx")
    run("constant.onnx", "-o", "out.npz")
    assert written("out.npz")["y"].tolist() == [7]


def test_without_o_a_few_values_of_every_output_are_shown(folder: Path) -> None:
    before = set(folder.iterdir())
    shown = run("model.onnx", "--inputs", "x.npz").stdout
    y = by_onnxruntime("model.onnx", {"x": X})["y"]
    assert shown.splitlines()[1].split()[:3] == ["y", "float32", "3x10"]
    shown_values = shown.split("3x10")[1].split()
    assert shown_values[6:] == ["..."]
    np.testing.assert_allclose([float(v) for v in shown_values[:6]], y.ravel()[:6], rtol=1e-3)
    assert set(folder.iterdir()) == before
    document = json.loads(run("model.onnx", "--inputs", "x.npz", "--json").stdout)
    assert (document["schema"], document["output"]) == ("onnxcomp.run/1", None)
    (output,) = document["outputs"]
    assert output["shape"] == [3, 10]
    np.testing.assert_allclose(output["values"], y.ravel()[:6], rtol=1e-5)
    document = json.loads(run("model.onnx", "--inputs", "x.npz", "-o", "y.npz", "--json").stdout)
    assert (document["output"], document["bytes"]) == (
        *("y.npz", (folder / "y.npz").stat().st_size),
    )


def test_sequences_are_shown_and_never_stored(folder: Path) -> None:
    model = model_of("""m (float[N, 16] x) => (seq(float[N, 16]) parts, float[N, 16] y) {
        parts = SequenceConstruct (x, x) y = Relu (x) }""")
    onnx.save(model, folder / "parts.onnx")
    assert "seq(tensor(float))" in run("parts.onnx", "--inputs", "x.npz").stdout
    said = refused("parts.onnx", "--inputs", "x.npz", "-o", "y.npz")
    assert "parts.onnx: output 'parts' is of type seq(tensor(float))" in said
    assert not (folder / "y.npz").exists()


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X[:, :15]}, "'x': has shape [3, 15], the model takes 'x' [N, 16] float32"),
        ({"x": X[0]}, "'x': has shape [16], the model takes 'x' [N, 16] float32"),
        ({"x": X.astype(float)}, "'x': has dtype float64, the model takes 'x' [N, 16] float32"),
        ({"x": X.astype(object)}, "array 'x' cannot be read"),
        ({"X": X}, "input 'x' is missing; 'X' is not one of its inputs; the model takes 'x'"),
        ({"x": X, "more": X}, "'more' is not an input; the model takes 'x'"),
        ({}, "input 'x' is missing; the model takes 'x'"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    arrays: dict[str, Any], said: str, folder: Path
) -> None:
    np.savez(folder / "in.npz", **arrays)
    before = set(folder.iterdir())
    message = refused("model.onnx", "--inputs", "in.npz", "-o", "y.npz")
    assert said in message
    assert "in.npz" in message
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.onnx", "--inputs", "x.npz"], "none.onnx: no such file"),
        ([".", "--inputs", "x.npz"], ".: not a file"),
        (["x.npz", "--inputs", "x.npz"], "x.npz: onnxruntime cannot load"),
        (["cut.oxc", "--inputs", "x.npz"], "cut.oxc"),
        (["model.onnx"], "takes 'x' [N, 16] float32; give it with --inputs FILE.npz"),
        (["model.onnx", "--inputs", "none.npz"], "none.npz: no such file"),
        (["model.onnx", "--inputs", "."], ".: not a file"),
        (["model.onnx", "--inputs", "model.onnx"], "model.onnx: not a readable .npz file"),
        (["model.onnx", "--inputs", "cut.npz"], "cut.npz: not a readable .npz file"),
        (["model.onnx", "--inputs", "odd.npz"], "odd.npz: array 'x' cannot be read"),
        (["model.onnx", "--inputs", "x.npz", "-o", "y.bin"], "y.bin: give a name that ends in"),
        (["model.onnx", "--inputs", "x.npz", "-o", "x.npz"], "-o x.npz: is an input"),
        (["model.onnx", "--inputs", "x.npz", "-o", "no/y.npz"], "there is no folder no"),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    arguments: list[str], said: str, folder: Path
) -> None:
    pack(folder / "model.onnx", folder / "whole.oxc")
    (folder / "cut.oxc").write_bytes((folder / "whole.oxc").read_bytes()[:-9])
    whole = (folder / "x.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[:-9])
    (folder / "odd.npz").write_bytes(whole.replace(b"(3, 16)", b"(9**9,)"))  # no literal
    before = {path: path.stat().st_size for path in folder.iterdir()}
    assert said in refused(*arguments)
    assert {path: path.stat().st_size for path in folder.iterdir()} == before


def test_a_node_that_fails_leaves_the_old_file(folder: Path) -> None:
    model = model_of(
        "m (float[N, 16] x) => (float[M, 7] y) { y = Reshape (x, shape) }", shape=np.int64([-1, 7])
    )
    onnx.save(model, folder / "model.onnx")
    (folder / "y.npz").write_bytes(b"old")
    before = set(folder.iterdir())
    assert "Reshape" in refused("model.onnx", "--inputs", "x.npz", "-o", "y.npz")
    assert (folder / "y.npz").read_bytes() == b"old"
    assert set(folder.iterdir()) == before


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
def test_a_full_disk_leaves_no_half_file(folder: Path) -> None:
    model = model_of(
        "m (float[N, 16] x) => (float[M, 16] y) { y = Tile (x, t) }", t=np.int64([100, 1])
    )
    onnx.save(model, folder / "model.onnx")
    (folder / "y.npz").write_bytes(b"old")
    before = set(folder.iterdir())
    limited = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.argv = ['onnxcomp', 'run', 'model.onnx', '--inputs', 'x.npz', '-o', 'y.npz']\n"
        "sys.dont_write_bytecode = True\n"
        "from onnxcomp.cli import main\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "y.npz: cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (folder / "y.npz").read_bytes() == b"old"
    assert set(folder.iterdir()) == before
