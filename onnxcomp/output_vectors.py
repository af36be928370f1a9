"""Constants that hold a number for each output of a layer, as biases do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxcomp.quantization import Array


def is_output_vector(shape: Sequence[int], out: int) -> bool:
    """Whether a constant broadcasts to [..., out] with the same number in every row.

    [out, 1] does not: where there happen to be as many rows, it holds a number for each of them.
    """
    size = math.prod(shape)
    return size == 1 or (size == out and shape[-1] == out)


def output_vector(values: Array, out: int) -> Array | None:
    """The numbers [out] of a constant, one or all of which are given; None where it is another."""
    if not is_output_vector(values.shape, out):
        return None
    return np.broadcast_to(values.reshape(-1), (out,))
