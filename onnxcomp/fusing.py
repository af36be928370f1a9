"""Rules that fold what follows a linear layer per channel into its weight and bias.

With y = W x + b, a channel-wise  z = scale y + shift  is  z = (scale W) x + (scale b + shift).
BatchNormalization (Ioffe & Szegedy, 2015) in inference is such a map with
scale = gamma / sqrt(variance + epsilon) and shift = beta - scale mean. All of it is computed in
float64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, input_at, label
from onnxcomp.output_vectors import output_vector
from onnxcomp.rewriting import Rule, Scope, float_type, is_sparse, peek, small_values

Float64 = npt.NDArray[np.float64]
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LARGEST_BIAS = 1 << 20  # elements; a longer "per channel" constant is none


@dataclass(frozen=True)
class Affine:
    """z = scale y + shift, each [channels] or []."""

    scale: Float64
    shift: Float64

    @property
    def shifts(self) -> bool:
        """Whether a bias is needed."""
        return bool(self.shift.any())


def fuse_batch_norm(scope: Scope, node: gs.Node) -> bool:
    """BatchNormalization(linear(x))  ->  linear'(x)."""
    linear = _linear_before(scope, node, node.inputs[0])
    if linear is None or node.attrs.get("training_mode", 0) or not node.attrs.get("spatial", 1):
        return False
    if len(node.outputs) > 1 and any(t.outputs for t in node.outputs[1:]):
        return False
    values = [small_values(tensor, LARGEST_BIAS) for tensor in node.inputs[1:5]]
    if any(value is None for value in values):
        return scope.decline(node, "its parameters are not constants")
    if linear.op == "MatMul" and scope.rank(node.inputs[0]) != 2:
        return False  # its channels are on the last axis, those of BatchNormalization on axis 1
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in values)
    scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return _fuse(scope, node, linear, Affine(scale, beta - scale * mean))


def fuse_affine(scope: Scope, node: gs.Node) -> bool:
    """Add, Sub, Mul or Div of linear(x) and a constant per channel  ->  linear'(x)."""
    for position in (0, 1):
        values = small_values(node.inputs[1 - position], LARGEST_BIAS)
        if values is None or not float_type(scope.data_type(node.inputs[position])):
            continue
        linear = _linear_before(scope, node, node.inputs[position])
        if linear is None:
            return False
        per_channel = _per_channel(scope, linear, node.inputs[position], values)
        if per_channel is None:
            return False
        affine = _affine(node.op, per_channel, constant_first=position == 1)
        return affine is not None and _fuse(scope, node, linear, affine)
    return False


def _affine(op: str, c: Float64, constant_first: bool) -> Affine | None:
    zero, one = np.zeros(()), np.ones(())
    if op == "Add":
        return Affine(one, c)
    if op == "Sub":
        return Affine(-one, c) if constant_first else Affine(one, -c)
    if op == "Mul":
        return Affine(c, zero)
    return None if constant_first or not c.all() else Affine(1 / c, zero)


def _linear_before(scope: Scope, node: gs.Node, tensor: gs.Tensor) -> gs.Node | None:
    """The linear layer that makes ``tensor`` for ``node`` alone."""
    linear = scope.maker(tensor, *LINEAR)
    if linear is None:
        return None
    if scope.only_reader(tensor) is not node:
        if node.op == "BatchNormalization":
            scope.decline(node, f"{label(linear)} before it is used elsewhere too")
        return None
    return linear


def _channels(linear: gs.Node) -> int | None:
    """Output channels of a layer with a constant, dense weight, None where it has none."""
    weight = input_at(linear, 1)
    if not isinstance(weight, gs.Constant) or is_sparse(weight):
        return None
    shape = weight.shape
    if linear.op == "Conv":
        return int(shape[0])
    if linear.op == "ConvTranspose":
        return int(shape[1]) * int(linear.attrs.get("group", 1))
    if len(shape) != 2:
        return None
    return int(shape[0] if linear.attrs.get("transB", 0) else shape[1])


def _per_channel(
    scope: Scope, linear: gs.Node, result: gs.Tensor, values: npt.NDArray[Any]
) -> Float64 | None:
    """A constant that is combined with the layer's result, as [channels] or []."""
    channels, weight = _channels(linear), input_at(linear, 1)
    if channels is None or weight is None:
        return None
    convolution = linear.op in ("Conv", "ConvTranspose")
    rank = len(weight.shape) if linear.op != "MatMul" else scope.rank(result)
    if values.ndim == 0:
        return np.asarray(values, np.float64)
    if rank is None:
        rank = values.ndim if values.ndim == 1 else 0
    if values.ndim > rank:
        return None
    axis = values.ndim - (rank - 1) if convolution else values.ndim - 1
    if values.size == 1:
        return np.asarray(values.reshape(()), np.float64)
    if axis < 0 or values.shape[axis] != channels or values.size != channels:
        return None
    return np.asarray(values.reshape(-1), np.float64)


def _fuse(scope: Scope, node: gs.Node, linear: gs.Node, affine: Affine) -> bool:
    """Gives ``linear`` a new weight and bias, and the output of ``node``."""
    weight, channels = input_at(linear, 1), _channels(linear)
    if not isinstance(weight, gs.Constant) or channels is None:
        return _decline(scope, node, f"the weight of {label(linear)} is not a dense constant")
    scales = bool((affine.scale != 1).any())
    if scales and len(consumers(weight)) > 1:
        return _decline(scope, node, f"the weight of {label(linear)} is used elsewhere too")
    bias = _bias(linear, channels)
    if bias is None:
        return _decline(scope, node, f"the bias of {label(linear)} is not a constant per channel")
    if linear.op == "MatMul" and affine.shifts and not _becomes_gemm(scope, linear):
        return False
    old = peek(weight)
    if scales and _is_binary(old):
        return _decline(scope, node, f"the weight of {label(linear)} is binary and stays so")
    with np.errstate(over="ignore"):
        new_bias = (affine.scale * bias + affine.shift).astype(old.dtype)
        new_weight = _scaled(linear, old, affine.scale) if scales else old
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return _decline(scope, node, f"the result leaves the range of {old.dtype}")
    needs_bias = bool(new_bias.any()) or input_at(linear, 2) is not None
    names = sum(len(tensor.name) for tensor in (*node.inputs, *node.outputs))
    freed = _own_bytes(linear, linear.inputs[2:]) + _own_bytes(node, node.inputs) + names
    if needs_bias and not scope.afford(max(0, new_bias.nbytes - freed)):
        return _decline(scope, node, "its bias would make the model larger")
    _assign(scope, linear, new_weight if scales else None, new_bias if needs_bias else None)
    scope.changed(linear)
    before, result = linear.outputs[0], node.outputs[0]
    scope.drop(node)
    scope.take_output(linear, before, result)
    return True


def _decline(scope: Scope, node: gs.Node, reason: str) -> bool:
    return node.op == "BatchNormalization" and scope.decline(node, reason)


def _bias(linear: gs.Node, channels: int) -> Float64 | None:
    """The bias a layer adds, [channels]; zeros without one, None where it is something else."""
    tensor = input_at(linear, 2)
    if tensor is None:
        return np.zeros(channels)
    values = small_values(tensor, LARGEST_BIAS)
    vector = None if values is None else output_vector(values.astype(np.float64), channels)
    beta = linear.attrs.get("beta", 1.0) if linear.op == "Gemm" else 1.0
    return None if vector is None else vector * beta


def _becomes_gemm(scope: Scope, linear: gs.Node) -> bool:
    """Whether a MatMul with a bias can be written as one Gemm, which is for matrices only."""
    x = linear.inputs[0]
    return scope.rank(x) == 2 and float_type(scope.data_type(x))


def _is_binary(weight: npt.NDArray[Any]) -> bool:
    """Whether all values are +-c: such a weight takes one bit each, a scaled one does not."""
    first = np.abs(weight.reshape(-1)[:64])
    if not first.size or (first != first[0]).any():
        return False
    return weight.size > 64 and bool((np.abs(weight) == first[0]).all())


def _scaled(linear: gs.Node, weight: npt.NDArray[Any], scale: Float64) -> npt.NDArray[Any]:
    """The weight with its output channels multiplied by ``scale``, in the weight's dtype."""
    factors: npt.NDArray[Any]
    if linear.op == "Conv":  # [out, in / group, *kernel]
        factors = scale.reshape(scale.shape + (1,) * (weight.ndim - 1) * scale.ndim)
    elif linear.op == "ConvTranspose":  # [in, out / group, *kernel]
        group, (inputs, outputs) = linear.attrs.get("group", 1), weight.shape[:2]
        each = np.broadcast_to(scale, (group * outputs,)).reshape(group, outputs)
        rows = np.repeat(each, inputs // group, axis=0)
        factors = rows.reshape(rows.shape + (1,) * (weight.ndim - 2))
    elif linear.attrs.get("transB", 0):  # [out, in]
        factors = scale.reshape(-1, 1)
    else:  # [in, out]
        factors = scale
    return (weight.astype(np.float64) * factors).astype(weight.dtype)


def _own_bytes(node: gs.Node, tensors: Iterable[gs.Tensor]) -> int:
    """Bytes of those constants among ``tensors`` that only ``node`` reads."""
    mine = {t.name: t for t in tensors if isinstance(t, gs.Constant) and len(consumers(t)) == 1}
    return sum(math.prod(t.shape) * np.dtype(t.dtype).itemsize for t in mine.values())


def _assign(
    scope: Scope,
    linear: gs.Node,
    weight: npt.NDArray[Any] | None,
    bias: npt.NDArray[Any] | None,
) -> None:
    if weight is not None:
        linear.inputs[1] = scope.constant(_fused_name(linear.inputs[1].name), weight)
    if bias is None:
        return
    old = input_at(linear, 2)
    name = _fused_name(old.name) if old is not None else f"{linear.inputs[1].name}.bias"
    linear.inputs = [*linear.inputs[:2], scope.constant(name, bias)]
    if linear.op == "MatMul":
        linear.op = "Gemm"
    if linear.op == "Gemm":
        linear.attrs = {k: v for k, v in linear.attrs.items() if k != "beta"}


def _fused_name(name: str) -> str:
    return name if name.endswith(".fused") else f"{name}.fused"


def scale_biased_matmul(scope: Scope, node: gs.Node) -> bool:
    """Mul(Add(MatMul(x, W), b), c)  ->  Add(MatMul(x, c W), c b), for x of any rank."""
    for position in (0, 1):
        scale = small_values(node.inputs[1 - position], LARGEST_BIAS)
        add = scope.maker(node.inputs[position], "Add")
        if scale is None or add is None or not scope.feeds_only(add, node):
            continue
        for place in (0, 1):
            matmul = scope.maker(add.inputs[place], "MatMul")
            bias = small_values(add.inputs[1 - place], LARGEST_BIAS)
            if matmul is not None and bias is not None:
                return _scale_both(scope, node, add, matmul, place, scale)
    return False


def _scale_both(
    scope: Scope,
    node: gs.Node,
    add: gs.Node,
    matmul: gs.Node,
    place: int,
    factor: npt.NDArray[Any],
) -> bool:
    weight, bias = input_at(matmul, 1), peek(add.inputs[1 - place])
    if not scope.feeds_only(matmul, add) or not isinstance(weight, gs.Constant):
        return False
    channels = _channels(matmul)
    scale = _per_channel(scope, matmul, matmul.outputs[0], factor)
    shift = _per_channel(scope, matmul, matmul.outputs[0], bias)
    if channels is None or scale is None or shift is None or len(consumers(weight)) > 1:
        return False
    old = peek(weight)
    if _is_binary(old) or not float_type(scope.data_type(weight)):
        return False
    with np.errstate(over="ignore"):
        new_weight = _scaled(matmul, old, scale)
        new_bias = (scale * shift).astype(old.dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False
    _assign(scope, matmul, new_weight, None)
    scope.changed(matmul)
    name = _fused_name(add.inputs[1 - place].name)
    add.inputs[1 - place] = scope.constant(name, new_bias)
    before, result = add.outputs[0], node.outputs[0]
    scope.changed(add)
    scope.drop(node)
    scope.take_output(add, before, result)
    return True


BATCH_NORM_RULES: dict[str, list[Rule]] = {"BatchNormalization": [fuse_batch_norm]}
AFFINE_RULES: dict[str, list[Rule]] = {
    "Add": [fuse_affine],
    "Sub": [fuse_affine],
    "Mul": [fuse_affine, scale_biased_matmul],
    "Div": [fuse_affine],
}
