"""Tensors as codes: every bit comes back, and what has few values is found."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from containers import through
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxcomp import number_types as types
from onnxcomp.container import BITS, Entry
from onnxcomp.lattices import codebook, grids, narrowed
from onnxcomp.lossless import encode_lossless
from onnxcomp.representations import Codebook, Grid, Integer, Planes
from onnxcomp.restoring import from_grid, packed_bits, unpacked_bits, widen

Array = npt.NDArray[Any]
BFLOAT16, DOUBLE, FLOAT, FLOAT16 = types.BFLOAT16, types.DOUBLE, types.FLOAT, types.FLOAT16


def coded(values: Array, data_type: int = FLOAT) -> Any:
    entry = Entry(0, True, 0, 0, data_type, values.shape, Integer())
    return encode_lossless(entry, np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def normal(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def test_float32_that_came_from_narrower_floats_is_stored_as_those() -> None:
    half = normal(64, 64).astype(np.float16)
    brain = (normal(64, 64).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    single = coded(normal(64, 64)).size
    for values, source in ((half.astype(np.float32), FLOAT16), (brain, BFLOAT16)):
        found = coded(values)
        assert isinstance(found.representation, Planes)
        assert found.representation.source == source
        assert found.size < 0.56 * single
    found = coded(half.astype(np.float64), DOUBLE)
    assert found.representation.source == FLOAT16
    found = coded(normal(64, 64).astype(np.float64), DOUBLE)
    assert found.representation.source == FLOAT


@pytest.mark.parametrize("axis", [None, 0, 1, 3])
@pytest.mark.parametrize("zero_point", [0, 100])
def test_integer_grids_are_found_with_one_scale_or_many(axis: int | None, zero_point: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (24, 8, 3, 20)).astype(np.float32) - zero_point
    shape = [1] * 4
    if axis is not None:
        shape[axis] = codes.shape[axis]
    scales = rng.uniform(0.001, 0.1, shape).astype(np.float32)
    values = codes * scales
    (found,) = grids(values.view(np.uint32).reshape(-1), values.shape)
    assert found.axis == (255 if axis is None else axis)
    steps = found.scales.reshape(shape)
    assert (found.codes.reshape(values.shape).astype(np.float32) * steps == values).all()
    assert np.abs(found.codes).max() <= 128 + zero_point
    coding = coded(values)
    assert isinstance(coding.representation, Grid)
    assert coding.size < 1.03 * (values.size + steps.size * 4), "a byte a code"


def test_rows_of_zeros_and_few_probes_do_not_hide_a_grid() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(-127, 128, (32, 500)) * (rng.random((32, 500)) < 0.02)
    codes[5] = 0
    values = (codes * rng.uniform(0.01, 1, (32, 1)).astype(np.float32)).astype(np.float32)
    values[values == 0] = 0  # no negative zeros
    assert isinstance(coded(values).representation, Grid | Codebook)
    assert list(grids(values.view(np.uint32).reshape(-1), values.shape))


def test_what_lies_nearly_on_a_grid_does_not_count() -> None:
    codes = np.random.default_rng(0).integers(-128, 128, (40, 40)).astype(np.float32)
    values = codes * np.float32(0.013)
    values[3, 3] = np.nextafter(values[3, 3], np.float32(9))
    bits = values.view(np.uint32).reshape(-1)
    assert not list(grids(bits, values.shape))
    for odd in (-0.0, np.nan, np.inf):
        values = codes * np.float32(0.5)
        values[1, 1] = odd
        assert not list(grids(values.view(np.uint32).reshape(-1), values.shape))


def test_few_distinct_values_become_a_codebook_in_order() -> None:
    levels = np.array([np.nan, -np.inf, -2.5, -0.0, 0.0, 1e-40, 7.3], np.float32)
    values = np.random.default_rng(0).choice(levels, (50, 40))
    found = codebook(values.view(np.uint32).reshape(-1))
    assert found is not None
    table, indices = found
    assert (table[indices] == values.view(np.uint32).reshape(-1)).all()
    ordered = table.view(np.float32)
    assert (np.diff(ordered[~np.isnan(ordered)]) >= 0).all()
    coding = coded(values)
    assert isinstance(coding.representation, Codebook)
    assert coding.size < 1.1 * values.size * math.log2(7) / 8
    assert codebook(normal(100, 100).view(np.uint32).reshape(-1)) is None


def test_plain_floats_are_near_the_entropy_of_their_exponents() -> None:
    values = normal(512, 256)
    exponents = np.unique(values.view(np.uint32) >> 23 & 255, return_counts=True)[1]
    share = exponents / values.size
    entropy = values.size * (24 - (share * np.log2(share)).sum()) / 8
    assert coded(values).size < 1.001 * entropy
    assert coded(values).size < 0.834 * values.nbytes
    half = values.astype(np.float16)
    assert coded(half, FLOAT16).size < 0.86 * half.nbytes
    brain = (values.view(np.uint32) >> 16).astype(np.uint16)
    assert coded(brain, BFLOAT16).size < 0.668 * brain.nbytes


def test_widening_is_that_of_numpy_for_every_half() -> None:
    import ml_dtypes

    every = np.arange(2**16, dtype=np.uint16)
    for source, kind in ((FLOAT16, np.float16), (BFLOAT16, ml_dtypes.bfloat16)):
        expected = every.view(kind).astype(np.float32)
        found = widen(every, source, FLOAT).view(np.float32)
        assert np.array_equal(found, expected, equal_nan=True)
        back = narrowed(widen(every, source, FLOAT)[:0x7000], FLOAT)
        assert back is not None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("source", [FLOAT16, BFLOAT16])
def test_nan_keeps_its_sign_and_payload(source: int) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    exponent, payload = (0x7C00, 0x3FF) if source == FLOAT16 else (0x7F80, 0x7F)
    nan = every[(every & exponent == exponent) & (every & payload != 0)]
    for wider, top, field in ((FLOAT, 31, 0xFF << 23), (DOUBLE, 63, 0x7FF << 52)):
        shift = (23 if wider == FLOAT else 52) - payload.bit_length()
        expected = [(n >> 15) << top | field | (n & payload) << shift for n in nan.tolist()]
        assert widen(nan, source, wider).tolist() == expected


def test_grids_round_to_bfloat16_as_ml_dtypes_does() -> None:
    import ml_dtypes

    codes = np.arange(-500, 500, dtype=np.int32)
    scale = np.array([0.0137], np.float32)
    from onnxcomp.representations import WHOLE, Table

    grid = Grid(WHOLE, 0, Table(1, 4))
    for data_type, kind in ((BFLOAT16, ml_dtypes.bfloat16), (FLOAT16, np.float16), (DOUBLE, "f8")):
        found = from_grid(codes, scale.view(np.uint32), grid, codes.shape, data_type, 0)
        expected = (codes.astype(np.float32) * scale).astype(kind)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.filterwarnings("error")
def test_grids_beyond_float16_are_infinite_without_a_warning() -> None:
    from onnxcomp.representations import WHOLE, Table

    codes, scale = np.array([-3, 1], np.int32), np.array([60000], np.float32)
    found = from_grid(codes, scale.view(np.uint32), Grid(WHOLE, 0, Table(1, 4)), (2,), FLOAT16, 0)
    assert found.view(np.float16).tolist() == [-np.inf, 60000.0]


@pytest.mark.parametrize("block", [0, 4])
def test_scales_of_any_axis_reach_any_piece_of_a_tensor(block: int) -> None:
    from onnxcomp.representations import Table, scale_shape

    dims, rng = (5, 10, 6), np.random.default_rng(0)
    codes = rng.integers(-9, 9, dims).astype(np.int32)
    for axis in range(3):
        shape = scale_shape(dims, axis, block)
        scales = rng.random(shape, np.float32)
        if block:
            spread = np.repeat(scales, block, axis)
            spread = np.take(spread, range(dims[axis]), axis)
        else:
            spread = scales.reshape([-1 if i == axis else 1 for i in range(3)])
        whole = (codes.astype(np.float32) * spread).reshape(-1)
        grid = Grid(axis, block, Table(scales.size, 4))
        for start, stop in ((0, 300), (7, 8), (13, 121), (299, 300)):
            part = codes.reshape(-1)[start:stop]
            found = from_grid(part, scales.reshape(-1).view("u4"), grid, dims, FLOAT, start)
            assert (found.view(np.float32) == whole[start:stop]).all()


@given(st.sampled_from([2, 4, 6]), hnp.arrays(np.uint8, st.integers(1, 40)))
def test_bits_are_packed_from_the_lowest_up(bits: int, numbers: Array) -> None:
    numbers &= np.uint8(2**bits - 1)
    data = packed_bits(numbers, bits)
    stream = sum(int(n) << bits * i for i, n in enumerate(numbers))
    assert int.from_bytes(data.tobytes(), "little") == stream
    assert (unpacked_bits(data, bits, numbers.size) == numbers).all()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(BITS)), st.data())
def test_every_type_and_bit_pattern_comes_back(data_type: int, data: st.DataObject) -> None:
    dims = tuple(data.draw(st.lists(st.integers(0, 7), max_size=5)))
    entry = Entry(0, True, 0, 0, data_type, dims, Integer())
    few = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = rng.integers(0, 3 if few else 256, entry.size).astype(np.uint8)
    used = math.prod(entry.number_dims) * entry.bits % 8
    if used:
        values[-1] &= np.uint8(2**used - 1)
    assert (through(entry, values) == values).all()
