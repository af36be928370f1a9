"""Operators that are written otherwise in opset 13 than in 7 to 12, one function each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcomp.errors import OpsetConversionFailed
from onnxcomp.graph import Names, label
from onnxcomp.rewriting import small_values
from onnxcomp.shapes import TensorType


class Converter:
    """What a rewrite may use: one graph or body on its way from opset ``old`` to ``new``."""

    def __init__(
        self, graph: gs.Graph, types: dict[str, TensorType], names: Names, old: int, new: int
    ) -> None:
        self.graph, self.types, self.names, self.old, self.new = graph, types, names, old, new

    def failure(self, node: gs.Node, reason: str) -> OpsetConversionFailed:
        """The error for a node that cannot be converted."""
        return OpsetConversionFailed(
            f"node {label(node)!r} ({node.op}, opset {self.old}): {reason}"
        )

    def dtype(self, tensor: gs.Tensor) -> np.dtype[Any]:
        """numpy dtype of a tensor; float32 where inference does not say."""
        known = self.types.get(tensor.name)
        found = tensor.dtype if isinstance(tensor, gs.Constant) else known and known.dtype
        dtype: np.dtype[Any] = np.dtype(np.float32 if found is None else found)
        return dtype

    def shape(self, tensor: gs.Tensor) -> tuple[Any, ...] | None:
        """Shape of a tensor as far as inference says."""
        if isinstance(tensor, gs.Constant):
            return tuple(tensor.shape)
        known = self.types.get(tensor.name)
        return known.shape if known is not None else None

    def constant(self, node: gs.Node, what: str, values: Any, dtype: npt.DTypeLike) -> gs.Constant:
        """A constant input for ``node``."""
        name = self.names.fresh(f"{node.outputs[0].name}.{what}")
        return gs.Constant(name, np.asarray(values, dtype))

    def node(
        self, op: str, like: gs.Node, inputs: Sequence[gs.Tensor], what: str, **attrs: Any
    ) -> gs.Variable:
        """Adds a node before ``like``; its result."""
        result = gs.Variable(self.names.fresh(f"{like.outputs[0].name}.{what}"))
        added = gs.Node(
            op, self.names.fresh(f"{label(like)}.{what}"), attrs, list(inputs), [result]
        )
        position = next(i for i, n in enumerate(self.graph.nodes) if n is like)
        self.graph.nodes.insert(position, added)
        return result


def _pop(node: gs.Node, *names: str) -> list[Any]:
    """Removes attributes; their values, None for absent ones."""
    values = [node.attrs.get(name) for name in names]
    node.attrs = {name: value for name, value in node.attrs.items() if name not in names}
    return values


def _put_inputs(node: gs.Node, *tensors: gs.Tensor | None) -> None:
    """Puts optional inputs behind the first one; absent ones at the end are left out."""
    inputs = [node.inputs[0], *(gs.Variable.empty() if t is None else t for t in tensors)]
    while not inputs[-1].name:
        inputs.pop()
    node.inputs = inputs


def _axes_to_input(converter: Converter, node: gs.Node) -> None:
    (axes,) = _pop(node, "axes")
    if axes is not None:
        _put_inputs(node, converter.constant(node, "axes", axes, np.int64))


def _split(converter: Converter, node: gs.Node) -> None:
    (sizes,) = _pop(node, "split")
    if sizes is not None:
        _put_inputs(node, converter.constant(node, "split", sizes, np.int64))


def _clip(converter: Converter, node: gs.Node) -> None:
    if converter.old >= 11:
        return
    kind = converter.dtype(node.inputs[0])
    bounds = zip(("min", "max"), _pop(node, "min", "max"), strict=True)
    _put_inputs(
        node,
        *(None if v is None else converter.constant(node, name, v, kind) for name, v in bounds),
    )


def _pad(converter: Converter, node: gs.Node) -> None:
    if converter.old >= 11:
        return
    pads, value = _pop(node, "pads", "value")
    fill = None
    if value and node.attrs.get("mode", "constant") == "constant":
        fill = converter.constant(node, "value", value, converter.dtype(node.inputs[0]))
    _put_inputs(node, converter.constant(node, "pads", pads, np.int64), fill)


def _slice(converter: Converter, node: gs.Node) -> None:
    if converter.old >= 10:
        return
    names = ("starts", "ends", "axes")
    values = zip(names, _pop(node, *names), strict=True)
    _put_inputs(
        node,
        *(None if v is None else converter.constant(node, n, v, np.int64) for n, v in values),
    )


def _top_k(converter: Converter, node: gs.Node) -> None:
    if converter.old < 10:
        (count,) = _pop(node, "k")
        _put_inputs(node, converter.constant(node, "k", [count], np.int64))


def _dropout(converter: Converter, node: gs.Node) -> None:
    if len(node.outputs) > 1 and node.outputs[1].outputs:
        raise converter.failure(node, "its mask is used, whose type changed")
    node.outputs = node.outputs[:1]
    _pop(node, "ratio")  # has no effect in inference


def _batch_norm(converter: Converter, node: gs.Node) -> None:
    (spatial,) = _pop(node, "spatial")
    if spatial == 0:
        raise converter.failure(node, "spatial=0 was removed")


def _softmax(converter: Converter, node: gs.Node) -> None:
    """Before opset 13 all axes from ``axis`` on were one: flatten, apply, and restore."""
    axis, shape = node.attrs.get("axis", 1), converter.shape(node.inputs[0])
    if shape is not None:
        axis %= max(1, len(shape))
        if all(size == 1 for size in shape[axis + 1 :]):
            node.attrs = {"axis": axis}
            return
    source = node.inputs[0]
    if shape is not None and all(isinstance(size, int) and size for size in shape):
        target: gs.Tensor = converter.constant(node, "shape", shape, np.int64)
    else:
        target = converter.node("Shape", node, [source], "shape")
    flat = converter.node("Flatten", node, [source], "flat", axis=axis)
    result = converter.node(node.op, node, [flat], "rows", axis=-1)
    node.op, node.attrs = "Reshape", {}
    node.inputs = [result, target]


def _upsample(converter: Converter, node: gs.Node) -> None:
    """Upsample, and Resize of opset 10, are Resize with coordinates divided by the scale."""
    (scales,) = _pop(node, "scales")
    if node.op == "Resize" and converter.old >= 11:
        return
    tensor = (
        node.inputs[1] if scales is None else converter.constant(node, "scales", scales, np.float32)
    )
    values = small_values(tensor)
    shrinks = values is not None and bool((values < 1).any())
    if shrinks and values is not None and (values > 1).any():
        raise converter.failure(node, "it enlarges one axis and shrinks another")
    node.attrs = {
        "mode": node.attrs.get("mode", "nearest"),
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "ceil" if shrinks and node.op == "Resize" else "floor",
    }
    node.op = "Resize"
    _put_inputs(node, None, tensor)


def _scatter(converter: Converter, node: gs.Node) -> None:
    node.op = "ScatterElements"


def _scan(converter: Converter, node: gs.Node) -> None:
    if converter.old < 9:
        raise converter.failure(node, "its batch axis was removed")


# What was never in a release of ONNX's operators, and onnxruntime runs all the same.


def _unchanged(converter: Converter, node: gs.Node) -> None:
    """Became part of ONNX as it was."""


def _affine(converter: Converter, node: gs.Node) -> None:
    alpha, beta = _pop(node, "alpha", "beta")
    kind = converter.dtype(node.inputs[0])
    factor = converter.constant(node, "alpha", 1.0 if alpha is None else alpha, kind)
    product = converter.node("Mul", node, [node.inputs[0], factor], "scaled")
    node.op = "Add"
    offset = converter.constant(node, "beta", 0.0 if beta is None else beta, kind)
    node.inputs = [product, offset]


def _image_scaler(converter: Converter, node: gs.Node) -> None:
    scale, bias = _pop(node, "scale", "bias")
    kind = converter.dtype(node.inputs[0])
    factor = converter.constant(node, "scale", 1.0 if scale is None else scale, kind)
    product = converter.node("Mul", node, [node.inputs[0], factor], "scaled")
    node.op = "Add"
    offsets = np.reshape(bias or [0.0], (1, -1, 1, 1))
    node.inputs = [product, converter.constant(node, "bias", offsets, kind)]


def _crop(converter: Converter, node: gs.Node) -> None:
    """Crop of [N, C, H, W] by border (left, top, right, bottom), to size ``scale`` if given."""
    border, size = _pop(node, "border", "scale")
    left, top, right, bottom = border or (0, 0, 0, 0)
    ends = [top + size[0], left + size[1]] if size else [-bottom or 2**31, -right or 2**31]
    node.op = "Slice"
    _put_inputs(
        node,
        converter.constant(node, "starts", [top, left], np.int64),
        converter.constant(node, "ends", ends, np.int64),
        converter.constant(node, "axes", [2, 3], np.int64),
    )


def _scaled_tanh(converter: Converter, node: gs.Node) -> None:
    alpha, beta = _pop(node, "alpha", "beta")
    kind = converter.dtype(node.inputs[0])
    inner = converter.constant(node, "beta", 1.0 if beta is None else beta, kind)
    outer = converter.constant(node, "alpha", 1.0 if alpha is None else alpha, kind)
    product = converter.node("Mul", node, [node.inputs[0], inner], "scaled")
    node.op = "Mul"
    node.inputs = [outer, converter.node("Tanh", node, [product], "tanh")]


REWRITES: dict[str, Callable[[Converter, gs.Node], None]] = {
    **dict.fromkeys(("Squeeze", "Unsqueeze", "ReduceSum"), _axes_to_input),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("Upsample", "Resize"), _upsample),
    "Affine": _affine,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Crop": _crop,
    "Dropout": _dropout,
    "ImageScaler": _image_scaler,
    "Pad": _pad,
    "ScaledTanh": _scaled_tanh,
    "Scan": _scan,
    "Scatter": _scatter,
    "Slice": _slice,
    "Split": _split,
    "ThresholdedRelu": _unchanged,
    "TopK": _top_k,
}
