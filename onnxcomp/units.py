"""Nodes that can run on codes: what they read, where their bias is, and why some cannot."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, input_at, is_constant, is_standard, only_reader, volume
from onnxcomp.quantization import Array
from onnxcomp.targets import Operator, Role

CONVOLUTIONS = ("Conv", "ConvTranspose")
FOLDED = ("Relu", "Clip")
SMALLEST_DIVISOR = 1e-30  # its inverse is still far from overflowing float32


@dataclass
class Unit:
    """A node that runs on codes, with what belongs to it.

    Attributes:
        node: the operator.
        operator: how the target runs it.
        inputs: indices of the node's inputs that are activations or constants to quantize.
        activation: the Relu or Clip folded into its output's scale, or None.
        adder: of a layer, the node that adds its bias: itself, or the Add behind a MatMul.
        output_gain: its codes are read with that times the scale they are written with.
    """

    node: gs.Node
    operator: Operator
    inputs: tuple[int, ...]
    activation: gs.Node | None = None
    adder: gs.Node | None = None
    output_gain: float = 1.0

    @property
    def outputs(self) -> list[gs.Tensor]:
        """The tensors it makes, those of the folded activation in place of its own."""
        return list((self.activation or self.node).outputs)

    @property
    def activations(self) -> list[gs.Tensor]:
        """The tensors it reads that are no constants."""
        return [t for t in (self.node.inputs[i] for i in self.inputs) if not is_constant(t)]

    @property
    def channel_axis(self) -> int:
        """The axis of the input along which the input channels of a layer lie."""
        return 1 if self.node.op in CONVOLUTIONS else -1

    @property
    def output_axis(self) -> int | None:
        """The axis of a layer's weight, as stored, along which its output channels lie.

        None where no single axis has them: batched matrices, and ConvTranspose in groups.
        """
        weights, attrs = self.node.inputs[1], self.node.attrs
        if self.node.op == "Conv" or (self.node.op == "Gemm" and attrs.get("transB", 0)):
            return 0
        if self.node.op == "ConvTranspose":
            return 1 if attrs.get("group", 1) == 1 else None
        return 1 if len(weights.shape) == 2 else None

    @property
    def is_depthwise(self) -> bool:
        """Whether it is a Conv of one input channel a group: few weights, each felt."""
        is_grouped = self.node.attrs.get("group", 1) > 1
        return bool(self.node.op == "Conv" and is_grouped and self.node.inputs[1].shape[1] == 1)

    @property
    def output_channels(self) -> int:
        """How many output channels a layer has."""
        shape, axis = self.node.inputs[1].shape, self.output_axis
        if self.node.op == "ConvTranspose":
            return int(shape[1]) * int(self.node.attrs.get("group", 1))
        return int(shape[-1 if axis is None else axis])

    @property
    def means_give_bias(self) -> bool:
        """Whether the mean input of each channel tells what rounding adds to a layer's outputs."""
        return self.output_axis is not None and self.node.op != "ConvTranspose"

    @property
    def bias_index(self) -> int:
        """Which input of ``adder`` the bias is, present or not."""
        if self.adder is None or self.adder is self.node:
            return 2
        return 0 if is_constant(self.adder.inputs[0]) else 1

    @property
    def bias(self) -> gs.Constant | None:
        """The bias of a layer, of any shape that broadcasts to its output channels."""
        return None if self.adder is None else input_at(self.adder, self.bias_index)

    @property
    def bias_values(self) -> Array | None:
        """The bias of a layer, [out_channels], or None."""
        if self.bias is None:
            return None
        return np.broadcast_to(np.asarray(self.bias.values).reshape(-1), (self.output_channels,))

    @property
    def has_integer_bias(self) -> bool:
        """Whether the runtime adds the bias to the integer sums.

        onnxruntime makes a Gemm of MatMul and Add where the shape is known (of a matrix: always),
        and that Gemm runs in integers with an integer bias only. Elsewhere both stay apart, and
        the bias stays float.
        """
        if self.node.op != "MatMul":
            return True
        shape = self.node.inputs[0].shape
        return shape is not None and (len(shape) == 2 or volume(shape) is not None)


def adds_bias(node: gs.Node, layer: Unit) -> bool:
    """Whether ``node`` alone reads what ``layer``, a MatMul, makes, and adds a constant vector."""
    product = layer.node.outputs[0]
    if layer.node.op != "MatMul" or node.op != "Add" or len(consumers(product)) != 1:
        return False
    if layer.output_axis is None:
        return False
    constants = [t for t in node.inputs if is_constant(t)]
    if len(constants) != 1 or constants[0].dtype != np.float32:
        return False
    shape, channels = list(constants[0].shape), layer.node.inputs[1].shape[1]
    rank = 1 if product.shape is None else len(product.shape)
    is_vector = shape[-1:] == [channels] and volume(shape) == channels and len(shape) <= rank
    return is_vector and bool(np.isfinite(constants[0].values).all())


def activation_inputs(node: gs.Node, operator: Operator) -> tuple[int, ...]:
    """Indices of the inputs that carry values to quantize."""
    if operator.role is not Role.ARITHMETIC or node.op in ("BatchNormalization", "Clip"):
        return (0,)
    return tuple(range(len(node.inputs)))


def is_concerned(node: gs.Node, operator: Operator) -> bool:
    """Whether ``node`` computes with real numbers at run time: not with shapes or constants."""
    data = [node.inputs[i] for i in activation_inputs(node, operator)]
    real = all(t.dtype is None or np.dtype(t.dtype).kind in "fV" for t in data)
    return real and not all(is_constant(t) for t in data)


def is_foreign_layer(node: gs.Node) -> bool:
    """Whether ``node`` is no operator of ONNX and has a weight: fused attention and the like."""
    weights = [t for t in node.inputs if is_constant(t) and t.dtype == np.float32]
    return not is_standard(node) and any(len(t.shape) > 1 for t in weights)


def is_product(node: gs.Node) -> bool:
    """Whether ``node`` multiplies two activations, or its constant is on the left."""
    return node.op == "MatMul" and (not is_constant(node.inputs[1]) or is_constant(node.inputs[0]))


def reason_against(node: gs.Node, operator: Operator) -> str | None:
    """Why the integer form of ``operator`` cannot take ``node``, or None.

    Shapes and dtypes have to be inferred before.
    """
    data = [node.inputs[i] for i in activation_inputs(node, operator)]
    if any(t.dtype != np.float32 for t in data):
        return f"its input is {_dtype_name(data)}, not float32"
    if operator.role is Role.LAYER:
        return _reason_against_layer(node)
    if len([t for t in node.outputs if t.name]) != len(node.outputs):
        return "an output is absent"
    if node.op == "MaxPool" and len(node.outputs) > 1:
        return "it also returns indices"
    if node.op == "Resize" and not _copies_pixels(node):
        return "it interpolates"
    if node.op == "Pad" and not _pads_with_zero(node):
        return "it pads with something else than zero"
    if node.op == "Add" and any(n.op == "Softmax" for n in consumers(node.outputs[0])):
        return "it adds a mask to scores: its range would leave them no codes"
    if operator.role is Role.ARITHMETIC and any(not _small_enough(t) for t in data):
        return "one of its constants is not finite"
    return _reason_against_rewriting(node) if operator.written_as else None


def _reason_against_rewriting(node: gs.Node) -> str | None:
    """Why a node cannot be written as another operator with one constant operand."""
    if node.op in FOLDED:
        low, high = clip_bounds(node)
        return None if low == 0 <= high else "it does not clip at zero"
    if node.op == "BatchNormalization":
        return _reason_against_normalization(node)
    if node.op == "HardSigmoid":
        return None if node.attrs.get("alpha", 0.2) > 0 else "it falls"
    if not is_constant(node.inputs[1]):
        return f"there is no integer {node.op} of two activations"
    if node.op == "Div" and not np.all(np.abs(node.inputs[1].values) > SMALLEST_DIVISOR):
        return "it divides by zero or nearly so"
    return None


def _reason_against_normalization(node: gs.Node) -> str | None:
    if len(node.outputs) > 1:
        return "it measures means itself"
    if node.inputs[0].shape is None or len(node.inputs[0].shape) < 3:
        return "its input is no image"
    finite = all(is_constant(t) and np.isfinite(t.values).all() for t in node.inputs[1:])
    return None if finite else "its constants are computed or not finite"


def normalization(node: gs.Node) -> tuple[Array, Array]:
    """(a, c), [channels] each, of a BatchNormalization as y = a x + c."""
    scale, bias, mean, variance = (np.asarray(t.values, np.float64) for t in node.inputs[1:])
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return factor, bias - factor * mean


def written_operand(node: gs.Node) -> Array:
    """The constant operand of the operator a node is written as: see `Operator.written_as`."""
    if node.op == "HardSigmoid":
        return np.asarray(node.attrs.get("beta", 0.5) / node.attrs.get("alpha", 0.2), np.float32)
    values = np.asarray(node.inputs[1].values)
    return np.asarray(-values if node.op == "Sub" else 1 / values, np.float32)


def saturates(node: gs.Node, operator: Operator) -> bool:
    """Whether the ends of the codes do a part of the operator's work.

    HardSigmoid(x) = clip(a x + b, 0, 1) = a clip(x + b / a, 0, 1 / a): codes of the sum that begin
    at 0 and end at 1 / a clip by themselves, and read with a times that scale they are the result.
    Likewise a Relu6: a LeakyRelu whose codes end at 6.
    """
    return bool(operator.written_as) and node.op in ("HardSigmoid", *FOLDED)


def output_gain(node: gs.Node, operator: Operator) -> float:
    """What the result of the operator that a node is written as has to be multiplied by."""
    hard = operator.written_as and node.op == "HardSigmoid"
    return float(node.attrs.get("alpha", 0.2)) if hard else 1.0


def output_bounds(node: gs.Node) -> tuple[float, float]:
    """The values that an operator which `saturates` can make."""
    return (0.0, 1.0) if node.op == "HardSigmoid" else clip_bounds(node)


def _dtype_name(tensors: Iterable[gs.Tensor]) -> str:
    wrong = next(t.dtype for t in tensors if t.dtype != np.float32)
    return "of unknown type" if wrong is None else str(np.dtype(wrong) if wrong else wrong)


def _small_enough(tensor: gs.Tensor) -> bool:
    return not is_constant(tensor) or bool(np.isfinite(tensor.values).all())


def _copies_pixels(node: gs.Node) -> bool:
    outside = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return node.attrs.get("mode", "nearest") == "nearest" and not outside


def _pads_with_zero(node: gs.Node) -> bool:
    """Or with copies of its input: values that every scale of the input has codes for."""
    if node.attrs.get("mode", "constant") != "constant" or len(node.inputs) < 3:
        return True
    value = node.inputs[2]
    return not value.name or (is_constant(value) and not np.any(value.values))


def _reason_against_layer(node: gs.Node) -> str | None:
    data, weights, *rest = node.inputs
    bias = next((t for t in rest if t.name), None)
    if is_constant(data):
        return "its input is a constant"
    if not is_constant(weights):
        return _reason_against_variable(node, weights)
    if weights.dtype != np.float32:
        return f"its weights are {weights.dtype}, not float32"
    if bias is not None and not is_constant(bias):
        return "its bias is computed"
    if node.op == "MatMul" and len(weights.shape) < 2:
        return "its weights are a vector"
    if node.op == "Gemm":
        if node.attrs.get("transA", 0):
            return "its input is transposed"
        if node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0:
            return "alpha or beta is not 1"
        if bias is not None and max([1, *bias.shape[-1:]]) != volume(bias.shape):
            return "its bias is no vector"
    constants = [weights.values] + ([] if bias is None else [bias.values])
    if not all(np.isfinite(values).all() for values in constants):
        return "its weights are not finite"
    return None


def _reason_against_variable(node: gs.Node, weights: gs.Tensor) -> str:
    if not weights.inputs:
        return "its weights are an input of the model, which a caller may replace"
    return "its weights are computed"


def foldable(
    graph: gs.Graph, node: gs.Node, operator: Operator, outermost: Collection[int]
) -> gs.Node | None:
    """The Relu or Clip that alone reads the node's output and that a scale can stand for."""
    if operator.role is Role.MOVER or len(node.outputs) != 1 or saturates(node, operator):
        return None
    reader = only_reader(graph, node.outputs[0], *FOLDED)
    if reader is None or id(reader) not in outermost:
        return None
    low, high = clip_bounds(reader)
    return reader if low <= 0 <= high else None


def clip_bounds(node: gs.Node) -> tuple[float, float]:
    """The range that a Relu or Clip lets through; (1, 0), an empty one, where it is computed."""
    if node.op == "Relu":
        return 0.0, np.inf
    bounds = [-np.inf, np.inf]
    for index, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            if not is_constant(tensor):
                return 1.0, 0.0
            bounds[index] = float(np.asarray(tensor.values).ravel()[0])
    return bounds[0], bounds[1]
