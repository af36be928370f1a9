"""Models are read with one clear line for what is wrong, and saved to answer as before."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import OnnxcompError, OutputError, UnsupportedModel
from onnxcomp.exporting import to_proto
from onnxcomp.graph import constants
from onnxcomp.importing import from_proto
from onnxcomp.model import (
    bytes_on_disk,
    check_graph,
    copy_model,
    graph_bytes,
    load_model,
    save_model,
)
from onnxcomp.testing import assert_same_answers, graph_of, small_convnet, small_mlp

ROOT = Path(__file__).resolve().parent.parent
ONES = np.ones(3, np.float32)


def write(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def refusal(path: Path) -> str:
    """The line with which a file is refused."""
    with pytest.raises(UnsupportedModel) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- reading ----------------------------------------------------------------------------------


def test_a_large_file_is_read_like_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.model.LARGEST_CHECKED", 0)
    monkeypatch.setattr("onnxcomp.model.SMALLEST_EXTERNAL", 1)
    model = small_convnet()
    typed = helper.make_tensor("class_w", TensorProto.FLOAT, [5, 8], np.arange(40))
    kept = [t for t in model.graph.initializer if t.name != "class_w"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, typed])
    source = write(model, tmp_path / "m.onnx")
    save_model(load_model(source).graph, tmp_path / "out.onnx")
    assert_same_answers(source, tmp_path / "out.onnx")
    del typed.float_data[-1]
    model.graph.initializer[-1].CopyFrom(typed)
    assert "class_w" in refusal(write(model, source))


def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = small_convnet().SerializeToString()
    contents = {
        "empty": b"",
        "random": np.random.default_rng(0).bytes(4096),
        "text": b"this is not a model\n" * 50,
        "half": whole[: len(whole) // 2],
        "short": whole[:-1],
        "tail": whole[100:],
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        assert "not an ONNX model" in refusal(path) or "not a valid" in refusal(path), name
    assert "holds no graph" in refusal(tmp_path / "empty.onnx")
    assert "no such file" in refusal(tmp_path / "missing.onnx")
    assert "not a file" in refusal(tmp_path)


def broken(change: Any) -> onnx.ModelProto:
    model = small_mlp()
    change(model)
    return model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"), "nowhere"),
        (lambda m: setattr(m.graph.node[0], "op_type", "Gemmm"), "Gemmm"),
        (lambda m: m.graph.node.append(m.graph.node[0]), "SSA"),
        (lambda m: m.graph.node[0].attribute.add(name="odd", type="INT", i=1), "odd"),
        (lambda m: setattr(m.graph.initializer[0], "raw_data", b"abc"), "w1"),
        (lambda m: m.graph.initializer[0].ClearField("raw_data"), "w1"),
        (lambda m: m.ClearField("opset_import"), "opset_import"),
        (lambda m: m.graph.ClearField("name"), "name"),
    ],
)
@pytest.mark.parametrize("largest", [0, 10**9])
def test_a_model_that_fails_the_checker_is_refused_with_what_it_found(
    change: Any, said: str, largest: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.model.LARGEST_CHECKED", largest)
    monkeypatch.setattr("onnxcomp.model.SMALLEST_EXTERNAL", 1)  # elements; weights one by one
    message = refusal(write(broken(change), tmp_path / "broken.onnx"))
    assert "not a valid ONNX model" in message
    assert said in message


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that fails to read")
def test_an_unreadable_file_is_refused() -> None:
    assert "cannot be read" in refusal(Path("/proc/self/mem"))


def test_a_graph_that_a_pass_broke_is_refused_without_its_weights_being_copied() -> None:
    text = "m (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }"
    graph = graph_of(text, w=np.eye(64, dtype=np.float32))
    check_graph(graph)
    graph.nodes[0].attrs["odd"] = 1
    with pytest.raises(UnsupportedModel, match="odd"):
        check_graph(graph)


def test_checking_a_graph_knows_large_defaults_of_inputs() -> None:
    text = "m (float[512] x, float[512] w) => (float[512] y) { y = Mul (x, w) }"
    check_graph(graph_of(text, w=np.ones(512, np.float32)))


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [0, 1, 10**9])
def test_a_single_file_has_the_bytes_of_the_serialized_model(
    streamed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.serializing.SMALLEST_STREAMED", streamed)
    model = small_convnet()
    model.doc_string = "doc"
    model.graph.initializer[0].doc_string = "after raw_data"
    helper.set_model_props(model, {"after": "the graph"})
    typed = helper.make_tensor("typed", TensorProto.FLOAT16, [8], range(8))
    typed.doc_string = "in int32_data, and so of another length"
    model.graph.initializer.append(typed)
    model.graph.node[0].input[2] = "typed"
    graph = from_proto(model)
    replaced = constants(graph)["class_w"]
    replaced.values = np.array(replaced.values) * 2
    path = tmp_path / "m.onnx"
    assert save_model(graph, path) == path.stat().st_size == graph_bytes(graph)
    assert path.read_bytes() == to_proto(graph).SerializeToString(deterministic=True)


def test_large_weights_of_every_packing_are_streamed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        str(dtype): rng.integers(0, 2, (300, 301)).astype(dtype)
        for name in ("FLOAT", "BFLOAT16", "INT4", "UINT2", "FLOAT6E2M3", "BOOL")
        if hasattr(TensorProto, name)  # FLOAT6E2M3 is in the newest onnx only
        for dtype in [helper.tensor_dtype_to_np_dtype(getattr(TensorProto, name))]
    }
    graph = graph_of(f"m () => (float[3] y) {{ y = Odd ({', '.join(weights)}) }}", **weights)
    for constant in constants(graph).values():
        constant.values = np.array(constant.values)
    path = tmp_path / "m.onnx"
    save_model(graph, path)
    assert path.read_bytes() == to_proto(graph).SerializeToString(deterministic=True)
    for tensor in onnx.load_model(path).graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), weights[tensor.name])


def test_graph_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    for number, model in enumerate((small_mlp(), small_convnet())):
        graph = from_proto(model)
        path = tmp_path / f"{number}.onnx"
        assert save_model(graph, path) == graph_bytes(graph)
        assert bytes_on_disk(path) == path.stat().st_size


def test_an_untouched_model_is_copied_byte_for_byte(tmp_path: Path) -> None:
    source = write(small_mlp(), tmp_path / "m.onnx")
    before = source.read_bytes() + b"\x82\x06\x03odd"  # a field that no onnx knows
    source.write_bytes(before)
    assert copy_model(load_model(source), tmp_path / "copy.onnx") == len(before)
    assert (tmp_path / "copy.onnx").read_bytes() == before


@pytest.mark.parametrize("save", [lambda m, p: save_model(m.graph, p), copy_model])
def test_what_cannot_be_written_is_refused_in_one_line(save: Any, tmp_path: Path) -> None:
    model = load_model(write(small_mlp(), tmp_path / "m.onnx"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "kept").write_text("kept")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "m.onnx")
    for path, said in {
        tmp_path / "m.onnx": "is an input",
        tmp_path / "link.onnx": "is an input",
        tmp_path / "folder": "is a folder",
        tmp_path / "nowhere" / "m.onnx": "no folder",
        tmp_path / "m.onnx" / "m.onnx": "no folder",
    }.items():
        with pytest.raises(OutputError, match=said) as caught:
            save(model, path)
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "link.onnx", "m.onnx"]
    assert (tmp_path / "folder" / "kept").read_text() == "kept"


def test_what_the_verification_raises_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    target.write_text("old")

    for error in (UnsupportedModel("no"), KeyboardInterrupt(), OSError("evaluator")):

        def verify(path: Path, error: BaseException = error) -> None:
            onnx.checker.check_model(str(path))
            raise error

        with pytest.raises((OnnxcompError, KeyboardInterrupt)):
            save_model(from_proto(small_mlp()), target, verify=verify)
        assert target.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


# --- real models ------------------------------------------------------------------------------


def assert_survives(path: Path, folder: Path) -> None:
    """Load -> copy -> save -> load -> save: the same answers to the bit, and the same bytes."""
    model = load_model(path)
    first, second = folder / "first.onnx", folder / "second.onnx"
    save_model(model.graph.copy(), first)
    save_model(load_model(first).graph, second)
    assert first.read_bytes() == second.read_bytes()
    assert_same_answers(path, first)


def test_kit_models_answer_as_before(shared: Path, tmp_path: Path) -> None:
    paths = sorted((shared / "kit" / "models").glob("*.onnx"))
    assert len(paths) >= 12
    for path in paths:
        if "skeleton" not in path.name:
            assert_survives(path, tmp_path)


def test_corpus_models_answer_as_before_or_are_refused(shared: Path, tmp_path: Path) -> None:
    corpus = shared / "kit" / "corpus"
    entries = json.loads((corpus / "index.json").read_text())
    slow = ("fns-candy", "DNS-Challenge", "resnet50", "inception")  # seconds a run
    chosen = [e for e in entries if not any(name in e["file"] for name in slow)]
    assert sum(entry["runs"] for entry in chosen) >= 25
    for entry in chosen:
        if entry["runs"]:
            assert_survives(corpus / entry["file"], tmp_path)
        else:
            with contextlib.suppress(OnnxcompError):  # anything else is a traceback
                save_model(load_model(corpus / entry["file"]).graph, tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["swin_t", "gpt2", "lstm_text", "yolo_head", "mobilenet_v3_small"])
def test_exported_architectures_answer_as_before(shared: Path, name: str, tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(shared / 'archzoo')!r}); import hydrate, onnx;"
    code += f"onnx.save(hydrate.load({name!r}), {str(tmp_path / 'm.onnx')!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert_survives(tmp_path / "m.onnx", tmp_path)


def test_two_processes_write_the_same_bytes(models: Path, tmp_path: Path) -> None:
    source = sorted(models.glob("*.onnx"))[0]
    code = (
        "import sys; from onnxcomp.model import load_model, save_model;"
        "save_model(load_model(sys.argv[1]).graph.copy(), sys.argv[2]);"
        "save_model(load_model(sys.argv[1]).graph, sys.argv[2] + '.ext.onnx', external=True)"
    )
    written = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, str(source), str(folder / "m.onnx")],
            check=True,
            env=dict(os.environ, PYTHONHASHSEED=seed),
        )
        written.append({p.name: p.read_bytes() for p in folder.iterdir()})
    assert len(written[0]) == 3
    assert written[0] == written[1]
