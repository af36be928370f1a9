"""Weight-only forms against the floats they stand for, by what onnxruntime answers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.block_codes import Grid
from onnxcomp.calibration import Calibration
from onnxcomp.errors import CalibrationRequired
from onnxcomp.exporting import to_proto
from onnxcomp.fusion import optimized_operators
from onnxcomp.graph import all_nodes, constants
from onnxcomp.model import check_graph
from onnxcomp.optimize import optimize
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_weights import QuantizeWeights
from onnxcomp.recipe import Recipe
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import answers, graph_of, model_of, small_convnet
from onnxcomp.weight_only import gptq_blocks, round_to_nearest

Array = np.ndarray[Any, Any]
OPSET_21 = '<ir_version: 10, opset_import: ["" : 21]>'
FORMS = ["matmulnbits", "dequantize", "expand"]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def quantize(
    graph: gs.Graph, feeds: list[Feed] | None = None, target: str = "x86-vnni", **options: Any
) -> PassReport:
    report = PassReport()
    calibration = None if feeds is None else Calibration.from_source(feeds, graph)
    context = PassContext(target=resolve_target(target), calibration=calibration)
    QuantizeWeights(**options).rewrite(graph, context, report)
    check_graph(graph)
    return report


def run(graph: gs.Graph, feed: Feed) -> Array:
    return np.asarray(open_session(graph, threads=1).run(feed)[0])


def ops(graph: gs.Graph) -> Counter[str]:
    return Counter(node.op for node in all_nodes(graph))


def rounded(matrix: Array, **grid: Any) -> Array:
    """What a weight [out, in] stands for after rounding to nearest."""
    return round_to_nearest(matrix, Grid(**grid)).dequantized()


def assert_close(got: Array, want: Array, share: float) -> None:
    """Equal but for ``share`` of the largest value."""
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= share * np.abs(want).max()


def product(d: int, out: int, header: str = "") -> tuple[gs.Graph, Array]:
    w = normal(d, out, seed=3)
    text = f"{header} g (float[N, {d}] x) => (float[N, {out}] y) {{ [fc] y = MatMul (x, w) }}"
    return graph_of(text, w=w), w


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("d", "block_size"), [(64, 32), (50, 16), (70, 0)])
def test_a_product_is_that_of_the_rounded_weight(
    d: int, block_size: int, bits: int, form: str, symmetric: bool
) -> None:
    graph, w = product(d, 24)
    x = normal(5, d, seed=9)
    want = x @ rounded(w.T, bits=bits, block_size=block_size, symmetric=symmetric).T

    report = quantize(
        graph, bits=bits, block_size=block_size, form=form, method="rtn", symmetric=symmetric
    )

    assert report.changed == ["fc"]
    # int8 activations of MatMulNBits, which onnxruntime makes of DequantizeLinear as well
    assert_close(run(graph, {"x": x}), want, 1e-5 if form == "expand" else 0.02)
    assert "w" not in constants(graph)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("d", "block_size"), [(64, 32), (50, 16), (70, 0)])
def test_dequantize_linear_makes_the_rounded_weight(
    d: int, block_size: int, bits: int, symmetric: bool
) -> None:
    graph, w = product(d, 24, OPSET_21)

    quantize(
        graph,
        bits=bits,
        block_size=block_size,
        form="dequantize",
        method="rtn",
        symmetric=symmetric,
    )

    assert ops(graph) == {"DequantizeLinear": 1, "MatMul": 1}
    made = graph.nodes[0].outputs[0]
    assert made.name == "w.dequantized"
    alone = graph.copy()
    alone.outputs = [alone.tensors()["w.dequantized"]]
    got = run(alone, {"x": normal(1, d)})
    want = rounded(w.T, bits=bits, block_size=block_size, symmetric=symmetric).T
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_a_transposed_gemm_is_turned_so_that_onnxruntime_fuses_it() -> None:
    graph = graph_of(
        "g (float[N, 64] x) => (float[N, 32] y) { [fc] y = Gemm <transB = 1> (x, w, b) }",
        w=normal(32, 64),
        b=normal(32),
    )

    quantize(graph, form="dequantize")

    assert set(optimized_operators(graph)) == {"MatMulNBits"}


def test_blocks_raise_the_opset() -> None:
    graph, w = product(64, 24)
    x = normal(5, 64, seed=9)

    report = quantize(graph, bits=4, form="dequantize", method="rtn")

    assert graph.opset == 21
    assert any("converted to 21" in note for note in report.notes)
    assert ops(graph) == {"DequantizeLinear": 1, "MatMul": 1}
    assert_close(run(graph, {"x": x}), x @ rounded(w.T, bits=4).T, 0.02)


def test_an_opset_that_cannot_be_raised_leaves_weights_to_be_unpacked() -> None:
    graph = graph_of(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[N, 64, 3] x, float[4] s, float[4] b) => (float[N, 64, 5] y) {
            n = GroupNormalization <num_groups = 4> (x, s, b)
            [fc] y = MatMul (n, w)
        }""",
        w=normal(3, 5),
    )

    report, context = PassReport(), PassContext(target=resolve_target("x86-vnni"))
    QuantizeWeights(form="dequantize", smallest_weight=0).rewrite(graph, context, report)

    assert graph.opset == 18
    assert ops(graph)["BitShift"] > 0
    assert any("GroupNormalization" in note for note in report.notes)


def test_eight_bits_a_channel_need_no_new_opset() -> None:
    graph, w = product(64, 24)

    quantize(graph, bits=8, block_size=0, form="dequantize", method="rtn")

    assert ops(graph) == {"DequantizeLinear": 1, "MatMul": 1}
    assert graph.nodes[0].attrs == {"axis": 1}
    assert constants(graph)["w.codes"].values.shape == w.shape


@pytest.mark.parametrize("bits", [4, 8])
def test_matmulnbits_reads_codes_and_zero_points_as_they_are_packed(bits: int) -> None:
    """Inputs that int8 holds exactly, so that nothing but the layout can differ."""
    graph, w = product(40, 6)
    x = np.zeros((40, 40), np.float32)
    np.fill_diagonal(x, 127.0)
    want = x @ rounded(w.T, bits=bits, block_size=16).T

    quantize(graph, bits=bits, block_size=16, form="matmulnbits", method="rtn", smallest_weight=0)

    assert ops(graph) == {"MatMulNBits": 1}
    np.testing.assert_allclose(run(graph, {"x": x}), want, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(24,), (1, 24), (1,)])
def test_gemm_keeps_alpha_beta_and_bias(transposed: int, form: str, bias: tuple[int]) -> None:
    w, b, x = normal(48, 24), normal(*bias, seed=1), normal(5, 48, seed=9)
    graph = graph_of(
        f"""g (float[N, 48] x) => (float[N, 24] y) {{
            [fc] y = Gemm <transB = {transposed}, alpha = 0.5, beta = 3.0> (x, w, b)
        }}""",
        w=np.ascontiguousarray(w.T) if transposed else w,
        b=b,
    )

    quantize(graph, bits=8, form=form, method="rtn")

    want = 0.5 * (x @ rounded(w.T, bits=8, block_size=32).T) + 3 * b
    assert_close(run(graph, {"x": x}), want, 1e-5 if form == "expand" else 0.02)


def test_a_bias_of_one_value_a_column_goes_into_the_operator() -> None:
    graph = graph_of(
        "g (float[N, 64] x) => (float[N, 32] y) { [fc] y = Gemm (x, w, b) }",
        w=normal(64, 32),
        b=normal(32),
    )

    quantize(graph, form="matmulnbits")

    assert ops(graph) == {"MatMulNBits": 1}


@pytest.mark.parametrize(
    ("text", "shape", "rows"),
    [
        ("y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)", (12, 8, 3, 3), 12),
        ("y = Conv <kernel_shape = [3, 3], group = 4> (x, w)", (24, 2, 3, 3), 24),
        ("y = ConvTranspose <kernel_shape = [3, 3]> (x, w)", (8, 6, 3, 3), 8),
    ],
)
@pytest.mark.parametrize("form", ["expand", "dequantize", "auto"])
def test_convolutions_are_those_of_the_rounded_weight(
    text: str, shape: tuple[int, ...], rows: int, form: str
) -> None:
    w, x = normal(*shape), normal(1, 8, 6, 6, seed=9)
    header = "g (float[1, 8, 6, 6] x) => (float[1, C, H, W] y)"
    graph = graph_of(f"{header} {{ [conv] {text} }}", w=w)
    block_size = 0 if form == "dequantize" else 32
    matrix = rounded(w.reshape(rows, -1), bits=8, block_size=block_size)
    want = answers(model_of(f"{header} {{ {text} }}", w=matrix.reshape(shape)), {"x": x})["y"]

    report = quantize(
        graph, bits=8, block_size=block_size, form=form, method="rtn", smallest_weight=0
    )

    assert report.changed == ["conv"]
    assert_close(run(graph, {"x": x}), want, 1e-5)


def test_recurrent_weights_are_rounded_by_rows() -> None:
    w, r = normal(1, 64, 10), normal(1, 64, 16, seed=1)
    x = normal(4, 2, 10, seed=9)
    text = """g (float[4, 2, 10] x) => (float[4, 1, 2, 16] y) {
        [lstm] y = LSTM <hidden_size = 16> (x, w, r)
    }"""
    graph = graph_of(text, w=w, r=r)
    twice = {
        name: rounded(v[0], bits=8, block_size=16)[None] for name, v in {"w": w, "r": r}.items()
    }
    want = answers(model_of(text, **twice), {"x": x})["y"]

    report = quantize(graph, bits=8, block_size=16, method="rtn", smallest_weight=0)

    assert report.changed == ["lstm"]
    assert_close(run(graph, {"x": x}), want, 1e-5)


def test_weights_that_are_put_together_of_parts_are_stored_as_codes() -> None:
    """As exporters write LSTMs: gates in another order, an axis in front."""
    w, r, x = normal(64, 10), normal(64, 16, seed=1), normal(4, 2, 10, seed=9)
    text = """g (float[4, 2, 10] x) => (float[4, 1, 2, 16] y) {
        first = Slice (w, zero, half)
        last = Slice (w, half, whole)
        turned = Concat <axis = 0> (last, first)
        front = Unsqueeze (turned, zero)
        states = Unsqueeze (r, zero)
        [lstm] y = LSTM <hidden_size = 16> (x, front, states)
    }"""
    indices = {"zero": np.asarray([0]), "half": np.asarray([32]), "whole": np.asarray([64])}
    graph = graph_of(text, w=w, r=r, **indices)
    twice = {name: rounded(v, bits=8, block_size=16) for name, v in {"w": w, "r": r}.items()}
    want = answers(model_of(text, **twice, **indices), {"x": x})["y"]

    report = quantize(graph, bits=8, block_size=16, method="rtn", smallest_weight=0)

    assert report.changed == ["lstm"]
    assert report.skipped == {}
    assert_close(run(graph, {"x": x}), want, 1e-5)
    assert not {"w", "r"} & set(constants(graph))


def test_constants_that_are_joined_with_activations_are_no_weights() -> None:
    graph = graph_of(
        """g (float[32, 8] x, float[4, 40] z) => (float[4, 8] y) {
            both = Concat <axis = 0> (x, c)
            [product] y = MatMul (z, both)
        }""",
        c=normal(8, 8),
    )

    assert quantize(graph, smallest_weight=0).changed == []


def test_states_of_a_recurrent_layer_serve_as_samples_of_its_input() -> None:
    graph = graph_of(
        """g (float[4, 2, 10] x) => (float[4, 1, 2, 16] y) {
            [lstm] y = LSTM <hidden_size = 16> (x, w, r)
        }""",
        w=normal(1, 64, 10),
        r=normal(1, 64, 16, seed=1),
    )
    feeds = [{"x": normal(4, 2, 10, seed=i)} for i in range(8)]

    report = quantize(graph, feeds, smallest_weight=0)

    assert not any("without samples" in note for note in report.notes)


@pytest.mark.parametrize(("bits", "form"), [(2, "auto"), (4, "auto"), (8, "auto"), (4, "expand")])
def test_rows_of_a_table_are_exactly_the_rounded_ones(bits: int, form: str) -> None:
    table, rows = normal(50, 64), np.asarray([[3, 49, 0], [7, 7, 1]])
    graph = graph_of(
        "g (int64[N, 3] x) => (float[N, 3, 64] y) { [lookup] y = Gather (table, x) }", table=table
    )

    report = quantize(graph, bits=bits, form=form, method="rtn")

    assert report.changed == ["lookup"]
    assert ops(graph)["GatherBlockQuantized"] == (form == "auto")
    want = rounded(table, bits=bits, block_size=32)[rows]
    np.testing.assert_allclose(run(graph, {"x": rows}), want, rtol=1e-6, atol=1e-7)


def test_rows_with_one_scale_each_are_picked_with_plain_operators() -> None:
    table, rows = normal(50, 40), np.asarray([3, 49, 0])
    graph = graph_of(
        "g (int64[N] x) => (float[N, 40] y) { [lookup] y = Gather (table, x) }", table=table
    )

    quantize(graph, bits=8, block_size=0, method="rtn", target="qdq-generic")

    assert ops(graph) == {"Gather": 2, "Cast": 1, "Mul": 1}
    want = rounded(table, bits=8, block_size=0, symmetric=True)[rows]
    np.testing.assert_allclose(run(graph, {"x": rows}), want, rtol=1e-6, atol=1e-7)


def test_a_table_that_is_a_factor_too_is_stored_once() -> None:
    table, x = normal(96, 32), np.asarray([5, 95, 0])
    graph = graph_of(
        """g (int64[N] x) => (float[N, 96] y) {
            [lookup] rows = Gather (table, x)
            [turn] turned = Transpose <perm = [1, 0]> (table)
            [head] y = MatMul (rows, turned)
        }""",
        table=table,
    )

    report = quantize(graph, bits=8, method="rtn")

    assert report.changed == ["lookup", "head"]
    values = rounded(table, bits=8, block_size=32)
    assert_close(run(graph, {"x": x}), values[x] @ values.T, 1e-5)
    assert all(
        tensor.values.dtype != np.float32 or tensor.values.size < 200
        for tensor in constants(graph).values()
    )


def test_a_weight_that_two_layers_share_is_stored_once() -> None:
    w, x = normal(32, 32), normal(4, 32, seed=9)
    graph = graph_of(
        """g (float[N, 32] x) => (float[N, 32] y) {
            [first] a = MatMul (x, w)
            [second] y = MatMul (a, w)
        }""",
        w=w,
    )

    report = quantize(graph, bits=8, method="rtn", form="matmulnbits")

    assert report.changed == ["first", "second"]
    assert ops(graph) == {"MatMulNBits": 2}
    assert sorted(constants(graph)) == ["w.codes", "w.scale", "w.zero_point"]
    values = rounded(w.T, bits=8).T
    assert_close(run(graph, {"x": x}), x @ values @ values, 0.02)


BODIES = """g (float[N, 32] x, bool c) => (float[N, 32] y) {{
    [if] y = If (c) <
        then_branch = then () => (float[N, 32] t) {{ [left] t = MatMul (x, w) }},
        else_branch = other () => (float[N, 32] e) {{ [right] p = {right} e = Neg (p) }}
    >
}}"""


@pytest.mark.parametrize("form", ["matmulnbits", "expand"])
def test_layers_inside_a_body_share_codes_outside(form: str) -> None:
    w, x = normal(32, 32), normal(4, 32, seed=9)
    graph = graph_of(BODIES.format(right="MatMul (x, w)"), w=w)

    report = quantize(graph, bits=8, method="rtn", form=form)

    assert sorted(report.changed) == ["left", "right"]
    want = x @ rounded(w.T, bits=8).T
    for condition, sign in ((True, 1), (False, -1)):
        got = run(graph, {"x": x, "c": np.asarray(condition)})
        assert_close(got, sign * want, 0.02)
    assert not any(
        t.values.size == 1024 and t.values.dtype == np.float32 for t in constants(graph).values()
    )


def test_plain_operators_are_folded_when_the_model_is_loaded() -> None:
    graph = graph_of(
        """g (float[1, 16, 6, 6] x) => (float[1, 12, 6, 6] y) {
            [conv] y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
        }""",
        w=normal(12, 16, 3, 3),
    )

    quantize(graph)

    assert ops(graph)["BitShift"] > 0
    left = set(optimized_operators(graph)) - {"Conv", "ReorderInput", "ReorderOutput"}
    assert not left


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("shape", [(33, 47), (64, 32)])
def test_a_codebook_has_as_many_values_and_indices_as_bits_allow(
    bits: int, shape: tuple[int, int]
) -> None:
    graph, w = product(*shape)
    x = np.eye(shape[0], dtype=np.float32)

    quantize(graph, codebook=True, bits=bits)

    found = run(graph, {"x": x})
    book = constants(graph)["w.codebook"].values
    assert len(book) <= 2**bits
    nearest = book[np.abs(w[..., None] - book).argmin(-1)]
    np.testing.assert_allclose(found, nearest, atol=1e-6)
    container = next(size for size in (2, 4, 8) if size >= bits)
    assert constants(graph)["w.codes"].values.nbytes == -(-w.size * container // 8)


def correlated(count: int, d: int) -> list[Feed]:
    """Inputs whose channels are of different sizes and depend on each other."""
    rng = np.random.default_rng(5)
    mix = rng.standard_normal((d, d)) * np.exp(rng.standard_normal(d))
    return [{"x": (rng.standard_normal((16, d)) @ mix).astype(np.float32)} for _ in range(count)]


def test_samples_decide_the_codes() -> None:
    feeds = correlated(16, 48)
    graph, w = product(48, 24)
    x = np.concatenate([f["x"] for f in feeds])
    want = gptq_blocks(w.T.copy(), x.T.astype(np.float64) @ x / len(x), Grid(bits=4))

    quantize(graph, feeds, form="expand")

    found = constants(graph)
    same = found["w.scale"].values.reshape(want.scale.shape) / want.scale
    assert np.median(np.abs(same - 1)) < 1e-3
    errors = {}
    for method in ("rtn", "hqq", "gptq", "awq"):
        twin, _ = product(48, 24)
        quantize(twin, feeds, form="expand", method=method)
        errors[method] = np.square(run(twin, {"x": x}) - x @ w).mean()
    assert errors["gptq"] < 0.5 * errors["rtn"]
    assert errors["awq"] < 0.8 * errors["rtn"]
    assert errors["hqq"] < errors["rtn"]


def test_made_up_samples_do_not_decide_the_codes() -> None:
    graph, _ = product(48, 24)
    twin, _ = product(48, 24)
    context = PassContext(
        target=resolve_target("x86-vnni"), calibration=Calibration.from_source(None, graph)
    )

    QuantizeWeights().rewrite(graph, context, PassReport())
    quantize(twin, method="hqq")

    assert to_proto(graph) == to_proto(twin)


def test_input_scaling_goes_into_the_normalization_before_it() -> None:
    text = """g (float[N, 48] x) => (float[N, 24] y, float[N, 24] z) {
        n = LayerNormalization (x, gain, shift)
        [a] y = MatMul (n, wa)
        [b] z = MatMul (n, wb)
    }"""
    weights = {"wa": normal(48, 24), "wb": normal(48, 24, seed=1)}
    gain = np.exp(1.5 * normal(48, seed=2)).astype(np.float32)
    graph = graph_of(text, gain=gain, shift=normal(48, seed=3), **weights)
    plain = graph.copy()
    feeds = [{"x": normal(16, 48, seed=i)} for i in range(8)]

    quantize(graph, feeds, method="awq", bits=8, form="expand")

    assert ops(graph)["LayerNormalization"] == 1
    assert "gain" not in constants(graph)
    want, got = (np.asarray(open_session(g, threads=1).run(feeds[0])) for g in (plain, graph))
    assert_close(got, want, 0.01)
    reads = {node.inputs[0].name for node in graph.nodes if node.name in ("a", "b")}
    assert reads == {"n"}


def test_what_a_residual_reads_too_is_divided_beside_it() -> None:
    text = """g (float[N, 48] x) => (float[N, 48] y) {
        n = LayerNormalization (x, gain)
        [a] m = MatMul (n, w)
        y = Add (m, n)
    }"""
    gain = np.exp(1.5 * normal(48, seed=2)).astype(np.float32)
    graph = graph_of(text, gain=gain, w=normal(48, 48))
    plain = graph.copy()
    feeds = [{"x": normal(16, 48, seed=i)} for i in range(8)]

    quantize(graph, feeds, method="awq", bits=8, form="expand")

    assert "gain" in constants(graph)
    assert any(name.endswith(".factor") for name in constants(graph))
    assert_close(run(graph, feeds[0]), run(plain, feeds[0]), 0.01)


@pytest.mark.parametrize(
    ("bits", "d", "out", "block_size", "made"),
    [
        (4, 384, 256, 32, "MatMulNBits"),
        (8, 384, 256, 0, "MatMulNBits"),
        (2, 384, 256, 32, "MatMul"),
        (4, 384, 256, 16, "MatMul"),
        (4, 383, 256, 32, "MatMul"),
        (4, 384, 255, 32, "MatMul"),
    ],
)
def test_integers_multiply_only_where_they_are_faster(
    bits: int, d: int, out: int, block_size: int, made: str
) -> None:
    graph, _ = product(d, out)

    quantize(graph, bits=bits, block_size=block_size, method="rtn")

    assert ops(graph)[made] == 1


def test_a_generic_target_gets_dequantize_linear() -> None:
    w, x = normal(64, 32), normal(4, 64, seed=9)
    text = "g (float[N, 64] x) => (float[N, 32] y) { [fc] y = MatMul (x, w) }"
    new = graph_of(f"{OPSET_21} {text}", w=w)

    quantize(new, target="qdq-generic", method="rtn")

    assert ops(new) == {"DequantizeLinear": 1, "MatMul": 1}
    codes = to_proto(new).graph.initializer[0]
    assert codes.data_type == onnx.TensorProto.UINT4
    assert_close(run(new, {"x": x}), x @ rounded(w.T, bits=4).T, 0.02)


def test_every_layer_left_alone_has_a_reason() -> None:
    graph = graph_of(
        """g (float[8, 8] x) => (float[8, 8] y) {
            [small] a = MatMul (x, tiny)
            [square] b = MatMul (a, a)
            [named] c = MatMul (b, w)
            [broken] d = MatMul (c, nan)
            [excluded] y = Gemm (d, v)
        }""",
        tiny=normal(8, 8),
        w=normal(8, 200),
        nan=np.full((200, 8), np.nan, np.float32),
        v=normal(8, 8),
    )

    report = quantize(graph, overrides={"named": {"skip": True}, "*": {"operators": ("MatMul",)}})

    assert report.changed == []
    assert report.skipped == {
        "small": "only 64 weights",
        "square": "both factors are computed",
        "named": "the recipe says so",
        "broken": "its weights are not finite",
        "excluded": "Gemm is excluded by the options",
    }


def test_weights_that_a_caller_may_replace_are_named_so() -> None:
    graph = graph_of("g (float[N, 64] x, float[64, 64] w) => (float[N, 64] y) { y = Gemm (x, w) }")

    assert "a caller may replace" in next(iter(quantize(graph).skipped.values()))


def test_a_note_tells_how_many_weights_no_sample_showed() -> None:
    text = """g (int64[N, 4] x) => (float[N, 4, 64] y) {
        [lookup] e = Gather (table, x)
        [fc] y = MatMul (e, w)
    }"""
    weights = {"table": normal(50, 64), "w": normal(64, 64)}

    seen = quantize(graph_of(text, **weights), [{"x": np.zeros((1, 4), np.int64)}])
    blind = quantize(graph_of(text, **weights))

    assert not any("without samples" in note for note in seen.notes)
    assert any(note.startswith("1 weights were rounded without") for note in blind.notes)


def test_overrides_set_bits_of_single_layers() -> None:
    graph = graph_of(
        """g (float[N, 64] x) => (float[N, 64] y) {
            [one] a = MatMul (x, w)
            [two] y = MatMul (a, v)
        }""",
        w=normal(64, 64),
        v=normal(64, 64, seed=1),
    )

    quantize(graph, form="matmulnbits", overrides={"two": {"bits": 8}})

    bits = {node.name: node.attrs["bits"] for node in graph.nodes}
    assert bits == {"one": 4, "two": 8}


@pytest.mark.parametrize("form", FORMS)
def test_a_second_run_finds_everything_quantized(form: str) -> None:
    graph, _ = product(64, 32)
    quantize(graph, bits=8, block_size=0, form=form)

    report = quantize(graph, bits=8)

    assert report.changed == []
    assert "quantized already" in report.skipped.values()


def test_the_same_bytes_twice() -> None:
    feeds = [{"image": normal(2, 3, 8, 8, seed=i)} for i in range(4)]
    results = []
    for _ in range(2):
        graph = graph_of_model(small_convnet())
        quantize(graph, feeds, smallest_weight=0)
        results.append(to_proto(graph).SerializeToString(deterministic=True))

    assert results[0] == results[1]


def graph_of_model(model: onnx.ModelProto) -> gs.Graph:
    from onnxcomp.importing import from_proto

    return from_proto(model)


def test_candidates_are_what_rewrite_changes() -> None:
    graph = graph_of_model(small_convnet())
    wanted = QuantizeWeights(smallest_weight=0).candidates(graph)

    report = quantize(graph, smallest_weight=0)

    assert report.changed == wanted


@pytest.mark.parametrize(("gate", "bits"), [(10.0, 4), (38.0, 8)])
def test_the_recipe_takes_the_fewest_bits_that_hold(gate: float, bits: int, models: Path) -> None:
    recipe = Recipe.load("weights").with_gates(min_sqnr_db=gate)
    ungated = dataclasses.replace(recipe.gates, must_pay=False)  # times are noise in tests

    result = optimize(
        models / "digits_vit.onnx",
        dataclasses.replace(recipe, gates=ungated),
        calibration=models / "digits_calibration.npz",
    )

    kept = [p.options["bits"] for p in result.report.passes if p.status == "kept" and p.options]
    assert kept[-1] == bits
    assert result.report.after.bytes < result.report.before.bytes * (0.26 if bits == 4 else 0.38)


def test_methods_that_need_samples_say_so() -> None:
    graph, _ = product(64, 32)

    with pytest.raises(CalibrationRequired):
        quantize(graph, method="gptq")


@pytest.mark.parametrize(
    ("option", "value"),
    [("bits", 3), ("block_size", 24), ("smallest_weight", -1), ("operators", ("Relu",))],
)
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=option):
        QuantizeWeights(**{option: value})
