"""Every sparse float32 convolution against its numpy twin, and the packed form."""

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
from onnxcomp.kernels import reference, sparse_conv
from onnxcomp.kernels import reference_sparse_conv as twin
from onnxcomp.kernels.sparse_conv import PackedConv, Window, pack_conv, unpack_conv

Floats = npt.NDArray[np.float32]
Case = tuple[Floats, PackedConv, Floats | None, Window, bool]


def sparse_floats(rng: np.random.Generator, shape: tuple[int, ...], sparsity: float) -> Floats:
    return (rng.standard_normal(shape) * (rng.random(shape) >= sparsity)).astype(np.float32)


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    """Tails everywhere: of outputs, channels, pixels and windows that do not fit evenly."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (1, 5), (2, 1), (4, 3)]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    outputs, inputs = groups * draw(st.integers(1, 35)), draw(st.integers(1, 12))
    sparsity = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    weight = sparse_floats(rng, (outputs, inputs, *kernel), sparsity)
    block_size = draw(st.sampled_from(reference.BLOCK_SIZES))
    packed = pack_conv(weight, block_size=block_size, groups=groups)
    window, (images, height, width) = draw(windows(kernel))
    x = sparse_floats(rng, (images, groups * inputs, height, width), 0.0)
    bias = sparse_floats(rng, (outputs,), 0.0) if draw(st.booleans()) else None
    return x, packed, bias, window, draw(st.booleans())


@given(convolutions())
@settings(max_examples=300, deadline=None)
def test_every_kernel_equals_its_twin(case: Case) -> None:
    x, packed, bias, window, relu = case
    expected = twin.sparse_conv(x, packed, bias, window, relu=relu)
    # The error of summing n float32 products is at most n eps sum |x w| (Higham, section 3.1).
    positive = dataclasses.replace(packed, values=abs(packed.values))
    magnitude = twin.sparse_conv(abs(x), positive, None if bias is None else abs(bias), window)
    terms = packed.positions * packed.in_channels + 1
    bound = terms * np.finfo(np.float32).eps * (magnitude + 1e-30)
    for isa in kernels.available_isas():
        y = sparse_conv.sparse_conv(x, packed, bias, window, relu=relu, isa=isa)
        assert y.dtype == np.float32
        assert y.shape == expected.shape
        assert (abs(y - expected) <= bound).all(), isa


@given(convolutions())
@settings(max_examples=100, deadline=None)
def test_small_integers_are_exact(case: Case) -> None:
    # Sums below 2^24 leave nothing to round: any order, fused or not, gives the same bits.
    x, packed, bias, window, relu = case
    x, bias = np.rint(4 * x), None if bias is None else np.rint(4 * bias)
    packed = dataclasses.replace(packed, values=np.rint(4 * packed.values))
    expected = twin.sparse_conv(x, packed, bias, window, relu=relu)
    for isa in kernels.available_isas():
        y = sparse_conv.sparse_conv(x, packed, bias, window, relu=relu, isa=isa)
        np.testing.assert_array_equal(y, expected, err_msg=isa)


@given(convolutions())
@settings(max_examples=40, deadline=None)
def test_the_twin_is_what_onnx_calls_a_convolution(case: Case) -> None:
    x, packed, bias, window, _ = case
    if len(x) == 0:
        return
    names = ["x", "w"] + ["b"] * (bias is not None)
    node = helper.make_node(
        "Conv",
        names,
        ["y"],
        kernel_shape=packed.kernel_shape,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        group=packed.groups,
    )
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in (*names, "y")
    ]
    graph = helper.make_graph([node], "conv", values[:-1], values[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    feed = {"x": x, "w": unpack_conv(packed)} | ({} if bias is None else {"b": bias})
    feed = {name: array.astype(np.float64) for name, array in feed.items()}
    (y,) = ReferenceEvaluator(model).run(None, feed)
    np.testing.assert_allclose(twin.sparse_conv(x, packed, bias, window), y, rtol=1e-9, atol=1e-9)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_unpacking_gives_the_weight_back(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    kernel = data.draw(st.sampled_from([(3,), (1, 1), (2, 3)]))
    groups = data.draw(st.sampled_from([1, 2, 3]))
    outputs, inputs = groups * data.draw(st.integers(1, 20)), data.draw(st.integers(1, 9))
    weight = sparse_floats(rng, (outputs, inputs, *kernel), 0.8)
    block_size = data.draw(st.sampled_from(reference.BLOCK_SIZES))
    packed = pack_conv(weight, block_size=block_size, groups=groups)
    np.testing.assert_array_equal(unpack_conv(packed), weight)
    assert packed.values.any(axis=1).all(), "an entry of zeros is kept"


def test_packed_format_is_the_documented_one() -> None:
    weight = np.zeros((3, 2, 1, 2), np.float32)
    weight[0, 0, 0, 0] = 1  # channel 0 at position 0: input 0
    weight[1, 1, 0, 0] = 2  # channel 1 at position 0: input 1
    weight[0, 0, 0, 1] = 3  # channel 0 at position 1: input 2
    weight[2, 1, 0, 1] = 4  # channel 1 at position 1: input 3
    packed = pack_conv(weight, block_size=2)
    assert packed.offsets.tolist() == [0, 3, 4]
    assert packed.indices.tolist() == [0, 1, 2, 3]
    assert packed.values.tolist() == [[1, 0], [0, 2], [3, 0], [4, 0]]
    grouped = pack_conv(weight[:2], block_size=2, groups=2)
    assert grouped.offsets.tolist() == [0, 2, 3]
    assert grouped.indices.tolist() == [0, 2, 1]
    assert grouped.values.tolist() == [[1, 0], [3, 0], [2, 0]]


@pytest.mark.parametrize("isa", kernels.available_isas())
def test_relu_keeps_what_is_no_number(isa: str) -> None:
    x = np.array([np.nan, -1, -0.0, 2, -np.inf, np.inf], np.float32).reshape(1, 1, 2, 3)
    packed = pack_conv(np.ones((1, 1, 1, 1), np.float32), block_size=1)
    y = sparse_conv.sparse_conv(x, packed, relu=True, isa=isa)
    np.testing.assert_array_equal(y.reshape(-1), [np.nan, 0, 0, 2, 0, np.inf])
    plain = sparse_conv.sparse_conv(x, packed, isa=isa)
    np.testing.assert_array_equal(plain, x)


FILTER = pack_conv(np.ones((6, 5, 3, 3), np.float32))


@st.composite
def corrupted_weights(draw: st.DrawFn) -> PackedConv:
    """A small packed weight of which some numbers, or the length of an array, are another."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel, groups = draw(st.sampled_from([(1, 1), (2, 3)])), draw(st.sampled_from([1, 2]))
    weight = sparse_floats(rng, (groups * 5, 6, *kernel), 0.7)
    block_size = draw(st.sampled_from(reference.BLOCK_SIZES))
    packed = pack_conv(weight, block_size=block_size, groups=groups)
    arrays: dict[str, Any] = {"indices": packed.indices.copy(), "offsets": packed.offsets.copy()}
    # Weights of outputs that do not exist count for nothing.
    arrays["values"] = rng.integers(-9, 9, packed.values.shape).astype(np.float32)
    return dataclasses.replace(packed, **spoil(draw, arrays))


@given(corrupted_weights())
@settings(max_examples=300, deadline=None)
def test_corrupted_weights_are_refused_or_mean_something(packed: PackedConv) -> None:
    rng = np.random.default_rng(0)
    shape = (1, packed.groups * packed.in_channels, 5, 6)
    x = rng.integers(-9, 9, shape).astype(np.float32)
    for isa in kernels.available_isas():
        try:
            y = sparse_conv.sparse_conv(x, packed, isa=isa)
        except KernelError:
            continue
        np.testing.assert_array_equal(y, twin.sparse_conv(x, packed))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 3}, "block_size is 3, expected 1, 2, 4 or 16"),
        ({"in_channels": 0}, "in_channels is 0, expected 1 to 238609294"),
        ({"in_channels": 2**40}, "in_channels is 1099511627776"),
        ({"in_channels": 6}, "the channels of x"),
        ({"out_channels": 0}, "out_features is 0"),
        ({"out_channels": 9}, "the length of offsets is 3, expected 4"),
        ({"groups": 4}, "groups is 4, expected a divisor of the 6 outputs"),
        ({"groups": 0}, "groups is 0"),
        ({"kernel_shape": (3,)}, r"and the kernel \[3\]"),
        ({"kernel_shape": (3, 2)}, "an index is 30, expected 0 to 29 at position 30"),
        ({"indices": FILTER.indices - 1}, "an index is -1, expected 0 to 44 at position 0"),
        ({"indices": FILTER.indices.astype(np.int64)}, "indices is int64, expected int32"),
        ({"values": FILTER.values[1:]}, "the number of values is .*, expected"),
        ({"values": FILTER.values.astype(float)}, "values is float64, expected float32"),
        ({"offsets": FILTER.offsets * 2}, "the last offset is"),
    ],
)
def test_malformed_weights_are_refused(change: dict[str, Any], message: str) -> None:
    x = np.ones((1, 5, 9, 9), np.float32)
    with pytest.raises(KernelError, match=message):
        sparse_conv.sparse_conv(x, dataclasses.replace(FILTER, **change))


@pytest.mark.parametrize(("shape", "window", "message"), MISFITS)
def test_misfit_windows_are_refused(
    shape: tuple[int, ...], window: dict[str, Any], message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        sparse_conv.sparse_conv(np.ones(shape, np.float32), FILTER, None, Window(**window))


def test_misfit_arguments_are_refused() -> None:
    x = np.ones((1, 5, 9, 9), np.float32)
    with pytest.raises(KernelError, match="no kernel named mmx"):
        sparse_conv.sparse_conv(x, FILTER, isa="mmx")
    with pytest.raises(KernelError, match="the length of bias is not out_channels"):
        sparse_conv.sparse_conv(x, FILTER, np.ones(5, np.float32))
    with pytest.raises(KernelError, match="x is float64"):
        sparse_conv.sparse_conv(x.astype(np.float64), FILTER)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "weight", [np.ones((4, 4), np.float32), np.ones((2, 2, 1)), np.ones((0, 2, 1), np.float32)]
)
def test_only_float32_filters_are_packed(weight: npt.NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="expected float32"):
        pack_conv(weight)


def test_only_blocks_and_groups_that_fit_are_packed() -> None:
    weight = np.ones((6, 2, 1, 1), np.float32)
    with pytest.raises(ValueError, match="block_size is 3, expected one of"):
        pack_conv(weight, block_size=3)
    with pytest.raises(ValueError, match="6 outputs cannot be cut into 4 groups"):
        pack_conv(weight, groups=4)
