"""How labels of channels pass through operators: one row an operator.

A rule gives the labels of the axes of a node's outputs from those of its inputs and says on the way
which are equal, which are factors of others, and which have to stay. An operator without a rule
keeps all tensors that it touches as they are.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_attention import ATTENTION
from onnxcomp.channel_equations import SINGLE, Unfollowed
from onnxcomp.channel_selections import SELECTIONS
from onnxcomp.channel_sweep import Axes, Rule, Sweep, integers, sizes
from onnxcomp.channel_views import VIEWS
from onnxcomp.einsum_equations import einsum_axes
from onnxcomp.graph import input_at, is_standard
from onnxcomp.union_find import Array

SPACE = "an axis that a kernel slides along"


# --- layers ---------------------------------------------------------------------------------------


def conv(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Y[n, m] = sum over c of X[n, c] * W[m, c] in each group of c and m."""
    data, kernel = sweep.axes(node.inputs[0]), sweep.axes(node.inputs[1])
    groups = int(node.attrs.get("group", 1))
    if groups == 1:
        sweep.equations.same(data[1], kernel[1])
    else:
        outer = sweep.equations.fresh(groups)
        inner = sweep.equations.fresh(kernel[0].size // groups)
        if kernel[1].size == 1:  # a multiplier of channels has to stay
            sweep.equations.pin(inner, "outputs of one channel of a depthwise Conv")
        sweep.equations.factor(data[1], [outer, kernel[1]])
        sweep.equations.factor(kernel[0], [outer, inner])
    _bias(sweep, node, 2, kernel[0])
    result = [data[0], kernel[0], *_space(sweep, node, data[2:], kernel[2:])]
    if input_at(node, 3) is not None:  # FusedConv adds a tensor
        result = sweep.aligned([result, sweep.axes(node.inputs[3])])
    return [result]


def conv_transpose(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """The same with W[c, m]; the groups are along c."""
    data, kernel = sweep.axes(node.inputs[0]), sweep.axes(node.inputs[1])
    groups = int(node.attrs.get("group", 1))
    sweep.equations.same(data[1], kernel[0])
    made = kernel[1]
    if groups > 1:
        outer = sweep.equations.fresh(groups)
        inner = sweep.equations.fresh(kernel[0].size // groups)
        if kernel[0].size == groups:
            sweep.equations.pin(kernel[1], "outputs of one channel of a depthwise ConvTranspose")
        made = sweep.equations.fresh(groups * kernel[1].size)
        sweep.equations.factor(kernel[0], [outer, inner])
        sweep.equations.factor(made, [outer, kernel[1]])
    _bias(sweep, node, 2, made)
    for labels in (*data[2:], *kernel[2:]):
        sweep.equations.pin(labels, SPACE)
    space = [sweep.fixed_axis(size, SPACE) for size in sizes(node.outputs[0])[2:]]
    return [[data[0], made, *space]]


def _bias(sweep: Sweep, node: gs.Node, index: int, made: Array) -> None:
    bias = input_at(node, index)
    if bias is not None:
        sweep.equations.same(sweep.axes(bias)[0], made)


def _space(sweep: Sweep, node: gs.Node, space: Axes, kernel: Axes) -> Axes:
    """Axes that a kernel slides along stay, unless it takes one index at a time."""
    result = []
    strides = node.attrs.get("strides") or [1] * len(space)
    pads = node.attrs.get("pads") or [0] * 2 * len(space)
    outputs = sizes(node.outputs[0])[2:]
    for i, labels in enumerate(space):
        padded = pads[i] or pads[i + len(space)]
        if kernel[i].size == 1 and strides[i] == 1 and not padded:
            result.append(labels)
            continue
        sweep.equations.pin(labels, SPACE)
        sweep.equations.pin(kernel[i], SPACE)
        result.append(sweep.fixed_axis(outputs[i], SPACE))
    return result


def matmul(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Y[..., m, n] = sum over k of A[..., m, k] B[..., k, n]; vectors as numpy has them."""
    left, right = list(sweep.axes(node.inputs[0])), list(sweep.axes(node.inputs[1]))
    if node.attrs.get("transBatchA") or node.attrs.get("transBatchB"):
        raise Unfollowed("batches are transposed")
    if node.attrs.get("transA") and len(left) > 1:
        left[-2:] = left[:-3:-1]
    if node.attrs.get("transB") and len(right) > 1:
        right[-2:] = right[:-3:-1]
    sweep.equations.same(left[-1], right[-2] if len(right) > 1 else right[0])
    rows = [left[-2]] if len(left) > 1 else []
    columns = [right[-1]] if len(right) > 1 else []
    batch = sweep.aligned([left[:-2], right[:-2]])
    return [[*batch, *rows, *columns]]


def gemm(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Y = alpha A B + beta C, either factor transposed."""
    left, right = sweep.axes(node.inputs[0]), sweep.axes(node.inputs[1])
    left = left[::-1] if node.attrs.get("transA") else left
    right = right[::-1] if node.attrs.get("transB") else right
    sweep.equations.same(left[1], right[0])
    result = [left[0], right[1]]
    term = input_at(node, 2)
    return [result if term is None else sweep.aligned([result, sweep.axes(term)])]


def einsum(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """The same letter, the same labels; what an ellipsis stands for broadcasts."""
    several = [sweep.axes(tensor) for tensor in node.inputs]
    terms, result = einsum_axes(node.attrs["equation"], [len(axes) for axes in several])
    letters: dict[str, Array] = {}
    for term, axes in zip(terms, several, strict=True):
        for letter, labels in zip(term, axes, strict=True):
            letters[letter] = sweep.equations.same(letters.get(letter, labels), labels)
    return [[letters[letter] for letter in result]]


def recurrent(gates: int) -> Rule:
    """LSTM, GRU, RNN: X [steps, batch, inputs], W and R [directions, gates * hidden, ...].

    The hidden units of all gates and directions leave together; `hidden_size` follows.
    """

    def rule(sweep: Sweep, node: gs.Node) -> list[Axes]:
        if node.attrs.get("layout", 0):
            raise Unfollowed("layout 1")
        data, inputs, state = (sweep.axes(tensor) for tensor in node.inputs[:3])
        hidden = state[2]
        sweep.equations.same(data[2], inputs[2])
        for index in (1, 2, 3, 7):
            tensor = input_at(node, index)
            if tensor is not None:
                sweep.equations.pin(sweep.axes(tensor)[0], "directions")
        for labels in (inputs[1], state[1]):
            sweep.equations.same(labels, np.tile(hidden, gates))
        bias, peepholes = input_at(node, 3), input_at(node, 7)
        if bias is not None:
            sweep.equations.same(sweep.axes(bias)[1], np.tile(hidden, 2 * gates))
        if peepholes is not None:
            sweep.equations.same(sweep.axes(peepholes)[1], np.tile(hidden, 3))
        batch, directions = data[1], inputs[0]
        for index in (5, 6):
            start = input_at(node, index)
            if start is not None:
                batch = sweep.aligned([[directions, batch, hidden], sweep.axes(start)])[1]
        last = [directions, batch, hidden]
        return [[data[0], *last], last, last][: len(node.outputs)]

    return rule


# --- normalization --------------------------------------------------------------------------------


def by_channel(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """BatchNormalization, InstanceNormalization: vectors along axis 1."""
    data = sweep.axes(node.inputs[0])
    for tensor in node.inputs[1:]:
        sweep.equations.same(data[1], sweep.axes(tensor)[0])
    if len(node.outputs) > 1:
        raise Unfollowed("training outputs")
    return [data]


def layer_norm(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Statistics over the last axes, of what is left of them; scale and shift are aligned."""
    if any(tensor.name for tensor in node.outputs[1:]):
        raise Unfollowed("its statistics are read")
    present = [sweep.axes(tensor) for tensor in node.inputs if tensor.name]
    return [sweep.aligned(present)] + [[] for _ in node.outputs[1:]]


def group_norm(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Statistics over the channels of a group; scale and shift per group up to opset 20."""
    data, groups = sweep.axes(node.inputs[0]), int(node.attrs["num_groups"])
    outer = sweep.equations.fresh(groups)
    sweep.equations.factor(data[1], [outer, sweep.equations.fresh(data[1].size // groups)])
    for tensor in node.inputs[1:]:
        labels = sweep.axes(tensor)[0]
        sweep.equations.same(labels, outer if labels.size == groups else data[1])
    return [data]


def along_axis(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Softmax, CumSum and the like: all indices of one axis depend on each other."""
    data = sweep.axes(node.inputs[0])
    axis = integers(node, 1) or [int(node.attrs.get("axis", -1))]  # CumSum has an input
    sweep.equations.pin(data[axis[0]], f"the axis of {node.op}")
    return [data]


def across_channels(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """LRN: each channel is divided by its neighbours."""
    data = sweep.axes(node.inputs[0])
    sweep.equations.pin(data[1], f"the axis of {node.op}")
    return [data]


def quantize(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Codes and back: scales and zero points of single channels leave with them."""
    data = sweep.axes(node.inputs[0])
    if node.attrs.get("block_size", 0):
        raise Unfollowed("scales of blocks")
    axis = node.attrs.get("axis", 1)
    for tensor in node.inputs[1:]:
        if tensor.name and len(sweep.axes(tensor)) == 1:
            sweep.equations.same(data[axis], sweep.axes(tensor)[0])
    return [data]


# --- elementwise, pooling, reductions -------------------------------------------------------------


def unary(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """One operand; what else it reads are scalars."""
    return [sweep.axes(node.inputs[0]) for _ in node.outputs]


def elementwise(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """Operands that broadcast to each other."""
    return [sweep.broadcast([tensor for tensor in node.inputs if tensor.name])]


def pool(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """[batch, channels, *space]: over space only."""
    data = sweep.axes(node.inputs[0])
    for labels in data[2:]:
        sweep.equations.pin(labels, SPACE)
    space = [sweep.fixed_axis(size, SPACE) for size in sizes(node.outputs[0])[2:]]
    return [[data[0], data[1], *space] for _ in node.outputs]


def reduction(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """An axis that is reduced disappears: it then is reduced over what is left of it."""
    data = sweep.axes(node.inputs[0])
    axes = integers(node, 1, "axes")
    if not axes and node.attrs.get("noop_with_empty_axes", 0):
        return [data]
    gone = {axis % len(data) for axis in axes or range(len(data))}
    if node.op in WITHOUT_ZEROS:
        for axis in gone:
            sweep.equations.pin(data[axis], f"the axis of {node.op}")
    if node.attrs.get("keepdims", 1):
        return [[SINGLE if i in gone else labels for i, labels in enumerate(data)]]
    return [[labels for i, labels in enumerate(data) if i not in gone]]


def selected(sweep: Sweep, node: gs.Node) -> list[Axes]:
    """ArgMax, ArgMin: indices along one axis."""
    data = sweep.axes(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(data)
    sweep.equations.pin(data[axis], f"the axis of {node.op}")
    rest = [SINGLE] if node.attrs.get("keepdims", 1) else []
    return [[*data[:axis], *rest, *data[axis + 1 :]]]


WITHOUT_ZEROS = ("ReduceProd", "ReduceLogSumExp", "ReduceLogSum")
UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "CastLike"),
    *("Ceil", "Celu", "Clip", "Cos", "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu"),
    *("HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log"),
    *("MeanVarianceNormalization", "Mish", "Neg", "Not", "QuickGelu", "Reciprocal", "Relu"),
    *("Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
    *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"),
)
ELEMENTWISE = (
    *("Add", "And", "BiasGelu", "BitwiseAnd", "BitwiseOr", "Div", "Equal", "FastGelu", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu"),
    *("Pow", "Sub", "Sum", "Where", "Xor"),
)
REDUCTIONS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
POOLS = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")

RULES: dict[str, Rule] = {
    **dict.fromkeys(("Conv", "FusedConv"), conv),
    "ConvTranspose": conv_transpose,
    **dict.fromkeys(("MatMul", "FusedMatMul"), matmul),
    "Gemm": gemm,
    "Einsum": einsum,
    "LSTM": recurrent(4),
    "GRU": recurrent(3),
    "RNN": recurrent(1),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), by_channel),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_norm),
    **dict.fromkeys(("SimplifiedLayerNormalization", "SkipLayerNormalization"), layer_norm),
    "SkipSimplifiedLayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "CumSum", "LpNormalization"), along_axis),
    "LRN": across_channels,
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantize),
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys([f"Reduce{kind}" for kind in REDUCTIONS], reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), selected),
    **VIEWS,
    **SELECTIONS,
    **ATTENTION,
}
CONTRIB = frozenset(
    {"BiasGelu", "FastGelu", "FusedConv", "FusedMatMul", "Gelu", "QuickGelu"}
    | {"SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"}
)


def rule_of(node: gs.Node) -> Rule | None:
    """The row of an operator; None for custom operators and those nobody wrote one for."""
    if is_standard(node) or (node.domain == "com.microsoft" and node.op in CONTRIB):
        return RULES.get(node.op)
    return None
