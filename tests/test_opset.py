"""Old models compute the same in opset 13: onnxruntime runs both."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import OpsetConversionFailed
from onnxcomp.exporting import to_proto
from onnxcomp.graph import Graph, opsets
from onnxcomp.importing import from_proto
from onnxcomp.model import check_graph, load_model
from onnxcomp.opset import convert_in_place, convert_opset, opset_of
from onnxcomp.runtime import open_session

SHARED = Path(os.environ.get("ONNXCOMP_SHARED", Path(__file__).parents[2] / "shared"))
Array = np.ndarray[Any, Any]


def old_graph(
    nodes: list[onnx.NodeProto],
    opset: int,
    x: Array,
    outputs: int = 1,
    symbolic: bool = False,
    **constants: Any,
) -> Graph:
    """x -> ``nodes`` -> y (y0, y1 ...)."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    shape = [f"d{axis}" for axis in range(x.ndim)] if symbolic else list(x.shape)
    names = ["y"] if outputs == 1 else [f"y{index}" for index in range(outputs)]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "old",
            [helper.make_tensor_value_info("x", kind, shape)],
            [onnx.ValueInfoProto(name=name) for name in names],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=4,
    )
    typed = onnx.shape_inference.infer_shapes(model)
    for output in typed.graph.output:
        if not output.type.tensor_type.HasField("shape"):  # not an operator that onnx knows
            dims = [f"{output.name}{axis}" for axis in range(x.ndim)]
            output.CopyFrom(helper.make_tensor_value_info(output.name, kind, dims))
    return from_proto(typed)


def check(graph: Graph, x: Array) -> Graph:
    """Converts; the answer may not change by a bit, nor may ``graph``."""
    before = to_proto(graph).SerializeToString(deterministic=True)
    expected = open_session(graph, optimize=False).run({"x": x})
    converted = convert_opset(graph)
    check_graph(converted)
    assert opset_of(converted) == 13
    assert to_proto(graph).SerializeToString(deterministic=True) == before
    for ours, theirs in zip(
        open_session(converted, optimize=False).run({"x": x}), expected, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    return converted


def random(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def node(op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> onnx.NodeProto:
    names = ["y"] if outputs == 1 else [f"y{index}" for index in range(outputs)]
    return helper.make_node(op, ["x", *inputs], names, **attributes)


@pytest.mark.parametrize(
    ("opset", "made"),
    [
        (12, node("Squeeze", axes=[0, 2])),
        (8, node("Squeeze")),
        (9, node("Unsqueeze", axes=[0, 3])),
        (11, node("ReduceSum", axes=[-1], keepdims=0)),
        (7, node("ReduceSum")),
        (7, node("ReduceMean", axes=[1])),
        (7, node("Clip", min=-0.5, max=0.25)),
        (9, node("Clip", max=0.25)),
        (7, node("Clip")),
        (7, node("Pad", pads=[0, 1, 0, 2, 0, 0, 1, 0], value=2.5)),
        (10, node("Pad", pads=[0, 0, 0, 0, 0, 0, 0, 1])),
        (10, node("Pad", pads=[0, 0, 0, 1, 0, 0, 0, 1], mode="reflect")),
        (9, node("Slice", starts=[1, 0], ends=[3, -1], axes=[1, 3])),
        (7, node("Slice", starts=[0, 1], ends=[9, 3])),
        (7, node("Dropout", ratio=0.3)),
        (10, node("Dropout", ratio=0.3)),
        (12, node("Dropout")),
        (7, node("Flatten")),
        (7, node("LRN", size=3)),
        (7, node("MaxPool", kernel_shape=[1, 2])),
        (7, node("AveragePool", kernel_shape=[1, 2], count_include_pad=1)),
        (7, node("Transpose", perm=[3, 0, 1, 2])),
        (7, node("ArgMax", axis=1)),
        (7, node("DepthToSpace", blocksize=1)),
        (9, node("Cast", to=TensorProto.INT32)),
    ],
)
def test_operators_of_one_input(opset: int, made: onnx.NodeProto) -> None:
    x = random(1, 4, 1, 5) if made.op_type == "Squeeze" else random(1, 4, 3, 5)
    check(old_graph([made], opset, x), x)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("symbolic", [False, True])
def test_softmax_over_all_axes_from_one_on(op: str, axis: int | None, symbolic: bool) -> None:
    x = random(2, 3, 4)
    attributes = {} if axis is None else {"axis": axis}
    opset = 11 if axis == -1 else 8
    graph = old_graph([node(op, **attributes)], opset, x, symbolic=symbolic)
    converted = check(graph, x)
    if axis in (2, -1):
        assert [n.op for n in converted.nodes] == [op]


def test_softmax_over_channels_stays_one_node() -> None:
    x = random(2, 7, 1, 1)
    converted = check(old_graph([node("Softmax")], 7, x), x)
    assert [(n.op, n.attrs) for n in converted.nodes] == [("Softmax", {"axis": 1})]


def test_split_top_k_and_scatter() -> None:
    x = random(2, 6)
    check(old_graph([node("Split", outputs=2, axis=1, split=[2, 4])], 7, x, outputs=2), x)
    check(old_graph([node("Split", outputs=2, axis=1)], 11, x, outputs=2), x)
    check(old_graph([node("TopK", outputs=2, axis=1, k=3)], 9, x, outputs=2), x)
    check(old_graph([node("TopK", "k", outputs=2)], 10, x, outputs=2, k=np.array([2])), x)
    check(
        old_graph(
            [node("Scatter", "i", "u", axis=1)],
            9,
            x,
            i=np.array([[1, 0, 5], [2, 3, 4]]),
            u=random(2, 3),
        ),
        x,
    )


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [[1, 1, 2, 3], [1, 1, 1.5, 2.7]])
@pytest.mark.parametrize("opset", [7, 9, 10])
def test_upsample_and_early_resize(mode: str, scales: list[float], opset: int) -> None:
    x = random(1, 2, 4, 5)
    values = np.array(scales, np.float32)
    if opset == 7:
        graph = old_graph([node("Upsample", mode=mode, scales=[float(s) for s in scales])], 7, x)
    else:
        op = "Upsample" if opset == 9 else "Resize"
        graph = old_graph([node(op, "s", mode=mode)], opset, x, s=values)
    check(graph, x)


@pytest.mark.parametrize("scales", [[1, 1, 0.5, 0.5], [1, 1, 0.4, 0.7]])
def test_early_resize_that_shrinks(scales: list[float]) -> None:
    x = random(1, 2, 9, 11)
    check(old_graph([node("Resize", "s")], 10, x, s=np.array(scales, np.float32)), x)


def test_resize_in_both_directions_is_refused() -> None:
    x = random(1, 2, 9, 11)
    graph = old_graph([node("Resize", "s")], 10, x, s=np.array([1, 1, 0.5, 2], np.float32))
    with pytest.raises(OpsetConversionFailed, match=r"Resize:y.*enlarges one axis"):
        convert_opset(graph)


def test_batch_norm_drops_spatial_and_refuses_the_other_kind() -> None:
    x, names = random(2, 3, 4, 4), ("s", "b", "m", "v")
    constants = {name: np.abs(random(3)) for name in names}
    check(old_graph([node("BatchNormalization", *names, spatial=1)], 7, x, **constants), x)
    constants = {name: np.abs(random(3, 4, 4)) for name in names}
    graph = old_graph([node("BatchNormalization", *names, spatial=0)], 7, x, **constants)
    with pytest.raises(OpsetConversionFailed, match="spatial=0"):
        convert_opset(graph)


@pytest.mark.parametrize(
    "made",
    [
        node("Affine", alpha=0.5, beta=2.0),
        node("ImageScaler", scale=0.5, bias=[1.0, 2.0, 3.0]),
        node("Crop", border=[1, 2, 0, 3]),
        node("Crop", border=[1, 2, 0, 0], scale=[3, 4]),
        node("ScaledTanh", alpha=0.5, beta=2.0),
        node("ThresholdedRelu", alpha=0.3),
    ],
    ids=lambda made: str(made.op_type),
)
def test_operators_that_onnx_never_released(made: onnx.NodeProto) -> None:
    x = random(1, 3, 8, 9)
    graph = old_graph([made], 7, x)
    expected = open_session(graph, optimize=False).run({"x": x})[0]
    converted = convert_opset(graph)
    check_graph(converted)
    actual = open_session(converted, optimize=False).run({"x": x})[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_half_precision_bounds_stay_half() -> None:
    x = random(2, 3).astype(np.float16)
    converted = convert_opset(old_graph([node("Clip", min=-0.5, max=0.5)], 7, x))
    assert [t.dtype for t in converted.nodes[0].inputs[1:]] == [np.float16, np.float16]


def test_bodies_and_what_files_say_beside_nodes() -> None:
    def body(name: str, axes: int) -> onnx.GraphProto:
        made = [
            helper.make_node("Unsqueeze", ["x"], [f"{name}u"], axes=[axes]),
            helper.make_node("ReduceSum", [f"{name}u"], [f"{name}y"], axes=[axes], keepdims=0),
        ]
        return helper.make_graph(
            made, name, [], [helper.make_tensor_value_info(f"{name}y", 1, [2, 3])]
        )

    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["s"], doc_string="sum of all"),
            helper.make_node("Cast", ["s"], ["b"], to=TensorProto.BOOL),
            helper.make_node("Squeeze", ["b"], ["c"]),
            helper.make_node(
                "If", ["c"], ["y"], then_branch=body("t", 0), else_branch=body("e", 2)
            ),
        ],
        "old",
        [helper.make_tensor_value_info("x", 1, [2, 3])],
        [helper.make_tensor_value_info("y", 1, [2, 3])],
    )
    imports = [helper.make_opsetid("", 11), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=6)
    helper.set_model_props(model, {"labels": "a,b"})
    x = random(2, 3)
    converted = check(from_proto(model), x)
    result = to_proto(converted)
    assert {o.domain: o.version for o in opsets(converted)} == {"": 13, "ai.onnx.ml": 2}
    assert result.graph.node[0].doc_string == "sum of all"
    assert result.metadata_props[0].value == "a,b"
    assert result.ir_version == 7


def test_before_opset_7_only_what_did_not_change_since_is_converted() -> None:
    x = random(2, 3)
    check(old_graph([node("Sigmoid")], 6, x), x)
    graph = old_graph([node("Add", "b", broadcast=1, axis=0)], 6, x, b=random(2))
    with pytest.raises(OpsetConversionFailed, match=r"Add:y.*opset 6.*too old"):
        convert_opset(graph)


def test_current_models_are_returned_as_they_are_and_unknown_operators_named() -> None:
    x = random(2, 3)
    current = old_graph([node("Relu")], 13, x)
    assert convert_opset(current) is current
    graph = old_graph([node("Relu")], 12, x)
    graph.nodes[0].op, graph.nodes[0].name = "ATen", "strange"
    with pytest.raises(OpsetConversionFailed, match=r"strange.*ATen.*opset 12"):
        convert_opset(graph)


def old_models() -> list[Any]:
    index = SHARED / "kit" / "corpus" / "index.json"
    entries = json.loads(index.read_text()) if index.is_file() else []
    return [
        pytest.param(entry, id=entry["file"][:-5])
        for entry in entries
        if entry["runs"] and 0 < entry["opset"] < 13
    ] or ["no shared models"]


@pytest.mark.parametrize("entry", old_models())
def test_models_from_public_repositories(entry: dict[str, Any], shared: Path) -> None:
    rng = np.random.default_rng(0)
    feed = {
        name: rng.uniform(spec["low"], spec["high"], spec["shape"]).astype(spec["dtype"])
        for name, spec in entry["feeds"].items()
    }
    graph = load_model(shared / "kit" / "corpus" / entry["file"]).graph
    converted = convert_opset(graph)
    check_graph(converted)
    assert opset_of(converted) == 13
    half = any(spec["dtype"] == "float16" for spec in entry["feeds"].values())
    pairs = zip(open_session(converted).run(feed), open_session(graph).run(feed), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-3 if half else 1e-5, atol=1e-6)


OPSET_21 = 21


def check_newer(graph: Graph, x: Array) -> Graph:
    """As `check`, to opset 21, where onnxruntime has kernels of its own for many operators."""
    expected = open_session(graph, optimize=False).run({"x": x})
    converted = convert_opset(graph, OPSET_21)
    check_graph(converted)
    assert opset_of(converted) == OPSET_21
    for ours, theirs in zip(
        open_session(converted, optimize=False).run({"x": x}), expected, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    return converted


@pytest.mark.parametrize(
    ("opset", "made"),
    [
        (13, node("ReduceMean", axes=[-1], keepdims=0)),
        (17, node("ReduceMax", axes=[1, 2])),
        (15, node("ReduceMin", axes=[0])),
        (13, node("ReduceL2")),
        (11, node("ReduceSum", axes=[1])),
        (12, node("ReduceLogSumExp", axes=[1])),
        (13, node("AveragePool", kernel_shape=[1, 2], count_include_pad=1, pads=[0, 1, 0, 1])),
        (14, node("HardSwish")),
        (16, node("LeakyRelu", alpha=0.2)),
        (13, node("DepthToSpace", blocksize=2)),
        (9, node("Clip", max=0.25)),
        (10, node("Dropout", ratio=0.3)),
        (13, node("Cast", to=TensorProto.INT32)),
        (14, node("Softmax", axis=1)),
        (13, node("Shape")),
    ],
)
def test_operators_of_one_input_in_opset_21(opset: int, made: onnx.NodeProto) -> None:
    x = random(1, 4, 3, 5)
    check_newer(old_graph([made], opset, x), x)


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_a_split_without_sizes_says_how_many_parts(opset: int) -> None:
    x = random(2, 6)
    converted = check_newer(old_graph([node("Split", outputs=3, axis=1)], opset, x, outputs=3), x)
    assert converted.nodes[0].attrs["num_outputs"] == 3


def test_regions_keep_their_half_pixel() -> None:
    x = random(1, 2, 8, 8)
    made = helper.make_node(
        "RoiAlign", ["x", "rois", "image"], ["y"], output_height=2, output_width=2
    )
    rois = np.asarray([[0.0, 1.0, 6.0, 7.0]], np.float32)
    check_newer(old_graph([made], 13, x, rois=rois, image=np.asarray([0])), x)


@pytest.mark.parametrize("mode", ["bilinear", "nearest", None])
def test_sampling_of_grids_has_new_names(mode: str | None) -> None:
    x = random(1, 2, 4, 4)
    attributes = {} if mode is None else {"mode": mode}
    made = helper.make_node("GridSample", ["x", "grid"], ["y"], **attributes)
    check_newer(old_graph([made], 16, x, grid=np.clip(random(1, 3, 3, 2), -1, 1)), x)


def test_normalization_of_groups_has_a_scale_a_channel() -> None:
    x = random(1, 6, 4)
    made = helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)
    graph = old_graph([made], 18, x, s=random(2), b=random(2) + 1)
    expected = open_session(graph, optimize=False).run({"x": x})[0]
    converted = convert_opset(graph, OPSET_21)
    check_graph(converted)
    found = open_session(converted, optimize=False).run({"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_conversion_in_place_changes_the_graph_itself() -> None:
    x = random(1, 4, 3, 5)
    graph = old_graph([node("ReduceMean", axes=[1])], 13, x)
    expected = open_session(graph).run({"x": x})[0]

    convert_in_place(graph, OPSET_21)

    assert opset_of(graph) == OPSET_21
    np.testing.assert_array_equal(open_session(graph).run({"x": x})[0], expected)


def test_opsets_beyond_the_newest_are_refused() -> None:
    x = random(1, 4)
    with pytest.raises(OpsetConversionFailed, match="opset 99"):
        convert_opset(old_graph([node("Relu")], 13, x), 99)
