"""Bit fields decoded into numbers: the compiled kernel against its numpy twin, and bad input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.errors import CorruptContainer, KernelError
from onnxcomp.kernels.coding import available_isas, encode
from onnxcomp.kernels.planes import decode_planes
from onnxcomp.kernels.planes_reference import join_fields


@st.composite
def widths(draw: st.DrawFn) -> list[int]:
    left = draw(st.sampled_from([8, 16, 32, 64]))
    found = []
    while left:
        found.append(draw(st.integers(1, min(31, left))))
        left -= found[-1]
    return found


@settings(max_examples=80, deadline=None)
@given(widths(), st.booleans(), st.integers(0, 9), st.sampled_from(available_isas()))
def test_numbers_are_those_of_the_twin(
    fields: list[int], rotated: bool, seed: int, isa: str
) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 9)), int(rng.integers(1, 70)), int(rng.integers(1, 4)))
    codes = [rng.integers(-(2**31), 2**31, shape).astype(np.int32) for _ in fields]
    expected = join_fields(codes, fields, rotated)
    out = np.empty(expected.nbytes, np.uint8)
    decode_planes([encode(c) for c in codes], fields, rotated, shape, out, isa=isa)
    assert (out.view(expected.dtype) == expected).all()


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["table", "rows", "cabac", "raw"]),
    st.sampled_from([[8, 24], [11, 21], [7, 25], [5, 8, 8, 11], [1, 26, 5], [9, 1, 22]]),
    st.integers(0, 99),
    st.booleans(),
    st.sampled_from(available_isas()),
)
def test_stored_fields_join_coded_ones(
    first: str, fields: list[int], seed: int, rotated: bool, isa: str
) -> None:
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 70)), int(rng.integers(60, 99)), int(rng.integers(1, 4)))
    codes = [np.rint(rng.standard_normal(shape) * 9 + 60).astype(np.int32)]
    rans = first in ("table", "rows")
    payloads = [
        encode(codes[0], backend="rans", profile=first) if rans else encode(codes[0], backend=first)
    ]
    for width in fields[1:]:  # ranges need not begin at 0, nor take all bits
        low = int(rng.integers(0, 2**width))
        codes.append(rng.integers(low, 2**width, shape).astype(np.int32))
        coded = len(payloads) == 1 and seed % 4 == 0  # stored and coded fields in every order
        payloads.append(encode(codes[-1], backend="auto" if coded else "raw"))
    expected = join_fields(codes, fields, rotated)
    out = np.empty(expected.nbytes, np.uint8)
    decode_planes(payloads, fields, rotated, shape, out, isa=isa)
    assert (out.view(expected.dtype) == expected).all()


def test_the_twin_gives_the_bits_that_were_split() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**32, 500, np.uint32)
    fields = [(numbers >> 31).astype(np.int32), (numbers << 1 >> 1).astype(np.int32)]
    assert (join_fields(fields, [1, 31], False) == numbers).all()
    assert (join_fields(fields, [1, 31], True) == (numbers >> 1 | numbers << 31)).all()


def test_the_defective_field_is_named() -> None:
    shape = (1, 300, 1)
    good = encode(np.arange(300, dtype=np.int32).reshape(shape))
    out = np.empty(300 * 2, np.uint8)
    decode_planes([good, good], [7, 9], False, shape, out)
    for field in range(2):
        payloads = [good, good]
        payloads[field] = good[:-1]
        with pytest.raises(CorruptContainer, match=f"field {field}: a payload of {len(good) - 1}"):
            decode_planes(payloads, [7, 9], False, shape, out)


def test_the_defective_stored_field_is_named() -> None:
    shape = (1, 300, 1)
    good = encode(np.arange(300, dtype=np.int32).reshape(shape), backend="raw")
    out = np.empty(300 * 4, np.uint8)
    for field in range(3):
        for size in (len(good) - 1, 2, 1, 0):
            payloads = [good, good, good]
            payloads[field] = good[:size]
            with pytest.raises(CorruptContainer, match=f"field {field}: a payload of {size} "):
                decode_planes(payloads, [9, 12, 11], True, shape, out)


@pytest.mark.parametrize(
    ("fields", "shape", "size"),
    [
        ([7, 8], (1, 4, 1), 8),  # 15 bits
        ([16], (1, 4, 1), 7),
        ([16], (1, 4, 1), 10),
        ([32], (1, 4, 1), 16),  # wider than a field may be
        ([0, 16], (1, 4, 1), 8),
        ([16, 16], (1, 4, 1), 16),  # a payload is missing
        ([16], (-1, 4, 1), 8),
        ([16], (2**11, 2**11, 1), 8),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    fields: list[int], shape: tuple[int, int, int], size: int
) -> None:
    payload = encode(np.zeros((1, 4, 1), np.int32))
    with pytest.raises(KernelError):
        decode_planes([payload], fields, False, shape, np.empty(size, np.uint8))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("fields", [[16], [8, 8], [7, 9], [6, 10], [3, 5, 8]])
@pytest.mark.parametrize("rotated", [False, True])
def test_every_float_of_16_bits_is_widened(isa: str, fields: list[int], rotated: bool) -> None:
    """NaN keep their payloads, subnormal numbers their values."""
    numbers = np.random.default_rng(0).permutation(np.arange(2**16, dtype=np.uint32))
    turned = (numbers << 1 | numbers >> 15) & 0xFFFF if rotated else numbers
    shape, left, codes = (64, 1024, 1), 16, []
    for width in fields:
        left -= width
        codes.append((turned >> left & (2**width - 1)).astype(np.int32).reshape(shape))
    stored = len(fields) > 1
    payloads = [encode(codes[0])] + [encode(c, backend="raw") for c in codes[1:] if stored]
    out = np.empty(numbers.size * 4, np.uint8)
    decode_planes(payloads, fields, rotated, shape, out, widened="bfloat16", isa=isa)
    assert (out.view(np.uint32) == numbers << 16).all()
    decode_planes(payloads, fields, rotated, shape, out, widened="float16", isa=isa)
    assert (out.view(np.uint32) == single_of_half(numbers)).all()


def single_of_half(halves: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Bits of float16 -> bits of float32, field by field."""
    sign, exponent, mantissa = halves >> 15, halves >> 10 & 31, halves & 0x3FF
    bits = np.where(exponent == 31, 255, exponent + 112) << 23 | mantissa << 13
    tiny = (mantissa.astype(np.float64) / 2**24).astype(np.float32).view(np.uint32)
    return (np.where(exponent == 0, tiny, bits) | sign << 31).astype(np.uint32)


def test_only_floats_of_16_bits_are_widened() -> None:
    payload = encode(np.zeros((1, 4, 1), np.int32))
    for fields, size, kind in (([8], 16, "float16"), ([16], 8, "float16"), ([16], 16, "float8")):
        out = np.empty(size, np.uint8)
        with pytest.raises(KernelError):
            decode_planes([payload], fields, False, (1, 4, 1), out, widened=kind)
