"""SparseConv inside onnxruntime, beside its own Conv."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from conv_windows import KINDS
from onnx import TensorProto, helper
from operator_sessions import open_model, run
from sparse_float_models import (
    Shape,
    block_sparse_floats,
    dense_conv_model,
    random_floats,
    sparse_conv_model,
)

from onnxcomp.kernels.reference import BLOCK_SIZES
from onnxcomp.kernels.sparse_conv import Window, pack_conv, sparse_conv


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize(("kernel", "groups", "window"), KINDS)
def test_operator_equals_onnxruntimes_conv(
    kernel: tuple[int, int], groups: int, window: Window, block_size: int, biased: bool, relu: bool
) -> None:
    rng = np.random.default_rng(1)
    weight = block_sparse_floats(rng, 38, 18, *kernel, density=0.5, rows=block_size)
    packed = pack_conv(weight, block_size=block_size, groups=groups)
    bias = random_floats(rng, 38) if biased else None
    x = random_floats(rng, 2, 18 * groups, 19, 23)
    shape = ("n", *x.shape[1:])
    y = run(sparse_conv_model(packed, shape, bias, window, relu=relu), x)
    dense = run(dense_conv_model(packed, shape, bias, window, relu=relu), x)
    assert y.shape == dense.shape
    np.testing.assert_allclose(y, dense, rtol=1e-5, atol=1e-5 * np.abs(dense).max())
    np.testing.assert_array_equal(y, sparse_conv(x, packed, bias, window, relu=relu))


@pytest.mark.parametrize("images", [0, 1, 3])
def test_any_number_of_images_is_taken(images: int) -> None:
    rng = np.random.default_rng(2)
    packed = pack_conv(block_sparse_floats(rng, 12, 8, 3, 3))
    x = random_floats(rng, images, 8, 6, 5)
    y = run(sparse_conv_model(packed, ("n", 8, 6, 5)), x)
    assert y.shape == (images, 12, 4, 3)
    np.testing.assert_array_equal(y, sparse_conv(x, packed))


@pytest.mark.parametrize("kernel", [1, 3])
def test_threads_change_no_bit(kernel: int) -> None:
    # Large enough for the operator to ask onnxruntime for its threads.
    rng = np.random.default_rng(3)
    packed = pack_conv(block_sparse_floats(rng, 50, 64, kernel, kernel))
    pad = kernel // 2
    model = sparse_conv_model(packed, (3, 64, 21, 21), None, Window(pads=(pad, pad, pad, pad)))
    x = random_floats(rng, 3, 64, 21, 21)
    np.testing.assert_array_equal(run(model, x, threads=4), run(model, x))


@pytest.mark.parametrize(
    ("x_shape", "window", "expected"),
    [
        ((1, 8, 9, 10), Window(), [1, 12, 7, 8]),
        (("n", 8, 9, 10), Window(strides=(2, 1), pads=(1, 0, 1, 0)), ["n", 12, 5, 8]),
        (("n", 8, "h", "w"), Window(pads=(1, 1, 1, 1)), ["n", 12, "h", "w"]),
    ],
)
def test_shapes_are_inferred(x_shape: Shape, window: Window, expected: list[int | str]) -> None:
    packed = pack_conv(block_sparse_floats(np.random.default_rng(4), 12, 8, 3, 3))
    (y,) = open_model(sparse_conv_model(packed, x_shape, None, window)).get_outputs()
    assert y.shape == expected
    assert y.type == "tensor(float)"


FILTER = pack_conv(np.ones((6, 5, 3, 3), np.float32))
X_SHAPE = ("n", 5, "h", "w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2; this library reads 1"),
        ({"kernel_shape": [3, 2]}, "an index is 30, expected 0 to 29 at position 30"),
        ({"kernel_shape": [2**16, 1]}, "the kernel of the rows is 65536, expected 1 to 32768"),
        ({"in_channels": 2**60}, "in_channels is 1152921504606846976, expected 1 to 238609294"),
        ({"dilations": [-1, 1]}, "the dilation of the rows is -1"),
        ({"pads": [0, 0, 2**40, 0]}, "padding of the rows is 1099511627776"),
        ({"group": 4}, "groups is 4, expected a divisor of the 6 outputs"),
        ({"pads": None}, "pads"),
        ({"block_size": None}, "integer attribute block_size is missing"),
        ({"relu": -1}, "relu is -1, expected 0 or 1"),
    ],
)
def test_misfit_attributes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        open_model(sparse_conv_model(FILTER, X_SHAPE, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": FILTER.indices + 1}, "an index is 45, expected 0 to 44 at position 44"),
        ({"values": FILTER.values[1:]}, "the number of values is 356, expected 360"),
        ({"offsets": FILTER.offsets[:0]}, "the length of offsets is 0, expected 3"),
    ],
)
def test_malformed_weights_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        open_model(sparse_conv_model(dataclasses.replace(FILTER, **change), X_SHAPE))


def test_weights_must_be_constant() -> None:
    model = sparse_conv_model(FILTER, X_SHAPE)
    values = helper.make_tensor_value_info("values", TensorProto.FLOAT, FILTER.values.shape)
    model.graph.input.append(values)
    with pytest.raises(Exception, match="values must be an initializer"):
        open_model(model)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 4, 9, 9), r"X has shape \[1, 4, 9, 9\], expected float32 \[images, 5, height"),
        ((1, 5, 2, 9), r"X has shape \[1, 5, 2, 9\], which is smaller than the kernel"),
    ],
)
def test_misfit_inputs_are_refused(shape: tuple[int, ...], message: str) -> None:
    session = open_model(sparse_conv_model(FILTER, ("n", "c", "h", "w")))
    with pytest.raises(Exception, match=message):
        session.run(["Y"], {"X": np.ones(shape, np.float32)})


def test_bias_of_another_length_is_refused() -> None:
    model = sparse_conv_model(FILTER, X_SHAPE, np.ones(5, np.float32))
    with pytest.raises(Exception, match=r"bias has shape \[5\], expected float32 \[6\]"):
        run(model, np.ones((1, 5, 9, 9), np.float32))
