"""How factors of channels pass through operators: op(s * x) = s * op(x).

Each rule gives the labels of a node's outputs from those of its inputs, and tells which of them
have to be equal. An operator without a rule keeps its inputs and outputs as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import is_constant
from onnxcomp.scale_labels import Array, Labels
from onnxcomp.units import clip_bounds

LARGEST = 1 << 20  # labels of one tensor
GATES = ("HardSigmoid", "Sigmoid", "Softmax", "Tanh")


@dataclass
class Port:
    """A node whose constants can take factors.

    Attributes:
        node: the operator.
        reads: labels of the channels of its first input, [in_channels], or None.
        makes: labels of its output: [out_channels], or broadcast to the output where an elementwise
            constant is added.
    """

    node: gs.Node
    reads: Array | None
    makes: Array


@dataclass
class Sweep:
    """One walk over a graph in its order.

    Attributes:
        labels: all that were given out.
        of: labels of every tensor seen, by name.
        ports: in the order of the graph.
    """

    labels: Labels = field(default_factory=Labels)
    of: dict[str, Array] = field(default_factory=dict)
    ports: list[Port] = field(default_factory=list)

    def pinned(self, tensor: gs.Tensor, reason: str) -> Array:
        """Labels of a tensor that keeps its scale."""
        found = self.labels.fresh(*[1] * len(tensor.shape or ()))
        self.labels.pin(found, reason)
        return found

    def pin_inputs(self, node: gs.Node, reason: str) -> None:
        """Lets the inputs of ``node`` keep their scales."""
        for tensor in node.inputs:
            if tensor.name in self.of:
                self.labels.pin(self.of[tensor.name], reason)

    def vector(self, tensor: gs.Tensor, axis: int, size: int) -> Array:
        """The labels of a tensor along one axis, [size]; other axes must not have their own."""
        found = self.of[tensor.name]
        moved = np.moveaxis(found, axis, 0).reshape(found.shape[axis], -1)
        if moved.shape[1] > 1:
            self.labels.same(moved, moved[:, :1])
        return np.broadcast_to(moved[:, 0], (size,))

    def along(self, tensor: gs.Tensor, axis: int, labels: Array) -> Array:
        """``labels`` [size] as those of a tensor along ``axis``."""
        shape = [1] * len(tensor.shape)
        shape[axis] = -1
        return labels.reshape(shape)


def is_float(tensor: gs.Tensor) -> bool:
    """Whether a tensor is float32."""
    return bool(tensor.dtype == np.float32)


def sizes(tensor: gs.Tensor) -> list[Any] | None:
    """The dimensions of a tensor, or None."""
    return None if tensor.shape is None else list(tensor.shape)


def is_weight(tensor: gs.Tensor, rank: int | None = None) -> bool:
    """Whether a tensor is a float constant, of a rank."""
    return (
        is_constant(tensor)
        and tensor.dtype == np.float32
        and (rank is None or len(tensor.shape) == rank)
    )


# --- layers ---------------------------------------------------------------------------------------


def layer_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Conv, ConvTranspose, Gemm, MatMul with constant weights: both sides are free."""
    data, weight, *rest = node.inputs
    bias = [t for t in rest if t.name]
    if data.name not in sweep.of or not is_weight(weight) or not all(is_weight(t) for t in bias):
        return None
    if data.shape is None or node.outputs[0].shape is None:
        return None
    if len(weight.outputs) != 1:
        sweep.pin_inputs(node, "another node reads its weights")
        return [sweep.pinned(node.outputs[0], "another node reads its weights")]
    group, shape = node.attrs.get("group", 1), list(weight.shape)
    if node.op == "Conv":
        axis, ins, outs = 1, shape[1] * group, shape[0]
    elif node.op == "ConvTranspose":
        axis, ins, outs = 1, shape[0], shape[1] * group
    elif len(shape) != 2 or node.attrs.get("transA", 0):
        return None
    else:
        axis, (ins, outs) = -1, shape[:: -1 if node.attrs.get("transB", 0) else 1]
    output = node.outputs[0]
    reads = sweep.vector(data, axis, ins)
    if len(output.shape) == 1 or len(data.shape) < 2:
        return None
    makes = sweep.labels.fresh(outs)
    sweep.ports.append(Port(node, reads, makes))
    return [sweep.along(output, axis, makes)]


def matmul_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """MatMul: of two activations, the right one keeps factors that do not lie along the sum."""
    left, right = node.inputs
    if is_constant(right):
        return layer_labels(sweep, node)
    if left.name not in sweep.of or right.name not in sweep.of or len(right.shape) < 2:
        return None
    found = sweep.of[right.name]
    if found.shape[-2] != 1:  # the axis that is summed over
        return None
    sweep.labels.pin(sweep.of[left.name], "a factor of a MatMul of activations")
    rank = len(node.outputs[0].shape)
    return [found.reshape((1,) * (rank - found.ndim) + found.shape)] if rank >= found.ndim else None


def batch_norm_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """BatchNormalization: a layer of one weight a channel."""
    data, *parameters = node.inputs
    if data.name not in sweep.of or not all(is_weight(t, 1) for t in parameters):
        return None
    if len(node.outputs) != 1 or len(data.shape) < 2:
        return None
    channels = parameters[0].shape[0]
    reads, makes = sweep.vector(data, 1, channels), sweep.labels.fresh(channels)
    sweep.ports.append(Port(node, reads, makes))
    return [sweep.along(data, 1, makes)]


def norm_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Normalization: its own scale is lost, its gamma and beta take any."""
    output, parameters = node.outputs[0], [t for t in node.inputs[1:] if t.name]
    if len([t for t in node.outputs if t.name]) != 1 or not parameters:
        return None
    axis = -1 if "Layer" in node.op or "RMS" in node.op else 1
    channels = output.shape[axis]
    if not all(is_weight(t, 1) and t.shape[0] == channels for t in parameters):
        return None
    sweep.pin_inputs(node, f"{node.op} decides its scale")
    makes = sweep.labels.fresh(channels)
    sweep.ports.append(Port(node, None, makes))
    return [sweep.along(output, axis, makes)]


# --- elementwise ----------------------------------------------------------------------------------


def same_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Relu and the like."""
    found = sweep.of.get(node.inputs[0].name)
    return None if found is None else [found]


def sum_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Add, Sub, Sum: all summands share factors; a constant one is divided by them."""
    rank = len(node.outputs[0].shape)
    terms = [sweep.of.get(t.name) for t in node.inputs if not is_constant(t)]
    if not terms or any(t is None or t.ndim > rank for t in terms):
        return None
    fixed = [t for t in node.inputs if is_constant(t)]
    if len(fixed) > 1 or not all(is_weight(t) for t in fixed):
        return None
    found = aligned(terms[0], rank)
    for term in terms[1:]:
        shape = np.broadcast_shapes(found.shape, aligned(term, rank).shape)
        if math.prod(shape) > LARGEST:
            return None
        found = sweep.labels.same(found, aligned(term, rank))
    if fixed:
        sweep.ports.append(Port(node, None, found))
    return [found]


def aligned(labels: Array | None, rank: int) -> Array:
    """``labels`` with axes of length 1 in front."""
    assert labels is not None
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)


def extreme_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Max and Min, of activations or with 0."""
    zeros = [t for t in node.inputs if is_weight(t) and not np.any(t.values)]
    others = [t for t in node.inputs if not is_constant(t)]
    if len(zeros) + len(others) != len(node.inputs) or not others:
        return None
    if any(t.name not in sweep.of or len(t.shape) != len(node.outputs[0].shape) for t in others):
        return None
    found = sweep.of[others[0].name]
    for tensor in others[1:]:
        found = sweep.labels.same(found, sweep.of[tensor.name])
    return [found]


def product_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Mul and Div: one side passes its factors on, the other keeps its own scale."""
    left, right = node.inputs
    rank = len(node.outputs[0].shape)
    if is_constant(right) or (is_constant(left) and node.op == "Mul"):
        data, constant = (left, right) if is_constant(right) else (right, left)
        if data.name not in sweep.of or len(data.shape) != rank or not is_weight(constant):
            return None
        axis = _vector_axis(constant, rank)
        if axis is None or node.op == "Div" or node.outputs[0].shape[axis] != constant.values.size:
            return [sweep.of[data.name]]
        reads = sweep.vector(data, axis, constant.values.size)
        makes = sweep.labels.fresh(constant.values.size)
        sweep.ports.append(Port(node, reads, makes))
        return [sweep.along(node.outputs[0], axis, makes)]
    data = left if node.op == "Div" else _carrier(left, right)
    gate = right if data is left else left
    if data.name not in sweep.of or gate.name not in sweep.of or len(data.shape) != rank:
        return None
    sweep.labels.pin(sweep.of[gate.name], f"a factor of {node.op}")
    return [sweep.of[data.name]]


def _vector_axis(constant: gs.Constant, rank: int) -> int | None:
    """The axis of the output, counted from the back, along which a constant varies."""
    axes = [i - len(constant.shape) for i, size in enumerate(constant.shape) if size > 1]
    return axes[0] if len(axes) == 1 and len(constant.shape) <= rank else None


def _carrier(left: gs.Tensor, right: gs.Tensor) -> gs.Tensor:
    """Of two factors the one that is no gate."""
    small = [sum(size == 1 for size in sizes(t) or []) for t in (left, right)]
    if small[0] != small[1]:
        return left if small[0] < small[1] else right
    made_by = [t.inputs[0].op if t.inputs else "" for t in (left, right)]
    return right if made_by[0] in GATES or made_by[1] in ("Conv", "Gemm", "MatMul") else left


def clip_labels(sweep: Sweep, node: gs.Node) -> list[Array] | None:
    """Clip from 0 or below nothing: with an upper bound it would clip elsewhere."""
    found = sweep.of.get(node.inputs[0].name)
    low, high = clip_bounds(node)
    return [found] if found is not None and low in (0.0, -math.inf) and high == math.inf else None
