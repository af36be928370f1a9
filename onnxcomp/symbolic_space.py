"""Shapes of what slides along, pads, repeats or resizes axes of symbolic lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import input_at
from onnxcomp.length_values import Known, Shape
from onnxcomp.lengths import Size


def _slid(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    """Conv and pools: the batch stays, and space loses what the kernel spans."""
    data = known.shape(node.inputs[0])
    kernel = known.shape(node.inputs[1]) if node.op == "Conv" else None
    if data is None or (node.op == "Conv" and kernel is None):
        return [None] * len(node.outputs)
    channels = data[1] if kernel is None else kernel[0]
    spans: Sequence[Any] = node.attrs["kernel_shape"] if kernel is None else kernel[2:]
    space = [_steps(known, node, axis, size, spans[axis]) for axis, size in enumerate(data[2:])]
    return [(data[0], channels, *space)] * len(node.outputs)


def _steps(known: Known, node: gs.Node, axis: int, size: Size, span: int) -> Size:
    """How many places a kernel takes along one axis."""
    strides, dilations = node.attrs.get("strides"), node.attrs.get("dilations")
    pads = node.attrs.get("pads") or [0] * 16
    stride, dilation = (1 if x is None else int(x[axis]) for x in (strides, dilations))
    padding = str(node.attrs.get("auto_pad", "NOTSET"))
    if padding == "NOTSET":
        other = pads[axis + (len(pads) // 2 if node.attrs.get("pads") else 0)]
        left = size + int(pads[axis]) + int(other) - dilation * (span - 1) - 1
        if stride == 1:
            return left + 1
        if isinstance(left, int):
            return (-(-left // stride) if node.attrs.get("ceil_mode", 0) else left // stride) + 1
        return known.opaque("steps", str(left), stride, node.attrs.get("ceil_mode", 0))
    if padding.startswith("SAME") and isinstance(size, int):
        return -(-size // stride)
    if padding.startswith("SAME") and stride == 1:
        return size
    return known.opaque("steps", str(size), stride, span, dilation, padding)


def _single(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    """Global pools."""
    data = known.shape(node.inputs[0]) or ()
    return [(*data[:2], *[1] * (len(data) - 2))]


def _spread(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    """ConvTranspose: space has the names of the output."""
    data, kernel = (known.shape(tensor) for tensor in node.inputs[:2])
    if data is None or kernel is None:
        return [None]
    name = node.outputs[0].name
    space = [known.opaque(name, axis) for axis in range(len(data) - 2)]
    return [(data[0], kernel[1] * int(node.attrs.get("group", 1)), *space)]


def _pad(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    data, name = known.shape(node.inputs[0]) or (), node.outputs[0].name
    value = known.value(input_at(node, 1))
    pads = node.attrs.get("pads") if value is None else value.ravel().tolist()
    axes = known.integers(input_at(node, 3)) or list(range(len(data)))
    if pads is None:
        return [tuple(known.opaque(name, axis) for axis in range(len(data)))]
    result = list(data)
    for i, axis in enumerate(axes):
        begin, end = pads[i], pads[i + len(axes)]
        unknown = begin is None or end is None
        result[axis] = known.opaque(name, axis) if unknown else data[axis] + begin + end
    return [tuple(result)]


def _tile(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    data, name = known.shape(node.inputs[0]) or (), node.outputs[0].name
    repeats = known.value(node.inputs[1])
    times: list[Any] = [None] * len(data) if repeats is None else repeats.tolist()
    pairs = enumerate(zip(data, times, strict=True))
    return [tuple(known.opaque(name, i) if n is None else size * n for i, (size, n) in pairs)]


def _resize(known: Known, node: gs.Node) -> Sequence[Shape | None]:
    """By sizes, or by scales where they make whole lengths."""
    data, name = known.shape(node.inputs[0]) or (), node.outputs[0].name
    scales, target = known.value(input_at(node, 2)), known.value(input_at(node, 3))
    result: list[Size] = []
    for axis, size in enumerate(data):
        found = None
        if target is not None and target.size == len(data):
            found = target.ravel()[axis]
        elif scales is not None and scales.size == len(data):
            scale = scales.ravel()[axis]
            whole = scale is not None and float(scale).is_integer()
            if isinstance(size, int) and scale is not None:
                found = int(np.floor(size * scale))
            elif whole:
                found = size * int(scale)
        result.append(known.opaque(name, axis) if found is None else found)
    return [tuple(result)]


SPACE: dict[str, Callable[[Known, gs.Node], Sequence[Shape | None]]] = {
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool", "LpPool"), _slid),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _single),
    "ConvTranspose": _spread,
    "Pad": _pad,
    "Tile": _tile,
    "Resize": _resize,
}
