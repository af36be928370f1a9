"""Sessions of graphs share their weights, tap any tensor, and fail in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcomp import runtime
from onnxcomp.errors import UnsupportedModel
from onnxcomp.graph import constants
from onnxcomp.importing import from_proto
from onnxcomp.runtime import one_line, open_file, open_session, session_options
from onnxcomp.stored import StoredConstant, StoredValues
from onnxcomp.testing import answers, graph_of, model_of, small_convnet, small_mlp

SIDE = 80  # SIDE * SIDE elements are handed over
FLOATS = ("float16", "float32", "float64", "bool")
X = np.random.default_rng(0).standard_normal((2, SIDE), np.float32)


def linear(name: str = "w", **weights: Any) -> gs.Graph:
    body = f"t = MatMul (x, {name}) y = Relu (t)"
    return graph_of(f"m (float[N, {SIDE}] x) => (float[N, {SIDE}] y) {{ {body} }}", **weights)


def rss(kind: str) -> int:
    """Bytes of this process in memory: RssAnon of its own, RssFile of mapped files."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if kind in line)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process")
def test_external_weights_are_mapped_and_never_copied(tmp_path: Path) -> None:
    side = 4096  # 64 MiB
    with open(tmp_path / "w.bin", "wb") as file:
        file.write(b"odd")
        file.write(np.ones(side * side, np.float32).tobytes())
    model = model_of(f"m (float[N, {side}] x) => (float[N, {side}] y) {{ y = MatMul (x, w) }}")
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[side, side])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    tensor.external_data.add(key="offset", value="3")
    graph = from_proto(model, tmp_path)
    feed = {"x": np.ones((1, side), np.float32)}
    before = rss("RssAnon"), rss("RssFile")
    session = open_session(graph, threads=1, lean=True)
    assert (session.run(feed)[0] == side).all()
    assert rss("RssAnon") - before[0] < side * side
    assert rss("RssFile") - before[1] >= side * side * 4


def test_weights_in_two_folders_arrive(tmp_path: Path) -> None:
    text = f"m (float[N, {SIDE}] x) => (float[N, {SIDE}] y) {{ t = MatMul (x) y = MatMul (t) }}"
    graph = graph_of(text)
    for node in graph.nodes:
        folder = tmp_path / node.inputs[0].name
        folder.mkdir()
        weights = np.eye(SIDE, dtype=np.float32) * (2 if folder.name == "x" else 3)
        (folder / "w.bin").write_bytes(weights.tobytes())
        tensor = onnx.TensorProto(name=f"{folder.name}_w", data_type=1, dims=[SIDE, SIDE])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="w.bin")
        node.inputs.append(StoredConstant(tensor.name, StoredValues(tensor, folder)))
    np.testing.assert_allclose(answers(graph, {"x": X})["y"], X * 6, rtol=1e-6)


def test_weights_live_as_long_as_the_session() -> None:
    session = open_session(linear(w=np.eye(SIDE, dtype=np.float32)), lean=True)
    rubbish = [np.full((SIDE, SIDE), 7, np.float32) for _ in range(50)]
    np.testing.assert_array_equal(session.run({"x": X})[0], np.maximum(X, 0))
    assert rubbish


@pytest.mark.parametrize("name", ["/model/w", "../w", "C:\\w", "a b", "w" * 300, "ü"])
def test_weights_of_any_name_are_handed_over(name: str) -> None:
    graph = linear(w=np.eye(SIDE, dtype=np.float32) * 3)
    constants(graph)["w"].name = name
    np.testing.assert_allclose(answers(graph, {"x": X})["y"], np.maximum(X * 3, 0), rtol=1e-6)


@pytest.mark.parametrize(
    "dtype",
    [*(f"{sign}int{bits}" for bits in (8, 16, 32, 64) for sign in ("", "u")), *FLOATS],
)
def test_weights_of_every_type_arrive(dtype: str) -> None:
    values = (np.arange(SIDE * SIDE) % 2).reshape(SIDE, SIDE).astype(dtype)
    text = f"m () => (float[{SIDE}, {SIDE}] y) {{ y = Cast <to = 1> (w) }}"
    np.testing.assert_array_equal(
        answers(graph_of(text, w=values), {})["y"], values.astype(np.float32)
    )


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.float8_e4m3fn])
def test_weights_that_numpy_lacks_arrive(dtype: Any) -> None:
    values = (np.arange(SIDE * SIDE) % 2).reshape(SIDE, SIDE).astype(dtype)
    model = model_of(
        f'<ir_version: 10, opset_import: ["" : 21]> m () => (float[{SIDE}, {SIDE}] y)'
        " { y = Cast <to = 1> (w) }",
        w=values,
    )
    np.testing.assert_array_equal(answers(from_proto(model), {})["y"], values.astype(np.float32))


def test_large_weights_inside_a_body_arrive() -> None:
    graph = graph_of(
        f"""m (bool c, float[N, {SIDE}] x) => (float[N, {SIDE}] y) {{
            y = If (c) <
                then_branch = g () => (float[N, {SIDE}] a) {{ a = MatMul (x, w) }},
                else_branch = h () => (float[N, {SIDE}] b) {{ b = Neg (x) }}
            >
        }}""",
        w=np.eye(SIDE, dtype=np.float32),
    )
    found = answers(graph, {"c": np.array(True), "x": X})["y"]
    np.testing.assert_array_equal(found, X)


def test_any_tensor_can_be_tapped() -> None:
    session = open_session(linear(w=np.eye(SIDE, dtype=np.float32)), extra_outputs=["t"])
    assert (session.inputs, session.outputs) == (["x"], ["y", "t"])
    np.testing.assert_array_equal(session.run({"x": X}, ["t"])[0], X)


def test_a_file_opens_like_its_graph(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small_convnet(), path)
    feed = {"image": np.ones((1, 3, 8, 8), np.float32)}
    from_file = open_file(path, threads=1).run(feed)[0]
    np.testing.assert_array_equal(
        open_session(from_proto(small_convnet()), threads=1).run(feed)[0], from_file
    )


def test_options_reach_onnxruntime() -> None:
    options = session_options(threads=3, optimize=False, lean=True)
    assert options.intra_op_num_threads == 3
    assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"
    assert options.get_session_config_entry("session.disable_prepacking") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert session_options().intra_op_num_threads == 0


def test_a_model_that_does_not_load_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    graph = from_proto(small_mlp())
    graph.nodes[0].op = "Gemmm"
    for attempt in (lambda: open_file(tmp_path / "m.onnx"), lambda: open_session(graph)):
        with pytest.raises(UnsupportedModel, match="cannot load the model") as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert "ONNXRuntimeError" not in str(caught.value)


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"x": np.zeros((1, 3), np.float32)},
        {"x": np.zeros((1, 16))},
        {"x": "text"},
        {"y": X},
        {"x": None},
    ],
)
def test_a_feed_that_does_not_fit_says_so_in_one_line(feed: dict[str, Any]) -> None:
    session = open_session(from_proto(small_mlp()))
    with pytest.raises(UnsupportedModel, match="cannot run the model") as caught:
        session.run(feed)
    assert "\n" not in str(caught.value)


def test_our_own_operators_are_known_without_being_asked_for(tmp_path: Path) -> None:
    model = model_of("""<ir_version: 8, opset_import: ["" : 17, "onnxcomp" : 1]>
        signs (float[N, 3] x) => (uint64[N, 1] y) {
            y = onnxcomp.PackSigns <comparison = 1> (x) }""")
    onnx.save(model, tmp_path / "signs.onnx")
    feed = {"x": np.array([[1, -1, 0], [-2, 3, -4]], np.float32)}
    for session in (open_file(tmp_path / "signs.onnx"), open_session(from_proto(model))):
        assert session.run(feed)[0].tolist() == [[0b101], [0b010]]


def test_unknown_operators_of_our_own_are_named() -> None:
    model = model_of("""<ir_version: 8, opset_import: ["" : 17, "onnxcomp" : 1]>
        signs (float[N, 3] x) => (float[N, 1] y) { y = onnxcomp.PackNothing (x) }""")
    with pytest.raises(UnsupportedModel, match=r"cannot load the model.*onnxcomp:PackNothing"):
        open_session(from_proto(model))


def test_messages_are_one_short_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line(ValueError("x" * 5000))) == 400


def test_importing_the_module_does_not_import_onnxruntime() -> None:
    assert "onnxruntime" not in vars(runtime)
