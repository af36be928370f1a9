"""The compiled codec against its numpy twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.errors import CorruptContainer
from onnxcomp.kernels import _native, coding, coding_reference


@st.composite
def payloads(draw: st.DrawFn) -> tuple[bytes, tuple[int, int, int]]:
    """A payload of a small chunk, of any profile."""
    shape = draw(st.sampled_from([(1, 500, 1), (40, 12, 1), (9, 4, 9), (33, 8, 4), (2, 1, 1)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    codes = rng.standard_normal(shape) * draw(st.sampled_from([0.0, 0.5, 2.0, 30.0, 1e5]))
    codes = np.rint(codes.cumsum(1) if draw(st.booleans()) else codes).astype(np.int32)
    codes.flat[rng.integers(codes.size)] += draw(st.sampled_from([0, 7, -90, 1000]))
    kind = draw(st.sampled_from([-1, *coding.RANS_PROFILES.values()]))
    speed = draw(st.booleans())
    payload = _native.encode_codes(codes, 0 if kind < 0 else 1, kind, speed)
    return payload or coding.encode(codes), shape


@given(payloads())
@settings(max_examples=150, deadline=None)
def test_the_twin_decodes_every_payload(case: tuple[bytes, tuple[int, int, int]]) -> None:
    payload, shape = case
    expected = coding.decode(payload, shape)
    np.testing.assert_array_equal(coding_reference.decode(payload, shape), expected)


@given(payloads(), st.data())
@settings(max_examples=150, deadline=None)
def test_both_refuse_the_same_payloads(
    case: tuple[bytes, tuple[int, int, int]], data: st.DataObject
) -> None:
    changed, shape = bytearray(case[0]), case[1]
    at = data.draw(st.integers(1, len(changed) - 1))
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    payload = bytes(changed)
    try:
        expected = coding.decode(payload, shape)
    except CorruptContainer:
        with pytest.raises(CorruptContainer):
            coding_reference.decode(payload, shape)
    else:
        np.testing.assert_array_equal(coding_reference.decode(payload, shape), expected)
