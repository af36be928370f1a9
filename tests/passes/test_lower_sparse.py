"""lower_sparse: within one code of the QDQ graph run by onnxruntime, and what stays dense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from sparse_int8_models import block_sparse, qdq_model, random_codes, random_steps
from sparse_lowering import lower, lowered_digits, operators

from onnxcomp.importing import from_proto
from onnxcomp.kernels.sparse_int8 import Window, pack_int8
from onnxcomp.passes import lower_sparse
from onnxcomp.passes.lower_sparse import LowerSparse
from onnxcomp.quantization import Array
from onnxcomp.runtime import Feed, open_session
from onnxcomp.testing import graph_of
from onnxcomp.timing import Timing


def quantized(*given: Any) -> gs.Graph:
    """The graph of `qdq_model`, whose output has a rank, as the checker wants it."""
    graph = from_proto(qdq_model(*given))
    graph.outputs[0].shape = [f"y{axis}" for axis in range(len(given[2]))]
    return graph


def outputs_of(graph: gs.Graph, x: Array) -> list[Any]:
    return open_session(graph, threads=1).run({graph.inputs[0].name: x})


def assert_close(before: gs.Graph, after: gs.Graph, x: Array, *, code: float = 0.0) -> None:
    """Codes differ by one at most and rarely; floats by rounding, or by ``code``."""
    for dense, sparse in zip(outputs_of(before, x), outputs_of(after, x), strict=True):
        assert dense.shape == sparse.shape
        assert dense.dtype == sparse.dtype
        if dense.dtype == np.uint8:
            assert 1 < np.median(dense) < 235, "a layer that is clamped shows nothing"
            difference = np.abs(sparse.astype(int) - dense)
            assert difference.max() <= 1
            assert (difference == 0).mean() > 0.99
        else:
            limit = 1e-5 * np.abs(dense).max() + code
            np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=limit)


@pytest.mark.parametrize("to_codes", [True, False])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
def test_products_make_the_same_codes(rows: int, biased: bool, to_codes: bool) -> None:
    rng = np.random.default_rng(0)
    weight = block_sparse(rng, 70, 131, density=0.3, rows=rows)
    steps, x = random_steps(rng, 70, biased=biased), random_codes(rng, 9, 131)
    given = pack_int8(weight), steps, x.shape, to_codes
    graph = quantized(*given)
    report = lower(graph)
    name = "SparseQLinearMatMul" if to_codes else "SparseMatMulIntegerToFloat"
    assert operators(graph) == {name: 1} | ({} if to_codes else {"Identity": 1})
    assert len(report.changed) == 1
    assert not report.skipped
    node = next(n for n in graph.nodes if n.op == name)
    assert node.attrs["block_rows"] == rows
    assert [t.name for t in node.inputs[1:4]] == ["w.values", "w.indices", "w.offsets"]
    assert_close(quantized(*given), graph, x)


@pytest.mark.parametrize("to_codes", [True, False])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("kernel", "groups", "window"),
    [
        ((1, 1), 1, Window()),
        ((3, 3), 2, Window(strides=(2, 1), pads=(0, 1, 2, 1))),
        ((2, 3), 1, Window(dilations=(2, 1), pads=(1, 0, 0, 2))),
        ((5,), 2, Window(strides=(2,), dilations=(1,), pads=(3, 1))),
    ],
)
def test_convolutions_make_the_same_codes(
    kernel: tuple[int, ...], groups: int, window: Window, biased: bool, to_codes: bool
) -> None:
    rng = np.random.default_rng(1)
    packed = pack_int8(block_sparse(rng, 24, 18, *kernel, density=0.4), groups=groups)
    steps = random_steps(rng, 24, biased=biased)
    x = random_codes(rng, 2, 18 * groups, *(11, 13)[: len(kernel)])
    given = packed, steps, x.shape, to_codes, window
    graph = quantized(*given)
    lower(graph)
    assert operators(graph)["SparseQLinearConv" if to_codes else "SparseConvIntegerToFloat"] == 1
    assert_close(quantized(*given), graph, x)


# A projection as transformers have it: three axes, the bias in an Add, a Relu, codes or not.
PROJECTION = """p (uint8[N, S, 64] x) => (uint8[N, S, 40] y) {
    a = DequantizeLinear (x, x_scale, x_zero)
    w = DequantizeLinear <axis = 1> (codes, w_scale)
    [product] b = MatMul (a, w)
    [bias] c = Add (bias, b)
    [relu] d = Relu (c)
    y = QuantizeLinear (d, y_scale, y_zero)
}"""


def projection(text: str = PROJECTION, **changes: Any) -> gs.Graph:
    rng = np.random.default_rng(2)
    constants = {
        "x_scale": np.float32(0.02),
        "x_zero": np.uint8(121),
        "codes": np.ascontiguousarray(block_sparse(rng, 40, 64, density=0.3).T),
        "w_scale": rng.uniform(0.001, 0.003, 40).astype(np.float32),
        "bias": rng.standard_normal(40).astype(np.float32),
        "y_scale": np.float32(0.02),
        "y_zero": np.uint8(0),
    } | changes
    return graph_of(text, **{name: v for name, v in constants.items() if name in text})


CODES = random_codes(np.random.default_rng(3), 2, 7, 64)


def test_the_bias_behind_a_product_and_a_relu_go_into_it() -> None:
    graph = projection()
    assert lower(graph).changed == ["product"]
    assert operators(graph) == {"SparseQLinearMatMul": 1}
    assert graph.outputs[0].inputs[0].name == "product"
    before = projection()
    dense, sparse = outputs_of(before, CODES)[0], outputs_of(graph, CODES)[0]
    assert np.abs(sparse.astype(int) - dense).max() <= 1
    assert (sparse != dense).mean() < 0.01
    assert 0.2 < (dense == 0).mean() < 0.8
    assert dense.max() > 20


def test_a_relu_that_the_lowest_code_does_not_stand_for_stays() -> None:
    graph = projection(y_zero=np.uint8(7))
    lower(graph)
    assert operators(graph) == {"SparseMatMulIntegerToFloat": 1, "Relu": 1, "QuantizeLinear": 1}
    dense, sparse = (
        outputs_of(projection(y_zero=np.uint8(7)), CODES)[0],
        outputs_of(graph, CODES)[0],
    )
    assert dense.min() == sparse.min() == 7
    assert np.abs(sparse.astype(int) - dense).max() <= 1


TWICE = """p (uint8[N, S, 64] x) => (uint8[N, S, 40] y, float[N, S, 40] b, float[N, S, 40] z) {
    a = DequantizeLinear (x, x_scale, x_zero)
    w = DequantizeLinear <axis = 1> (codes, w_scale)
    [product] b = MatMul (a, w)
    [bias] c = Add (b, bias)
    y = QuantizeLinear (c, y_scale, y_zero)
    [again] d = MatMul (a, w)
    z = Tanh (d)
}"""


def test_what_others_read_stays_and_a_shared_weight_is_packed_once() -> None:
    graph = projection(TWICE, y_zero=np.uint8(100))
    lower(graph)
    assert operators(graph) == {
        "SparseMatMulIntegerToFloat": 2,
        "Add": 1,
        "QuantizeLinear": 1,
        "Tanh": 1,
    }
    one, two = (node for node in graph.nodes if node.op.startswith("Sparse"))
    assert one.inputs[1] is two.inputs[1]
    assert one.inputs[1].name == "codes.values"
    assert_close(projection(TWICE, y_zero=np.uint8(100)), graph, CODES)


def test_one_scale_for_the_whole_weight_and_a_transposed_gemm() -> None:
    text = """g (uint8[N, 64] x) => (float[N, 40] y) {
        a = DequantizeLinear (x, x_scale, x_zero)
        w = DequantizeLinear (codes, w_scale, w_zero)
        y = Gemm <transB = 1> (a, w, bias)
    }"""
    codes = block_sparse(np.random.default_rng(4), 40, 64, density=0.3)
    changes = {"codes": codes, "w_scale": np.float32(0.002), "w_zero": np.int8(0)}
    graph = projection(text, **changes)
    lower(graph)
    assert operators(graph) == {"SparseMatMulIntegerToFloat": 1}
    # the bias is rounded to units of 0.02 * 0.002
    assert_close(projection(text, **changes), graph, CODES[0], code=2e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"x_zero": np.int8(3)}, "its input is not codes of uint8"),
        ({"codes": np.ones((64, 40), np.int8)}, "only 0 % of its blocks are zero"),
        ({"codes": np.ones((64, 40), np.uint8)}, "its weights are not codes of int8"),
        ({"w_scale": np.full(64, 0.01, np.float32)}, "its weights' scales are not one for each"),
        ({"bias": np.full(40, 3e7, np.float32)}, "its sums may leave 32 bits"),
        ({"x_scale": np.float32(1e-38)}, "the scale of its sums leaves the range of float32"),
    ],
)
def test_what_the_operators_cannot_do_stays(changes: dict[str, Any], reason: str) -> None:
    text = PROJECTION
    if "x_zero" in changes:
        text = text.replace("uint8[N, S, 64] x", "int8[N, S, 64] x")
    if changes.get("w_scale", np.zeros(0)).size == 64:
        text = text.replace("axis = 1", "axis = 0")
    graph = projection(text, **changes)
    before = operators(graph)
    report = lower(graph)
    assert list(report.skipped) == ["product"]
    assert report.skipped["product"].startswith(reason)
    assert not report.changed
    assert operators(graph) == before


def test_three_dimensions_stay() -> None:
    packed = pack_int8(block_sparse(np.random.default_rng(5), 8, 8, 2, 2, 2))
    window = Window(strides=(1, 1, 1), dilations=(1, 1, 1), pads=(0,) * 6)  # type: ignore[arg-type]
    steps = random_steps(np.random.default_rng(6), 8, biased=True)
    report = lower(quantized(packed, steps, (1, 8, 4, 4, 4), True, window))
    assert [*report.skipped.values()] == ["its kernel has 3 dimensions, not 1 or 2"]


def test_depthwise_stays() -> None:
    rng = np.random.default_rng(5)
    weight = (rng.integers(1, 9, (16, 1, 3, 3)) * (rng.random((16, 1, 1, 1)) < 0.4)).astype(np.int8)
    packed = pack_int8(weight, groups=16)
    graph = quantized(packed, random_steps(rng, 16, biased=True), (1, 16, 9, 9), True)
    report = lower(graph)
    assert [r.partition(":")[0] for r in report.skipped.values()] == ["depthwise"]


def test_a_recipe_decides_for_single_layers() -> None:
    graph = projection()
    assert lower(graph, overrides={"prod*": {"skip": True}}).skipped == {
        "product": "the recipe says so"
    }
    report = lower(graph, overrides={"prod*": {"min_sparsity": 0.9}})
    assert report.skipped["product"].endswith("% of its blocks are zero")
    share = int(report.skipped["product"].split()[1])
    weight = graph.nodes[1].inputs[0].values
    blocks = weight.T.reshape(10, 4, 16, 4).any(axis=(1, 3))
    assert share == int(100 * (1 - blocks.mean()))


@pytest.mark.parametrize("options", [{"min_sparsity": 1.5}, {"min_sparsity": -0.1}, {"threads": 0}])
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        LowerSparse(**options)


def two_layers() -> gs.Graph:
    """Two layers of which ``second`` reads what ``first`` makes."""
    text = """t (uint8[N, 64] x) => (uint8[N, 64] y) {
        a = DequantizeLinear (x, x_scale, x_zero)
        w = DequantizeLinear <axis = 1> (codes, w_scale)
        [first] b = MatMul (a, w)
        c = QuantizeLinear (b, y_scale, x_zero)
        d = DequantizeLinear (c, x_scale, x_zero)
        [second] e = MatMul (d, w)
        y = QuantizeLinear (e, y_scale, x_zero)
    }"""
    weight = block_sparse(np.random.default_rng(7), 64, 64, density=0.3)
    return projection(text, codes=weight, w_scale=np.full(64, 0.002, np.float32))


@pytest.mark.parametrize(
    ("layers", "models", "changed", "skipped"),
    [
        # dense and sparse milliseconds of each layer; of the model without any, with some, all
        ([(0.25, 0.2), (0.3, 0.1)], (1.0, 0.8, 0.8), ["first", "second"], {}),
        (
            [(0.25, 0.24), (0.3, 0.1)],
            (1.0, 0.8, 0.8),
            ["second"],
            {"first": "dense is as fast: 0.25 against 0.24 ms"},
        ),
        (
            [(0.25, 0.2), (0.1, 0.3)],
            (1.0, 0.8, 0.9),
            ["first"],
            {"second": "dense is faster: 0.1 against 0.3 ms"},
        ),
        ([(0.25, 0.2), (0.1, 0.3)], (1.0, 0.8, 0.7), ["first", "second"], {}),
        (
            [(0.25, 0.2), (0.1, 0.3)],
            (2.0, 1.96, 2.1),
            [],
            dict.fromkeys(("first", "second"), "the whole model is not faster: 2 against 1.96 ms"),
        ),
    ],
)
def test_times_decide(
    layers: list[tuple[float, float]],
    models: tuple[float, ...],
    changed: list[str],
    skipped: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told, sparse = iter(layers), []

    def one_layer(layer: Any, packings: Any, shape: Any, threads: int) -> Any:
        assert (shape, threads) == ((7, 64), 2)
        dense_ms, sparse_ms = next(told)
        return dense_ms, [sparse_ms] * len(packings)

    def whole_models(graphs: list[gs.Graph], feed: Feed, threads: int) -> Timing:
        sparse.extend(operators(graph)["SparseQLinearMatMul"] for graph in graphs)
        ratios = tuple(ms / models[0] for ms in models)
        return Timing(models, ratios, ratios, (0.001,) * 3, models)

    monkeypatch.setattr(lower_sparse, "layer_times", one_layer)
    monkeypatch.setattr(lower_sparse, "model_times", whole_models)
    graph = two_layers()
    report = lower(graph, [{"x": CODES[0]}], choose="measured", threads=2)
    assert (report.changed, report.skipped) == (changed, skipped)
    assert operators(graph)["SparseQLinearMatMul"] == len(changed)
    assert sparse == [0, sum(b <= 0.95 * a for a, b in layers), 2]


def test_a_shape_that_nobody_knows_is_not_timed() -> None:
    report = lower(projection(), choose="measured")
    assert report.skipped == {"product": "its input has no shape to time it with: give samples"}


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_a_layer_of_almost_only_zeros_is_measured_to_be_faster(kernel: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    channels, shape = (96, (1, 96, 20, 20)) if kernel else (768, (128, 768))
    packed = pack_int8(block_sparse(rng, channels, channels, *kernel, density=0.01))
    window = Window(pads=(1, 1, 1, 1)) if kernel else None
    steps = random_steps(rng, channels, biased=True)
    graph = quantized(packed, steps, shape, True, window)
    report = lower(graph, [{"X": random_codes(rng, *shape)}], choose="measured")
    assert len(report.changed) == 1


STEPS = """
[[passes]]
name = "simplify_graph"
[[passes]]
name = "sparsify_weights"
sparsity = 0.6
pattern = "4x4"
method = "magnitude"
[[passes]]
name = "quantize_static"
rounding = "nearest"
"""


def test_a_network_that_was_pruned_and_quantized(tmp_path: Path) -> None:
    digits = lowered_digits(STEPS, tmp_path)
    assert (digits.result.name, digits.result.status) == ("lower_sparse", "kept")
    assert digits.operators["SparseQLinearConv"] == 12
    assert digits.operators["SparseMatMulIntegerToFloat"] == 1
    assert digits.result.skipped.keys() == {"/stem/conv/Conv", "/inverted/depthwise/conv/Conv"}
    assert (digits.dense.argmax(1) == digits.sparse.argmax(1)).mean() > 0.99
    assert np.abs(digits.sparse - digits.dense).max() < 0.05 * np.ptp(digits.dense)
