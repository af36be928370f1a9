"""Layers between DequantizeLinear and QuantizeLinear, read as sums of products of codes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import is_constant, only_reader
from onnxcomp.layer_parts import (
    WeightedLayer,
    bias_of,
    dequantizer,
    form_refusal,
    is_layer,
    scalar,
)
from onnxcomp.quantization import TINY, Array

LARGEST_SUM = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class QdqLayer(WeightedLayer):
    """A layer of uint8 codes and int8 weights, with what runs inside it.

    A sum of products of codes stands for sum * sum_scale, with the bias, int32, in the same units.
    What it reads are codes, the name of the weight is that of its codes, and where a Relu is
    between it and the codes that it makes, their lowest is 0.

    Attributes:
        x_scale: of x, a scalar of float32.
        x_zero_point: of x.
        weight_scale: float32 [out].
        end: the float tensor that the layer and its bias make.
        quantize: the QuantizeLinear that alone reads the end, or None: then floats are made.
    """

    x_scale: np.float32
    x_zero_point: int
    weight_scale: Array
    end: gs.Variable
    quantize: gs.Node | None

    @property
    def sum_scale(self) -> Array:
        """What one unit of a sum stands for, float32 [out]."""
        found: Array = self.x_scale * self.weight_scale
        return found

    @property
    def y_scale(self) -> np.float32:
        """Of the codes it makes; 1 where it makes floats."""
        scale = np.float32(1) if self.quantize is None else scalar(self.quantize.inputs[1])
        return np.float32(scale)

    @property
    def y_zero_point(self) -> int | None:
        """Of the codes it makes; None where it makes floats."""
        return None if self.quantize is None else int(scalar(self.quantize.inputs[2]))

    @property
    def made(self) -> gs.Variable:
        """The codes or floats that an operator in its place makes."""
        return self.end if self.quantize is None else self.quantize.outputs[0]


def has_coded_weight(node: gs.Node) -> bool:
    """Whether it is a layer whose weight is dequantized from constant codes."""
    if not is_layer(node):
        return False
    source = dequantizer(node.inputs[1])
    return source is not None and is_constant(source.inputs[0])


def qdq_layer(graph: gs.Graph, node: gs.Node) -> QdqLayer | str:
    """The layer of a node that `has_coded_weight`, or what keeps it from being one of codes.

    Parameters are taken as they are in the graph. A bias that is no codes, as the Add behind a
    MatMul has, is rounded to units of a sum, which are far below those of the result.
    """
    refusal = form_refusal(node, node.inputs[1].inputs[0].inputs[0].shape)
    source = dequantizer(node.inputs[0])
    if refusal or source is None or is_constant(source.inputs[0]):
        return refusal or "its input is floats, not codes"
    weight, grid = _weight(node), _grid(source)
    if isinstance(weight, str) or isinstance(grid, str):
        return weight if isinstance(weight, str) else str(grid)
    (codes, scale), (x_scale, x_zero_point) = weight, grid
    bias, end = bias_of(graph, node, len(codes))
    if isinstance(bias, str):
        return bias
    units = x_scale * scale
    if not (np.isfinite(units).all() and (units >= TINY).all()):
        return "the scale of its sums leaves the range of float32"
    bias = None if bias is None else np.rint(bias / units)
    if not (_largest_sums(codes, bias) <= LARGEST_SUM).all():
        return "its sums may leave 32 bits"
    quantize, has_relu = _quantizer(graph, end)
    return QdqLayer(
        node=node,
        x=source.inputs[0],
        x_scale=x_scale,
        x_zero_point=x_zero_point,
        weight_name=node.inputs[1].inputs[0].inputs[0].name,
        weight=codes,
        weight_scale=scale,
        bias=None if bias is None else bias.astype(np.int32),
        end=end,
        has_relu=has_relu,
        quantize=quantize,
    )


def _grid(source: gs.Node) -> tuple[np.float32, int] | str:
    """Scale and zero point of the codes of an input."""
    if any(not is_constant(t) for t in source.inputs[1:]) or source.inputs[1].values.size != 1:
        return "its input does not have one constant scale"
    if len(source.inputs) < 3 or source.inputs[2].dtype != np.uint8:
        return "its input is not codes of uint8"
    if source.inputs[1].dtype != np.float32:
        return "its input's scale is not float32"
    return np.float32(scalar(source.inputs[1])), int(scalar(source.inputs[2]))


def _weight(node: gs.Node) -> tuple[Array, Array] | str:
    """Codes by output and a scale for each output."""
    source = node.inputs[1].inputs[0]
    tensor, scale = source.inputs[:2]
    if tensor.dtype != np.int8:
        return "its weights are not codes of int8"
    if not all(is_constant(t) for t in source.inputs) or scale.dtype != np.float32:
        return "its weights' scales are not constants of float32"
    if len(source.inputs) > 2 and np.asarray(source.inputs[2].values).any():
        return "its weights have a zero point"
    by_output = node.op == "Conv" or bool(node.attrs.get("transB", 0))
    steps, out = np.asarray(scale.values), tensor.shape[0 if by_output else 1]
    axis = source.attrs.get("axis", 1) % len(tensor.shape)
    if steps.size > 1 and (steps.shape != (out,) or axis != (0 if by_output else 1)):
        return "its weights' scales are not one for each output"
    codes = np.asarray(tensor.values)
    if 0 in codes.shape:
        return "its weight is empty"
    steps = np.broadcast_to(steps.reshape(-1), (out,))
    return np.ascontiguousarray(codes if by_output else codes.T), np.ascontiguousarray(steps)


def _largest_sums(codes: Array, bias: Array | None) -> Array:
    """Magnitudes that no sum of an output exceeds, whatever codes of uint8 it reads, [out]."""
    sums: Array = np.abs(codes.reshape(len(codes), -1).astype(np.int64)).sum(axis=1) * 255.0
    return sums if bias is None else sums + np.abs(bias)


def _quantizer(graph: gs.Graph, end: gs.Variable) -> tuple[gs.Node | None, bool]:
    """The QuantizeLinear that alone reads ``end``, or a Relu that its lowest code stands for."""
    found = only_reader(graph, end)
    if found is not None and found.op == "Relu":
        found = only_reader(graph, found.outputs[0])
        coded = found is not None and _makes_uint8(found)
        lowest = coded and found is not None and int(scalar(found.inputs[2])) == 0
        return (found, True) if lowest else (None, False)
    return (found, False) if found is not None and _makes_uint8(found) else (None, False)


def _makes_uint8(node: gs.Node) -> bool:
    if node.op != "QuantizeLinear" or len(node.inputs) < 3:
        return False
    scale, zero_point = node.inputs[1:3]
    if not (is_constant(scale) and is_constant(zero_point)):
        return False
    single = scale.values.size == zero_point.values.size == 1
    return bool(single and scale.dtype == np.float32 and zero_point.dtype == np.uint8)
