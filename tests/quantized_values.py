"""What tests of quantization read from a graph, and how alike two arrays are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

Array = np.ndarray[Any, np.dtype[Any]]


def constant(graph: gs.Graph, name: str) -> Array:
    """The values of the constant called ``name``."""
    tensor = graph.tensors()[name]
    assert isinstance(tensor, gs.Constant)
    return np.asarray(tensor.values)


def sqnr_db(want: Array, got: Array) -> float:
    """Energy of ``want`` over that of the difference."""
    noise = ((want.astype(np.float64) - got) ** 2).sum()
    return float(10 * np.log10((want.astype(np.float64) ** 2).sum() / noise))
