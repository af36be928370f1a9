"""Sessions of containers: they answer as those of the model do, and nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxcomp
from onnxcomp.container_loading import SMALLEST_HANDED, decoded
from onnxcomp.container_packing import pack
from onnxcomp.container_reader import ContainerReader
from onnxcomp.errors import CorruptContainer, UnsupportedModel
from onnxcomp.kernels import library_path
from onnxcomp.skeleton import point_to
from onnxcomp.testing import model_of

SIDE = 80  # of weights large enough to be handed over
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def answers(session: ort.InferenceSession, seed: int = 0) -> list[Any]:
    rng, feed = np.random.default_rng(seed), {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else 2 for size in value.shape]
        feed[value.name] = rng.standard_normal(shape).astype(np.float32)
    result: list[Any] = session.run(None, feed)
    return result


def branching_model() -> onnx.ModelProto:
    """x [N, 80] -> MatMul, and an If whose branches have large weights of their own."""
    model = model_of(
        f"""m (float[N, {SIDE}] x) => (float[N, {SIDE}] y) {{
            h = MatMul (x, w)
            total = ReduceSum <keepdims = 0> (h)
            zero = Constant <value = float {{0}}> ()
            positive = Greater (total, zero)
            y = If (positive) <
                then_branch = a () => (float[N, {SIDE}] p) {{ p = MatMul (h, u) }},
                else_branch = b () => (float[N, {SIDE}] q) {{ q = MatMul (h, u) }}
            >
        }}"""
    )
    rng = np.random.default_rng(0)
    assert SIDE * SIDE * 4 > SMALLEST_HANDED
    model.graph.initializer.append(weight(rng, "w"))
    for attribute in model.graph.node[-1].attribute:
        attribute.g.initializer.append(weight(rng, "u"))
    return model


def weight(rng: np.random.Generator, name: str) -> TensorProto:
    return numpy_helper.from_array(rng.standard_normal((SIDE, SIDE), np.float32) / 9, name)


def opened(source: Path, folder: Path) -> tuple[list[Any], list[Any]]:
    """What the model answers, and what its container does."""
    pack(source, folder / "m.oxc")
    providers = ["CPUExecutionProvider"]
    plain = ort.InferenceSession(str(source), providers=providers)
    return answers(plain), answers(onnxcomp.load_session(folder / "m.oxc"))


def same(one: list[Any], two: list[Any]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, two, strict=True))


def test_weights_are_handed_over_and_those_of_branches_put_in(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(branching_model().SerializeToString())
    assert same(*opened(source, tmp_path))
    with ContainerReader(tmp_path / "m.oxc") as reader:
        model, weights = decoded(reader, 2)
    assert set(weights) == {"w"}
    parsed = onnx.ModelProto.FromString(model)
    (left,) = (t for t in parsed.graph.initializer if t.name == "w")
    assert left.data_location == TensorProto.EXTERNAL
    assert not left.HasField("raw_data")
    for attribute in parsed.graph.node[-1].attribute:
        assert len(attribute.g.initializer[0].raw_data) == SIDE * SIDE * 4


def test_our_own_operators_are_known_without_being_asked_for(tmp_path: Path) -> None:
    model = model_of("""<ir_version: 8, opset_import: ["" : 17, "onnxcomp" : 1]>
        signs (float[N, 70] x) => (uint64[N, 2] y) {
            z = MatMul (x, w) y = onnxcomp.PackSigns <comparison = 1> (z) }""")
    w = np.diag(np.resize(np.float32([1, -1]), 70))
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    assert w.nbytes > SMALLEST_HANDED  # the second attempt is handed it again
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    for known in (False, True):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if known:  # as a caller did who registered them
            options.register_custom_ops_library(str(library_path()))
        session = onnxcomp.load_session(tmp_path / "m.oxc", options=options)
        (y,) = session.run(None, {"x": np.ones((1, 70), np.float32)})
        assert y.tolist() == [[0x5555555555555555, 0b010101]]


def test_the_models_of_this_repository_answer_alike(models: Path, tmp_path: Path) -> None:
    for source in sorted(models.glob("*.onnx")):
        assert same(*opened(source, tmp_path)), source.name


def test_models_with_external_data_answer_alike(tmp_path: Path) -> None:
    model = branching_model()
    tensors = [model.graph.initializer[0]]
    tensors += [a.g.initializer[0] for a in model.graph.node[-1].attribute]
    with open(tmp_path / "w.bin", "wb") as file:
        for tensor in tensors:
            start, data = file.tell(), tensor.raw_data
            file.write(data)
            tensor.ClearField("raw_data")
            point_to(tensor, "w.bin", start, len(data))
    source = tmp_path / "m.onnx"
    source.write_bytes(model.SerializeToString())
    assert same(*opened(source, tmp_path))


@pytest.mark.parametrize(
    "name", ["FLOAT16", "DOUBLE", "BFLOAT16", "INT8", "UINT16", "INT64", "BOOL"]
)
def test_weights_of_every_type_reach_the_session(name: str, tmp_path: Path) -> None:
    data_type = getattr(TensorProto, name)
    values = (
        np.random.default_rng(0)
        .integers(0, 2, (130, 131))
        .astype(helper.tensor_dtype_to_np_dtype(data_type))
    )
    model = model_of("m () => (float[130, 131] y) { y = Cast <to = 1> (w) }")
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    (found,) = onnxcomp.load_session(tmp_path / "m.oxc").run(None, {})
    assert (found == values.astype(np.float32)).all()


def test_options_and_deltas_are_respected(tmp_path: Path) -> None:
    model = branching_model()
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    model.graph.initializer[0].CopyFrom(weight(np.random.default_rng(9), "w"))
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    pack(tmp_path / "n.onnx", tmp_path / "n.oxc", base=tmp_path / "m.oxc")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxcomp.load_session(tmp_path / "n.oxc", base=tmp_path / "m.oxc", options=options)
    assert session.get_session_options().intra_op_num_threads == 1
    plain = ort.InferenceSession(str(tmp_path / "n.onnx"), providers=["CPUExecutionProvider"])
    assert same(answers(session), answers(plain))
    with pytest.raises(CorruptContainer, match="--base"):
        onnxcomp.load_session(tmp_path / "n.oxc")


def test_what_onnxruntime_refuses_is_said_in_one_line(tmp_path: Path) -> None:
    model = model_of("m (float[N] x) => (float[N] y) { y = Relu (x) }")
    model.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    with pytest.raises(UnsupportedModel, match="NoSuchOperator") as caught:
        onnxcomp.load_session(tmp_path / "m.oxc")
    assert "\n" not in str(caught.value)


@needs_linux
def test_unpacking_and_verifying_hold_one_tensor_and_64_mb(tmp_path: Path) -> None:
    """A model of 96 MB in six tensors, through a process that takes 80 MB at most."""
    size, limit, rng = 4_000_000, 64 * 2**20, np.random.default_rng(0)
    model = helper.make_model(helper.make_graph([], "g", [], []))
    for index in range(6):
        values = rng.standard_normal(size, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, f"w{index}"))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    pack(tmp_path / "m.onnx", tmp_path / "m.oxc")
    code = """if True:
        import sys
        from onnxcomp.container_unpacking import unpack, verify
        def peak():
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            return int(status["VmHWM"].split()[0])
        before = peak()
        verify(sys.argv[1], threads=2)
        unpack(sys.argv[1], sys.argv[2], threads=2)
        print(peak() - before)"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.oxc"), str(tmp_path / "back.onnx")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) * 1024 < size * 4 + limit < 6 * size * 4
    assert (tmp_path / "back.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
