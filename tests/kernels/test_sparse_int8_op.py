"""The operators with sparse int8 weights inside onnxruntime, beside its own quantized ones."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import pytest
from conv_windows import KINDS
from onnx import TensorProto, helper
from operator_sessions import open_model, run
from sparse_int8_models import (
    Shape,
    block_sparse,
    qdq_model,
    random_codes,
    random_steps,
    sparse_model,
)

from onnxcomp.kernels import reference_sparse_int8 as reference
from onnxcomp.kernels.sparse_int8 import PackedInt8, Scaling, Window, pack_int8


def assert_beside_onnxruntime(y: Any, dense: Any) -> None:
    assert y.shape == dense.shape
    if y.dtype == np.uint8:
        assert 20 < np.median(dense) < 235, "a layer that is clamped shows nothing"
        difference = np.abs(y.astype(int) - dense)
        assert difference.max() <= 1
        assert (difference == 0).mean() > 0.99
    else:
        np.testing.assert_allclose(y, dense, rtol=1e-5, atol=1e-5 * np.abs(dense).max())


@pytest.mark.parametrize("to_codes", [True, False])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("block_rows", [1, 4])
def test_matmul_is_within_one_code_of_onnxruntime(
    to_codes: bool, biased: bool, block_rows: int
) -> None:
    rng = np.random.default_rng(0)
    packed = pack_int8(block_sparse(rng, 70, 130), block_rows=block_rows)
    steps = random_steps(rng, 70, biased=biased)
    x, scaling = random_codes(rng, 75, 130), steps.scaling(to_codes)
    y = run(sparse_model(packed, scaling, ("tokens", 130)), x)
    np.testing.assert_array_equal(y, reference.sparse_int8_matmul(x, packed, scaling))
    assert_beside_onnxruntime(y, run(qdq_model(packed, steps, x.shape, to_codes), x))


@pytest.mark.parametrize("to_codes", [True, False])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("kernel", "groups", "window"), KINDS)
def test_conv_is_within_one_code_of_onnxruntime(
    kernel: tuple[int, int], groups: int, window: Window, biased: bool, to_codes: bool
) -> None:
    rng = np.random.default_rng(1)
    packed = pack_int8(block_sparse(rng, 24, 18, *kernel, density=0.5), groups=groups)
    steps = random_steps(rng, 24, biased=biased)
    x, scaling = random_codes(rng, 2, 18 * groups, 19, 23), steps.scaling(to_codes)
    y = run(sparse_model(packed, scaling, ("n", 18 * groups, 19, 23), window), x)
    np.testing.assert_array_equal(y, reference.sparse_int8_conv(x, packed, scaling, window))
    assert_beside_onnxruntime(y, run(qdq_model(packed, steps, x.shape, to_codes, window), x))


@pytest.mark.parametrize("to_codes", [True, False])
def test_one_dimension_is_a_row_of_two(to_codes: bool) -> None:
    rng = np.random.default_rng(10)
    weight = block_sparse(rng, 24, 9, 5, density=0.5)
    steps, x = random_steps(rng, 24, biased=True), random_codes(rng, 3, 18, 50)
    packed, scaling = pack_int8(weight, groups=2), steps.scaling(to_codes)
    window: Any = Window(strides=(2,), dilations=(3,), pads=(4, 1))  # type: ignore[arg-type]
    session = open_model(sparse_model(packed, scaling, ("n", 18, 50), window))
    assert session.get_outputs()[0].shape == ["n", 24, 22]
    y = session.run(["Y"], {"X": x})[0]
    row = pack_int8(weight[:, :, None], groups=2)
    as_row = Window(strides=(1, 2), dilations=(1, 3), pads=(0, 4, 0, 1))
    expected = reference.sparse_int8_conv(x[:, :, None], row, scaling, as_row)
    np.testing.assert_array_equal(y, expected[:, :, 0])
    assert_beside_onnxruntime(y, run(qdq_model(packed, steps, x.shape, to_codes, window), x))


@pytest.mark.parametrize("kernel", [(3,), (3, 3)])
def test_no_images_make_no_outputs(kernel: tuple[int, ...]) -> None:
    rng, ones = np.random.default_rng(11), (1,) * len(kernel)
    packed = pack_int8(block_sparse(rng, 8, 4, *kernel))
    window: Any = Window(strides=ones, dilations=ones, pads=ones * 2)  # type: ignore[arg-type]
    names = ("n", 4, "h", "w")[: 2 + len(kernel)]
    scaling = random_steps(rng, 8, biased=True).scaling(to_codes=True)
    x = np.zeros((0, 4, 9, 7)[: 2 + len(kernel)], np.uint8)
    y = run(sparse_model(packed, scaling, names, window), x)
    assert y.shape == (0, 8, 9, 7)[: 2 + len(kernel)]


@pytest.mark.parametrize("shape", [(64,), (0, 64), (1, 64), (2, 3, 64), (2, 0, 5, 64)])
def test_matmul_keeps_leading_dimensions(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    packed = pack_int8(block_sparse(rng, 12, 64))
    scaling = random_steps(rng, 12, biased=True).scaling(to_codes=True)
    x = random_codes(rng, *shape)
    leading: Shape = tuple(f"d{axis}" for axis in range(len(shape) - 1))
    y = run(sparse_model(packed, scaling, (*leading, 64)), x)
    assert y.shape == (*shape[:-1], 12)
    np.testing.assert_array_equal(y, reference.sparse_int8_matmul(x, packed, scaling))


def test_threads_change_no_bit() -> None:
    # Large enough for the operators to ask onnxruntime for its threads.
    rng = np.random.default_rng(3)
    packed = pack_int8(block_sparse(rng, 200, 256))
    scaling = random_steps(rng, 200, biased=True).scaling(to_codes=True)
    model, x = sparse_model(packed, scaling, ("n", 256)), random_codes(rng, 300, 256)
    np.testing.assert_array_equal(run(model, x, threads=4), run(model, x))
    packed = pack_int8(block_sparse(rng, 50, 64, 3, 3))
    scaling = random_steps(rng, 50, biased=True).scaling(to_codes=True)
    model = sparse_model(packed, scaling, (3, 64, 20, 20), Window(pads=(1, 1, 1, 1)))
    x = random_codes(rng, 3, 64, 20, 20)
    np.testing.assert_array_equal(run(model, x, threads=4), run(model, x))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(
    ("shape", "weight_shape", "window"),
    [
        ((1, 64, 31, 27), (48, 64, 3, 3), Window(pads=(1, 1, 1, 1))),
        ((1, 62, 40, 37), (48, 62, 3, 3), Window(pads=(1, 1, 1, 1), strides=(2, 2))),
        ((3, 16, 19, 23), (64, 8, 3, 3), Window(pads=(2, 1, 2, 3), dilations=(2, 2))),
        ((1, 256, 9, 9), (200, 256, 1, 1), Window()),
        ((2, 40, 1, 700), (40, 40, 1, 5), Window(pads=(0, 2, 0, 2))),
        ((77, 300), (200, 300), None),
    ],
)
def test_threads_that_share_copies_of_x_change_no_bit(
    shape: tuple[int, ...], weight_shape: tuple[int, ...], window: Window | None, threads: int
) -> None:
    rng = np.random.default_rng(5)
    groups = 1 if window is None else shape[1] // weight_shape[1]
    packed = pack_int8(block_sparse(rng, *weight_shape, density=0.5), groups=groups)
    scaling = random_steps(rng, weight_shape[0], biased=True).scaling(to_codes=True)
    model = sparse_model(packed, scaling, shape, window)
    session, alone = open_model(model, threads=threads), open_model(model)
    for _ in range(20):  # who copies what differs, and what was copied before is overwritten
        x = random_codes(rng, *shape)
        y = session.run(["Y"], {"X": x})[0]
        np.testing.assert_array_equal(y, alone.run(["Y"], {"X": x})[0])


def test_sessions_in_threads_share_no_memory() -> None:
    rng = np.random.default_rng(4)
    cases = []
    for outputs, inputs in [(40, 128), (64, 256), (33, 70)]:
        packed = pack_int8(block_sparse(rng, outputs, inputs))
        scaling = random_steps(rng, outputs, biased=True).scaling(to_codes=True)
        x = random_codes(rng, 70, inputs)
        session = open_model(sparse_model(packed, scaling, x.shape))
        cases.append((session, x, reference.sparse_int8_matmul(x, packed, scaling)))
    wrong: list[int] = []

    def repeat(start: int) -> None:
        for turn in range(start, start + 60):
            session, x, expected = cases[turn % len(cases)]
            if not np.array_equal(session.run(["Y"], {"X": x})[0], expected):
                wrong.append(turn)

    workers = [threading.Thread(target=repeat, args=(start,)) for start in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.parametrize(
    ("x_shape", "window", "expected"),
    [
        ((1, 8, 9, 10), Window(), [1, 12, 7, 8]),
        (("n", 8, 9, 10), Window(strides=(2, 1), pads=(1, 0, 1, 0)), ["n", 12, 5, 8]),
        (("n", 8, "h", "w"), Window(pads=(1, 1, 1, 1)), ["n", 12, "h", "w"]),
    ],
)
def test_shapes_of_convolutions_are_inferred(
    x_shape: Shape, window: Window, expected: list[int | str]
) -> None:
    rng = np.random.default_rng(5)
    packed = pack_int8(block_sparse(rng, 12, 8, 3, 3))
    for to_codes in (True, False):
        scaling = random_steps(rng, 12, biased=False).scaling(to_codes)
        session = open_model(sparse_model(packed, scaling, x_shape, window))
        (y,) = session.get_outputs()
        assert y.shape == expected
        assert y.type == ("tensor(uint8)" if to_codes else "tensor(float)")


def test_shapes_of_products_are_inferred() -> None:
    rng = np.random.default_rng(6)
    packed = pack_int8(block_sparse(rng, 12, 8))
    scaling = random_steps(rng, 12, biased=False).scaling(to_codes=False)
    (y,) = open_model(sparse_model(packed, scaling, ("n", 5, 8))).get_outputs()
    assert y.shape == ["n", 5, 12]


PACKED = pack_int8(np.eye(6, 20, 3, np.int8) + np.eye(6, 20, 9, np.int8))
FILTER = pack_int8(np.ones((6, 5, 3, 3), np.int8))
SCALING = Scaling(scale=np.ones(6, np.float32), y_zero_point=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_rows": 2}, "block_rows is 2, expected 1 or 4"),
        ({"in_channels": 0}, "in_channels is 0, expected 1 to"),
        ({"out_channels": -1}, "out_channels is -1, expected 1 to"),
        ({"out_channels": 9}, "the length of offsets is 3, expected 4"),
        ({"indices": PACKED.indices + 3}, "an index is 5, expected 0 to 4 at position 2"),
        ({"indices": PACKED.indices[None]}, "indices has shape .*, expected rank 1"),
        ({"indices": PACKED.indices.astype(np.int64)}, r"tensor\(int64\).*indices"),
        ({"values": PACKED.values[1:]}, "the number of values is"),
        ({"values": PACKED.values.view(np.uint8)}, r"tensor\(uint8\).*values"),
        ({"offsets": PACKED.offsets * 2}, "the last offset is"),
        ({"offsets": PACKED.offsets[:0]}, "the length of offsets is 0, expected 3"),
    ],
)
def test_malformed_weights_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        open_model(sparse_model(dataclasses.replace(PACKED, **change), SCALING, (1, 20)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": np.ones(5, np.float32)}, r"scale has shape \[5\], expected \[6\]"),
        ({"scale": np.full(6, np.nan, np.float32)}, "scale is nan at position 0"),
        ({"bias": np.ones(7, np.int32)}, r"bias has shape \[7\], expected \[6\]"),
        ({"x_zero_point": 256}, "x_zero_point is 256, expected 0 to 255"),
        ({"y_zero_point": -1}, "y_zero_point is -1, expected 0 to 255"),
    ],
)
def test_misfit_scalings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        open_model(sparse_model(PACKED, dataclasses.replace(SCALING, **change), (1, 20)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version is 2; this library reads 1"),
        ({"kernel_shape": [3, 2]}, "the length of offsets|the number of quads|an index is"),
        ({"kernel_shape": [2**16, 1]}, "the kernel of the rows is 65536, expected 1 to 32768"),
        ({"strides": [1, 0]}, "the stride of the columns is 0"),
        ({"strides": [1, 1, 1]}, "strides"),
        ({"kernel_shape": [3, 3, 3]}, "kernel_shape has 3 numbers, expected 1 or 2"),
        ({"dilations": [-1, 1]}, "the dilation of the rows is -1"),
        ({"pads": [0, 0, 2**40, 0]}, "padding of the rows is 1099511627776"),
        ({"group": 4}, "groups is 4, expected a divisor of the 6 out_channels"),
        ({"pads": None}, "pads"),
        ({"block_rows": None}, "integer attribute block_rows is missing"),
    ],
)
def test_misfit_attributes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        open_model(sparse_model(FILTER, SCALING, (1, 5, 9, 9), **change))


def test_weights_must_be_constant() -> None:
    model = sparse_model(PACKED, SCALING, (1, 20))
    values = helper.make_tensor_value_info("values", TensorProto.INT8, PACKED.values.shape)
    model.graph.input.append(values)
    with pytest.raises(Exception, match="values must be an initializer"):
        open_model(model)


@pytest.mark.parametrize(
    ("packed", "shape", "message"),
    [
        (PACKED, (3, 21), r"X has shape \[3, 21\], expected uint8 \[..., 20\]"),
        (FILTER, (1, 4, 9, 9), r"X has shape \[1, 4, 9, 9\], expected uint8 \[images, 5, height"),
        (FILTER, (1, 5, 2, 9), r"X has shape \[1, 5, 2, 9\], which is smaller than the kernel"),
        (FILTER, (1, 5, 0, 9), r"X has shape \[1, 5, 0, 9\], which is smaller than the kernel"),
        (
            FILTER,
            (1, 5, 9),
            r"X has shape \[1, 5, 9\], expected uint8 \[images, 5, height, width\]",
        ),
    ],
)
def test_inputs_of_another_shape_are_refused(
    packed: PackedInt8, shape: tuple[int, ...], message: str
) -> None:
    names: Shape = tuple(f"d{axis}" for axis in range(len(shape)))
    session = open_model(sparse_model(packed, SCALING, names))
    with pytest.raises(Exception, match=message) as caught:
        session.run(["Y"], {"X": np.ones(shape, np.uint8)})
    assert "layer" in str(caught.value)
