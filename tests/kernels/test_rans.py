"""The rANS and raw back ends: round trips, the same bytes everywhere, lengths near the entropy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from correlated_codes import correlated, entropy_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.errors import CorruptContainer, KernelError
from onnxcomp.kernels import _native, coding

Codes = npt.NDArray[np.int32]


@st.composite
def chunks(draw: st.DrawFn) -> Codes:
    """Codes of every width, with tails, zeros, single values and far outliers."""
    shape = draw(
        st.one_of(
            st.tuples(st.integers(0, 70), st.integers(0, 40), st.sampled_from([1, 4, 9])),
            st.tuples(st.just(1), st.integers(0, 9000), st.just(1)),
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 0.3, 1.0, 4.0, 40.0, 3e3, 1e6, 4e8]))
    values = rng.standard_normal(shape) * spread + draw(st.sampled_from([0, 0, -3, 1000, -(10**9)]))
    if draw(st.booleans()):
        values *= rng.random(shape) < 0.1
    codes = np.clip(np.rint(values), -(2**31), 2**31 - 1).astype(np.int32)
    if codes.size and draw(st.booleans()):
        codes.flat[rng.integers(codes.size)] = draw(st.sampled_from([-(2**31), 2**31 - 1, 300]))
    return codes


@given(chunks(), st.sampled_from(["auto", "raw", "rans"]), st.sampled_from(["size", "speed"]))
@settings(max_examples=300, deadline=None)
def test_every_decoder_gives_the_codes_back(codes: Codes, backend: str, prefer: str) -> None:
    payload = coding.encode(codes, backend=backend, prefer=prefer)  # type: ignore[arg-type]
    scales = np.linspace(-0.3, 0.7, max(codes.shape[0], 1)).astype(np.float32)
    expected = codes.astype(np.float32) * scales[: codes.shape[0], None, None]
    for isa in coding.available_isas():
        np.testing.assert_array_equal(coding.decode(payload, codes.shape, isa=isa), codes)
        if codes.shape[0] == 0:
            continue
        weights = np.full(codes.shape, np.nan, np.float32)
        coding.decode_scaled(payload, codes.shape, scales, weights, isa=isa)
        np.testing.assert_array_equal(weights, expected)
        coding.decode_scaled(payload, codes.shape, scales[:1], weights, isa=isa)
        np.testing.assert_array_equal(weights, codes.astype(np.float32) * scales[0])


@given(chunks(), st.sampled_from(sorted(coding.RANS_PROFILES)))
@settings(max_examples=200, deadline=None)
def test_every_profile_has_the_same_bytes_and_codes_on_every_processor(
    codes: Codes, profile: str
) -> None:
    payloads = {
        _native.encode_codes(codes, 1, coding.RANS_PROFILES[profile], False, isa)
        for isa in coding.available_isas()
    }
    assert len(payloads) == 1
    payload = payloads.pop()
    if not payload:  # too small for the profile, or nothing to tell apart
        return
    for isa in coding.available_isas():
        np.testing.assert_array_equal(coding.decode(payload, codes.shape, isa=isa), codes)


@pytest.mark.parametrize(
    ("profile", "ratio"), [("table", 1.003), ("parametric", 1.003), ("tiles", 0.98), ("rows", 0.85)]
)
def test_profiles_find_what_is_theirs(profile: str, ratio: float) -> None:
    codes = correlated(128, 100)
    payload = coding.encode(codes, backend="rans", profile=profile)
    assert len(payload) * 8 < entropy_bits(codes) * ratio
    assert len(coding.encode(codes)) <= len(payload)


def test_small_chunks_pay_no_table() -> None:
    codes = np.rint(np.random.default_rng(3).standard_normal((1, 300, 1)) * 3).astype(np.int32)
    payload = coding.encode(codes, backend="rans", profile="parametric")
    assert len(payload) * 8 < entropy_bits(codes) + 8 * 16


@pytest.mark.parametrize("spread", [0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
def test_large_chunks_stay_within_three_thousandths_of_the_entropy(spread: float) -> None:
    rng = np.random.default_rng(1)
    codes = np.rint(rng.laplace(size=(512, 512, 1)) * spread).astype(np.int32)
    payload = coding.encode(codes)
    assert len(payload) * 8 <= entropy_bits(codes) * 1.003


def test_constant_chunks_take_next_to_nothing() -> None:
    assert len(coding.encode(np.full((64, 128, 9), -7, np.int32))) <= 4


def test_names_and_shapes_are_checked() -> None:
    codes = np.zeros((1, 8, 1), np.int32)
    with pytest.raises(KernelError, match=r"codes are int64 \[1, 8, 1\], expected int32"):
        coding.encode(codes.astype(np.int64))
    with pytest.raises(KernelError, match="there is no back end 'zip'"):
        coding.encode(codes, backend="zip")
    with pytest.raises(KernelError, match="the back end raw has no profile 'rows'"):
        coding.encode(codes, backend="raw", profile="rows")
    with pytest.raises(KernelError, match="at most 1048576 codes"):
        coding.encode(np.zeros((1, (1 << 20) + 1, 1), np.int32))
    with pytest.raises(KernelError, match="not the shape of a chunk"):
        coding.decode(b"\0\0\0", (1 << 20, 1 << 20, 1))
    with pytest.raises(KernelError, match="no decoder named mmx"):
        coding.decode(coding.encode(codes), (1, 8, 1), isa="mmx")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "ends too early"),
        (b"\x07\x00", "back end is unknown"),
        (b"\x01\x77", "profile is unknown"),
        (b"\x00\x21\x00", "profile is unknown"),
        (b"\x00\x04\x00", "ends too early"),
        (b"\x00\x04\x00" + bytes(9), "bytes are left over"),
    ],
)
def test_defects_are_named(payload: bytes, message: str) -> None:
    with pytest.raises(CorruptContainer, match=f"a payload of {len(payload)} bytes: .*{message}"):
        coding.decode(payload, (1, 8, 1))


@given(chunks(), st.sampled_from(["raw", *coding.RANS_PROFILES]), st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_decode_alike_everywhere(
    codes: Codes, kind: str, data: st.DataObject
) -> None:
    profile = coding.RANS_PROFILES.get(kind, -1)
    payload = bytearray(_native.encode_codes(codes, int(kind != "raw"), profile, False))
    if not payload:
        return
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del payload[data.draw(st.integers(0, len(payload) - 1)) :]
    assert_alike(bytes(payload), codes.shape)


@given(st.binary(max_size=200), st.integers(0, 1), st.integers(0, 4), st.integers(0, 300))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_are_refused_or_decode_alike_everywhere(
    body: bytes, backend: int, profile: int, columns: int
) -> None:
    assert_alike(bytes([backend, profile]) + body, (7, columns, 1))


def assert_alike(payload: bytes, shape: tuple[int, ...]) -> None:
    outcomes = []
    for isa in coding.available_isas():
        try:
            outcomes.append(coding.decode(payload, shape, isa=isa).tobytes())  # type: ignore[arg-type]
        except CorruptContainer as error:
            outcomes.append(str(error).encode())
    assert len(set(outcomes)) == 1
