"""Codes that more than their frequencies tell about, and how many bits those alone take."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int32]


def correlated(rows: int, columns: int) -> Codes:
    """3x3 kernels whose neighbours are alike, and whose channels differ in scale."""
    rng = np.random.default_rng(2)
    white = rng.standard_normal((rows, columns, 5, 5))
    smooth = sum(white[..., i : i + 3, j : j + 3] for i in range(3) for j in range(3)) / 3
    scale = np.exp(rng.standard_normal((rows, 1, 1, 1)) * 0.4)
    return np.rint(smooth * scale * 2).astype(np.int32).reshape(rows, columns, 9)


def entropy_bits(codes: Codes) -> float:
    """By the zeroth-order entropy."""
    counts = np.unique(codes, return_counts=True)[1]
    return float(-(counts * np.log2(counts / codes.size)).sum())
