"""Dynamic INT8 against integer arithmetic in numpy, and against what onnxruntime fuses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.calibration import Calibration
from onnxcomp.exporting import to_proto
from onnxcomp.importing import from_proto
from onnxcomp.model import load_model, save_model
from onnxcomp.opset import convert_opset
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_dynamic import QuantizeDynamic
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.recipe import Recipe
from onnxcomp.targets import resolve_target

RANDOM = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    x: list[Any],
    kind: int = TensorProto.FLOAT,
    rank: int = 2,
) -> gs.Graph:
    """A graph from x to y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))


def quantized(graph: gs.Graph, **options: Any) -> tuple[onnx.ModelProto, PassReport]:
    """In integers however small, unless the options say otherwise."""
    report = PassReport()
    context = PassContext(target=resolve_target("x86-vnni"))
    QuantizeDynamic(**{"smallest_product": 0} | options).rewrite(graph, context, report)
    model = to_proto(graph)
    onnx.checker.check_model(model)
    return model, report


def run(model: onnx.ModelProto, x: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0])


def dynamic_codes(x: Array) -> tuple[Array, Array, Array]:
    """(codes, scale, zero point) by the definition of DynamicQuantizeLinear."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.clip(np.rint(x / scale) + zero, 0, 255), scale, zero


def weight_codes(w: Array, axis: int | None) -> tuple[Array, Array]:
    """Codes within +-127, and float32 scales with one entry along the other axes."""
    bound = np.abs(w).max(axis=axis, keepdims=axis is not None)
    scale = (bound / 127).astype(np.float32)
    return np.rint(w / scale), scale


def integer_product(x: Array, w: Array, per_channel: bool = True, by_row: bool = True) -> Array:
    """x [n, in] times w [in, out] by the definitions of DynamicQuantizeLinear and MatMulInteger."""
    size = np.abs(x).max(axis=-1, keepdims=True) if by_row else np.ones((1, 1), np.float32)
    size = np.maximum(size, np.finfo(np.float32).tiny)
    codes_x, scale_x, zero_x = dynamic_codes(x / size)
    codes_w, scale_w = weight_codes(w, 0 if per_channel else None)
    product = (codes_x - zero_x) @ codes_w * (scale_x * scale_w) * size
    return np.asarray(product, np.float32)


def weight(*shape: int) -> Array:
    """Random float32 whose columns have very different sizes."""
    return np.asarray(RANDOM.standard_normal(shape) * np.logspace(-2, 1, shape[-1]), np.float32)


@pytest.mark.parametrize("activations", ["row", "tensor"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_matmul_is_the_integer_product(per_channel: bool, activations: str) -> None:
    w, x = weight(40, 30), np.asarray(RANDOM.standard_normal((7, 40)), np.float32)
    x[2] *= 100
    x[3] = 0
    by_row = activations == "row"
    graph = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], {"w": w}, ["n", 40])

    model, report = quantized(graph, per_channel=per_channel, activations=activations)

    assert report.changed == ["fc"]
    wanted = integer_product(x, w, per_channel, by_row)
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-5, atol=1e-4)
    types = {t.name: t.data_type for t in model.graph.initializer if t.name.startswith("w")}
    assert types == {"w.codes": TensorProto.INT8, "w.scale": TensorProto.FLOAT}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_keeps_alpha_beta_and_bias(transposed: int) -> None:
    w, x = weight(40, 30), np.asarray(RANDOM.standard_normal((7, 40)), np.float32)
    bias = np.asarray(RANDOM.standard_normal(30), np.float32)
    node = helper.make_node(
        "Gemm", ["x", "w", "b"], ["y"], "fc", transB=transposed, alpha=0.5, beta=3.0
    )
    stored = np.ascontiguousarray(w.T) if transposed else w

    model, _ = quantized(model_of([node], {"w": stored, "b": bias}, ["n", 40]))

    wanted = 0.5 * integer_product(x, w) + 3 * bias
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-5, atol=1e-5)


def test_rows_of_an_embedding_have_scales_of_their_own() -> None:
    table = np.ascontiguousarray(weight(64, 200).T)  # rows of very different sizes
    node = helper.make_node("Gather", ["w", "x"], ["y"], "lookup")
    rows = np.asarray([[3, 199], [0, 3]])

    model, _ = quantized(model_of([node], {"w": table}, ["n", 2], TensorProto.INT64, 3))

    error = np.abs(run(model, rows) - table[rows])
    half_a_step = np.abs(table[rows]).max(axis=-1, keepdims=True) / 127 / 2
    assert (error <= half_a_step * 1.0001).all()
    assert error.max() > 0


def test_a_shared_input_and_a_shared_weight_are_quantized_once() -> None:
    w, v = weight(40, 40), weight(40, 40)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("MatMul", ["x", "v"], ["b"], "second"),
        helper.make_node("MatMul", ["a", "w"], ["c"], "third"),
        helper.make_node("Add", ["b", "c"], ["y"], "sum"),
    ]

    model, report = quantized(model_of(nodes, {"w": w, "v": v}, ["n", 40]))

    assert report.changed == ["first", "second", "third"]
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["DynamicQuantizeLinear"] == ops["ReduceMax"] == 2
    codes = [t for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    assert {t.name for t in codes} == {"w.codes", "v.codes"}


def fused(model: onnx.ModelProto, tmp_path: Path) -> Counter[str]:
    """Operators of the graph that onnxruntime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options)
    return Counter(n.op_type for n in onnx.load(tmp_path / "fused.onnx").graph.node)


def test_onnxruntime_fuses_every_layer(tmp_path: Path) -> None:
    w = weight(64, 64)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "w"], ["y"], "second"),
    ]
    graph = model_of(nodes, {"w": w}, ["n", 64])

    by_tensor, _ = quantized(graph.copy(), activations="tensor")
    by_row, _ = quantized(graph)

    assert fused(by_tensor, tmp_path) == {"DynamicQuantizeMatMul": 2, "Relu": 1}
    around = {"Abs": 2, "ReduceMax": 2, "Max": 2, "Div": 2, "Mul": 2}
    assert fused(by_row, tmp_path) == {"DynamicQuantizeMatMul": 2, "Relu": 1} | around


def bodies_of(model: onnx.ModelProto) -> list[TensorProto]:
    """Initializers that the bodies of a model's Ifs write."""
    bodies = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    return [tensor for body in bodies for tensor in body.initializer]


def test_layers_inside_a_body_are_quantized_there() -> None:
    w, x = weight(40, 40), np.asarray(RANDOM.standard_normal((3, 40)), np.float32)

    def body(op: str) -> onnx.GraphProto:
        inner = [
            helper.make_node("MatMul", ["x", "w"], [f"{op}.p"], f"{op}.fc"),
            helper.make_node(op, [f"{op}.p"], [f"{op}.y"], op),
        ]
        value = helper.make_tensor_value_info(f"{op}.y", TensorProto.FLOAT, [None, None])
        return helper.make_graph(inner, op, [], [value])

    branches = {"then_branch": body("Relu"), "else_branch": body("Neg")}
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], "sign"),
        helper.make_node("If", ["c"], ["y"], "if", **branches),
    ]
    graph = model_of(nodes, {"w": w, "zero": np.zeros((), np.float32)}, ["n", 40])

    model, report = quantized(graph)

    assert sorted(report.changed) == ["Neg.fc", "Relu.fc"]
    product = integer_product(x, w)
    wanted = np.maximum(product, 0) if x.sum() > 0 else -product
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-5, atol=1e-5)
    assert all(np.prod(t.dims) == 1 for t in bodies_of(model))
    large = [t.name for t in model.graph.initializer if np.prod(t.dims) > 40]
    assert large == ["w.codes"]  # one copy for both branches, and no float weight


def test_every_layer_left_alone_has_a_reason() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "small"], ["a"], "small_layer"),
        helper.make_node("MatMul", ["a", "a"], ["b"], "square"),
        helper.make_node("MatMul", ["b", "w"], ["c"], "named"),
        helper.make_node("MatMul", ["c", "endless"], ["d"], "not_finite"),
        helper.make_node("MatMul", ["d", "shared"], ["e"], "shares"),
        helper.make_node("Add", ["e", "shared"], ["y"], "shift"),
    ]
    constants = {
        "small": weight(8, 8),
        "w": weight(8, 200),
        "endless": np.full((200, 200), np.inf, np.float32),
        "shared": weight(200, 200),
    }
    graph = model_of(nodes, constants, [8, 8])

    _, report = quantized(graph, overrides={"nam*": {"skip": True}})

    assert report.changed == []
    assert set(report.skipped) == {"small_layer", "square", "named", "not_finite", "shares"}
    assert "64 weights" in report.skipped["small_layer"]
    assert "both factors" in report.skipped["square"]
    assert "recipe" in report.skipped["named"]
    assert "not finite" in report.skipped["not_finite"]
    assert "shift" in report.skipped["shares"]


def test_a_weight_stays_as_it_is_in_all_that_read_it_or_in_none() -> None:
    w = weight(40, 40)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("MatMul", ["a", "w"], ["y"], "second"),
    ]

    _, report = quantized(model_of(nodes, {"w": w}, ["n", 40]), overrides={"first": {"skip": True}})

    assert report.changed == []
    assert "first" in report.skipped["second"]


def test_a_table_tied_to_the_last_layer_is_stored_once() -> None:
    table, rows = np.ascontiguousarray(weight(32, 100).T), np.asarray([3, 99, 3])
    nodes = [
        helper.make_node("Gather", ["w", "x"], ["a"], "lookup"),
        helper.make_node("Transpose", ["w"], ["t"], "transpose"),
        helper.make_node("MatMul", ["a", "t"], ["y"], "head"),
    ]

    model, report = quantized(model_of(nodes, {"w": table}, ["n"], TensorProto.INT64))

    assert report.changed == ["lookup", "head"]
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    real = tensors["w.codes"] * tensors["w.scale"]
    np.testing.assert_allclose(run(model, rows), real[rows] @ real.T, rtol=1e-4, atol=1e-3)
    assert sum(t.nbytes for t in tensors.values()) < table.nbytes / 3


def test_weights_stay_within_seven_bits_where_sums_saturate() -> None:
    graph = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], {"w": weight(40, 30)}, ["n", 40]
    )
    context = PassContext(target=resolve_target("x86-avx2"))

    QuantizeDynamic(smallest_product=0).rewrite(graph, context, PassReport())

    codes = graph.tensors()["w.codes"].values
    assert np.abs(codes.astype(int)).max() == 63


def recurrent_model(op: str, gates: int, batch: int = 2, **attributes: Any) -> gs.Graph:
    """x [12, batch, 40] -> y [12, directions, batch, 20], with random weights."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    constants = {
        "w": np.asarray(RANDOM.standard_normal((directions, gates * 20, 40)) / 4, np.float32),
        "r": np.asarray(RANDOM.standard_normal((directions, gates * 20, 20)) / 4, np.float32),
        "b": np.asarray(RANDOM.standard_normal((directions, 2 * gates * 20)), np.float32),
    }
    node = helper.make_node(op, ["x", "w", "r", "b"], ["y"], "rnn", hidden_size=20, **attributes)
    return model_of([node], constants, [12, batch, 40], rank=4)


def integer_lstm(x: Array, w: Array, r: Array, b: Array) -> Array:
    """One direction in numpy: x [time, batch, in], gates in the order of ONNX, i o f c."""

    def product(values: Array, codes: Array, scale: Array) -> Array:
        found, step, zero = dynamic_codes(values)
        return np.asarray((found - zero) @ codes.T * (step * scale.T))

    def sigmoid(values: Array) -> Array:
        return np.asarray(1 / (1 + np.exp(-values)))

    inputs = product(x.reshape(-1, x.shape[-1]), *weight_codes(w, 1)).reshape(*x.shape[:2], -1)
    hidden = r.shape[1]
    h, c = np.zeros((x.shape[1], hidden)), np.zeros((x.shape[1], hidden))
    states = []
    for now in inputs:
        gates = now + b[: 4 * hidden] + b[4 * hidden :]
        gates = gates + (product(h, *weight_codes(r, 1)) if h.any() else 0)
        i, o, f, g = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return np.stack(states)


def test_lstm_is_the_integer_recurrence() -> None:
    graph, x = recurrent_model("LSTM", 4, batch=1), RANDOM.standard_normal((12, 1, 40))
    x = np.asarray(x, np.float32)
    w, r, b = (graph.tensors()[name].values[0] for name in "wrb")
    exact = run(to_proto(graph), x)

    model, report = quantized(graph, smallest_weight=0)

    assert report.changed == ["rnn"]
    assert [node.op_type for node in model.graph.node] == ["DynamicQuantizeLSTM"]
    found = run(model, x)
    np.testing.assert_allclose(found[:, 0], integer_lstm(x, w, r, b), atol=1e-6)
    assert np.abs(found - exact).max() > 1e-3


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm_stays_close_in_both_directions(direction: str) -> None:
    graph = recurrent_model("LSTM", 4, direction=direction)
    x = np.asarray(RANDOM.standard_normal((12, 2, 40)), np.float32)
    exact = run(to_proto(graph), x)

    model, _ = quantized(graph, smallest_weight=0)

    assert sqnr_db(exact, run(model, x)) > 30


@pytest.mark.parametrize(("op", "gates"), [("GRU", 3), ("RNN", 1), ("LSTM", 4)])
def test_recurrent_weights_are_stored_and_folded(op: str, gates: int, tmp_path: Path) -> None:
    graph = recurrent_model(op, gates)
    x = np.asarray(RANDOM.standard_normal((12, 2, 40)), np.float32)
    exact = run(to_proto(graph), x)

    model, report = quantized(graph, smallest_weight=0, recurrent="weights")

    assert report.changed == ["rnn"]
    assert [note.split(":")[1] for note in report.notes] == [f" 1 {op}"]
    assert fused(model, tmp_path) == {op: 1}  # at run time nothing but the float layer
    assert 30 < sqnr_db(exact, run(model, x)) < 60
    codes = [t.name for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    assert codes == ["w.codes", "r.codes"]


def test_an_lstm_of_which_one_weight_has_to_stay_float_runs_in_float() -> None:
    graph = recurrent_model("LSTM", 4)
    reader = gs.Node(
        "Neg", "also", {}, [graph.tensors()["r"]], [gs.Variable("unused", np.float32, [1, 80, 20])]
    )
    graph.nodes.append(reader)
    graph.outputs.append(reader.outputs[0])

    model, report = quantized(graph, smallest_weight=0)

    assert report.changed == ["rnn"]
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    assert kinds["w.codes"] == TensorProto.INT8
    assert kinds["r"] == TensorProto.FLOAT
    assert "LSTM" in {node.op_type for node in model.graph.node}
    assert "one of its weights" in report.notes[0]


def test_a_large_row_does_not_spoil_the_others() -> None:
    w, x = weight(40, 30), np.asarray(RANDOM.standard_normal((7, 40)), np.float32)
    x[3] *= 1000
    graph = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], {"w": w}, ["n", 40])
    others = [0, 1, 2, 4, 5, 6]

    by_tensor, _ = quantized(graph.copy(), activations="tensor")
    by_row, _ = quantized(graph)

    assert sqnr_db((x @ w)[others], run(by_tensor, x)[others]) < 1
    assert sqnr_db((x @ w)[others], run(by_row, x)[others]) > 35


def test_one_row_needs_no_scale_of_its_own() -> None:
    graph = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight(40, 30)}, [1, 40]
    )

    model, _ = quantized(graph)

    assert "ReduceMax" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(("rows", "form"), [("n", "product"), (1, "stored"), (64, "product")])
def test_integers_are_used_where_they_are_faster(rows: int | str, form: str) -> None:
    def form_of(side: int) -> dict[str, float]:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = model_of([node], {"w": weight(side, side)}, [rows, side])
        return quantized(graph, smallest_product=QuantizeDynamic().smallest_product)[1].numbers

    assert form_of(128) == {"weights_stored": 1}
    assert form_of(256) == {f"weights_{form}": 1}
    assert form_of(600) == {"weights_product": 1}


def test_samples_round_weights_so_that_the_output_changes_least() -> None:
    mixing = RANDOM.standard_normal((40, 40)) * np.logspace(0, -2, 40)
    rows = np.asarray(RANDOM.standard_normal((400, 40)) @ mixing.T, np.float32)
    w = np.asarray(RANDOM.standard_normal((40, 30)), np.float32)
    graph = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], {"w": w}, ["n", 40])
    samples = Calibration.from_source([{"x": rows[i : i + 10]} for i in range(0, 300, 10)], graph)
    context = PassContext(target=resolve_target("x86-vnni"), calibration=samples)

    def error(rounding: Any) -> float:
        twin = graph.copy()
        QuantizeDynamic(rounding=rounding).rewrite(twin, context, PassReport())
        return sqnr_db(rows[300:] @ w, run(to_proto(twin), rows[300:]))

    assert error("gptq") > error("nearest") + 3


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """Operators of a graph and its bodies."""
    found = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += operators(attribute.g)
    return found


def of_the_kit(kit: ModuleType, name: str, folder: Path, samples: int = 0, **options: Any) -> Path:
    """A model of the kit, simplified and quantized."""
    graph = convert_opset(load_model(kit.model_path(name)).graph)
    context = PassContext(target=resolve_target("x86-vnni"))
    SimplifyGraph().rewrite(graph, context, PassReport())
    if samples:
        given = Calibration.from_source(kit.calibration(name, samples), graph)
        context = PassContext(target=context.target, calibration=given)
    QuantizeDynamic(**options).rewrite(graph, context, PassReport())
    save_model(graph, folder / "quantized.onnx")
    assert kit.model_path(name).stat().st_size > 3 * (folder / "quantized.onnx").stat().st_size
    return folder / "quantized.onnx"


@pytest.mark.parametrize("name", ["dtln_1", "dtln_2"])
def test_speech_enhancement_keeps_its_quality(kit: ModuleType, name: str, tmp_path: Path) -> None:
    path = of_the_kit(kit, name, tmp_path)

    before, after = (kit.evaluate(p, name, limit=3)["value"] for p in (kit.model_path(name), path))
    assert abs(before - after) < 0.1  # dB, over clips of seconds: errors of states do not add up


def test_speech_detection_keeps_its_quality(kit: ModuleType, tmp_path: Path) -> None:
    name = "silero_vad_16k_op15"
    path = of_the_kit(kit, name, tmp_path)

    before, after = (kit.evaluate(p, name)["value"] for p in (kit.model_path(name), path))
    assert abs(before - after) < 0.4
    assert not [t for t in bodies_of(onnx.load(path)) if np.prod(t.dims) > 1024]
    fused(onnx.load(path), tmp_path)
    at_run_time = operators(onnx.load(tmp_path / "fused.onnx").graph)
    assert at_run_time["LSTM"] > 0
    assert at_run_time["Slice"] == 0  # its weights are scaled and sliced when it is loaded


@pytest.mark.parametrize("name", ["dtln_1", "dtln_2", "silero_vad_16k_op15"])
def test_states_pass_the_gate_of_the_recipes(kit: ModuleType, name: str, tmp_path: Path) -> None:
    path = of_the_kit(kit, name, tmp_path, samples=64)

    feeds = kit.calibration(name, 120)[1::2]
    sessions = [ort.InferenceSession(p) for p in (kit.model_path(name), path)]
    exact, found = ([session.run(None, feed) for feed in feeds] for session in sessions)
    for index in range(len(exact[0])):
        a, b = (np.concatenate([answer[index] for answer in x]) for x in (exact, found))
        assert sqnr_db(a, b) > Recipe.load("default").gates.min_state_sqnr_db


def test_sentences_keep_their_directions(kit: ModuleType, minilm: Path, tmp_path: Path) -> None:
    graph = load_model(minilm).graph
    context = PassContext(target=resolve_target("x86-vnni"))
    for step in (SimplifyGraph(), QuantizeDynamic()):
        step.rewrite(graph, context, PassReport())
    save_model(graph, tmp_path / "quantized.onnx")

    similar = kit.agreement(minilm, tmp_path / "quantized.onnx", "minilm_l6_v2", limit=20)

    assert similar["value"] > 0.996
    assert minilm.stat().st_size > 3.9 * (tmp_path / "quantized.onnx").stat().st_size


FEW = ("bert", "gpt2", "gru_speech", "llama_gqa", "lstm_text", "t5_encoder", "unet", "yolo_head")
SLOW = (
    *("albert", "convnext_tiny", "coat_tiny", "dcgan", "deberta_v2", "deit_tiny_patch16_224"),
    *("distilbert", "dscnn_kws", "efficientnet_b0", "electra", "gpt_neox", "levit_128s", "mistral"),
    *("mixer_b16_224", "mlp", "mobilevit_s", "opt", "phi", "qwen2", "resmlp_12_224", "roberta"),
    *("swin_t", "tcn"),
)


@pytest.mark.parametrize("name", [*FEW, *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)])
def test_architecture(hydrate: ModuleType, name: str) -> None:
    original = hydrate.load(name)
    feeds, size = hydrate.feeds(original), original.ByteSize()
    before = ort.InferenceSession(original.SerializeToString())
    graph = from_proto(original)

    model, report = quantized(graph, smallest_product=1 << 15)

    after = ort.InferenceSession(model.SerializeToString())
    signatures = [
        [(v.name, v.type, v.shape) for v in (*s.get_inputs(), *s.get_outputs())]
        for s in (before, after)
    ]
    assert signatures[0] == signatures[1]
    assert report.changed
    assert model.ByteSize() < 0.5 * size
    for a, b in zip(before.run(None, feeds), after.run(None, feeds), strict=True):
        assert sqnr_db(a, b) > 10


def sqnr_db(exact: Array, found: Array) -> float:
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()))


def test_other_runtimes_get_stored_weights() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "fc")
    graph = model_of([node], {"w": weight(40, 30)}, ["n", 40])
    report = PassReport()

    QuantizeDynamic(smallest_product=0).rewrite(
        graph, PassContext(target=resolve_target("qdq-generic")), report
    )

    assert report.changed == ["fc"]
    assert {node.op for node in graph.nodes} == {"Cast", "Mul", "MatMul"}


def test_candidates_are_what_rewrite_changes(models: Path) -> None:
    for name in ("digits_vit", "digits_gru", "digits_resnet"):
        graph = from_proto(onnx.load(models / f"{name}.onnx"))
        wanted = QuantizeDynamic().candidates(graph)

        _, report = quantized(graph)

        assert report.changed == wanted


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="smallest_weight"):
        QuantizeDynamic(smallest_weight=-1)
