"""Layers of float32 weights that a sparse operator could compute, with what runs inside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import is_constant, only_reader
from onnxcomp.layer_parts import WeightedLayer, bias_of, form_refusal, is_layer


@dataclass(frozen=True, kw_only=True)
class FloatLayer(WeightedLayer):
    """A layer whose weight and bias are float32.

    Attributes:
        made: what an operator in its place makes, behind the Relu of a Conv that has one.
    """

    made: gs.Variable


def has_float_weight(node: gs.Node) -> bool:
    """Whether it is a layer whose weight is a constant of float32."""
    return is_layer(node) and is_constant(node.inputs[1]) and node.inputs[1].dtype == np.float32


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
    relu = only_reader(graph, made, "Relu") if node.op == "Conv" else None
    return FloatLayer(
        node=node,
        x=node.inputs[0],
        weight_name=tensor.name,
        weight=weight,
        bias=None if bias is None else bias.astype(np.float32),
        made=made if relu is None else relu.outputs[0],
        has_relu=relu is not None,
    )
