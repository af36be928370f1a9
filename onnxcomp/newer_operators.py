"""Operators that are written otherwise in opset 21 than in 13 to 20, one function each.

All others that changed only took more types, or attributes whose default is what they did before.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import is_constant
from onnxcomp.operator_versions import Converter

REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSumSquare"),
)
MODES = {"bilinear": "linear", "bicubic": "cubic"}


def _reduce(converter: Converter, node: gs.Node) -> None:
    axes = node.attrs.get("axes")
    if converter.new < 18 or axes is None:
        return
    node.attrs = {name: value for name, value in node.attrs.items() if name != "axes"}
    if axes:  # an empty list always meant all axes
        node.inputs = [node.inputs[0], converter.constant(node, "axes", axes, np.int64)]


def _split(converter: Converter, node: gs.Node) -> None:
    """Without sizes, into as many equal parts as there are outputs: now it has to be said."""
    if converter.new < 18 or (len(node.inputs) > 1 and node.inputs[1].name):
        return
    node.attrs = {"num_outputs": len(node.outputs), **node.attrs}


def _roi_align(converter: Converter, node: gs.Node) -> None:
    if converter.old < 16 <= converter.new:
        mode = {"coordinate_transformation_mode": "output_half_pixel"}
        node.attrs = {**mode, **node.attrs}


def _grid_sample(converter: Converter, node: gs.Node) -> None:
    if converter.old < 20 <= converter.new:
        mode = str(node.attrs.get("mode", "bilinear"))
        node.attrs = {**node.attrs, "mode": MODES.get(mode, mode)}


def _group_norm(converter: Converter, node: gs.Node) -> None:
    """Scale and bias were one value a group, and are one a channel."""
    if not converter.old < 21 <= converter.new:
        return
    shape, groups = converter.shape(node.inputs[0]), int(node.attrs["num_groups"])
    channels = shape[1] if shape is not None and len(shape) > 1 else None
    if not isinstance(channels, int) or not all(is_constant(t) for t in node.inputs[1:3]):
        raise converter.failure(node, "its scale is one value a group, of unknown channels")
    for index, what in ((1, "scale"), (2, "bias")):
        values = np.repeat(node.inputs[index].values, channels // groups)
        node.inputs[index] = converter.constant(node, what, values, values.dtype)


def _dft(converter: Converter, node: gs.Node) -> None:
    if not converter.old < 20 <= converter.new:
        return
    axis = int(node.attrs.get("axis", 1))
    node.attrs = {name: value for name, value in node.attrs.items() if name != "axis"}
    length = node.inputs[1] if len(node.inputs) > 1 else gs.Variable.empty()
    node.inputs = [node.inputs[0], length, converter.constant(node, "axis", axis, np.int64)]


NEWER: dict[str, Callable[[Converter, gs.Node], None]] = {
    **dict.fromkeys(REDUCTIONS, _reduce),
    "DFT": _dft,
    "GridSample": _grid_sample,
    "GroupNormalization": _group_norm,
    "RoiAlign": _roi_align,
    "Split": _split,
}
