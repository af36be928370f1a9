"""What runs on codes on which target, against the definitions computed in numpy."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from quantized_values import constant, sqnr_db

from onnxcomp.calibration import Calibration
from onnxcomp.fusion import optimized_operators
from onnxcomp.importing import from_proto
from onnxcomp.model import check_graph
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import TARGETS, resolve_target
from onnxcomp.testing import graph_of, small_attention

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def quantize(
    graph: gs.Graph, feeds: list[Feed], target: str = "x86-vnni", **options: Any
) -> PassReport:
    report = PassReport()
    calibration = Calibration.from_source(feeds, graph)
    context = PassContext(target=resolve_target(target), calibration=calibration)
    QuantizeStatic(**{"calibrator": "minmax", "correct_bias": False} | options).rewrite(
        graph, context, report
    )
    check_graph(graph)
    return report


def run(graph: gs.Graph, feeds: list[Feed]) -> Array:
    session = open_session(graph, threads=1)
    return np.stack([session.run(feed)[0] for feed in feeds])


def between(body: str, **constants: Any) -> gs.Graph:
    """x [1, 4, 6, 6] -> a Conv that makes ``c`` -> ``body``, which makes ``m`` -> a Conv; c too is
    an output, so that a test sees what the body was given."""
    weights = {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1, seed=1)} | constants
    text = f"""g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] c, float[1, 4, a, b] m,
        float[1, 4, a, b] y) {{ c = Conv (x, w) {body} y = Conv (m, v) }}"""
    return graph_of(text, **weights)


def feeds_of(*shape: int, count: int = 3) -> list[Feed]:
    return [{"x": normal(*shape, seed=100 + i)} for i in range(count)]


# --- operators that are written as others ---------------------------------------------------------


@pytest.mark.parametrize("target", ["x86-vnni", "arm64"])
@pytest.mark.parametrize(
    ("body", "reference", "kernel"),
    [
        (
            "[op] m = HardSigmoid <alpha = 0.4, beta = 0.3> (c)",
            lambda c: np.clip(0.4 * c + 0.3, 0, 1),
            "QLinearAdd",
        ),
        (
            "[op] m = HardSigmoid <alpha = 1.0, beta = 0.0> (c)",
            lambda c: np.clip(c, 0, 1),
            "QLinearAdd",
        ),
        ("[op] m = HardSwish (c)", lambda c: c * np.clip(c / 6 + 0.5, 0, 1), "QLinearMul"),
        ("[op] m = Sub (c, k)", lambda c: c - 0.7, "QLinearAdd"),
        ("[op] m = Relu (c)", lambda c: np.maximum(c, 0), "QLinearLeakyRelu"),
        ("[op] m = Clip (c, zero, k)", lambda c: np.clip(c, 0, 0.7), "QLinearLeakyRelu"),
        ("[op] m = Div (c, k)", lambda c: c / 0.7, "QLinearMul"),
    ],
)
def test_what_a_node_is_written_as_computes_the_same_within_one_code(
    body: str, reference: Any, kernel: str, target: str
) -> None:
    feeds = feeds_of(1, 4, 6, 6)
    graph = between(body, k=np.float32(0.7), zero=np.float32(0))
    report = quantize(graph, feeds, target)
    assert "op" in report.changed
    session = open_session(graph, threads=1)
    for feed in feeds:
        c, m, _ = session.run(feed)
        scale = constant(graph, "m.scale")
        want = reference(c)
        low, high = (
            scale * (limit - float(constant(graph, "m.zero_point")))
            for limit in (np.iinfo(constant(graph, "m.zero_point").dtype).min, np.inf)
        )
        assert np.abs(np.clip(want, low, high) - m).max() <= 1.01 * scale
    if target == "x86-vnni":
        found = optimized_operators(graph)
        assert found[kernel] == 1
        assert not {"HardSigmoid", "Sub", "Div", "Add", "Mul", "Relu", "Clip"} & found.keys()


def test_hard_sigmoid_saturates_exactly() -> None:
    feeds: list[Feed] = [{"x": 20 * normal(1, 4, 6, 6)}]
    graph = between("[op] m = HardSigmoid (c)", w=np.eye(4, dtype=np.float32)[:, :, None, None])
    quantize(graph, feeds)
    c, m, _ = open_session(graph).run(feeds[0])
    assert (m[c > 3] == 1).all()
    assert (m[c < -3] == 0).all()


def test_a_gate_of_squeeze_and_excitation_runs_in_integers() -> None:
    body = """
        p = GlobalAveragePool (c) q = Conv (p, v) r = Relu (q) s = Conv (r, w)
        h = HardSigmoid <alpha = 0.16666667> (s) m = Mul (c, h)
    """
    graph, feeds = between(body), feeds_of(1, 4, 6, 6)
    want = run(graph, feeds)
    quantize(graph, feeds)
    found = optimized_operators(graph)
    assert (found["QLinearConv"], found["QLinearAdd"], found["QLinearMul"]) == (4, 1, 1)
    assert not {"HardSigmoid", "Mul"} & found.keys()
    assert sqnr_db(want, run(graph, feeds)) > 30


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("n = Neg (c) [op] m = Sub (c, n)", "two activations"),
        ("e = Exp (c) [op] m = Div (c, e)", "two activations"),
        ("[op] m = Div (c, nothing)", "divides by zero"),
        ("[op] m = HardSigmoid <alpha = -1.0> (c)", "falls"),
    ],
)
def test_what_cannot_be_written_so_says_why(body: str, reason: str) -> None:
    graph = between(body, nothing=np.float32(1e-38))
    feeds = [{"x": 1e-3 * feed["x"]} for feed in feeds_of(1, 4, 6, 6)]
    report = quantize(graph, feeds)
    assert reason in report.skipped["op"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "kernel", "runs"),
    [
        (96, 96, 96, 3, True),  # depthwise has a kernel of its own
        (96, 192, 96, 3, False),
        (96, 96, 24, 3, False),
        (96, 96, 3, 3, True),
        (60, 60, 3, 1, True),
        (1, 8, 1, 3, False),
        (16, 32, 1, 3, True),
    ],
)
def test_convolutions_that_are_slower_in_integers_stay_float(
    inputs: int, outputs: int, groups: int, kernel: int, runs: bool
) -> None:
    text = f"""g (float[1, {inputs}, 64, 64] x) => (float[1, 64, a, b] y) {{
        before = Conv (x, u) r = Relu (before) [op] c = Conv <group = {groups}> (r, w)
        y = Conv (c, v) }}"""
    w = normal(outputs, inputs // groups, kernel, kernel)
    weights = {"u": normal(inputs, inputs, 1, 1), "w": w, "v": normal(64, outputs, 1, 1)}
    feeds = feeds_of(1, inputs, 64, 64, count=1)
    report = quantize(graph_of(text, **weights), feeds)
    assert ("op" in report.changed) is runs
    assert ("slower in integers" in report.skipped.get("op", "")) is not runs
    assert "op" in quantize(graph_of(text, **weights), feeds, "qdq-generic").changed


def test_a_depthwise_convolution_alone_stays_float() -> None:
    text = """g (float[1, 96, 64, 64] x) => (float[1, 96, 62, 62] y) {
        e = Exp (x) [op] d = Conv <group = 96> (e, w) y = Tanh (d) }"""
    report = quantize(graph_of(text, w=normal(96, 1, 3, 3)), feeds_of(1, 96, 64, 64, count=1))
    assert report.skipped["op"] == "its 1 to 1 channels a group: slower in integers here"


def test_a_normalization_between_operators_is_a_depthwise_convolution() -> None:
    scale = normal(8, seed=1) * np.logspace(-3, 3, 8, dtype=np.float32)
    constants = {"s": scale, "b": normal(8, seed=2), "u": normal(8, seed=3)}
    body = """d = Concat <axis = 1> (c, c)
        [op] n = BatchNormalization <epsilon = 0.1> (d, s, b, u, var)
        r = Relu (n) m = Conv (r, z)"""
    text = f"""g (float[1, 4, 6, 6] x) => (float[1, 8, 6, 6] r2, float[1, 4, 6, 6] y) {{
        c = Conv (x, w) {body} r2 = Identity (r) y = Conv (m, w) }}"""
    variance = np.abs(normal(8, seed=4))
    weights = {"w": normal(4, 4, 1, 1), "z": normal(4, 8, 1, 1), "var": variance}
    graph, feeds = graph_of(text, **weights, **constants), feeds_of(1, 4, 6, 6)
    want = run(graph, feeds)
    assert "op" in quantize(graph, feeds, exclude=("Identity",)).changed
    assert optimized_operators(graph)["QLinearConv"] == 4
    got, step = run(graph, feeds), constant(graph, "r.scale")
    codes = constant(graph, "r.weight.codes").ravel()
    assert set(np.abs(codes)) == {127}
    slope = np.abs(scale) / np.sqrt(variance + 0.1)
    inputs = slope * float(constant(graph, "d.scale"))
    error = np.abs(got - want).max((0, 1, 3, 4))
    assert (error <= 0.51 * step + 3 * inputs + 1e-4).all()


def test_normalizations_next_to_float_stay_as_they_are() -> None:
    text = """g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {
        e = Exp (x) [op] n = BatchNormalization (e, s, s, s, s) y = Neg (n) }"""
    graph = graph_of(text, s=np.ones(4, np.float32))
    assert "nothing to gain" in quantize(graph, feeds_of(1, 4, 6, 6)).skipped["op"]
    assert [node.op for node in graph.nodes] == ["Exp", "BatchNormalization", "Neg"]


def test_gelu_between_convolutions_is_one_kernel() -> None:
    body = """d = Div (r, root) e = Erf (d) a = Add (e, one) k = Mul (half, a) m = Mul (r, k)"""
    text = f"""g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {{
        c = Conv (x, w) r = Relu (c) {body} y = Conv (m, w) }}"""
    scalars = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    graph, feeds = graph_of(text, w=normal(4, 4, 1, 1), **scalars), feeds_of(1, 4, 6, 6)
    want = run(graph, feeds)
    quantize(graph, feeds)
    found = optimized_operators(graph)
    assert (found["Gelu"], found["Erf"], found["QLinearConv"]) == (1, 0, 2)
    assert (found["DequantizeLinear"], found["QuantizeLinear"]) == (2, 2)
    assert sqnr_db(want, run(graph, feeds)) > 30
    plain = graph_of(text, w=normal(4, 4, 1, 1), **scalars)
    quantize(plain, feeds, "qdq-generic")
    assert "Max" not in {node.op for node in plain.nodes}


# --- products -------------------------------------------------------------------------------------


def product(text: str, **constants: Array) -> gs.Graph:
    return graph_of(
        f"g (float[2, 5, 16] x, float[2, 16, 7] u) => (float[2, a, b] y) {{ {text} }}", **constants
    )


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("[op] y = MatMul (x, u)", {}),
        ("[op] y = MatMul (k, u)", {"k": normal(3, 16)}),
    ],
)
def test_two_activations_are_multiplied_in_integers_on_demand_only(
    text: str, constants: dict[str, Array]
) -> None:
    feeds: list[Feed] = [{"x": normal(2, 5, 16), "u": normal(2, 16, 7, seed=1)}]
    graph = product(text, **constants)
    report = quantize(graph, feeds)
    assert "hardly faster" in report.skipped["op"]
    assert not report.changed
    graph = product(text, **constants)
    assert quantize(graph, feeds, attention=True).changed == ["op"]
    assert optimized_operators(graph)["MatMulIntegerToFloat"] == 1

    def rounded(name: str, values: Array) -> Array:
        scale, zero = constant(graph, f"{name}.scale"), float(constant(graph, f"{name}.zero_point"))
        return scale * (np.clip(np.rint(values / scale) + zero, 0, 255) - zero)

    left = constants.get("k", feeds[0]["x"])
    want = rounded("k" if constants else "x", left) @ rounded("u", feeds[0]["u"])
    assert np.allclose(run(graph, feeds)[0], want, atol=1e-4)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize(
    ("attention", "kernels"),
    [
        (False, {"MatMulIntegerToFloat": 4, "QuantizeLinear": 2, "DequantizeLinear": 0}),
        (True, {"MatMulIntegerToFloat": 5, "QLinearMatMul": 1, "DequantizeLinear": 0}),
    ],
)
def test_attention_of_both_exporters(
    exporter: Literal["torchscript", "dynamo"], attention: bool, kernels: dict[str, int]
) -> None:
    graph = from_proto(small_attention(exporter))
    mask = np.where(np.arange(9) < 7, 0, -1e4).astype(np.float32).reshape(1, 1, 1, 9)
    feeds: list[Feed] = [{"x": normal(1, 9, 32, seed=i), "mask": mask} for i in range(3)]
    want = run(graph, feeds)
    report = quantize(graph, feeds, attention=attention)
    found = optimized_operators(graph)
    assert {name: found[name] for name in kernels} == kernels
    assert found["Softmax"] == 1
    assert found["MatMul"] + found["FusedMatMul"] == (0 if attention else 2)
    reasons = [report.skipped.get(name, "") for name in ("scores", "context")]
    assert all(("hardly faster" in reason) is not attention for reason in reasons)
    assert sqnr_db(want, run(graph, feeds)) > (25 if attention else 30)


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_the_generic_target_quantizes_all_of_attention_but_its_mask(
    exporter: Literal["torchscript", "dynamo"],
) -> None:
    graph = from_proto(small_attention(exporter))
    mask = np.where(np.arange(9) < 7, 0, -1e4).astype(np.float32).reshape(1, 1, 1, 9)
    feeds: list[Feed] = [{"x": normal(1, 9, 32, seed=i), "mask": mask} for i in range(3)]
    want = run(graph, feeds)
    report = quantize(graph, feeds, "qdq-generic")
    assert {"q", "k", "v", "scores", "context", "out"} <= set(report.changed)
    assert "mask" in report.skipped["mask_add"]
    assert sqnr_db(want, run(graph, feeds)) > 20


def test_batches_of_constant_matrices_run_in_integers() -> None:
    graph = product("z = MatMul (x, w) y = Add (z, b)", w=normal(2, 16, 8), b=normal(8, seed=2))
    feeds: list[Feed] = [{"x": normal(2, 5, 16)}]
    graph.inputs = graph.inputs[:1]
    want = run(graph, feeds)
    quantize(graph, feeds)
    assert optimized_operators(graph)["MatMulIntegerToFloat"] == 1
    assert constant(graph, "w.codes").shape == (2, 16, 8)
    assert sqnr_db(want, run(graph, feeds)) > 38


def test_fused_operators_are_left_alone_with_the_reason() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
        g (float[2, 5, 16] x) => (float[2, 5, 16] y) {
        [fused] a = com.microsoft.Attention <num_heads = 2> (x, w, b) [op] y = MatMul (a, v) }"""
    constants = {"w": normal(16, 48), "b": normal(48), "v": normal(16, 16)}
    graph = graph_of(text, **constants)
    report = quantize(graph, [{"x": normal(2, 5, 16)}])
    assert report.skipped["fused"].startswith("an operator of com.microsoft")
    assert "unknown type" in report.skipped["op"]  # nobody says what a fused operator makes


# --- embeddings -----------------------------------------------------------------------------------


def embedding(table: Array) -> gs.Graph:
    text = "g (int64[N, L] x) => (float[N, L, 8] y) { [look] e = Gather (t, x) y = MatMul (e, w) }"
    return graph_of(text, t=table, w=normal(table.shape[1], 8))


def test_an_embedding_is_stored_as_codes_with_a_scale_for_each_row() -> None:
    table = normal(100, 16) * np.logspace(-3, 3, 100, dtype=np.float32)[:, None]
    graph, feeds = embedding(table), [{"x": np.arange(100).reshape(4, 25)}]
    report = quantize(graph, feeds, operators=("Gather",))
    assert report.changed == ["look"]
    codes, scale = constant(graph, "t.codes"), constant(graph, "t.scale")
    assert codes.dtype == np.int8
    assert np.allclose(scale[:, 0], np.abs(table).max(1) / 127)
    assert (np.abs(codes * scale - table).max(1) <= 0.501 * scale[:, 0]).all()
    assert "t" not in graph.tensors()
    want = (codes * scale)[feeds[0]["x"]] @ normal(16, 8)
    assert np.allclose(run(graph, feeds)[0], want, rtol=1e-4, atol=1e-4)


def test_embeddings_that_stay_float_say_why() -> None:
    feeds: list[Feed] = [{"x": np.arange(8).reshape(2, 4)}]
    graph = embedding(normal(100, 16))
    assert "left alone" in quantize(graph, feeds, embeddings=False).skipped["look"]
    graph = embedding(normal(100, 16))
    graph.outputs.append(gs.Variable("z", np.float32, (100, 16)))
    graph.nodes.append(gs.Node("Neg", "n", {}, [graph.tensors()["t"]], [graph.outputs[-1]]))
    assert "another operator" in quantize(graph, feeds).skipped["look"]
    small = embedding(normal(8, 16))
    assert "look" not in quantize(small, feeds).changed


# --- the generic target ---------------------------------------------------------------------------


GENERIC = """
    a = Relu (c) h = HardSwish (a) t = ConvTranspose <strides = [2, 2]> (h, u, b)
    p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (t) m = Add (p, a)
"""


def generic() -> gs.Graph:
    return between(GENERIC, u=normal(4, 4, 2, 2, seed=3), b=normal(4, seed=4))


def test_the_generic_target_has_symmetric_pairs_on_every_input_and_output() -> None:
    graph, feeds = generic(), feeds_of(1, 4, 6, 6)
    want = run(graph, feeds)
    report = quantize(graph, feeds, "qdq-generic")
    assert {label.split(":")[0] for label in report.changed} == {
        *("Conv", "Relu", "HardSwish", "ConvTranspose", "MaxPool", "Add")
    }
    pairs = [n for n in graph.nodes if n.op in ("QuantizeLinear", "DequantizeLinear")]
    assert all(not np.any(n.inputs[2].values) for n in pairs)
    assert all(n.inputs[2].dtype == np.int8 for n in pairs)
    assert not [
        n for n in graph.nodes if n.op == "DequantizeLinear" and "b" in n.inputs[0].name[:2]
    ]
    for node in graph.nodes:
        if node.op in ("QuantizeLinear", "DequantizeLinear", "Relu"):
            continue
        data = [t for t in node.inputs if t.name not in ("b", "b.corrected")]
        assert {t.inputs[0].op for t in data} == {"DequantizeLinear"}, node
        readers = node.outputs[0].outputs
        assert {n.op for n in readers} <= {"QuantizeLinear", "Relu"}, node
    assert sqnr_db(want, run(graph, feeds)) > 25


def test_the_generic_target_keeps_relu_and_float_biases() -> None:
    graph, feeds = generic(), feeds_of(1, 4, 6, 6)
    quantize(graph, feeds, "qdq-generic")
    assert [n.op for n in graph.nodes].count("Relu") == 1
    transposed = next(n for n in graph.nodes if n.op == "ConvTranspose")
    assert np.array_equal(transposed.inputs[2].values, normal(4, seed=4))
    assert constant(graph, "u.scale").shape == (4,)
    assert next(n.attrs for n in graph.nodes if n.outputs[0] is transposed.inputs[1]) == {"axis": 1}


def test_the_generic_target_covers_attention() -> None:
    text = "s = MatMul (x, u) p = Softmax (s) y = MatMul (p, w)"
    graph = product(text, w=normal(7, 8))
    feeds: list[Feed] = [{"x": normal(2, 5, 16), "u": normal(2, 16, 7, seed=1)}]
    want = run(graph, feeds)
    assert quantize(graph, feeds, "qdq-generic").changed == ["MatMul:s", "MatMul:y"]
    assert sqnr_db(want, run(graph, feeds)) > 25


def test_groups_of_a_transposed_convolution_share_one_scale() -> None:
    body = "t = ConvTranspose <group = 2> (c, u) m = Relu (t)"
    graph, feeds = between(body, u=normal(4, 2, 1, 1, seed=3)), feeds_of(1, 4, 6, 6)
    want = run(graph, feeds)
    quantize(graph, feeds, "qdq-generic", correct_bias=True)
    assert constant(graph, "u.scale").shape == ()
    assert sqnr_db(want, run(graph, feeds)) > 25


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_gives_a_model_that_runs(name: str) -> None:
    graph, feeds = generic(), feeds_of(1, 4, 6, 6)
    want = run(graph, feeds)
    quantize(graph, feeds, name)
    assert sqnr_db(want, run(graph, feeds)) > 25
