"""Counts of parameters, MACs and bytes against counts by hand, and what a look at a model finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import UnsupportedModel
from onnxcomp.importing import from_proto
from onnxcomp.inspection import count_macs, count_parameters, inspect
from onnxcomp.testing import graph_of, model_of, small_convnet


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(shape, dtype)


CASES: dict[str, tuple[str, dict[str, Any], dict[str, list[int]], int]] = {
    # out [2, 8, 5, 4] of 3 * 3 * 2 products each
    "Conv": (
        """m (float[N, 4, 9, 7] x) => (float[N, 8, 5, 4] y) {
            y = Conv <group = 2, pads = [1, 1, 1, 1], strides = [2, 2]> (x, w) }""",
        {"w": zeros(8, 2, 3, 3)},
        {"x": [2, 4, 9, 7]},
        2 * 8 * 5 * 4 * 3 * 3 * 2,
    ),
    # every one of the 4 * 5 * 5 inputs meets 3 out channels * 2 * 2 kernel
    "ConvTranspose": (
        """m (float[1, 4, 5, 5] x) => (float[1, 6, 10, 10] y) {
            y = ConvTranspose <group = 2, strides = [2, 2]> (x, w) }""",
        {"w": zeros(4, 3, 2, 2)},
        {"x": [1, 4, 5, 5]},
        4 * 5 * 5 * 3 * 2 * 2,
    ),
    "Gemm transA": (
        """m (float[7, 3] x) => (float[3, 5] y) {
            y = Gemm <transA = 1, transB = 1> (x, w) }""",
        {"w": zeros(5, 7)},
        {"x": [7, 3]},
        3 * 5 * 7,
    ),
    "MatMul batched and broadcast": (
        "m (float[N, 1, 6, 7] x, float[3, 7, 5] z) => (float[N, 3, 6, 5] y) { y = MatMul (x, z) }",
        {},
        {"x": [2, 1, 6, 7], "z": [3, 7, 5]},
        2 * 3 * 6 * 5 * 7,
    ),
    "MatMul of vectors": (
        "m (float[7] x, float[7] z) => (float y) { y = MatMul (x, z) }",
        {},
        {"x": [7], "z": [7]},
        7,
    ),
    # 11 steps, batch 2, both directions: 4 * 6 rows of 5 inputs and of 6 states
    "LSTM": (
        """m (float[T, 2, 5] x) => (float[T, 2, 2, 6] y) {
            y = LSTM <hidden_size = 6, direction = "bidirectional"> (x, w, r) }""",
        {"w": zeros(2, 24, 5), "r": zeros(2, 24, 6)},
        {"x": [11, 2, 5]},
        11 * 2 * 2 * (24 * 5 + 24 * 6),
    ),
    "GRU": (
        """m (float[T, 2, 5] x) => (float[T, 1, 2, 6] y) {
            y = GRU <hidden_size = 6> (x, w, r) }""",
        {"w": zeros(1, 18, 5), "r": zeros(1, 18, 6)},
        {"x": [11, 2, 5]},
        11 * 2 * (18 * 5 + 18 * 6),
    ),
    "Einsum": (
        """m (float[2, 3, 4, 5] x, float[2, 3, 6, 5] z) => (float[2, 3, 4, 6] y) {
            y = Einsum <equation = "bhid, bhjd -> bhij"> (x, z) }""",
        {},
        {"x": [2, 3, 4, 5], "z": [2, 3, 6, 5]},
        2 * 3 * 4 * 6 * 5,
    ),
    "QLinearConv": (
        """m (uint8[1, 4, 6, 6] x) => (uint8[1, 8, 4, 4] y) {
            y = QLinearConv (x, s, zx, w, s, zw, s, zx, b) }""",
        {
            "s": np.float32(0.1),
            "zx": np.uint8(128),
            "zw": np.int8(0),
            "w": zeros(8, 4, 3, 3, dtype=np.int8),
            "b": zeros(8, dtype=np.int32),
        },
        {"x": [1, 4, 6, 6]},
        8 * 4 * 4 * 4 * 3 * 3,
    ),
    "MatMulInteger": (
        "m (uint8[2, 7] x) => (int32[2, 5] y) { y = MatMulInteger (x, w) }",
        {"w": zeros(7, 5, dtype=np.int8)},
        {"x": [2, 7]},
        2 * 5 * 7,
    ),
    "elementwise": ("m (float[9] x) => (float[9] y) { y = Mul (x, x) }", {}, {"x": [9]}, 0),
    # the flat size follows from Shape, Gather and Concat, which onnx's inference does not follow
    "shapes computed in the graph": (
        """m (float[N, 2, 6] x) => (float[N, 3] y) {
            size = Shape (x)
            batch = Gather (size, zero)
            padded = ConstantOfShape (one_wide)
            both = Unsqueeze (batch, axis)
            minus = Sub (padded, two)
            target = Concat <axis = 0> (both, minus_one)
            flat = Reshape (x, target)
            y = MatMul (flat, w) }""",
        {
            "zero": np.int64(0),
            "one_wide": np.array([1]),
            "axis": np.array([0]),
            "two": np.float32(2),
            "minus_one": np.array([-1]),
            "w": zeros(12, 3),
        },
        {"x": [5, 2, 6]},
        5 * 12 * 3,
    ),
    # the dearer branch counts: 3 * 4 * 5 against 3 * 4
    "If": (
        """m (bool c, float[3, 4] x) => (float[3, N] y) {
            y = If (c) <then_branch = t () => (float[3, 5] a) { a = MatMul (x, w) },
                        else_branch = e () => (float[3, 1] b) { b = MatMul (x, v) }> }""",
        {"w": zeros(4, 5), "v": zeros(4, 1)},
        {"c": [], "x": [3, 4]},
        3 * 4 * 5,
    ),
    # 6 rows are scanned, each times a 4 x 4 matrix
    "Scan": (
        """m (float[1, 4] h, float[6, 4] x) => (float[1, 4] last, float[6, 1, 4] all) {
            last, all = Scan <num_scan_inputs = 1, body = b
                (float[1, 4] state, float[4] row) => (float[1, 4] next, float[1, 4] out) {
                    turned = MatMul (state, w)
                    next = Add (turned, row)
                    out = Identity (next) }> (h, x) }""",
        {"w": zeros(4, 4)},
        {"h": [1, 4], "x": [6, 4]},
        6 * 4 * 4,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_macs_are_those_counted_by_hand(case: str) -> None:
    text, constants, shapes, expected = CASES[case]
    assert count_macs(graph_of(text, **constants), shapes) == expected


def test_attention_counts_both_products_over_past_and_present() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
        m (float[2, 6, 5, 8] q, float[2, 3, 7, 8] k, float[2, 3, 7, 4] v,
           float[2, 3, 10, 8] pk, float[2, 3, 10, 4] pv)
            => (float[2, 6, 5, 4] y, float[2, 3, 17, 8] nk, float[2, 3, 17, 4] nv) {
            y, nk, nv = Attention (q, k, v, , pk, pv) }"""
    shapes = {"q": [2, 6, 5, 8], "k": [2, 3, 7, 8], "v": [2, 3, 7, 4]}
    shapes |= {"pk": [2, 3, 10, 8], "pv": [2, 3, 10, 4]}
    assert count_macs(graph_of(text), shapes) == 2 * 6 * 5 * 17 * (8 + 4)


def test_quantization_changes_neither_macs_nor_parameters() -> None:
    """DequantizeLinear before a weight: the same products; scales are no weights."""
    plain = graph_of(
        "m (float[N, 8] x) => (float[N, 5] y) { y = Gemm (x, w, b) }",
        w=zeros(8, 5),
        b=zeros(5),
    )
    quantized = graph_of(
        """m (float[N, 8] x) => (float[N, 5] y) {
            xq = QuantizeLinear (x, xs, xz)
            xd = DequantizeLinear (xq, xs, xz)
            wd = DequantizeLinear <axis = 1> (wq, ws, wz)
            bd = DequantizeLinear <axis = 0> (bq, bs)
            y = Gemm (xd, wd, bd) }""",
        xs=np.float32(0.1),
        xz=np.uint8(128),
        wq=zeros(8, 5, dtype=np.int8),
        ws=zeros(5),
        wz=zeros(5, dtype=np.int8),
        bq=zeros(5, dtype=np.int32),
        bs=zeros(5),
    )
    shapes = {"x": [3, 8]}
    assert count_macs(plain, shapes) == count_macs(quantized, shapes) == 3 * 8 * 5
    assert count_parameters(plain) == count_parameters(quantized) == 8 * 5 + 5


def test_int64_shapes_and_indices_are_no_parameters() -> None:
    graph = graph_of(
        "m (float[2, 3] x) => (float[6] y) { r = Reshape (x, s)\n y = Mul (r, w) }",
        s=np.array([6]),
        w=zeros(6),
    )
    assert count_parameters(graph) == 6


def test_branches_may_use_one_name_for_two_weights() -> None:
    def branch(columns: int) -> onnx.GraphProto:
        node = helper.make_node("MatMul", ["x", "w"], ["r"])
        result = helper.make_tensor_value_info("r", TensorProto.FLOAT, [3, columns])
        weight = numpy_helper.from_array(zeros(4, columns), "w")
        return helper.make_graph([node], "branch", [], [result], [weight])

    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch(5), else_branch=branch(7))
    inputs = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4]),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, None])
    model = helper.make_model(
        helper.make_graph([choice], "m", inputs, [output]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    assert count_parameters(from_proto(model)) == 4 * 5 + 4 * 7


def test_a_branch_that_shapes_decide_is_the_one_that_counts() -> None:
    """Exporters write "squeeze if the axis is 1" as an If on a shape."""
    graph = graph_of(
        """m (float[N, 4] x) => (float[N, 5] y) {
            size = Shape (x)
            batch = Gather (size, zero)
            one = Equal (batch, three)
            r = If (one) <then_branch = t () => (float[M, 6] a) { a = MatMul (x, w) },
                          else_branch = e () => (float[M, K] b) { b = MatMul (x, v) }>
            y = MatMul (r, u) }""",
        zero=np.int64(0),
        three=np.int64(3),
        w=zeros(4, 6),
        v=zeros(4, 100),
        u=zeros(6, 5),
    )
    assert count_macs(graph, {"x": [3, 4]}) == 3 * 4 * 6 + 3 * 6 * 5


def test_local_functions_are_looked_into() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        m (float[2, 4] x, float[4, 5] w) => (float[2, 5] y) { y = local.dense (x, w) }
        <opset_import: ["" : 17], domain: "local">
        dense (a, b) => (c) { c = MatMul (a, b) }"""
    )
    assert count_macs(from_proto(model), {"x": [2, 4], "w": [4, 5]}) == 2 * 4 * 5


def test_a_custom_operator_makes_the_count_unknown_and_names_itself(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "acme" : 1]>
        m (float[2, 4] x) => (float[2, 5] y) { [odd] z = acme.Odd (x) [dense] y = MatMul (x, w) }"""
    model = model_of(text, w=zeros(4, 5))
    onnx.save(model, tmp_path / "custom.onnx")
    found = inspect(tmp_path / "custom.onnx")
    assert found.macs is None
    assert found.unknown_macs == ("odd",)
    assert found.custom_domains == {"acme": ["Odd"]}
    assert count_macs(from_proto(model), {"x": [2, 4]}) is None


def test_an_inspection_tells_what_a_model_is_made_of(tmp_path: Path) -> None:
    model = small_convnet()
    entry = model.metadata_props.add()
    entry.key, entry.value = "labels", "a,b"
    model.producer_name = "tests"
    onnx.save(model, tmp_path / "convnet.onnx")
    found = inspect(tmp_path / "convnet.onnx")
    stem, depthwise, dense = 8 * 8 * 8 * 27, 8 * 8 * 8 * 9, 8 * 5
    assert found.macs == stem + depthwise + dense
    assert found.assumed == {"N": 1}
    assert found.shapes == {"image": [1, 3, 8, 8]}
    assert found.parameters == 8 * 27 + 8 + 4 * 8 + 8 * 9 + 40 + 5
    assert found.bytes == (tmp_path / "convnet.onnx").stat().st_size
    assert found.opsets == {"": 17}
    assert found.metadata == {"labels": "a,b"}
    assert found.producer == "tests"
    assert [str(tensor) for tensor in found.inputs] == ["'image' float [N, 3, 8, 8]"]
    first = found.layers[0]
    assert (first.name, first.op, first.parameters, first.bytes) == ("stem", "Conv", 224, 896)
    assert first.macs == stem
    convolutions = next(cost for cost in found.operators if cost.op == "Conv")
    assert (convolutions.count, convolutions.parameters) == (2, 8 * 27 + 8 + 8 * 9)
    assert sum(cost.macs or 0 for cost in found.operators) == found.macs
    reach = {entry.name: entry for entry in found.passes}
    assert "norm" in reach["simplify_graph"].candidates
    assert reach["simplify_graph"].operators["BatchNormalization"] == 1


def test_macs_follow_the_shape_that_is_given(tmp_path: Path) -> None:
    onnx.save(small_convnet(), tmp_path / "convnet.onnx")
    one, three = (
        inspect(tmp_path / "convnet.onnx", shapes={"image": [n, 3, 8, 8]}) for n in (1, 3)
    )
    assert one.macs is not None
    assert three.macs == 3 * one.macs
    assert three.assumed == {}
    with pytest.raises(UnsupportedModel, match="no input 'picture'"):
        inspect(tmp_path / "convnet.onnx", shapes={"picture": [1, 3, 8, 8]})


def test_weights_in_files_of_their_own_are_listed_and_counted(tmp_path: Path) -> None:
    model = model_of(
        "m (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", w=zeros(64, 64)
    )
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    found = inspect(tmp_path / "m.onnx")
    assert [Path(path).name for path in found.external_data] == ["w.bin"]
    assert found.bytes == (tmp_path / "m.onnx").stat().st_size + 64 * 64 * 4
    assert found.parameters == 64 * 64


PUBLISHED_GMACS = {  # torchvision's table of classification weights, rounded to 0.01
    "resnet50": 4.09,
    "mobilenet_v2": 0.30,
    "densenet121": 2.83,
    "vgg11_bn": 7.61,
    "swin_t": 4.49,
}


@pytest.mark.parametrize("name", PUBLISHED_GMACS)
def test_known_architectures_have_their_published_macs(name: str, shared: Path) -> None:
    graph = from_proto(onnx.load(shared / "archzoo" / f"{name}.onnx"))
    macs = count_macs(graph, {graph.inputs[0].name: [1, 3, 224, 224]})
    assert macs is not None
    assert macs / 1e9 == pytest.approx(PUBLISHED_GMACS[name], abs=0.006)


@pytest.mark.parametrize("name", ["cifar10_resnet20", "silero_vad_16k_op15", "yolox_nano"])
def test_macs_of_the_kit_are_known(name: str, shared: Path) -> None:
    assert inspect(shared / "kit" / "models" / f"{name}.onnx").macs
