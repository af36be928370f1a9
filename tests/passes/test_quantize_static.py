"""Static INT8 against integer arithmetic in numpy, and against what onnxruntime fuses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from quantized_values import constant, sqnr_db

from onnxcomp.calibration import Calibration
from onnxcomp.exporting import to_proto
from onnxcomp.fusion import optimized_operators
from onnxcomp.model import check_graph, load_model
from onnxcomp.opset import convert_opset
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.passes.simplify_graph import SimplifyGraph
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]
FLOAT_LAYERS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"}


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def feeds_of(*shape: int, count: int = 4) -> list[Feed]:
    return [{"x": normal(*shape, seed=100 + i)} for i in range(count)]


def quantize(
    graph: gs.Graph, feeds: list[Feed], target: str = "x86-vnni", **options: Any
) -> PassReport:
    report = PassReport()
    calibration = Calibration.from_source(feeds, graph)
    context = PassContext(target=resolve_target(target), calibration=calibration)
    QuantizeStatic(**options).rewrite(graph, context, report)
    check_graph(graph)
    return report


def ops(graph: gs.Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


def conv(body: str, *, inner: int = 3, **constants: Array) -> gs.Graph:
    """x [N, 3, 8, 8] through ``body``, which ends in y of any shape; w is 3x3, b its bias."""
    weights = {"w": normal(4, 3, 3, 3), "b": normal(4, seed=1)} | constants
    used = {name: value for name, value in weights.items() if name in body}
    return graph_of(f"g (float[N, {inner}, 8, 8] x) => (float[N, c, h, v] y) {{ {body} }}", **used)


# --- what is computed -----------------------------------------------------------------------------


def integer_conv(x: Array, graph: gs.Graph, groups: int, low: int) -> Array:
    """Codes of y by the definitions: rint(s_x s_w / s_y sum (x - z_x) w + b) + z_y, saturated."""
    sx, zx = constant(graph, "x.scale"), int(constant(graph, "x.zero_point"))
    sy, zy = constant(graph, "y.scale"), int(constant(graph, "y.zero_point"))
    w, sw = constant(graph, "w.codes").astype(np.int64), constant(graph, "w.scale")
    b = constant(graph, "b.codes").astype(np.int64)
    codes = np.clip(np.rint(x / sx) + zx, low, low + 255).astype(np.int64) - zx
    n, _, height, width = x.shape
    sums = np.empty((n, w.shape[0], height - 2, width - 2), np.int64)
    inner, each = w.shape[1], w.shape[0] // groups
    for channel in range(w.shape[0]):
        part = codes[:, channel // each * inner :][:, :inner]
        windows = np.lib.stride_tricks.sliding_window_view(part, (3, 3), (2, 3))
        sums[:, channel] = np.einsum("nchwij,cij->nhw", windows, w[channel]) + b[channel]
    scale = (sx.astype(np.float64) * sw / sy)[:, None, None]
    return np.clip(np.rint(sums * scale) + zy, low, low + 255)


@pytest.mark.parametrize(("groups", "inner", "outer"), [(1, 4, 8), (2, 32, 64), (4, 4, 4)])
@pytest.mark.parametrize(("target", "low"), [("x86-vnni", 0), ("x86-avx2", 0), ("arm64", -128)])
def test_conv_is_the_integer_conv_within_one_code(
    groups: int, inner: int, outer: int, target: str, low: int
) -> None:
    spread = np.logspace(-2, 1, outer, dtype=np.float32)[:, None, None, None]
    text = f"[conv] y = Conv <group = {groups}> (x, w, b)"
    weights = normal(outer, inner // groups, 3, 3) * spread
    graph = conv(text, inner=inner, w=weights, b=normal(outer, seed=1))
    feeds = feeds_of(1, inner, 8, 8)
    quantize(graph, feeds, target)
    session = open_session(graph)
    for feed in feeds:
        codes = session.run(feed)[0] / constant(graph, "y.scale") + constant(graph, "y.zero_point")
        assert np.abs(codes - np.rint(codes)).max() < 1e-3
        assert np.abs(np.rint(codes) - integer_conv(feed["x"], graph, groups, low)).max() <= 1


def test_gemm_at_the_tail_writes_its_sums_unrounded() -> None:
    w, b = normal(5, 16), normal(5, seed=1)
    graph = graph_of(
        "g (float[N, 16] x) => (float[N, 5] y) { [fc] y = Gemm <transB = 1> (x, w, b) }", w=w, b=b
    )
    feeds = feeds_of(3, 16)
    quantize(graph, feeds)
    sx, zx = constant(graph, "x.scale"), constant(graph, "x.zero_point").astype(np.float64)
    for feed in feeds:
        codes = np.clip(np.rint(feed["x"] / sx) + zx, 0, 255) - zx
        sums = codes @ constant(graph, "w.codes").T.astype(np.float64) + constant(graph, "b.codes")
        got = open_session(graph).run(feed)[0]
        assert np.allclose(got, sums * sx * constant(graph, "w.scale"), rtol=1e-5, atol=1e-6)
    assert optimized_operators(graph) == {"QuantizeLinear": 1, "QGemm": 1}


def test_bias_takes_back_what_rounding_adds_to_the_mean() -> None:
    """On the mean of the samples, where rounding of activations averages out."""
    text = "[conv] y = Conv (x, w)"
    w = normal(6, 3, 3, 3)
    feeds = [{"x": feed["x"] + 3} for feed in feeds_of(4, 3, 8, 8, count=8)]
    original = open_session(conv(text, w=w))
    want = np.stack([original.run(feed)[0] for feed in feeds]).mean((0, 1, 3, 4))
    errors = []
    for correct in (False, True):
        graph = conv(text, w=w)
        quantize(graph, feeds, "x86-avx2", correct_bias=correct)
        session = open_session(graph)
        got = np.stack([session.run(feed)[0] for feed in feeds]).mean((0, 1, 3, 4))
        errors.append(np.abs(got - want).max())
    assert errors[1] < 0.35 * errors[0]


def test_a_dead_channel_with_a_large_bias_keeps_its_bias() -> None:
    w, b = normal(4, 3, 3, 3), np.asarray([1e4, -1e4, 5, 0], np.float32)
    w[:2] *= 1e-12
    graph = conv("y = Conv (x, w, b)", w=w, b=b)
    quantize(graph, feeds_of(1, 3, 8, 8), calibrator="minmax")
    y = open_session(graph).run(feeds_of(1, 3, 8, 8)[0])[0]
    assert np.allclose(y[:, :2].mean((0, 2, 3)), [1e4, -1e4], rtol=0.005)


# --- where pairs stand ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation",
    ["Relu (c)", "Clip (c, zero, six)", "Clip (c, minus, six)"],
)
def test_an_activation_that_the_scale_stands_for_goes(activation: str) -> None:
    bounds = {"zero": np.float32(0), "six": np.float32(6), "minus": np.float32(-0.5)}
    text = f"[conv] c = Conv (x, w, b) [act] y = {activation}"
    graph, feeds = conv(text, **{k: np.asarray(v) for k, v in bounds.items()}), feeds_of(1, 3, 8, 8)
    want = [open_session(graph).run(feed)[0] for feed in feeds]
    report = quantize(graph, feeds, calibrator="minmax")
    assert report.changed == ["conv"]
    assert ops(graph) == {"Conv": 1, "QuantizeLinear": 2, "DequantizeLinear": 4}
    assert optimized_operators(graph)["QLinearConv"] == 1
    got = [open_session(graph).run(feed)[0] for feed in feeds]
    for a, b in zip(want, got, strict=True):
        assert sqnr_db(a, b) > 30
        assert b.min() >= a.min() - constant(graph, "y.scale")


@pytest.mark.parametrize("activation", ["Clip (c, one, six)", "Clip (c, low, six)", "Tanh (c)"])
def test_an_activation_that_no_scale_can_stand_for_stays(activation: str) -> None:
    body = f"low = ReduceMin <keepdims = 0> (x) c = Conv (x, w) y = {activation}"
    graph = conv(body, one=np.asarray(1, np.float32), six=np.asarray(6, np.float32))
    quantize(graph, feeds_of(1, 3, 8, 8))
    assert ops(graph)[activation.split()[0]] == 1


def test_movers_share_one_scale_and_leave_no_pair_behind() -> None:
    body = """
        c = Conv (x, w, b) r = Relu (c)
        p = MaxPool <kernel_shape = [2, 2]> (r)
        d = Pad (p, pads)
        t = Transpose <perm = [0, 1, 3, 2]> (d)
        a, s = Split <axis = 1> (t, halves)
        y = Conv (a, v)
    """
    pads, halves = np.asarray([0, 0, 1, 1, 0, 0, 1, 1]), np.asarray([2, 2])
    graph = conv(body, pads=pads, halves=halves, v=normal(4, 2, 3, 3))
    want = [open_session(graph).run(feed)[0] for feed in feeds_of(1, 3, 8, 8)]
    quantize(graph, feeds_of(1, 3, 8, 8))
    # x, r (shared by all movers) and y
    scales = {n.inputs[1].name for n in graph.nodes if n.op == "QuantizeLinear"}
    assert scales == {"x.scale", "r.scale", "y.scale"}
    found = optimized_operators(graph)
    assert (found["QLinearConv"], found["QuantizeLinear"], found["DequantizeLinear"]) == (2, 1, 1)
    got = [open_session(graph).run(feed)[0] for feed in feeds_of(1, 3, 8, 8)]
    assert sqnr_db(np.stack(want), np.stack(got)) > 30


@pytest.mark.parametrize("target", ["x86-vnni", "arm64"])
@pytest.mark.parametrize("given", ["", ", nothing"])
def test_padding_is_exactly_zero(target: str, given: str) -> None:
    body = f"c = Conv (x, w, b) d = Pad (c, pads{given}) y = Conv (d, v)"
    pads, nothing = np.asarray([0, 0, 2, 0, 0, 0, 0, 2]), np.asarray(0, np.float32)
    identity = np.eye(4, dtype=np.float32)[:, :, None, None]
    graph = conv(body, pads=pads, nothing=nothing, v=identity)
    quantize(graph, feeds_of(1, 3, 8, 8), target, correct_bias=False)
    assert constant(graph, "c.zero_point") not in (-128, 0)
    y = open_session(graph).run(feeds_of(1, 3, 8, 8)[0])[0]
    assert not y[:, :, :2, :].any()
    assert not y[:, :, :, -2:].any()
    assert y[:, :, 2:, :-2].any()


def test_padding_with_another_value_stays_float() -> None:
    body = "c = Conv (x, w, b) [pad] d = Pad (c, pads, value) y = Conv (d, v)"
    pads, value = np.asarray([0, 0, 2, 0, 0, 0, 0, 2]), np.asarray(-100, np.float32)
    graph = conv(body, pads=pads, value=value, v=normal(4, 4, 1, 1))
    want = open_session(graph).run(feeds_of(1, 3, 8, 8)[0])[0]
    report = quantize(graph, feeds_of(1, 3, 8, 8))
    assert "something else than zero" in report.skipped["pad"]
    assert sqnr_db(want, open_session(graph).run(feeds_of(1, 3, 8, 8)[0])[0]) > 30


@pytest.mark.parametrize("other", ["Conv (x, v)", "Clip (d, zero, six)", "Neg (r)"])
def test_a_folded_relu_holds_where_concat_has_negative_or_larger_values(other: str) -> None:
    """A scale that the Concat shares with negative inputs would let negative values pass."""
    body = f"""
        a = Conv (x, w, b) r = Relu (a) d = Conv (x, v) o = {other} p = Conv (x, v)
        six_p = Clip (p, zero, one) cat = Concat <axis = 1> (r, o, six_p) y = Conv (cat, u)
    """
    bounds = {"zero": 0, "one": 1, "six": 6}
    constants = {name: np.asarray(value, np.float32) for name, value in bounds.items()}
    u = np.eye(12, dtype=np.float32)[:, :, None, None]
    graph = conv(body, v=normal(4, 3, 3, 3, seed=5), u=u, **constants)
    feeds = feeds_of(1, 3, 8, 8)
    want = np.stack([open_session(graph).run(feed)[0] for feed in feeds])
    quantize(graph, feeds)
    got = np.stack([open_session(graph).run(feed)[0] for feed in feeds])
    for part in np.split(np.arange(12), 3):
        assert sqnr_db(want[:, :, part], got[:, :, part]) > 20
    assert got[:, :, :4].min() > -0.1 * got[:, :, :4].max()


def test_concat_hands_its_scale_to_those_that_only_it_reads() -> None:
    body = """
        a = Conv (x, w, b) b1 = Conv (x, v) b2 = Relu (b1)
        cat = Concat <axis = 1> (a, b2)
        e = Conv (cat, u)
        y = Add (b2, e)
    """
    graph = conv(body, v=normal(4, 3, 3, 3, seed=5), u=normal(4, 8, 1, 1))
    quantize(graph, feeds_of(1, 3, 8, 8))
    scale_of = {n.inputs[0].name: n.inputs[1].name for n in graph.nodes if n.op == "QuantizeLinear"}
    assert scale_of["a"] == "cat.scale"
    assert scale_of["b2"] == "b2.scale"  # the Add reads it too
    assert optimized_operators(graph)["QLinearConcat"] == 1


def test_what_is_float_at_the_tail_stays_float() -> None:
    body = "c = Conv (x, w, b) [mean] y = GlobalAveragePool (c)"
    graph = conv(body)
    report = quantize(graph, feeds_of(1, 3, 8, 8))
    assert "nothing to gain" in report.skipped["mean"]
    assert optimized_operators(graph)["GlobalAveragePool"] == 1


def test_elementwise_operators_of_float_tensors_stay_float() -> None:
    """Gelu between two layers: one pair before the second layer, none inside."""
    body = """
        h = MatMul (x, w1) e = Erf (h) one = Add (e, c) g = Mul (h, one) y = MatMul (g, w2)
    """
    graph = graph_of(
        f"g (float[N, L, 16] x) => (float[N, L, 8] y) {{ {body} }}",
        w1=normal(16, 32),
        w2=normal(32, 8),
        c=np.ones(1, np.float32),
    )
    quantize(graph, feeds_of(2, 5, 16))
    assert ops(graph)["QuantizeLinear"] == 2
    assert optimized_operators(graph)["MatMulIntegerToFloat"] == 2


@pytest.mark.parametrize("shape", ["N, L", "2, 5", "N"])
def test_bias_of_a_matmul_does_not_break_its_fusion(shape: str) -> None:
    """onnxruntime first makes a Gemm of MatMul and Add where the shape is known."""
    graph = graph_of(
        f"g (float[{shape}, 16] x) => (float[{shape}, 8] y) {{ h = MatMul (x, w) y = Add (h, b) }}",
        w=normal(16, 8),
        b=normal(8, seed=1),
    )
    feeds = feeds_of(*(2, 5)[: shape.count(",") + 1], 16)
    want = [open_session(graph).run(feed)[0] for feed in feeds]
    quantize(graph, feeds)
    found = optimized_operators(graph)
    assert found["QGemm"] + found["MatMulIntegerToFloat"] == 1
    assert not FLOAT_LAYERS & found.keys()
    got = [open_session(graph).run(feed)[0] for feed in feeds]
    assert sqnr_db(np.stack(want), np.stack(got)) > 35


@pytest.mark.parametrize("keepdims", [0, 1])
def test_mean_over_space_is_a_pooling(keepdims: int) -> None:
    tail = "y = Conv (m, v)" if keepdims else "f = Unsqueeze (m, two) y = Conv (f, v)"
    body = f"c = Conv (x, w, b) m = ReduceMean <axes = [-2, 3], keepdims = {keepdims}> (c) {tail}"
    graph = conv(body, v=normal(2, 4, 1, 1), two=np.asarray([2, 3]))
    want = [open_session(graph).run(feed)[0] for feed in feeds_of(1, 3, 8, 8)]
    quantize(graph, feeds_of(1, 3, 8, 8))
    assert optimized_operators(graph)["QLinearGlobalAveragePool"] == 1
    got = [open_session(graph).run(feed)[0] for feed in feeds_of(1, 3, 8, 8)]
    assert sqnr_db(np.stack(want), np.stack(got)) > 30


def test_an_output_that_is_read_inside_keeps_name_and_type() -> None:
    text = """g (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] c, float[N, 4, 4, 4] y) {
        c = Conv (x, w) y = Conv (c, v) }"""
    graph = graph_of(text, w=normal(4, 3, 3, 3), v=normal(4, 4, 3, 3))
    before = to_proto(graph).graph.output
    quantize(graph, feeds_of(1, 3, 8, 8))
    assert list(to_proto(graph).graph.output) == list(before)
    assert optimized_operators(graph)["QLinearConv"] == 2


def test_bodies_read_what_was_dequantized() -> None:
    text = """g (float[N, 3, 8, 8] x, bool flag) => (float[N, 4, 6, 6] y) {
        c = Conv (x, w)
        [branch] y = If (flag) <
            then_branch = yes () => (float[N, 4, 6, 6] p) { p = Neg (c) },
            else_branch = no () => (float[N, 4, 6, 6] q) { q = Identity (c) } >
    }"""
    graph = graph_of(text, w=normal(4, 3, 3, 3))
    feeds: list[Feed] = [f | {"flag": np.asarray(True)} for f in feeds_of(1, 3, 8, 8)]
    want = open_session(graph).run(feeds[0])[0]
    report = quantize(graph, feeds)
    assert set(report.changed) == {"Conv:c"}
    assert sqnr_db(want, open_session(graph).run(feeds[0])[0]) > 30


# --- weights --------------------------------------------------------------------------------------


def test_weights_are_codes_only_and_a_shared_one_is_stored_once() -> None:
    graph = conv("a = Conv (x, w) r = Relu (a) b1 = Conv (x, w) y = Add (r, b1)")
    quantize(graph, feeds_of(1, 3, 8, 8), correct_bias=False)
    stored = {t.name: t for t in graph.tensors().values() if isinstance(t, gs.Constant)}
    assert stored["w.codes"].dtype == np.int8
    assert [name for name in stored if name.startswith("w")] == [
        "w.codes",
        "w.scale",
        "w.zero_point",
    ]
    assert not [t.name for t in stored.values() if t.dtype == np.float32 and len(t.shape) > 1]


def test_a_weight_that_float_operators_read_too_stays_exact_there() -> None:
    w = normal(16, 16)
    graph = graph_of(
        "g (float[N, 16] x) => (float[N, 16] y, float[16, 16] z) { y = MatMul (x, w) z = Abs (w) }",
        w=w,
    )
    quantize(graph, feeds_of(2, 16))
    assert np.array_equal(open_session(graph).run(feeds_of(2, 16)[0])[1], np.abs(w))


@pytest.mark.parametrize(("target", "top"), [("x86-vnni", 127), ("x86-avx2", 63), ("arm64", 127)])
def test_weight_bits_and_activation_types_follow_the_target(target: str, top: int) -> None:
    graph = conv("c = Conv (x, w) y = Relu (c)")
    quantize(graph, feeds_of(1, 3, 8, 8), target)
    assert np.abs(constant(graph, "w.codes").astype(int)).max() == top
    zero = constant(graph, "y.zero_point")
    assert zero.dtype == resolve_target(target).activation_dtype
    assert zero == np.iinfo(zero.dtype).min  # a Relu's output starts at zero


def test_per_tensor_scales() -> None:
    graph = conv("y = Conv (x, w, b)")
    quantize(graph, feeds_of(1, 3, 8, 8), per_channel=False)
    assert constant(graph, "w.scale").shape == ()
    assert constant(graph, "b.scale").shape == ()
    assert optimized_operators(graph)["QLinearConv"] == 1


# --- options and reasons --------------------------------------------------------------------------


def two_layers() -> gs.Graph:
    return conv(
        "[first] c = Conv (x, w) [relu] r = Relu (c) [second] y = Conv (r, v)", v=normal(4, 4, 1, 1)
    )


def test_overrides_and_options_leave_nodes_alone() -> None:
    feeds = feeds_of(1, 3, 8, 8)
    report = quantize(two_layers(), feeds, overrides={"fir*": {"skip": True}})
    assert report.changed == ["second"]
    assert "override" in report.skipped["first"]
    report = quantize(two_layers(), feeds, smallest_weight=100)
    assert report.changed == ["first"]
    assert "16 weights" in report.skipped["second"]
    report = quantize(two_layers(), feeds, exclude=("Conv",))
    assert not report.changed
    report = quantize(two_layers(), feeds, operators=("Gemm",))
    assert not report.changed
    assert "excluded" in report.skipped["first"]


def test_the_calibrator_of_a_node_belongs_to_what_it_makes() -> None:
    feeds = feeds_of(1, 3, 8, 8)
    plain, mixed = two_layers(), two_layers()
    quantize(plain, feeds, calibrator="minmax")
    quantize(
        mixed,
        feeds,
        calibrator="minmax",
        overrides={"second": {"calibrator": "percentile", "percentile": 90.0}},
    )
    assert constant(plain, "x.scale") == constant(mixed, "x.scale")
    assert constant(mixed, "y.scale") < 0.8 * constant(plain, "y.scale")


def test_minmax_covers_the_samples() -> None:
    graph, feeds = conv("y = Conv (x, w)"), feeds_of(1, 3, 8, 8)
    high = max(float(feed["x"].max()) for feed in feeds)
    low = min(float(feed["x"].min()) for feed in feeds)
    quantize(graph, feeds, calibrator="minmax")
    assert constant(graph, "x.scale") == pytest.approx((high - low) / 255, rel=1e-6)


@pytest.mark.parametrize("calibrator", ["minmax", "mse", "percentile"])
@pytest.mark.parametrize("all_of_it", [False, True])
def test_values_that_are_not_finite_keep_their_layers_in_float(
    calibrator: str, all_of_it: bool
) -> None:
    body = """
        c = Conv (x, w) l = Log (c) [after] z = Conv (l, v) [good] g = Conv (x, v2) y = Add (z, g)
    """
    graph = conv(body, v=normal(4, 4, 1, 1), v2=normal(4, 3, 3, 3))
    if all_of_it:
        graph = conv(
            body, w=-np.abs(normal(4, 3, 3, 3)), v=normal(4, 4, 1, 1), v2=normal(4, 3, 3, 3)
        )
    feeds = [{"x": np.abs(feed["x"])} for feed in feeds_of(1, 3, 8, 8)]
    report = quantize(graph, feeds, calibrator=calibrator)
    assert "not finite" in report.skipped["after"]
    assert "good" in report.changed


def test_a_dead_activation_is_quantized_all_the_same() -> None:
    graph = conv(
        "c = Conv (x, w, b) r = Relu (c) y = Conv (r, v)",
        b=np.full(4, -1e3, np.float32),
        v=normal(4, 4, 1, 1),
    )
    feeds = feeds_of(1, 3, 8, 8)
    quantize(graph, feeds)
    assert not open_session(graph).run(feeds[0])[0].any()


def test_twice_is_once() -> None:
    graph, feeds = two_layers(), feeds_of(1, 3, 8, 8)
    quantize(graph, feeds)
    once = to_proto(graph).SerializeToString(deterministic=True)
    report = quantize(graph, feeds)
    assert not report.changed
    assert set(report.skipped.values()) == {"already quantized"}
    assert to_proto(graph).SerializeToString(deterministic=True) == once


def test_same_samples_same_bytes() -> None:
    results = []
    for _ in range(2):
        graph = two_layers()
        quantize(graph, feeds_of(1, 3, 8, 8))
        results.append(to_proto(graph).SerializeToString(deterministic=True))
    assert results[0] == results[1]


def test_opset_below_13_and_float16_are_skipped_with_the_reason() -> None:
    old = graph_of(
        """<ir_version: 7, opset_import: ["" : 12]>
        g (float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) { [conv] y = Conv (x, w) }""",
        w=normal(4, 3, 3, 3),
    )
    assert "opset 12" in quantize(old, feeds_of(1, 3, 8, 8)).skipped["conv"]
    assert ops(old) == {"Conv": 1}
    half = graph_of(
        "g (float16[1, 3, 8, 8] x) => (float16[1, 4, 6, 6] y) { [conv] y = Conv (x, w) }",
        w=normal(4, 3, 3, 3).astype(np.float16),
    )
    report = quantize(half, [{"x": np.ones((1, 3, 8, 8), np.float16)}])
    assert "float16" in report.skipped["conv"]


def test_layers_without_constant_weights_say_so() -> None:
    text = """g (float[2, 4, 4] x, float[2, 4, 4] u) => (float[2, 4, 4] y) {
        [scores] s = MatMul (x, u) [conv] y = Conv (s, s1) }""".replace("(s, s1)", "(x, s)")
    graph = graph_of(text.replace("float[2, 4, 4] y", "float[2, 2, 1] y"))
    report = quantize(graph, [{"x": normal(2, 4, 4), "u": normal(2, 4, 4)}])
    assert report.skipped.keys() == {"scores", "conv"}
    assert "both factors are activations" in report.skipped["scores"]
    assert "its weights are computed" in report.skipped["conv"]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5)])
def test_every_bias_that_is_a_vector_is_taken(shape: tuple[int, ...]) -> None:
    """Whether the bias came from a file or from another pass."""
    text = "g (float[N, 16] x) => (float[N, 5] y) { [fc] y = Gemm (x, w, b) }"
    graph = graph_of(text, w=normal(16, 5), b=normal(*shape, seed=1))
    fc = graph.nodes[0]
    fc.inputs[2] = gs.Constant("bias", np.array(fc.inputs[2].values))
    want = open_session(graph).run(feeds_of(3, 16)[0])[0]
    quantize(graph, feeds_of(3, 16))
    assert optimized_operators(graph) == {"QuantizeLinear": 1, "QGemm": 1}
    assert sqnr_db(want, open_session(graph).run(feeds_of(3, 16)[0])[0]) > 35


def test_candidates_change_nothing() -> None:
    graph = two_layers()
    before = to_proto(graph).SerializeToString(deterministic=True)
    assert QuantizeStatic().candidates(graph) == ["first", "second"]
    assert to_proto(graph).SerializeToString(deterministic=True) == before


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="percentile"):
        QuantizeStatic(percentile=3)
    with pytest.raises(ValueError, match="smallest_weight"):
        QuantizeStatic(smallest_weight=-1)


# --- real models ----------------------------------------------------------------------------------


def prepared(path: Path) -> gs.Graph:
    graph = convert_opset(load_model(path).graph)
    SimplifyGraph().rewrite(graph, PassContext(target=resolve_target()), PassReport())
    return graph


@pytest.mark.parametrize(
    "name",
    [
        "cifar10_resnet20",
        "mobilenet_v1_075",
        "mobilenet_v2_100_deq",
        "squeezenet11_fp32",
        "tiny_resnet8_cifar10",
    ],
)
def test_no_pair_and_no_float_layer_is_left_in_cnns(kit: ModuleType, name: str) -> None:
    graph = prepared(kit.model_path(name))
    feeds = kit.calibration(name, 4)
    want = open_session(graph).run(feeds[0])[0]
    quantize(graph, feeds)
    found = optimized_operators(graph)
    assert not FLOAT_LAYERS & found.keys()
    assert found["QuantizeLinear"] == 1  # the input
    assert found["DequantizeLinear"] <= 1  # none where a Gemm writes the scores
    assert sqnr_db(want, open_session(graph).run(feeds[0])[0]) > 15


def test_no_pair_is_left_between_the_layers_of_minilm(kit: ModuleType, minilm: Path) -> None:
    graph = prepared(minilm)
    quantize(graph, kit.calibration("minilm_l6_v2", 4))
    found = optimized_operators(graph)
    assert found["MatMulIntegerToFloat"] == 36
    assert found["DequantizeLinear"] == 0
    assert found["QuantizeLinear"] == 24  # query, key and value share one


def test_the_checker_takes_the_file(kit: ModuleType, tmp_path: Path) -> None:
    graph = prepared(kit.model_path("cifar10_resnet20"))
    quantize(graph, kit.calibration("cifar10_resnet20", 4))
    path = tmp_path / "model.onnx"
    onnx.save(to_proto(graph), path)
    onnx.checker.check_model(str(path), full_check=True)
    assert path.stat().st_size < 0.3 * Path(kit.model_path("cifar10_resnet20")).stat().st_size


# --- ranges ---------------------------------------------------------------------------------------


def test_moving_average_is_that_of_each_samples_extremes() -> None:
    feeds = feeds_of(1, 3, 8, 8, count=5)
    graph = conv("y = Conv (x, w)", inner=3)
    quantize(graph, feeds, calibrator="moving_average")
    values = np.stack([feed["x"] for feed in feeds]).reshape(5, -1)
    width = values.max(1).mean() - values.min(1).mean()
    assert constant(graph, "x.scale") == pytest.approx(width / 255, rel=1e-5)


@pytest.mark.parametrize("activation", ["Relu (c)", "Clip (c, zero, six)"])
@pytest.mark.parametrize("calibrator", ["minmax", "entropy", "mse"])
def test_power_of_two_scales_keep_what_they_cannot_stand_for(
    activation: str, calibrator: str
) -> None:
    graph = conv(
        f"c = Conv (x, w, b) m = {activation} y = Conv (m, v)",
        v=normal(4, 4, 3, 3, seed=2),
        zero=np.float32(0),
        six=np.float32(6),
    )
    feeds = feeds_of(1, 3, 8, 8)
    want = np.stack([open_session(graph).run(feed)[0] for feed in feeds])
    quantize(graph, feeds, power_of_two=True, calibrator=calibrator)
    got = np.stack([open_session(graph).run(feed)[0] for feed in feeds])
    for name in ("x", "m", "y"):
        assert np.frexp(constant(graph, f"{name}.scale"))[0] == 0.5
    assert sqnr_db(want, got) > 24
    assert ops(graph)["Clip"] == ("Clip" in activation)
