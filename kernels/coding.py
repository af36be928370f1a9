"""Entropy coding of integer codes: the Python door to the compiled codec.

A chunk is at most `MAX_CODES` codes, int32 [rows, columns, kernel]: output channels, input
channels, positions of one kernel; a vector is [1, n, 1]. `encode` makes it one payload, which says
how it is coded but not its shape. docs/codec.md specifies it; `coding_reference` is its numpy twin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import CorruptContainer, KernelError
from onnxcomp.kernels import _native

if TYPE_CHECKING:
    from typing_extensions import Buffer as Buffer
else:
    Buffer: TypeAlias = object  # collections.abc has it from Python 3.12 on

MAX_CODES = 1 << 20
"""The most codes of one chunk."""

BACK_ENDS = {"raw": 0, "rans": 1, "cabac": 2}
"""Byte 0 of a payload, by name."""

RANS_PROFILES = {"table": 0, "parametric": 1, "tiles": 2, "rows": 3}
"""Byte 1 of a rans payload, by name."""

CABAC_PROFILES = {"plain": 0, "shared": 1, "positions": 2}
"""Byte 1 of a cabac payload, by name."""

_PROFILES = {"rans": RANS_PROFILES, "cabac": CABAC_PROFILES}
_ANY = 255
_ANY_PROFILE = -1

Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


def available_isas() -> tuple[str, ...]:
    """The decoders this processor runs, best first; "portable" is always the last."""
    return tuple(_native.available_decoders())


def encode(
    codes: Codes,
    *,
    prefer: Literal["size", "speed"] = "size",
    backend: str = "auto",
    profile: str = "auto",
) -> bytes:
    """One payload from which `decode` gives back codes[rows, columns, kernel].

    Args:
        codes: int32, at most `MAX_CODES`.
        prefer: "size" takes what decodes slowly where it saves enough of a payload above 16 KB, and
            the shortest of smaller ones; "speed" leaves it out.
        backend: a name of `BACK_ENDS`, or "auto".
        profile: a name of `RANS_PROFILES` with the back end rans or of `CABAC_PROFILES` with cabac,
            or "auto".

    Raises KernelError for an unknown name, a wrong dtype or shape, or a profile that these codes
    cannot have.
    """
    if codes.dtype != np.int32 or codes.ndim != 3:
        raise KernelError(f"codes are {codes.dtype} {list(codes.shape)}, expected int32 [r, c, k]")
    if prefer not in ("size", "speed"):
        raise KernelError(f'prefer is {prefer!r}, expected "size" or "speed"')
    if backend != "auto" and backend not in BACK_ENDS:
        raise KernelError(f"there is no back end {backend!r}, only {', '.join(BACK_ENDS)}")
    if profile != "auto" and profile not in _PROFILES.get(backend, {}):
        raise KernelError(f"the back end {backend} has no profile {profile!r}")
    payload = _native_encode(codes, backend, profile, prefer)
    if not payload:
        raise KernelError(f"codes {list(codes.shape)} have no {backend} payload {profile}")
    return payload


def _native_encode(codes: Codes, backend: str, profile: str, prefer: str) -> bytes:
    try:
        return _native.encode_codes(
            np.ascontiguousarray(codes),
            BACK_ENDS.get(backend, _ANY),
            _PROFILES.get(backend, {}).get(profile, _ANY_PROFILE),
            prefer == "speed",
        )
    except ValueError as error:
        raise KernelError(f"{list(codes.shape)}: {error}") from error


def decode(payload: Buffer, shape: tuple[int, int, int], *, isa: str = "auto") -> Codes:
    """The codes[rows, columns, kernel] of a payload.

    Raises CorruptContainer saying what is wrong with the payload, KernelError when `shape` is not
    a chunk's or this processor does not run `isa` (see `available_isas`).
    """
    if len(shape) != 3 or min(shape) < 0 or shape[0] * shape[1] * shape[2] > MAX_CODES:
        raise KernelError(f"{list(shape)} is not the shape of a chunk of at most {MAX_CODES} codes")
    codes = np.empty(shape, np.int32)
    try:
        defect = _native.decode_codes(payload, codes, isa)
    except ValueError as error:
        raise KernelError(str(error)) from error
    if defect:
        raise CorruptContainer(f"a payload of {memoryview(payload).nbytes} bytes: {defect}")
    return codes


def decode_scaled(
    payload: Buffer, shape: tuple[int, int, int], scales: Floats, out: Floats, *, isa: str = "auto"
) -> None:
    """Writes out[...] = scales * codes, without an array of codes in between.

    Args:
        payload: of codes[rows, columns, kernel] = shape.
        shape: of the codes.
        scales: float32 [rows] or [1].
        out: float32, contiguous, as many elements as codes.
        isa: a name of `available_isas`, or "auto" for the best.

    The products are float32 products, the same on every processor. Raises like `decode`.
    """
    if out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise KernelError(f"out is {out.dtype}, expected contiguous writeable float32")
    if len(shape) != 3 or min(shape) < 0 or out.size != shape[0] * shape[1] * shape[2]:
        raise KernelError(f"out has {out.size} elements, expected {list(shape)}")
    scales = np.ascontiguousarray(scales, np.float32)
    try:
        defect = _native.decode_scaled(payload, scales, out.reshape(shape), isa)
    except (TypeError, ValueError) as error:
        raise KernelError(str(error).splitlines()[0]) from error
    if defect:
        raise CorruptContainer(f"a payload of {memoryview(payload).nbytes} bytes: {defect}")


def coded_bits(codes: npt.ArrayLike) -> Floats:
    """Bits that a static table spends on each code value: float32 [largest - smallest + 1].

    An estimate for rate-distortion loops: element i is the cost of the code smallest + i, as
    -log2 of its share, with half a code added to every count so that no cost is infinite.
    """
    values = np.asarray(codes).ravel()
    if values.size == 0:
        return np.zeros(0, np.float32)
    counts = np.bincount((values - values.min()).astype(np.int64)) + 0.5
    bits: Floats = (np.log2(counts.sum()) - np.log2(counts)).astype(np.float32)
    return bits


def crc32c(data: Buffer) -> int:
    """The CRC-32C (Castagnoli, RFC 3720) of contiguous bytes."""
    return _native.crc32c(data)


def xxh3_64(data: Buffer) -> int:
    """XXH3-64 with seed 0 and the default secret, of contiguous bytes."""
    return _native.xxh3_64(data)
