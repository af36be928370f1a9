"""Numbers from bit fields: the Python door to decoding several payloads into one array.

docs/container.md specifies the fields (representation `planes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import CorruptContainer, KernelError
from onnxcomp.kernels import _native
from onnxcomp.kernels.coding import Buffer

WIDENINGS = ("", "float16", "bfloat16")
"""What `decode_planes` widens, by the compiled decoder's number."""


def decode_planes(
    payloads: Sequence[Buffer],
    widths: Sequence[int],
    rotated: bool,
    shape: tuple[int, int, int],
    out: npt.NDArray[Any],
    *,
    widened: str = "",
    isa: str = "auto",
) -> None:
    """Writes numbers whose bits are fields, from the top down; field i has the codes of payload i.

    Args:
        payloads: one a field, each of codes[rows, columns, kernel] = shape, at most 2^20.
        widths: bits of each field, 1 to 31; together 8, 16, 32 or 64. Codes count modulo 2^width.
        rotated: rotate each number right by one bit at last.
        shape: of the codes.
        out: uint8, contiguous and aligned, the bytes of the numbers.
        widened: "float16" or "bfloat16": the numbers are such floats, written as float32 of the
            same value; a NaN keeps its sign and its payload, zeros behind it.
        isa: a name of `coding.available_isas`, or "auto" for the best.

    Raises CorruptContainer naming the field and what is wrong with its payload, KernelError when
    the arguments do not fit each other. The global interpreter lock is released.
    """
    if out.dtype != np.uint8 or out.ndim != 1 or not out.flags.c_contiguous:
        raise KernelError(
            f"out is {out.dtype} {list(out.shape)}, expected contiguous uint8 [bytes]"
        )
    try:
        field, defect = _native.decode_planes(
            list(payloads), bytes(widths), rotated, WIDENINGS.index(widened), shape, out, isa
        )
    except (TypeError, ValueError) as error:
        raise KernelError(str(error).splitlines()[0]) from error
    if defect:
        raise CorruptContainer(
            f"field {field}: a payload of {memoryview(payloads[field]).nbytes} bytes: {defect}"
        )
