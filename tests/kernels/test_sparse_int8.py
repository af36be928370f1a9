"""Every sparse int8 kernel against its numpy twin, bit for bit, and the packed format."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from conv_windows import MISFITS, windows
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator
from spoiled_weights import spoil

from onnxcomp import kernels
from onnxcomp.errors import KernelError
from onnxcomp.kernels import reference_sparse_int8 as reference
from onnxcomp.kernels import sparse_int8
from onnxcomp.kernels.sparse_int8 import PackedInt8, Scaling, Window, pack_int8, unpack_int8

Int8 = npt.NDArray[np.int8]
Codes = npt.NDArray[np.uint8]


def random_weight(
    rng: np.random.Generator, shape: tuple[int, ...], sparsity: float, extreme: bool
) -> Int8:
    codes = rng.choice([-128, 127], shape) if extreme else rng.integers(-128, 128, shape)
    return (codes * (rng.random(shape) >= sparsity)).astype(np.int8)


@st.composite
def weights_and_scalings(
    draw: st.DrawFn, kernel_shape: tuple[int, ...], largest: int
) -> tuple[np.random.Generator, PackedInt8, Scaling]:
    """Tails everywhere; sums that reach both ends of the codes, and with `extreme` their limits."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = draw(st.sampled_from([1, 1, 2, 3])) if kernel_shape else 1
    outputs = groups * draw(st.integers(1, largest))
    inputs = draw(st.integers(1, largest))
    sparsity, extreme = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])), draw(st.booleans())
    weight = random_weight(rng, (outputs, inputs, *kernel_shape), sparsity, extreme)
    packed = pack_int8(weight, block_rows=draw(st.sampled_from([1, 4])), groups=groups)
    # Scales of 1 and more take another way, because scaled sums may pass 2^31.
    spread = draw(st.sampled_from([0.5, 1.0, 2.0, 1e6])) / (1 + 74 * np.sqrt(weight[0].size))
    bias = rng.integers(-20000, 20000, outputs).astype(np.int32) if draw(st.booleans()) else None
    return (
        rng,
        packed,
        Scaling(
            scale=(spread * rng.uniform(0.1, 1, outputs)).astype(np.float32),
            bias=bias,
            x_zero_point=draw(st.sampled_from([0, 1, 128, 255])),
            y_zero_point=draw(st.sampled_from([None, 0, 7, 128, 255])),
        ),
    )


def random_codes(rng: np.random.Generator, *shape: int) -> Codes:
    return rng.integers(0, 256, shape).astype(np.uint8)


@st.composite
def products(draw: st.DrawFn) -> tuple[Codes, PackedInt8, Scaling]:
    rng, packed, scaling = draw(weights_and_scalings((), 150))
    tokens = draw(st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 129, 150]))
    return random_codes(rng, tokens, packed.in_channels), packed, scaling


@given(products())
@settings(max_examples=200, deadline=None)
def test_every_matmul_kernel_equals_its_twin(case: tuple[Codes, PackedInt8, Scaling]) -> None:
    x, packed, scaling = case
    expected = reference.sparse_int8_matmul(x, packed, scaling)
    for isa in sparse_int8.available_isas():
        y = sparse_int8.sparse_int8_matmul(x, packed, scaling, isa=isa)
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y, expected, err_msg=isa)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Codes, PackedInt8, Scaling, Window]:
    kernel_shape = draw(st.sampled_from([(1, 1), (3, 3), (1, 5), (2, 1), (4, 3)]))
    rng, packed, scaling = draw(weights_and_scalings(kernel_shape, 21))
    window, (images, height, width) = draw(windows(kernel_shape))
    x = random_codes(rng, images, packed.groups * packed.in_channels, height, width)
    return x, packed, scaling, window


@given(convolutions())
@settings(max_examples=300, deadline=None)
def test_every_conv_kernel_equals_its_twin(
    case: tuple[Codes, PackedInt8, Scaling, Window],
) -> None:
    x, packed, scaling, window = case
    expected = reference.sparse_int8_conv(x, packed, scaling, window)
    for isa in sparse_int8.available_isas():
        y = sparse_int8.sparse_int8_conv(x, packed, scaling, window, isa=isa)
        assert y.dtype == expected.dtype
        np.testing.assert_array_equal(y, expected, err_msg=isa)


@given(convolutions())
@settings(max_examples=40, deadline=None)
def test_the_twin_is_what_onnx_calls_a_convolution(
    case: tuple[Codes, PackedInt8, Scaling, Window],
) -> None:
    x, packed, scaling, window = case
    node = helper.make_node(
        "ConvInteger",
        ["x", "w", "zero"],
        ["y"],
        kernel_shape=packed.kernel_shape,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        group=packed.groups,
    )
    types = {
        "x": onnx.TensorProto.UINT8,
        "w": onnx.TensorProto.INT8,
        "zero": onnx.TensorProto.UINT8,
    }
    graph = helper.make_graph(
        [node],
        "conv",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()],
        [helper.make_tensor_value_info("y", onnx.TensorProto.INT32, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    zero = np.array(scaling.x_zero_point, np.uint8)
    weight = unpack_int8(packed)
    if len(x) == 0:
        return
    (sums,) = ReferenceEvaluator(model).run(None, {"x": x, "w": weight, "zero": zero})
    plain = dataclasses.replace(
        scaling, scale=np.ones(packed.out_channels, np.float32), bias=None, y_zero_point=None
    )
    np.testing.assert_array_equal(
        reference.sparse_int8_conv(x, packed, plain, window), sums.astype(np.float32)
    )


@pytest.mark.parametrize("isa", sparse_int8.available_isas())
@pytest.mark.parametrize("block_rows", [1, 4])
def test_sums_beyond_any_code_are_clamped(isa: str, block_rows: int) -> None:
    # 255 * 128 * 65,000 lies just below 2^31; the bias carries it over, modulo 2^32.
    x = np.full((70, 65000), 255, np.uint8)
    weight = np.array([[127], [-128], [-128], [1]], np.int8).repeat(65000, axis=1)
    packed = pack_int8(weight, block_rows=block_rows)
    for factor in (1e-9, 1.0, 1e29):
        for bias in (None, np.array([2**31 - 1, 0, -(2**31), 0], np.int32)):
            scaling = Scaling(
                scale=np.full(4, factor, np.float32), bias=bias, x_zero_point=0, y_zero_point=9
            )
            y = sparse_int8.sparse_int8_matmul(x, packed, scaling, isa=isa)
            np.testing.assert_array_equal(y, reference.sparse_int8_matmul(x, packed, scaling))
    plain = Scaling(scale=np.ones(4, np.float32), y_zero_point=9)
    y = sparse_int8.sparse_int8_matmul(x, packed, plain, isa=isa)
    assert (y == [255, 0, 0, 255]).all()


@pytest.mark.parametrize("isa", sparse_int8.available_isas())
def test_halves_are_rounded_to_even(isa: str) -> None:
    x = np.arange(100, dtype=np.uint8)[:, None]
    packed = pack_int8(np.array([[1], [-1]], np.int8), block_rows=1)
    scaling = Scaling(scale=np.array([0.5, 0.5], np.float32), x_zero_point=50, y_zero_point=100)
    y = sparse_int8.sparse_int8_matmul(x, packed, scaling, isa=isa)
    halves = np.array([round(n / 2) for n in range(-50, 50)])
    np.testing.assert_array_equal(y, np.stack([100 + halves, 100 - halves], axis=1))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_unpacking_gives_the_weight_back(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kernel_shape = data.draw(st.sampled_from([(), (3,), (2, 3)]))
    groups = data.draw(st.sampled_from([1, 2, 3]))
    outputs, inputs = groups * data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    weight = random_weight(rng, (outputs, inputs, *kernel_shape), 0.8, extreme=False)
    packed = pack_int8(weight, block_rows=data.draw(st.sampled_from([1, 4])), groups=groups)
    np.testing.assert_array_equal(unpack_int8(packed), weight)
    assert packed.values.any(axis=(1, 2)).all(), "an entry of zeros is kept"


def test_packed_format_is_the_documented_one() -> None:
    weight = np.zeros((5, 6, 1, 2), np.int8)
    weight[0, 0, 0, 0] = 1
    weight[3, 5, 0, 0] = 2
    weight[1, 1, 0, 1] = 3
    weight[4, 4, 0, 1] = 4
    packed = pack_int8(weight)
    assert packed.offsets.tolist() == [0, 3, 4]
    assert packed.indices.tolist() == [0, 1, 2, 3]
    zeros = [0, 0, 0, 0]
    assert packed.values.tolist() == [
        [[1, 0, 0, 0], zeros, zeros, zeros],
        [zeros, zeros, zeros, [0, 2, 0, 0]],
        [zeros, [0, 3, 0, 0], zeros, zeros],
        [[4, 0, 0, 0], zeros, zeros, zeros],
    ]


PACKED = pack_int8(np.eye(6, 20, 3, np.int8) + np.eye(6, 20, 9, np.int8), block_rows=4)
SCALING = Scaling(scale=np.ones(6, np.float32), y_zero_point=0)


@st.composite
def corrupted_weights(draw: st.DrawFn) -> PackedInt8:
    """A small packed weight of which some numbers, or the length of an array, are another."""
    kernel_shape = draw(st.sampled_from([(1, 1), (2, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = draw(st.sampled_from([1, 2]))
    weight = random_weight(rng, (groups * 5, 6, *kernel_shape), 0.7, extreme=False)
    packed = pack_int8(weight, block_rows=draw(st.sampled_from([1, 4])), groups=groups)
    arrays = {"indices": packed.indices.copy(), "offsets": packed.offsets.copy()}
    # Weights of rows and channels that do not exist count for nothing.
    arrays["values"] = rng.integers(-128, 128, packed.values.shape).astype(np.int8)
    return dataclasses.replace(packed, **spoil(draw, arrays))


@given(corrupted_weights())
@settings(max_examples=300, deadline=None)
def test_corrupted_weights_are_refused_or_mean_something(packed: PackedInt8) -> None:
    rng = np.random.default_rng(0)
    x = random_codes(rng, 1, packed.groups * packed.in_channels, 5, 6)
    scale = np.full(packed.out_channels, 0.01, np.float32)
    scaling = Scaling(scale=scale, x_zero_point=100, y_zero_point=120)
    for isa in sparse_int8.available_isas():
        try:
            y = sparse_int8.sparse_int8_conv(x, packed, scaling, isa=isa)
        except KernelError:
            continue
        np.testing.assert_array_equal(y, reference.sparse_int8_conv(x, packed, scaling))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_rows": 2}, "block_rows is 2, expected 1 or 4"),
        ({"in_channels": 21}, r"x has shape \[1, 20\], expected \[..., 21\]"),
        ({"out_channels": 0}, "out_channels is 0, expected 1 to 2147483647"),
        ({"out_channels": 2**40}, "out_channels is 1099511627776"),
        ({"out_channels": 9}, "the length of offsets is 3, expected 4"),
        ({"groups": 4}, "groups is 4, expected a divisor of the 6 out_channels"),
        ({"groups": 0}, "groups is 0"),
        ({"groups": 2}, "one position and one group"),
        ({"kernel_shape": (2**31,)}, "positions is 2147483648"),
        ({"kernel_shape": (2**29,)}, "the number of quads is 2684354560"),
        ({"indices": PACKED.indices + 3}, "an index is 5, expected 0 to 4 at position 2"),
        ({"indices": PACKED.indices - 1}, "an index is -1, expected 0 to 4 at position 0"),
        ({"indices": PACKED.indices[::-1]}, "an index is .*, expected more than the"),
        ({"indices": PACKED.indices.astype(np.int64)}, "indices is int64, expected int32"),
        ({"values": PACKED.values[1:]}, "the number of values is .*, expected"),
        ({"values": PACKED.values.view(np.uint8)}, "values is uint8, expected int8"),
        ({"offsets": PACKED.offsets + 1}, r"offsets\[0\] is 1, expected 0"),
        ({"offsets": PACKED.offsets[[0, 2, 1]]}, "offsets is .*, expected at least"),
        ({"offsets": PACKED.offsets * 2}, "the last offset is"),
    ],
)
def test_malformed_weights_are_refused(change: dict[str, Any], message: str) -> None:
    x = np.ones((1, 20), np.uint8)
    with pytest.raises(KernelError, match=message):
        sparse_int8.sparse_int8_matmul(x, dataclasses.replace(PACKED, **change), SCALING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": np.ones(5, np.float32)}, "the length of scale or bias"),
        ({"scale": np.full(6, np.nan, np.float32)}, "scale is nan at position 0"),
        ({"scale": np.full(6, np.inf, np.float32)}, "scale is inf at position 0"),
        ({"scale": np.full(6, -1, np.float32)}, "scale is -1.0* at position 0"),
        ({"scale": np.ones(6)}, "scale is float64, expected float32"),
        ({"bias": np.ones(5, np.int32)}, "the length of scale or bias"),
        ({"bias": np.ones(6, np.float32)}, "bias is float32, expected int32"),
        ({"x_zero_point": 256}, "a zero point is not 0 to 255"),
        ({"y_zero_point": -1}, "a zero point is not 0 to 255"),
    ],
)
def test_misfit_scalings_are_refused(change: dict[str, Any], message: str) -> None:
    x = np.ones((1, 20), np.uint8)
    with pytest.raises(KernelError, match=message):
        sparse_int8.sparse_int8_matmul(x, PACKED, dataclasses.replace(SCALING, **change))


FILTER = pack_int8(np.ones((6, 5, 3, 3), np.int8))


@pytest.mark.parametrize(("shape", "window", "message"), MISFITS)
def test_misfit_windows_are_refused(
    shape: tuple[int, ...], window: dict[str, Any], message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        sparse_int8.sparse_int8_conv(np.ones(shape, np.uint8), FILTER, SCALING, Window(**window))


def test_inputs_without_channels_are_refused() -> None:
    packed = dataclasses.replace(PACKED, in_channels=0)
    with pytest.raises(KernelError, match="in_channels is 0, expected 1 to"):
        sparse_int8.sparse_int8_matmul(np.ones((2, 0), np.uint8), packed, SCALING)


def test_misfit_arguments_are_refused() -> None:
    x = np.ones((1, 20), np.uint8)
    with pytest.raises(KernelError, match="no kernel named mmx"):
        sparse_int8.sparse_int8_matmul(x, PACKED, SCALING, isa="mmx")
    with pytest.raises(KernelError, match="x is int8, expected uint8"):
        sparse_int8.sparse_int8_matmul(x.view(np.int8), PACKED, SCALING)


@pytest.mark.parametrize("weight", [np.ones(4, np.int8), np.ones((2, 2)), np.ones((0, 2), np.int8)])
def test_only_int8_weights_are_packed(weight: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="expected int8"):
        pack_int8(weight)


def test_blocks_and_groups_must_fit() -> None:
    weight = np.ones((6, 4), np.int8)
    with pytest.raises(ValueError, match="block_rows is 3"):
        pack_int8(weight, block_rows=3)
    with pytest.raises(ValueError, match="cannot be cut into 4 groups"):
        pack_int8(weight, groups=4)


def test_isas_agree_with_the_processor() -> None:
    features = kernels.cpu_features()
    isas = sparse_int8.available_isas()
    assert isas[-1] == "portable"
    assert ("avx2" in isas) == features["avx2"]
    wanted = ("avx512f", "avx512bw", "avx512vl", "avx512_vnni")
    assert ("avx512" in isas) == all(features[name] for name in wanted)
