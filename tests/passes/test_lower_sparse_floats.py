"""lower_sparse on layers of float32: the outputs of the dense graph, and what stays dense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from sparse_float_models import block_sparse_floats, dense_conv_model, random_floats
from sparse_lowering import lower, lowered_digits, operators

from onnxcomp.importing import from_proto
from onnxcomp.kernels.reference import BLOCK_SIZES as KERNEL_SIZES
from onnxcomp.kernels.reference_sparse_conv import pack_conv
from onnxcomp.kernels.reference_sparse_int8 import BLOCK_ROWS as KERNEL_ROWS
from onnxcomp.kernels.reference_sparse_int8 import QUAD, pack_int8
from onnxcomp.kernels.sparse_conv import Window
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.sparsify_weights import SparsifyWeights
from onnxcomp.quantization import Array
from onnxcomp.runtime import open_session
from onnxcomp.sparse_forms import BLOCK_ROWS, BLOCK_SIZES, zero_blocks
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of


def assert_same(before: gs.Graph, after: gs.Graph, x: Array) -> None:
    feed = {before.inputs[0].name: x}
    found = [open_session(graph, threads=1).run(feed) for graph in (before, after)]
    for dense, sparse in zip(*found, strict=True):
        assert dense.shape == sparse.shape
        np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-5 * np.abs(dense).max())


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", BLOCK_SIZES)
@pytest.mark.parametrize(
    ("kernel", "groups", "window"),
    [
        ((1, 1), 1, Window()),
        ((3, 3), 2, Window(strides=(2, 1), pads=(0, 1, 2, 1))),
        ((2, 3), 1, Window(dilations=(2, 1), pads=(1, 0, 0, 2))),
        ((5,), 2, Window(strides=(2,), dilations=(1,), pads=(3, 1))),
    ],
)
def test_convolutions_make_the_same_floats(
    kernel: tuple[int, ...], groups: int, window: Window, rows: int, biased: bool, relu: bool
) -> None:
    rng = np.random.default_rng(0)
    weight = block_sparse_floats(rng, 64, 18, *kernel, density=0.4, rows=rows)
    bias = random_floats(rng, 64) if biased else None
    x = random_floats(rng, 2, 18 * groups, *(11, 13)[: len(kernel)])
    packed = pack_conv(weight, block_size=1, groups=groups)
    before, graph = (
        from_proto(dense_conv_model(packed, x.shape, bias, window, relu=relu)) for _ in range(2)
    )
    for made in (before, graph):
        made.outputs[0].shape = [f"y{axis}" for axis in range(x.ndim)]
    report = lower(graph)
    assert len(report.changed) == 1
    assert operators(graph) == {"SparseConv": 1} | ({} if relu else {"Identity": 1})
    node = graph.nodes[0]
    assert (node.attrs["block_size"], node.attrs["relu"]) == (rows, relu)
    assert [t.name for t in node.inputs[1:4]] == ["W.values", "W.indices", "W.offsets"]
    assert_same(before, graph, x)


# Projections as transformers have them: three axes, the bias in an Add; a weight is read twice.
PROJECTION = """p (float[N, S, 48] x) => (float[N, S, 48] y, float[N, S, 48] z) {
    [product] a = MatMul (x, w)
    [add] b = Add (bias, a)
    y = Relu (b)
    [again] z = MatMul (x, w)
}"""
GEMM = """g (float[N, 48] x) => (float[N, 48] y, float[N, 48] z) {
    [plain] y = Gemm (x, w, bias)
    [transposed] z = Gemm <transB = 1> (x, w)
}"""


def products(text: str, rows: int = 16) -> gs.Graph:
    rng = np.random.default_rng(1)
    weight = block_sparse_floats(rng, 48, 48, density=0.3, rows=rows).T.copy()
    constants = {"w": weight, "bias": random_floats(rng, 48)}
    return graph_of(text, **{name: v for name, v in constants.items() if name in text})


def test_the_bias_behind_a_product_goes_into_it_and_a_shared_weight_is_packed_once() -> None:
    graph = products(PROJECTION)
    assert lower(graph).changed == ["product", "again"]
    assert operators(graph) == {"SparseMatMul": 2, "Relu": 1}
    one, two = (node for node in graph.nodes if node.op == "SparseMatMul")
    assert one.attrs["block_size"] == 16
    assert one.inputs[1] is two.inputs[1]
    assert [len(one.inputs), len(two.inputs)] == [5, 4]
    assert_same(products(PROJECTION), graph, random_floats(np.random.default_rng(2), 2, 5, 48))


def test_a_weight_that_is_read_both_ways_is_packed_both_ways() -> None:
    graph = products(GEMM, rows=1)
    assert lower(graph).changed == ["plain", "transposed"]
    assert operators(graph) == {"SparseMatMul": 2}
    assert_same(products(GEMM, rows=1), graph, random_floats(np.random.default_rng(2), 7, 48))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = Gemm <transA = 1> (x, w)", "it scales or transposes its input"),
        ("y = Gemm <alpha = 0.5> (x, w)", "it scales or transposes its input"),
        ("y = Gemm (x, w, rows)", "its bias is not one constant for each output"),
        ("y = MatMul (x, full)", "only 0 % of its blocks are zero"),
        ("y = MatMul (w, x)", "no sparse operator does what MatMul does with such a weight"),
    ],
)
def test_what_the_operator_cannot_do_stays(text: str, reason: str) -> None:
    constants = {
        "w": np.zeros((8, 8), np.float32),
        "full": np.ones((8, 8), np.float32),
        "rows": np.ones((8, 1), np.float32),
    }
    given = {name: array for name, array in constants.items() if name in text}
    graph = graph_of(f"g (float[8, 8] x) => (float[8, 8] y) {{ [layer] {text} }}", **given)
    report = lower(graph)
    assert report.skipped == {"layer": reason}
    assert not report.changed


def test_operators_that_multiply_in_other_ways_are_named() -> None:
    text = """o (float[1, 8, H] x, float[S, B, 8] t) => (float[1, 4, I] y, float[S, 1, B, 4] z) {
        [up] y = ConvTranspose <strides = [2]> (x, w)
        [state] z = LSTM <hidden_size = 4> (t, input_weights, state_weights) }"""
    kernel, *matrices = (np.zeros(s, np.float32) for s in ((8, 4, 2), (1, 16, 8), (1, 16, 4)))
    names = ("input_weights", "state_weights")
    report = lower(graph_of(text, w=kernel, **dict(zip(names, matrices, strict=True))))
    assert report.skipped == {
        "up": "no sparse operator does what ConvTranspose does with such a weight",
        "state": "no sparse operator does what LSTM does with such a weight",
    }


@pytest.mark.parametrize(
    ("attributes", "shape", "reason"),
    [
        ("group = 8", (8, 1, 3, 3), "depthwise: one input for each output leaves nothing to skip"),
        ('auto_pad = "SAME_UPPER"', (8, 8, 3, 3), "its padding is by auto_pad SAME_UPPER"),
    ],
)
def test_convolutions_that_stay(attributes: str, shape: tuple[int, ...], reason: str) -> None:
    text = f"""c (float[N, 8, H, W] x) => (float[N, 8, I, J] y) {{
        [layer] y = Conv <{attributes}> (x, w) }}"""
    report = lower(graph_of(text, w=np.zeros(shape, np.float32)))
    assert report.skipped == {"layer": reason}


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_a_layer_of_almost_only_zeros_is_measured_to_be_faster(kernel: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    if kernel:
        shape: tuple[int, ...] = (1, 96, 20, 20)
        weight = block_sparse_floats(rng, 96, 96, 3, 3, density=0.01)
        text = "y = Conv <pads = [1, 1, 1, 1]> (x, w)"
    else:
        shape = (128, 768)
        weight = block_sparse_floats(rng, 768, 768, density=0.01).T.copy()
        text = "y = MatMul (x, w)"
    sizes = ", ".join(str(size) for size in shape)
    graph = graph_of(f"g (float[{sizes}] x) => (float[{sizes}] y) {{ {text} }}", w=weight)
    report = lower(graph, [{"x": random_floats(rng, *shape)}], choose="measured")
    assert len(report.changed) == 1


def test_blocks_to_choose_from_are_those_of_the_kernels() -> None:
    assert set(BLOCK_SIZES) <= set(KERNEL_SIZES)
    assert set(BLOCK_ROWS) <= set(KERNEL_ROWS)


@pytest.mark.parametrize("pattern", ["16x1", "4x1", "1x1", "4x4", "1x4"])
@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("float[N, 32] x) => (float[N, 64] y) { y = MatMul (x, w) }", (32, 64)),
        ("float[N, 32] x) => (float[N, 64] y) { y = Gemm <transB = 1> (x, w) }", (64, 32)),
        ("float[N, 8, 9, 9] x) => (float[N, 64, 7, 7] y) { y = Conv (x, w) }", (64, 8, 3, 3)),
    ],
)
def test_zeros_in_a_pattern_are_blocks_of_the_kernels(
    text: str, shape: tuple[int, ...], pattern: str
) -> None:
    graph = graph_of(f"g ({text}", w=random_floats(np.random.default_rng(7), *shape))
    context = PassContext(target=resolve_target("auto"), calibration=None)
    options: dict[str, Any] = {"sparsity": 0.75, "pattern": pattern, "method": "magnitude"}
    SparsifyWeights(**options).rewrite(graph, context, PassReport())
    weight = np.asarray(graph.nodes[0].inputs[1].values)
    weight = weight.T if "MatMul" in text else weight
    assert np.mean(weight == 0) == 0.75
    rows, columns = (int(size) for size in pattern.split("x"))
    if columns == 1:
        assert zero_blocks(weight, rows, 1) == 0.75
        packed = pack_conv(np.atleast_3d(weight).astype(np.float32), block_size=rows)
        assert packed.values.size == 0.25 * weight.size
    else:
        assert columns == QUAD
        coded = pack_int8(np.sign(weight).astype(np.int8), block_rows=rows)
        assert coded.values.size == 0.25 * weight.size


STEPS = """
[[passes]]
name = "simplify_graph"
[[passes]]
name = "sparsify_weights"
sparsity = 0.8
pattern = "4x1"
method = "magnitude"
"""


def test_a_network_that_was_pruned(tmp_path: Path) -> None:
    digits = lowered_digits(STEPS, tmp_path)
    assert (digits.result.name, digits.result.status) == ("lower_sparse", "kept")
    assert digits.operators["SparseConv"] == 12
    assert digits.operators["SparseMatMul"] == 1
    assert digits.result.skipped.keys() == {"/stem/conv/Conv", "/inverted/depthwise/conv/Conv"}
    limit = 1e-5 * np.abs(digits.dense).max()
    np.testing.assert_allclose(digits.sparse, digits.dense, rtol=1e-4, atol=limit)
