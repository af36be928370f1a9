"""Trellis-coded integers: the Python door to the compiled Viterbi search and its inverse.

What a code stands for depends on the parities of the codes before it in its sequence: an even
integer, or an odd one or zero. Chosen together, codes of such sequences err less than a uniform
quantizer's of the same entropy. docs/container.md specifies them (representation `trellis`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import KernelError
from onnxcomp.kernels import _native

Codes = npt.NDArray[np.int32]
LARGEST_TARGET = 2.0**28


def choose(targets: npt.NDArray[Any], prices: npt.NDArray[Any], period: int) -> tuple[Codes, float]:
    """The integers with the least sum of (target - integer)^2 + price, and that sum.

    By the Viterbi algorithm (Forney, "The Viterbi algorithm", 1973) over 16 states.

    Args:
        targets: sequences in units of an integer, [sequences, length].
        prices: of the codes 0, 1, 2 ... and of their negatives, at least one; what is larger costs
            as much as the last one.
        period: after so many of a sequence the state is 0 again.

    Raises KernelError when the arguments do not fit each other or are not finite.
    """
    targets = np.ascontiguousarray(targets, np.float64)
    prices = np.ascontiguousarray(prices, np.float32)
    if targets.ndim != 2 or not (np.abs(targets) <= LARGEST_TARGET).all():
        raise KernelError(f"targets {list(targets.shape)} are no finite sequences")
    if not np.isfinite(prices).all():
        raise KernelError("prices are not finite")
    integers = np.empty(targets.shape, np.int32)
    try:
        cost = _native.choose_trellis(targets, period, prices, integers)
    except (TypeError, ValueError) as error:
        raise KernelError(str(error).splitlines()[0]) from error
    return integers, cost


def codes_of(integers: npt.NDArray[Any]) -> Codes:
    """The codes that stand for integers which `choose` chose."""
    codes: Codes = (np.sign(integers) * ((np.abs(integers) + 1) >> 1)).astype(np.int32)
    return codes


def restore(codes: Codes) -> None:
    """Replaces codes [outer, length, inner] by the integers that they stand for.

    Sequences run along the axis in the middle, each from state 0.

    Raises KernelError unless the codes are contiguous int32 of three axes, and writeable.
    """
    if codes.dtype != np.int32 or codes.ndim != 3 or not codes.flags.c_contiguous:
        raise KernelError(f"codes are {codes.dtype} {list(codes.shape)}, expected int32 [o, l, i]")
    if not codes.flags.writeable:
        raise KernelError("codes cannot be written")
    _native.restore_trellis(codes)
