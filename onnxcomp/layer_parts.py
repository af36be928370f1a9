"""What layers of codes and of floats have in common: their form and their bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import input_at, is_constant, is_standard, only_reader, producer
from onnxcomp.linear_layers import UNPADDED
from onnxcomp.output_vectors import output_vector
from onnxcomp.quantization import Array

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, kw_only=True)
class WeightedLayer:
    """A Conv, MatMul or Gemm with a constant weight, and what runs inside it.

    Attributes:
        node: the operator.
        x: what it reads.
        weight_name: of the weight.
        weight: [out, in / group, *kernel]; of MatMul and Gemm [out, in].
        bias: [out], or None.
        has_relu: whether a Relu belongs to it.
    """

    node: gs.Node
    x: gs.Tensor
    weight_name: str
    weight: Array
    bias: Array | None
    has_relu: bool

    @property
    def group(self) -> int:
        """The groups of its channels; 1 but for some Convs."""
        return int(self.node.attrs.get("group", 1))

    @property
    def window(self) -> dict[str, Any]:
        """The attributes of a Conv, each written out."""
        return conv_window(self.node, self.weight.shape[2:])


def is_layer(node: gs.Node) -> bool:
    """Whether a node is an operator that multiplies what it reads with a second tensor."""
    return is_standard(node) and node.op in LAYERS and len(node.inputs) > 1


def conv_window(node: gs.Node, kernel_shape: tuple[int, ...]) -> dict[str, Any]:
    """The attributes of a Conv, each written out; its padding is not automatic."""
    attrs, rank = node.attrs, len(kernel_shape)
    pads = attrs.get("pads") if attrs.get("auto_pad", "NOTSET") == "NOTSET" else None
    return {
        "kernel_shape": [int(size) for size in kernel_shape],
        "strides": [int(step) for step in attrs.get("strides") or [1] * rank],
        "dilations": [int(step) for step in attrs.get("dilations") or [1] * rank],
        "pads": [int(size) for size in pads or [0] * 2 * rank],
        "group": int(attrs.get("group", 1)),
    }


def form_refusal(node: gs.Node, shape: tuple[int, ...]) -> str:
    """Why no sparse operator does what a layer with such a weight does; empty if one does."""
    attrs = node.attrs
    if node.op == "Conv":
        if len(shape) not in (3, 4):
            return f"its kernel has {len(shape) - 2} dimensions, not 1 or 2"
        if attrs.get("group", 1) > 1 == shape[1]:
            return "depthwise: one input for each output leaves nothing to skip"
        padding = attrs.get("auto_pad", "NOTSET")
        return "" if padding in UNPADDED else f"its padding is by auto_pad {padding}"
    if len(shape) != 2:
        return f"its weight has {len(shape)} dimensions, not 2"
    scaled = attrs.get("alpha", 1.0) != 1.0 or attrs.get("beta", 1.0) != 1.0
    return "it scales or transposes its input" if scaled or attrs.get("transA", 0) else ""


def bias_of(graph: gs.Graph, node: gs.Node, out: int) -> tuple[Array | str | None, gs.Variable]:
    """Real numbers [out], float64, or None, or a reason; and the tensor that has them added.

    That of an Add which alone reads a MatMul is one, too.
    """
    made = node.outputs[0]
    given = input_at(node, 2)
    if given is not None:
        values = real_values(given)
        vector = None if values is None else output_vector(values, out)
        return "its bias is not one constant for each output" if vector is None else vector, made
    add = only_reader(graph, made, "Add") if node.op == "MatMul" else None
    if add is None:
        return None, made
    for tensor in add.inputs:
        values = None if tensor is made else real_values(tensor)
        vector = None if values is None or values.ndim > 1 else output_vector(values, out)
        if vector is not None:
            return vector, add.outputs[0]
    return None, made


def real_values(tensor: gs.Tensor) -> Array | None:
    """The real numbers of a constant, or of one that is dequantized; float64."""
    if is_constant(tensor):
        return np.asarray(tensor.values, np.float64) if tensor.dtype == np.float32 else None
    source = dequantizer(tensor)
    if source is None or not all(is_constant(t) for t in source.inputs):
        return None
    codes, scale, *zero_point = (np.asarray(t.values) for t in source.inputs)
    if codes.dtype != np.int32 or codes.ndim > 1 or any(z.any() for z in zero_point):
        return None
    return codes * scale.astype(np.float64)


def dequantizer(tensor: gs.Tensor) -> gs.Node | None:
    """The DequantizeLinear that makes a tensor, if one does."""
    node = producer(tensor)
    found = node is not None and is_standard(node) and node.op == "DequantizeLinear"
    return node if found else None


def scalar(tensor: gs.Constant) -> Any:
    """The first number of a constant."""
    return np.asarray(tensor.values).reshape(-1)[0]
