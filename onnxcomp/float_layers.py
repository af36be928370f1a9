"""Layers of float32 weights that a sparse operator could compute, with what runs inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import is_constant, is_standard
from onnxcomp.layer_parts import LAYERS, bias_of, conv_window, form_refusal, only_reader
from onnxcomp.quantization import Array


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """A Conv, MatMul or Gemm of float32 with a constant weight, and its bias and Relu.

    Attributes:
        node: the operator.
        x: what it reads.
        weight_name: of the weight.
        weight: float32 [out, in / group, *kernel]; of MatMul and Gemm [out, in].
        bias: float32 [out], or None.
        made: what an operator in its place makes.
        has_relu: whether that is behind the Relu of a Conv.
    """

    node: gs.Node
    x: gs.Tensor
    weight_name: str
    weight: Array
    bias: Array | None
    made: gs.Variable
    has_relu: bool

    @property
    def group(self) -> int:
        """The groups of its channels; 1 but for some Convs."""
        return int(self.node.attrs.get("group", 1))

    @property
    def window(self) -> dict[str, Any]:
        """The attributes of a Conv, each written out."""
        return conv_window(self.node, self.weight.shape[2:])


def has_float_weight(node: gs.Node) -> bool:
    """Whether it is a layer whose weight is a constant of float32."""
    if not is_standard(node) or node.op not in LAYERS or len(node.inputs) < 2:
        return False
    weight = node.inputs[1]
    return is_constant(weight) and weight.dtype == np.float32


def float_layer(graph: gs.Graph, node: gs.Node) -> FloatLayer | str:
    """The layer of a node that `has_float_weight`, or what keeps it from being sparse."""
    tensor = node.inputs[1]
    refusal = form_refusal(node, tensor.shape)
    if refusal or is_constant(node.inputs[0]) or 0 in tensor.shape:
        return refusal or "its input is constant, or its weight is empty"
    by_output = node.op == "Conv" or bool(node.attrs.get("transB", 0))
    weight = np.asarray(tensor.values)
    weight = np.ascontiguousarray(weight if by_output else weight.T)
    bias, made = bias_of(graph, node, len(weight))
    if isinstance(bias, str):
        return bias
    relu = only_reader(graph, made) if node.op == "Conv" else None
    has_relu = relu is not None and relu.op == "Relu"
    return FloatLayer(
        node=node,
        x=node.inputs[0],
        weight_name=tensor.name,
        weight=weight,
        bias=None if bias is None else bias.astype(np.float32),
        made=relu.outputs[0] if relu is not None and has_relu else made,
        has_relu=has_relu,
    )
