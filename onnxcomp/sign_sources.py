"""Which tensors of a graph are signs, -1 and +1, and what makes them so.

A sign comes from `Sign`, or from `Where` that a comparison with constants switches between -1 and
+1, as exporters of binarized networks write it. What scales and shifts channels before it is found
here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, is_constant, is_output, is_standard, producer
from onnxcomp.sign_thresholds import MIRRORED, OPPOSITE, Affine, Comparison

_COMPARISONS: dict[str, Comparison] = {
    "Greater": "greater",
    "GreaterOrEqual": "greater_or_equal",
    "Less": "less",
    "LessOrEqual": "less_or_equal",
}
_RANKS = (2, 4)  # of tensors whose axis 1 has the channels


@dataclass(frozen=True)
class SignSource:
    """Where a sign is made: +1 where ``tensor comparison levels`` holds, else -1.

    Attributes:
        node: the last node: Sign or Where.
        tensor: what is compared, [batch, channels] or [batch, channels, height, width].
        levels: [1] or [channels].
        zero_counts: False for Sign, which makes a third value of equality.
    """

    node: gs.Node
    tensor: gs.Variable
    comparison: Comparison
    levels: npt.NDArray[np.float32]
    zero_counts: bool


def source_of(tensor: gs.Tensor) -> SignSource | None:
    """What makes ``tensor`` a sign, if it is that itself."""
    node = producer(tensor)
    if node is None or not is_standard(node):
        return None
    if node.op == "Sign":
        value = node.inputs[0]
        zero = np.zeros(1, np.float32)
        return SignSource(node, value, "greater", zero, False) if _is_layered(value) else None
    if node.op != "Where":
        return None
    high, low = (_single(choice) for choice in node.inputs[1:3])
    compared = producer(node.inputs[0])
    if {high, low} != {1.0, -1.0} or compared is None or compared.op not in _COMPARISONS:
        return None
    comparison = _COMPARISONS[compared.op]
    value, level = compared.inputs
    if is_constant(value):
        (value, level), comparison = (level, value), MIRRORED[comparison]
    if not _is_layered(value):
        return None
    levels = per_channel(level, len(value.shape))
    if levels is None or levels.dtype != np.float32 or np.isnan(levels).any():
        return None
    if high == -1.0:
        comparison = OPPOSITE[comparison]
    return SignSource(node, value, comparison, levels, True)


def per_channel(tensor: gs.Tensor, rank: int) -> npt.NDArray[Any] | None:
    """A constant of [1] or [channels] numbers along axis 1 of ``rank`` axes, or None."""
    if not is_constant(tensor):
        return None
    values = np.asarray(tensor.values)
    if values.ndim > rank:
        return None
    shape = (1,) * (rank - values.ndim) + values.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    return values.reshape(-1)


def affine_chain(graph: gs.Graph, end: gs.Tensor) -> Iterator[gs.Node]:
    """Nodes that scale and shift each channel, from ``end`` up; each result has no other reader."""
    tensor = end
    while not is_output(graph, tensor) and len(consumers(tensor)) == 1:
        node = producer(tensor)
        if node is None or not is_standard(node) or _step(node) is None:
            return
        yield node
        tensor = node.inputs[_step(node)[0]]  # type: ignore[index]


def apply_chain(affine: Affine, nodes: list[gs.Node]) -> Affine:
    """``affine`` and what these nodes make of it, first one first."""
    for node in nodes:
        step = _step(node)
        assert step is not None  # affine_chain yields no others
        affine = affine.then(step[1], step[2])
    return affine


def _step(node: gs.Node) -> tuple[int, Any, Any] | None:
    """(which input goes through, factor, offset) of a node that is affine in each channel."""
    shape = node.outputs[0].shape
    if node.op == "BatchNormalization":
        if node.attrs.get("training_mode", 0) or not all(map(is_constant, node.inputs[1:5])):
            return None
        scale, bias, mean, variance = (
            np.asarray(t.values, dtype=np.float64) for t in node.inputs[1:5]
        )
        factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return 0, factor, bias - mean * factor
    if node.op not in ("Add", "Sub", "Mul", "Div") or shape is None or len(shape) not in _RANKS:
        return None
    through = 1 if is_constant(node.inputs[0]) else 0
    found = per_channel(node.inputs[1 - through], len(shape))
    if found is None or (node.op == "Div" and (through == 1 or not found.all())):
        return None
    number = found.astype(np.float64)
    if node.op == "Mul":
        return through, number, 0.0
    if node.op == "Div":
        return through, 1 / number, 0.0
    if node.op == "Add":
        return through, 1.0, number
    return (0, 1.0, -number) if through == 0 else (1, -1.0, number)


def _single(tensor: gs.Tensor) -> float | None:
    if not is_constant(tensor) or np.size(tensor.values) != 1:
        return None
    return float(np.asarray(tensor.values).reshape(-1)[0])


def _is_layered(tensor: gs.Tensor) -> bool:
    """Whether it is a float32 variable whose axis 1 has the channels."""
    return (
        isinstance(tensor, gs.Variable)
        and tensor.dtype == np.float32
        and tensor.shape is not None
        and len(tensor.shape) in _RANKS
    )
