"""The numpy twin of `planes.decode_planes`, on codes that are decoded already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def join_fields(
    fields: Sequence[npt.NDArray[np.int32]], widths: Sequence[int], rotated: bool
) -> npt.NDArray[Any]:
    """Unsigned numbers whose fields, from the top down, are codes modulo 2^width."""
    bits = sum(widths)
    numbers = np.zeros(fields[0].size, np.uint64)
    for codes, width in zip(fields, widths, strict=True):
        field = codes.reshape(-1).view(np.uint32).astype(np.uint64) & np.uint64(2**width - 1)
        numbers = (numbers << np.uint64(width)) | field
    if rotated:
        numbers = (numbers >> np.uint64(1)) | (numbers << np.uint64(bits - 1))
    return numbers.astype(f"u{bits // 8}")
