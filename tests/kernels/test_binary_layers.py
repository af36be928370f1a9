"""Binary kernels against their numpy twins, and both against onnxruntime on -1 and +1."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxcomp import kernels
from onnxcomp.errors import KernelError
from onnxcomp.kernels import binary_layers, reference_binary

Floats = npt.NDArray[np.float32]
ISAS = binary_layers.available_isas()


def random_signs(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.choice(np.array([-1, 1], np.float32), shape)


def run_node(node: Any, **inputs: Floats) -> Any:
    """The node's output by onnxruntime."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        for name, array in inputs.items()
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "one", values, [output])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(inputs))[0]


@dataclasses.dataclass(frozen=True)
class Convolution:
    x: Floats
    weight: Floats
    window: dict[str, Any]
    scale: Floats | None
    bias: Floats | None
    thresholds: npt.NDArray[np.int32]


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    """Odd shapes, tails everywhere, windows that hang over any border."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    group = draw(st.sampled_from([1, 1, 1, 2]))
    channels = 64 if group == 2 else draw(st.sampled_from([1, 3, 63, 64, 65, 130]))
    outputs = 64 if group == 2 else draw(st.sampled_from([1, 2, 5, 9, 64, 67]))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilations = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    pads = tuple(draw(st.integers(0, 3 if kernel[side % 2] > 1 else 0)) for side in range(4))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    smallest = [max(reach[axis] - pads[axis] - pads[axis + 2], 1) for axis in (0, 1)]
    height, width = (draw(st.integers(small, small + 9)) for small in smallest)
    pads = tuple(min(pad, reach[side % 2]) for side, pad in enumerate(pads))
    if any(reach[axis] > (height, width)[axis] + pads[axis] + pads[axis + 2] for axis in (0, 1)):
        height, width = reach
    window = {
        "strides": (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        "pads": pads,
        "dilations": dilations,
    }
    total = group * outputs
    return Convolution(
        x=random_signs(
            rng, draw(st.sampled_from([0, 1, 1, 2, 5])), group * channels, height, width
        ),
        weight=random_signs(rng, total, channels, *kernel),
        window={**window, "group": group},
        scale=rng.standard_normal(total).astype(np.float32) if draw(st.booleans()) else None,
        bias=rng.standard_normal(total).astype(np.float32) if draw(st.booleans()) else None,
        thresholds=rng.integers(-20, 20, total).astype(np.int32),
    )


@given(convolutions())
@settings(max_examples=250, deadline=None)
def test_every_convolution_equals_its_twin(case: Convolution) -> None:
    bits = reference_binary.pack_signs(case.x)
    packed = binary_layers.pack_conv(case.weight, **case.window)
    sums = reference_binary.conv_sums(bits, packed)
    floats = reference_binary.scaled(sums, case.scale, case.bias)
    signs = reference_binary.compared(sums, case.thresholds)
    for isa in ISAS:
        y = binary_layers.conv(bits, packed, case.scale, case.bias, isa=isa)
        assert y.dtype == np.float32
        np.testing.assert_array_equal(y.view(np.int32), floats.view(np.int32), isa)
        y_signs = binary_layers.conv_signs(bits, packed, case.thresholds, isa=isa)
        np.testing.assert_array_equal(y_signs, signs, isa)


@given(convolutions().filter(lambda case: len(case.x) > 0))
@settings(max_examples=60, deadline=None)
def test_twin_equals_convolution_with_zero_padding(case: Convolution) -> None:
    packed = binary_layers.pack_conv(case.weight, **case.window)
    expected = run_node(
        helper.make_node("Conv", ["x", "w"], ["y"], **case.window), x=case.x, w=case.weight
    )
    sums = reference_binary.conv_sums(reference_binary.pack_signs(case.x), packed)
    np.testing.assert_array_equal(sums, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("channels", "kernel", "pads", "size", "batch"),
    [
        (256, 3, 1, 14, 1),  # whole panels and a tail
        (128, 5, 2, 9, 3),  # more kinds of border pixels than one lookup holds
        (64, 7, 3, 4, 2),  # windows that reach over two opposite borders
        (200, 1, 0, 1, 33),  # panels of 33 images
    ],
)
def test_layers_of_real_sizes_equal_onnxruntime(
    isa: str, channels: int, kernel: int, pads: int, size: int, batch: int
) -> None:
    rng = np.random.default_rng(0)
    x = random_signs(rng, batch, channels, size, size)
    weight = random_signs(rng, 96, channels, kernel, kernel)
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[pads] * 4)
    packed = binary_layers.pack_conv(weight, pads=(pads,) * 4)
    bits = binary_layers.pack_signs(x, isa=isa)
    expected = run_node(node, x=x, w=weight)
    np.testing.assert_array_equal(binary_layers.conv(bits, packed, isa=isa), expected)
    thresholds = np.arange(-48, 48, dtype=np.int32)
    signs = binary_layers.conv_signs(bits, packed, thresholds, isa=isa)
    above = np.where(expected >= thresholds[:, None, None], 1, -1)
    np.testing.assert_array_equal(binary_layers.unpack_signs(signs, 96), above)


@given(
    seed=st.integers(0, 2**32),
    batch=st.sampled_from([0, 1, 2, 4, 7, 65]),
    channels=st.sampled_from([1, 63, 64, 65, 200, 2100]),
    positions=st.sampled_from([1, 1, 2, 9]),
    outputs=st.sampled_from([1, 7, 8, 10, 32, 33, 64, 100, 131]),
    with_scale=st.booleans(),
    with_bias=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_every_gemm_equals_its_twin_and_the_float_product(
    seed: int,
    batch: int,
    channels: int,
    positions: int,
    outputs: int,
    with_scale: bool,
    with_bias: bool,
) -> None:
    rng = np.random.default_rng(seed)
    x = random_signs(rng, batch, channels, positions)
    weight = random_signs(rng, channels * positions, outputs)
    bits = reference_binary.pack_signs(x)
    bits = bits.reshape(batch, bits.shape[1] * positions)
    packed = binary_layers.pack_gemm(weight, positions=positions)
    sums = reference_binary.gemm_sums(bits, packed)
    np.testing.assert_array_equal(sums, x.reshape(batch, channels * positions) @ weight)
    scale = rng.standard_normal(outputs).astype(np.float32) if with_scale else None
    bias = rng.standard_normal(outputs).astype(np.float32) if with_bias else None
    floats = reference_binary.scaled(sums, scale, bias)
    thresholds = rng.integers(-9, 9, outputs).astype(np.int32)
    signs = reference_binary.compared(sums, thresholds)
    for isa in ISAS:
        y = binary_layers.gemm(bits, packed, scale, bias, isa=isa)
        np.testing.assert_array_equal(y.view(np.int32), floats.view(np.int32), isa)
        y_signs = binary_layers.gemm_signs(bits, packed, thresholds, isa=isa)
        np.testing.assert_array_equal(y_signs, signs, isa)


SPECIAL = np.array([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, -1e-45, 1, -1], np.float32)


@given(
    seed=st.integers(0, 2**32),
    batch=st.sampled_from([0, 1, 3]),
    channels=st.sampled_from([1, 31, 32, 33, 64, 100, 129]),
    rest=st.sampled_from([(), (1,), (5,), (3, 6), (17,), (7, 7), (0,)]),
    comparison=st.sampled_from(binary_layers.COMPARISONS),
    levels=st.sampled_from(["none", "one", "channels"]),
)
@settings(max_examples=250, deadline=None)
def test_every_packing_equals_its_twin(
    seed: int, batch: int, channels: int, rest: tuple[int, ...], comparison: Any, levels: str
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice(SPECIAL, (batch, channels, *rest))
    count = {"none": None, "one": 1, "channels": channels}[levels]
    thresholds = None if count is None else rng.choice(SPECIAL, count)
    expected = reference_binary.pack_signs(x, thresholds, comparison=comparison)
    for isa in ISAS:
        bits = binary_layers.pack_signs(x, thresholds, comparison=comparison, isa=isa)
        assert bits.dtype == np.uint64
        np.testing.assert_array_equal(bits, expected, isa)


def test_zero_is_a_matter_of_the_comparison() -> None:
    x = np.array([[0.0, -0.0, 2.0, -2.0]], np.float32)
    assert binary_layers.pack_signs(x).tolist() == [[0b0100]]
    assert binary_layers.pack_signs(x, comparison="greater_or_equal").tolist() == [[0b0111]]
    assert binary_layers.pack_signs(x, comparison="less").tolist() == [[0b1000]]
    assert binary_layers.pack_signs(x, comparison="less_or_equal").tolist() == [[0b1011]]


@given(seed=st.integers(0, 2**32), channels=st.sampled_from([1, 64, 70]), pad=st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_max_pool_equals_onnxruntime(seed: int, channels: int, pad: int) -> None:
    rng = np.random.default_rng(seed)
    x = random_signs(rng, 2, channels, *rng.integers(3, 9, 2))
    window: dict[str, Any] = {"kernel_shape": (2, 3), "strides": (2, 1), "pads": (pad, 0, 0, pad)}
    expected = run_node(helper.make_node("MaxPool", ["x"], ["y"], **window), x=x)
    bits = binary_layers.pack_signs(x)
    y = binary_layers.max_pool(bits, **window)
    np.testing.assert_array_equal(binary_layers.unpack_signs(y, channels), expected)
    np.testing.assert_array_equal(y, reference_binary.max_pool(bits, **window))


def test_thresholds_of_extreme_value_make_a_channel_constant() -> None:
    x = random_signs(np.random.default_rng(0), 3, 64)
    bits = binary_layers.pack_signs(x)
    packed = binary_layers.pack_gemm(np.repeat(x[:1].T, 4, axis=1))  # sums up to 64
    ends = np.iinfo(np.int32)
    thresholds = np.array([ends.min, ends.max, 64, 65], np.int32)
    for isa in ISAS:
        signs = binary_layers.gemm_signs(bits, packed, thresholds, isa=isa)
        assert signs[0] == 0b0101
        assert ((signs & np.uint64(0b0011)) == 0b0001).all()


def test_packed_formats_are_the_documented_ones() -> None:
    weight = np.array([[[[1, -1]], [[1, 1]], [[-1, -1]]]], np.float32)  # [1, 3, 1, 2]
    conv = binary_layers.pack_conv(weight, pads=(0, 1, 0, 1))
    assert conv.bits.tolist() == [[[0b011], [0b010]]]
    assert conv.attributes == {
        "format_version": 1,
        "in_channels": 3,
        "kernel_shape": (1, 2),
        "strides": (1, 1),
        "pads": (0, 1, 0, 1),
        "dilations": (1, 1),
        "group": 1,
    }
    gemm = binary_layers.pack_gemm(weight.reshape(6, 1), positions=2)
    assert gemm.bits.tolist() == [[[0b011, *[0] * 7], [0b010, *[0] * 7]]]
    assert gemm.attributes == {
        "format_version": 1,
        "in_channels": 3,
        "positions": 2,
        "out_features": 1,
    }


CONV = binary_layers.pack_conv(np.ones((2, 70, 3, 3)))
GEMM = binary_layers.pack_gemm(np.ones((70, 9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": CONV.bits[:, 1:]}, "the number of words is 32, expected 36"),
        ({"bits": CONV.bits * np.uint64(2)}, "word 1 has bits beyond the last of 70 channels"),
        ({"bits": CONV.bits.view(np.int64)}, "bits is int64, expected uint64"),
        ({"bits": CONV.bits[0]}, r"bits has shape \[9, 2\], expected rank 3"),
        ({"in_channels": 0}, "in_channels is 0, expected 1 to"),
        ({"in_channels": 2**40}, "in_channels is 1099511627776"),
        ({"in_channels": 2**31}, "the number of signs in a sum is 19327352832"),
        ({"in_channels": 65, "bits": CONV.bits >> np.uint64(5)}, None),
        ({"kernel_shape": (0, 3)}, r"kernel_shape\[0\] is 0"),
        ({"kernel_shape": (3, 2**40)}, r"kernel_shape\[1\] is 1099511627776"),
        ({"strides": (1, 0)}, r"strides\[1\] is 0"),
        ({"dilations": (-1, 1)}, r"dilations\[0\] is -1"),
        ({"pads": (0, 0, 4, 0)}, r"pads\[2\] is 4, expected 0 to 3"),
        ({"pads": (0, -1, 0, 0)}, r"pads\[1\] is -1"),
        ({"group": 0}, "group is 0, expected 1 to 70"),
        ({"group": 4}, "group is 4, expected a divisor"),
        ({"group": 2}, "in_channels / group is 35, expected a multiple of 64"),
        ({"dilations": (9, 1)}, "the window is larger than the padded image"),
    ],
)
def test_malformed_convolutions_are_refused(change: dict[str, Any], message: str | None) -> None:
    x = np.zeros((1, 2, 4, 4), np.uint64)
    packed = dataclasses.replace(CONV, **change)
    if message is None:
        assert binary_layers.conv(x, packed).shape == (1, 2, 2, 2)
        return
    with pytest.raises(KernelError, match=message):
        binary_layers.conv(x, packed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": GEMM.bits[:1]}, "the number of words is 16, expected 32"),
        ({"bits": GEMM.bits * np.uint64(2)}, "word 8 has bits beyond the last of 70 channels"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"positions": 0}, "positions is 0"),
        ({"positions": 2**29}, "the number of signs in a sum is"),
        ({"out_features": 0}, "out_features is 0"),
        ({"out_features": 17}, "the number of words is 32, expected 48"),
    ],
)
def test_malformed_gemms_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=message):
        binary_layers.gemm(np.zeros((1, 2), np.uint64), dataclasses.replace(GEMM, **change))


@given(
    shape=st.tuples(*[st.integers(0, 4)] * 3),
    fits=st.booleans(),
    image=st.tuples(*[st.integers(0, 4)] * 4),
    in_channels=st.sampled_from([1, 65, 128, 2**31, 2**62, 0, -1]),
    group=st.sampled_from([1, 1, 2, 3, 0, -1]),
    window=st.tuples(*[st.tuples(*[st.sampled_from([1, 2, 3, 0, -1])] * 2)] * 5),
    isa=st.sampled_from(ISAS),
)
@settings(max_examples=300, deadline=None)
def test_any_numbers_are_computed_or_refused(
    shape: tuple[int, int, int],
    fits: bool,
    image: tuple[int, int, int, int],
    in_channels: int,
    group: int,
    window: tuple[tuple[int, int], ...],
    isa: str,
) -> None:
    words = reference_binary.word_count(in_channels)
    if fits and min(window[0]) > 0 and 0 < words < 4:
        shape = (shape[0], window[0][0] * window[0][1], words)
        image = (image[0], words, *image[2:])
    packed = binary_layers.PackedConv(
        bits=np.ones(shape, np.uint64),
        in_channels=in_channels,
        kernel_shape=window[0],
        strides=window[1],
        dilations=window[2],
        pads=(*window[3], *window[4]),
        group=group,
    )
    bits = np.ones(image, np.uint64)
    try:
        y = binary_layers.conv(bits, packed, isa=isa)
    except KernelError:
        return
    np.testing.assert_array_equal(y, reference_binary.conv_sums(bits, packed))


def test_misfit_arguments_are_refused() -> None:
    image, row = np.zeros((1, 2, 4, 4), np.uint64), np.zeros((1, 2), np.uint64)
    short = np.ones(3, np.float32)
    with pytest.raises(KernelError, match="no kernel named mmx"):
        binary_layers.conv(image, CONV, isa="mmx")
    with pytest.raises(KernelError, match="the length of scale"):
        binary_layers.conv(image, CONV, short)
    with pytest.raises(KernelError, match="the length of bias"):
        binary_layers.gemm(row, GEMM, None, short)
    with pytest.raises(KernelError, match="the length of thresholds"):
        binary_layers.conv_signs(image, CONV, np.zeros(1, np.int32))
    with pytest.raises(KernelError, match="the words of x are not those of in_channels"):
        binary_layers.conv(image[:, :1], CONV)
    with pytest.raises(KernelError, match="the words of x are not those of the weight"):
        binary_layers.gemm(row[:, :1], GEMM)
    with pytest.raises(KernelError, match="one threshold, or one for each channel"):
        binary_layers.pack_signs(np.ones((1, 4), np.float32), short)
    with pytest.raises(KernelError, match="x is float64"):
        binary_layers.pack_signs(np.ones((1, 4)))  # type: ignore[arg-type]
    grouped = binary_layers.pack_conv(np.ones((4, 64, 1, 1)), group=2)
    with pytest.raises(KernelError, match="out_channels / group is 2, expected a multiple of 64"):
        binary_layers.conv_signs(image, grouped, np.zeros(4, np.int32))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones((2, 3)), "rank 4"),
        (np.zeros((1, 1, 1, 1)), "has no sign"),
        (np.full((1, 1, 1, 1), np.nan), "has no sign"),
    ],
)
def test_only_weights_with_signs_are_packed(weight: npt.NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        binary_layers.pack_conv(weight)


def test_isas_agree_with_the_processor() -> None:
    features = kernels.cpu_features()
    assert ISAS[-1] == "portable"
    assert ("avx2" in ISAS) == features["avx2"]
    assert ("avx512" in ISAS) == all(
        features[name] for name in ("avx512f", "avx512bw", "avx512vl", "avx512_vpopcntdq")
    )
    assert ("neon" in ISAS) == features["neon"]
