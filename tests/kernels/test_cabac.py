"""The cabac back end: round trips, its twin, hostile payloads, lengths below the entropy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from correlated_codes import correlated, entropy_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.errors import CorruptContainer, KernelError
from onnxcomp.kernels import coding, coding_reference

Codes = npt.NDArray[np.int32]
Shape = tuple[int, int, int]

INT32 = np.iinfo(np.int32)


@st.composite
def chunks(draw: st.DrawFn, most: int = 70) -> Codes:
    """Codes of every width, near zero or around another code, with far outliers."""
    shape = draw(
        st.one_of(
            st.tuples(
                st.integers(1, most), st.integers(1, most // 2), st.sampled_from([1, 3, 9, 25, 70])
            ),
            st.tuples(st.just(1), st.integers(1, 20 * most), st.just(1)),
            st.tuples(st.integers(1, 20 * most), st.just(1), st.just(1)),
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 0.3, 1.0, 4.0, 40.0, 3e3, 1e6, 4e8]))
    values = rng.standard_normal(shape) * spread
    if draw(st.booleans()):
        values = values.cumsum(1) / 2
    if draw(st.booleans()):
        values *= rng.random(shape) < 0.1
    values += draw(st.sampled_from([0, 0, -3, 128, -(10**9)]))
    codes = np.clip(np.rint(values), INT32.min, INT32.max).astype(np.int32)
    for _ in range(draw(st.integers(0, 3))):
        codes.flat[rng.integers(codes.size)] = draw(
            st.sampled_from([INT32.min, INT32.min + 1, INT32.max, 300, 0])
        )
    return codes


@given(chunks(), st.sampled_from(["auto", *coding.CABAC_PROFILES]))
@settings(max_examples=400, deadline=None)
def test_codes_come_back(codes: Codes, profile: str) -> None:
    if profile == "positions" and codes.shape[2] > 64:
        with pytest.raises(KernelError, match="have no cabac payload positions"):
            coding.encode(codes, backend="cabac", profile=profile)
        return
    payload = coding.encode(codes, backend="cabac", profile=profile)
    assert payload[0] == 2
    np.testing.assert_array_equal(coding.decode(payload, codes.shape), codes)
    scales = np.linspace(-0.3, 0.7, codes.shape[0]).astype(np.float32)
    weights = np.full(codes.shape, np.nan, np.float32)
    coding.decode_scaled(payload, codes.shape, scales, weights)
    np.testing.assert_array_equal(weights, codes.astype(np.float32) * scales[:, None, None])


@pytest.mark.parametrize("profile", coding.CABAC_PROFILES)
@pytest.mark.parametrize(
    "values",
    [
        [0],
        [7],
        [INT32.min],
        [INT32.max],
        [0] * 1000,
        [-5] * 1000,
        [INT32.min, INT32.max] * 40,
        [INT32.max, 0, INT32.min, -1, 1] * 30,
        list(range(-300, 300)),
        [2**k for k in range(31)] + [-(2**k) for k in range(32)],
    ],
)
def test_extremes_come_back(values: list[int], profile: str) -> None:
    codes = np.array(values, np.int32).reshape(1, -1, 1)
    payload = coding.encode(codes, backend="cabac", profile=profile)
    np.testing.assert_array_equal(coding.decode(payload, codes.shape), codes)
    np.testing.assert_array_equal(coding_reference.decode(payload, codes.shape), codes)


@given(chunks(most=12), st.sampled_from(["auto", *coding.CABAC_PROFILES]))
@settings(max_examples=150, deadline=None)
def test_the_twin_decodes_every_payload(codes: Codes, profile: str) -> None:
    if profile == "positions" and codes.shape[2] > 64:
        profile = "auto"
    payload = coding.encode(codes, backend="cabac", profile=profile)
    np.testing.assert_array_equal(coding_reference.decode(payload, codes.shape), codes)


def outcomes(payload: bytes, shape: Shape) -> list[bytes]:
    """What the compiled decoder and its twin make of a payload: codes, or nothing."""
    found = []
    for decode in (coding.decode, coding_reference.decode):
        try:
            found.append(decode(payload, shape).tobytes())
        except CorruptContainer:
            found.append(b"")
    return found


@given(chunks(most=10), st.sampled_from(sorted(coding.CABAC_PROFILES)), st.data())
@settings(max_examples=300, deadline=None)
def test_changed_bytes_are_refused_or_decode_alike(
    codes: Codes, profile: str, data: st.DataObject
) -> None:
    if profile == "positions" and codes.shape[2] > 64:
        profile = "shared"
    payload = bytearray(coding.encode(codes, backend="cabac", profile=profile))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del payload[data.draw(st.integers(0, len(payload) - 1)) :]
    compiled, twin = outcomes(bytes(payload), codes.shape)
    assert compiled == twin


@given(
    st.binary(max_size=120),
    st.integers(0, 3),
    st.sampled_from([(7, 20, 1), (3, 5, 9), (2, 1, 70), (1, 90, 1), (0, 4, 4)]),
)
@settings(max_examples=400, deadline=None)
def test_arbitrary_bytes_are_refused_or_decode_alike(
    body: bytes, profile: int, shape: Shape
) -> None:
    compiled, twin = outcomes(bytes([2, profile]) + body, shape)
    assert compiled == twin


def test_neighbours_tell_what_comes() -> None:
    codes = correlated(128, 100)
    sizes = {
        profile: len(coding.encode(codes, backend="cabac", profile=profile)) * 8
        for profile in coding.CABAC_PROFILES
    }
    assert sizes["plain"] < entropy_bits(codes) * 1.01
    assert sizes["shared"] < 0.96 * entropy_bits(codes)
    assert sizes["positions"] < 0.86 * entropy_bits(codes)
    assert len(coding.encode(codes, backend="cabac")) * 8 == sizes["positions"]


def test_statistics_that_drift_are_followed() -> None:
    rng = np.random.default_rng(4)
    rate = 0.1 * np.exp(1.5 * np.sin(np.arange(512) / 20))[:, None]
    values = (rng.laplace(size=(512, 256)) * 3 * (rng.random((512, 256)) < rate)).astype(np.int32)
    codes = values[..., None]
    payload = coding.encode(codes)
    assert payload[0] == 2
    # What someone pays who knows each row's share of zeros.
    share = np.broadcast_to(rate * np.exp(-1 / 3), values.shape)
    oracle = entropy_bits(values[values != 0])
    oracle -= float(np.log2(np.where(values != 0, share, 1 - share)).sum())
    assert oracle < 0.95 * entropy_bits(codes)
    assert len(payload) * 8 < 1.02 * oracle


def test_small_chunks_pay_no_table() -> None:
    codes = np.rint(np.random.default_rng(3).standard_normal((1, 300, 1)) * 3).astype(np.int32)
    payload = coding.encode(codes, backend="cabac")
    assert len(payload) * 8 < entropy_bits(codes) + 8 * 20


@given(chunks(most=20))
@settings(max_examples=60, deadline=None)
def test_auto_takes_the_shortest_of_small_payloads(codes: Codes) -> None:
    sizes = [len(coding.encode(codes, backend=name)) for name in coding.BACK_ENDS]
    assert len(coding.encode(codes)) == min(sizes) or codes.min() == codes.max()
    assert coding.encode(codes, prefer="speed")[0] != 2


def scaled_rows(rows: int, spread: float) -> Codes:
    """Rows [rows, 64, 9] with standard deviations that differ."""
    rng = np.random.default_rng(4)
    scale = 2 * np.exp(spread * rng.standard_normal((rows, 1, 1)))
    return np.rint(rng.standard_normal((rows, 64, 9)) * scale).astype(np.int32)


@pytest.mark.parametrize(("rows", "spread", "chosen"), [(256, 0.2, 1), (64, 0.7, 2)])
def test_large_payloads_are_adaptive_where_it_pays(rows: int, spread: float, chosen: int) -> None:
    codes = scaled_rows(rows, spread)
    static, adaptive = (len(coding.encode(codes, backend=name)) for name in ("rans", "cabac"))
    assert 0.95 * static < adaptive < static
    assert (static > 2**14) == (chosen == 1)
    payload = coding.encode(codes)
    assert payload[0] == chosen
    assert len(payload) == (static, adaptive)[chosen - 1]


def test_rows_are_taken_where_they_save_enough() -> None:
    for spread, profile in ((0.3, "tiles"), (0.5, "rows")):
        codes = scaled_rows(256, spread)
        best = {p: len(coding.encode(codes, backend="rans", profile=p)) for p in ("rows", "tiles")}
        saved = 1 - best["rows"] / best["tiles"]
        assert (saved > 0.002) == (profile == "rows")
        assert coding.encode(codes)[:2] == bytes([1, coding.RANS_PROFILES[profile]])


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x02", "ends too early"),
        (b"\x02\x00", "ends too early"),
        (b"\x02\x03\x00", "profile is unknown"),
        (b"\x02\x00\x07", "field of its header is out of range"),
        (b"\x02\x00\x00" + b"\xff" * 50, "bytes are left over"),
        (b"\x02\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff", "final state"),
    ],
)
def test_defects_are_named(payload: bytes, message: str) -> None:
    with pytest.raises(CorruptContainer, match=f"a payload of {len(payload)} bytes: .*{message}"):
        coding.decode(payload, (1, 8, 1))


def test_truncated_payloads_are_refused() -> None:
    codes = correlated(16, 8)
    payload = coding.encode(codes, backend="cabac")
    for size in range(0, len(payload) - 1, 7):
        with pytest.raises(CorruptContainer):
            coding.decode(payload[:size], codes.shape)
