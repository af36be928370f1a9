"""The operators of signs inside onnxruntime."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from operator_sessions import open_model, run

from onnxcomp import kernels
from onnxcomp.kernels import binary_layers

Floats = npt.NDArray[np.float32]
Shape = tuple[int | str | None, ...]
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.uint64): TensorProto.UINT64}


def random_signs(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), shape)


def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    domain = kernels.DOMAIN if operator.startswith(("Binary", "Pack")) else ""
    return helper.make_node(operator, inputs, [output], output, domain=domain, **attributes)


def model(
    nodes: list[onnx.NodeProto],
    shape: Shape,
    *,
    dtype: type = np.float32,
    output: type = np.float32,
    **constants: npt.NDArray[Any],
) -> onnx.ModelProto:
    """X [shape] -> nodes -> Y; IR 8 and opset 17, which onnxruntime 1.17 reads."""
    graph = helper.make_graph(
        nodes,
        "binary",
        [helper.make_tensor_value_info("X", TYPES[np.dtype(dtype)], shape)],
        [helper.make_tensor_value_info("Y", TYPES[np.dtype(output)], None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(kernels.DOMAIN, 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets)


def two_binary_convs(shape: Shape = ("n", 70, "h", "w")) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Convs with a threshold, pooling and scales between and behind, and the same in float."""
    first, second = random_signs(128, 70, 3, 3), random_signs(20, 128, 3, 3, seed=1)
    rng = np.random.default_rng(2)
    thresholds = rng.integers(-20, 20, 128).astype(np.int32)
    # onnxruntime folds scales into weights; powers of two leave nothing to round.
    scale = np.ldexp(random_signs(20, seed=3), rng.integers(-3, 3, 20))
    bias = rng.integers(-40, 40, 20).astype(np.float32) / 8
    packed = binary_layers.pack_conv(first, pads=(1, 1, 1, 1))
    packed_second = binary_layers.pack_conv(second, strides=(2, 1), pads=(1, 0, 0, 1))
    pool = {"kernel_shape": (2, 2), "strides": (2, 2), "pads": (0, 0, 0, 0)}
    ours = model(
        [
            node("PackSigns", ["X"], "bits", comparison=1),
            node("BinaryConvSigns", ["bits", "w1", "thresholds"], "a", **packed.attributes),
            node("BinaryMaxPool", ["a"], "b", **pool),
            node("BinaryConv", ["b", "w2", "scale", "bias"], "Y", **packed_second.attributes),
        ],
        shape,
        w1=packed.bits,
        w2=packed_second.bits,
        thresholds=thresholds,
        scale=scale,
        bias=bias,
    )
    column = (-1, 1, 1)
    dense = model(
        [
            node("GreaterOrEqual", ["X", "zero"], "positive"),
            node("Where", ["positive", "one", "minus"], "signs"),
            node("Conv", ["signs", "w1"], "c", pads=(1, 1, 1, 1)),
            node("GreaterOrEqual", ["c", "thresholds"], "above"),
            node("Where", ["above", "one", "minus"], "a"),
            node("MaxPool", ["a"], "b", **pool),
            node("Conv", ["b", "w2"], "d", strides=(2, 1), pads=(1, 0, 0, 1)),
            node("Mul", ["d", "scale"], "e"),
            node("Add", ["e", "bias"], "Y"),
        ],
        shape,
        w1=first,
        w2=second,
        zero=np.float32(0),
        one=np.float32(1),
        minus=np.float32(-1),
        thresholds=thresholds.astype(np.float32).reshape(column),
        scale=scale.reshape(column),
        bias=bias.reshape(column),
    )
    return ours, dense


@pytest.mark.parametrize("shape", [(1, 70, 13, 11), (3, 70, 8, 9), (0, 70, 8, 9)])
def test_a_chain_of_layers_gives_the_bits_of_the_float_graph(shape: tuple[int, ...]) -> None:
    ours, dense = two_binary_convs()
    x = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    x.flat[:2] = [0.0, -0.0]
    y = run(ours, x)
    np.testing.assert_array_equal(y, run(dense, x))
    assert y.dtype == np.float32


def test_threads_change_no_bit() -> None:
    ours, _ = two_binary_convs()
    x = np.random.default_rng(6).standard_normal((4, 70, 40, 40)).astype(np.float32)
    np.testing.assert_array_equal(run(ours, x, threads=4), run(ours, x))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("shape", [(1, 256, 9, 9), (1, 200, 13, 11), (2, 130, 3, 3)])
def test_threads_that_share_panels_change_no_bit(shape: tuple[int, ...], threads: int) -> None:
    # Fewer panels than tasks: several compute channels of one panel.
    channels = shape[1]
    packed = binary_layers.pack_conv(random_signs(channels, channels, 3, 3), pads=(1, 1, 1, 1))
    layer = [
        node("PackSigns", ["X"], "bits", comparison=1),
        node("BinaryConv", ["bits", "w"], "Y", **packed.attributes),
    ]
    ours = model(layer, shape, w=packed.bits)
    session, alone = open_model(ours, threads=threads), open_model(ours)
    for seed in range(20):  # who fills a panel differs, and what was in it is overwritten
        x = random_signs(*shape, seed=seed)
        y = session.run(["Y"], {"X": x})[0]
        np.testing.assert_array_equal(y, alone.run(["Y"], {"X": x})[0])


@pytest.mark.parametrize("shape", [(1, 3, 170, 191), (2, 100, 29, 13), (70, 1000), (1, 65, 2000)])
def test_threads_share_planes_of_any_size(shape: tuple[int, ...]) -> None:
    pack = model([node("PackSigns", ["X"], "Y", comparison=0)], shape, output=np.uint64)
    x = np.random.default_rng(8).standard_normal(shape).astype(np.float32)
    bits = run(pack, x, threads=3)
    signs = (x > 0).reshape(*shape[:2], -1)
    padding = [(0, 0), (0, -shape[1] % 64), (0, 0)]
    words = np.pad(signs, padding).reshape(shape[0], -1, 64, signs.shape[2]).astype(np.uint64)
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)
    expected = (words * weights[:, None]).sum(axis=2, dtype=np.uint64)
    np.testing.assert_array_equal(bits, expected.reshape(bits.shape))


@pytest.mark.parametrize("batch", [0, 1, 5, 70])
def test_gemms_give_the_bits_of_the_float_graph(batch: int) -> None:
    first, second = random_signs(70 * 6, 130), random_signs(130, 10, seed=1)
    thresholds = np.arange(-65, 65, dtype=np.int32)
    packed = binary_layers.pack_gemm(first, positions=6)
    packed_second = binary_layers.pack_gemm(second)
    bias = np.arange(10, dtype=np.float32)
    ours = model(
        [
            node("PackSigns", ["X", "levels"], "bits", comparison=0),
            node("Flatten", ["bits"], "flat"),
            node("BinaryGemmSigns", ["flat", "w1", "thresholds"], "a", **packed.attributes),
            node("BinaryGemm", ["a", "w2", "", "bias"], "Y", **packed_second.attributes),
        ],
        ("n", 70, 2, 3),
        w1=packed.bits,
        w2=packed_second.bits,
        thresholds=thresholds,
        bias=bias,
        levels=np.full(70, 0.25, np.float32),
    )
    x = np.random.default_rng(7).standard_normal((batch, 70, 2, 3)).astype(np.float32)
    signs = np.where(x > 0.25, 1, -1).reshape(batch, 420)
    hidden = np.where(signs @ first >= thresholds, 1, -1)
    np.testing.assert_array_equal(run(ours, x), hidden @ second + bias)


@pytest.mark.parametrize("declared", [("n", 70, 13, 11), (2, 70, 13, 11)])
def test_output_shapes_are_inferred(declared: Shape) -> None:
    ours, _ = two_binary_convs(declared)
    assert open_model(ours).get_outputs()[0].shape == [declared[0], 20, 3, 4]
    packed = binary_layers.pack_gemm(random_signs(70, 100))
    signs = node("BinaryGemmSigns", ["bits", "w", "thresholds"], "Y", **packed.attributes)
    ours = model(
        [node("PackSigns", ["X"], "bits", comparison=0), signs],
        (declared[0], 70),
        output=np.uint64,
        w=packed.bits,
        thresholds=np.zeros(100, np.int32),
    )
    assert open_model(ours).get_outputs()[0].shape == [declared[0], 2]


CONV = binary_layers.pack_conv(random_signs(4, 70, 3, 3))
GEMM = binary_layers.pack_gemm(random_signs(70, 9))


def single(packed: Any, shape: Shape, **changed: Any) -> onnx.ModelProto:
    operator = "BinaryConv" if isinstance(packed, binary_layers.PackedConv) else "BinaryGemm"
    attributes = {**packed.attributes, **changed}
    kept = {name: value for name, value in attributes.items() if value is not None}
    call = node(operator, ["X", "weight"], "Y", **kept)
    return model([call], shape, dtype=np.uint64, weight=packed.bits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2; this library reads 1"),
        ({"group": None}, "the integer attribute group is missing"),
        ({"kernel_shape": None}, "kernel_shape.* is missing"),
        ({"kernel_shape": (3, 3, 3)}, "kernel_shape has"),
        ({"strides": (0, 1)}, r"strides\[0\] is 0, expected 1 to"),
        ({"pads": (0, 0, 9, 0)}, r"pads\[2\] is 9, expected 0 to 3"),
        ({"in_channels": 640}, "the number of words is 72, expected 360"),
        ({"in_channels": 3}, "the number of words is 72, expected 36"),
        ({"in_channels": 66}, "word 1 has bits beyond the last of 66 channels"),
        ({"dilations": (2**31, 1)}, "room for the window"),
    ],
)
def test_malformed_convolutions_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(single(CONV, ("n", 2, "h", "w"), **change), np.zeros((1, 2, 5, 5), np.uint64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 0}, "format_version is 0; this library reads 1"),
        ({"out_features": None}, "out_features is missing"),
        ({"out_features": 17}, "the number of words is 32, expected 48"),
        ({"positions": -1}, "positions is -1"),
        ({"in_channels": 2**40}, "in_channels is 1099511627776"),
    ],
)
def test_malformed_gemms_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(single(GEMM, ("n", 2), **change), np.zeros((1, 2), np.uint64))


@pytest.mark.parametrize(
    "shape", [(1, 3, 5, 5), (1, 2, 2, 5), (1, 2, 0, 5), (1, 2, 5, 0), (2, 5, 5)]
)
def test_misfit_images_are_refused(shape: tuple[int, ...]) -> None:
    proto = single(CONV, tuple(f"d{axis}" for axis in range(len(shape))))
    with pytest.raises(Exception, match="the input has shape"):
        run(proto, np.zeros(shape, np.uint64))


def test_misfit_channels_are_refused() -> None:
    proto = single(CONV, ("n", 2, "h", "w"))
    proto.graph.node[0].input.append("scale")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(5, np.float32), "scale"))
    with pytest.raises(Exception, match=r"scale has shape \[5\], expected float32 \[4\]"):
        run(proto, np.zeros((1, 2, 5, 5), np.uint64))
    with pytest.raises(Exception, match="the input has shape"):
        run(single(GEMM, ("n", "m")), np.zeros((1, 3), np.uint64))
    pack = node("PackSigns", ["X", "levels"], "Y", comparison=0)
    levels = np.ones(3, np.float32)
    proto = model([pack], ("n", 4), output=np.uint64, levels=levels)
    with pytest.raises(Exception, match=r"thresholds has shape \[3\], expected \[1\] or \[4\]"):
        run(proto, np.zeros((1, 4), np.float32))


def test_weights_must_be_constant_and_of_words() -> None:
    proto = single(CONV, ("n", 2, "h", "w"))
    proto.graph.input.append(
        helper.make_tensor_value_info("weight", TensorProto.UINT64, CONV.bits.shape)
    )
    with pytest.raises(Exception, match="weight must be an initializer"):
        open_model(proto)
    signed = single(dataclasses.replace(CONV, bits=CONV.bits.view(np.int64)), ("n", 2, "h", "w"))
    with pytest.raises(Exception, match=r"tensor\(int64\).*weight"):
        open_model(signed)
    flat = single(dataclasses.replace(CONV, bits=CONV.bits.ravel()), ("n", 2, "h", "w"))
    with pytest.raises(Exception, match=r"weight has shape \[72\], expected rank 3"):
        open_model(flat)


@pytest.mark.parametrize("comparison", [-1, 4])
def test_unknown_comparisons_are_refused(comparison: int) -> None:
    pack = node("PackSigns", ["X"], "Y", comparison=comparison)
    with pytest.raises(Exception, match=f"comparison is {comparison}, expected 0 to 3"):
        open_model(model([pack], ("n", 4), output=np.uint64))
