"""Writes operators in the equal form that the runtime's kernels are found by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import (
    Names,
    consumers,
    input_at,
    is_constant,
    is_standard,
    only_reader,
    producer,
    remove_unused,
    volume,
)
from onnxcomp.quantization import Array
from onnxcomp.rewriting import peek
from onnxcomp.space_to_depth import convolve_blocks, spread_weight, stacked_pixels
from onnxcomp.targets import Target
from onnxcomp.uncoded_layers import behind_max
from onnxcomp.units import FOLDED

Wanted = Callable[[gs.Node], bool]


def write_integer_forms(graph: gs.Graph, target: Target, wanted: Wanted) -> None:
    """Rewrites what the target runs in integers under another operator's name only.

    Nothing changes but the rounding of float32. Shapes have to be inferred. An operator whose
    neighbours are no operators of the target's table keeps its form: it will stay in float.

    Args:
        graph: changed in place.
        target: what runs in integers.
        wanted: whether a node may be changed.
    """
    names = Names(graph)
    for node in list(graph.nodes):
        if not is_standard(node) or node.op not in _FORMS or not wanted(node):
            continue
        _FORMS[node.op](graph, node, target, names)


def _is_inside(node: gs.Node, target: Target) -> bool:
    """Whether operators of the target's table make its input and read its output."""
    inside = {*target.operators, *FOLDED}
    maker = producer(node.inputs[0])
    readers = consumers(node.outputs[0])
    return maker is not None and maker.op in inside and any(n.op in inside for n in readers)


def convolve_pixels(graph: gs.Graph, node: gs.Node, target: Target, names: Names) -> None:
    """Conv(stacked pixels of x) -> Conv'(x): integers have no kernels for Slice with steps."""
    blocks = stacked_pixels(node, lambda tensor: tensor.shape)
    if blocks is None or only_reader(graph, node.inputs[0]) is None:
        return
    weight = node.inputs[1]
    name = names.fresh(f"{weight.name}.pixels")
    convolve_blocks(node, blocks, gs.Constant(name, spread_weight(peek(weight), blocks)))
    remove_unused(graph)


def pool_mean(graph: gs.Graph, node: gs.Node, target: Target, names: Names) -> None:
    """ReduceMean over all spatial axes -> GlobalAveragePool, which has an integer kernel.

    PyTorch's newer exporter writes every global pooling that way.
    """
    if "GlobalAveragePool" not in target.operators or not _is_pooling(node, target):
        return
    rank, result = len(node.inputs[0].shape), node.outputs[0]
    keeps_axes = bool(node.attrs.get("keepdims", 1))
    node.op, node.attrs = "GlobalAveragePool", {}
    if len(node.inputs) > 1:
        del node.inputs[1]
    if keeps_axes:
        return
    shape = [*node.inputs[0].shape[:2], *[1] * (rank - 2)]
    pooled = gs.Variable(names.fresh(f"{result.name}.pooled"), result.dtype, shape)
    node.outputs = [pooled]
    axes = gs.Constant(names.fresh(f"{result.name}.axes"), np.arange(2, rank))
    squeeze = gs.Node("Squeeze", names.fresh(f"{result.name}.squeeze"), {}, [pooled, axes])
    squeeze.outputs = [result]
    graph.nodes.insert(graph.nodes.index(node) + 1, squeeze)


def _is_pooling(node: gs.Node, target: Target) -> bool:
    """Whether a ReduceMean goes over the axes behind batch and channels, and over all of them.

    Of three axes the last may as well be the features that a normalization averages: such a mean
    is not the only reader of its input, or reads squares, and is fused with what follows.
    """
    data = node.inputs[0]
    if data.shape is None or len(data.shape) < 3 or data.dtype != np.float32:
        return False
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and is_constant(node.inputs[1]):
        axes = np.asarray(node.inputs[1].values).tolist()
    if axes is None or sorted(a % len(data.shape) for a in axes) != [*range(2, len(data.shape))]:
        return False
    maker = producer(data)
    if len(data.shape) > 3:
        return True
    if maker is None or maker.op not in (*target.operators, *FOLDED) or len(consumers(data)) > 1:
        return False
    return maker.op != "Mul" or maker.inputs[0] is not maker.inputs[1]


def split_hard_swish(graph: gs.Graph, node: gs.Node, target: Target, names: Names) -> None:
    """HardSwish(x) -> x HardSigmoid(x), as onnxruntime does itself."""
    if "HardSwish" in target.operators or "HardSigmoid" not in target.operators:
        return
    if not _is_inside(node, target) or node.inputs[0].dtype != np.float32:
        return
    data, result = node.inputs[0], node.outputs[0]
    gate = gs.Variable(names.fresh(f"{result.name}.gate"), result.dtype, result.shape)
    attrs = {"alpha": 1 / 6, "beta": 0.5}
    hard = gs.Node("HardSigmoid", names.fresh(f"{node.name}.gate"), attrs, [data], [gate])
    graph.nodes.insert(graph.nodes.index(node), hard)
    node.op, node.attrs, node.inputs = "Mul", {}, [data, gate]


def reorder_gelu(graph: gs.Graph, node: gs.Node, target: Target, names: Names) -> None:
    """x (0.5 (1 + erf(x / sqrt 2))) -> 0.5 (x (1 + erf(x / sqrt 2))), the order that is fused.

    Halving is exact in floating point, whenever it is done.
    """
    one = only_reader(graph, node.outputs[0], "Add")
    half = None if one is None else only_reader(graph, one.outputs[0], "Mul")
    last = None if half is None else only_reader(graph, half.outputs[0], "Mul")
    if one is None or half is None or last is None:
        return
    index = 0 if is_constant(half.inputs[0]) else 1
    factor, other = half.inputs[index], 0 if last.inputs[1] is half.outputs[0] else 1
    if not is_constant(factor) or volume(factor.shape) != 1 or float(factor.values.item()) != 0.5:
        return
    divided = producer(node.inputs[0])
    data = last.inputs[other]
    if divided is None or divided.op not in ("Div", "Mul") or divided.inputs[0] is not data:
        return
    half.inputs = [data, one.outputs[0]]
    last.inputs = [half.outputs[0], factor]


def keep_gelu_whole(graph: gs.Graph, names: Names) -> None:
    """Puts a Max of one tensor, which is that tensor, between a dequantized one and its Gelu.

    onnxruntime copies DequantizeLinear for each reader, then finds no Gelu in what reads two
    tensors. A Max of one it leaves alone; run in place, it costs nothing.

    Args:
        graph: changed in place, its nodes are left to be sorted.
        names: of the graph.
    """
    for erf in [node for node in graph.nodes if node.op == "Erf"]:
        divided = producer(erf.inputs[0])
        if divided is None or divided.op not in ("Div", "Mul"):
            continue
        data, one = divided.inputs[0], only_reader(graph, erf.outputs[0], "Add")
        product = None if one is None else only_reader(graph, one.outputs[0], "Mul")
        maker = producer(data)
        if maker is None or maker.op != "DequantizeLinear" or product is None:
            continue
        places = [(node, i) for node in (divided, product) for i in (0, 1) if _is(node, i, data)]
        if len(places) != 2:
            continue
        whole = behind_max(graph, data, f"{data.name}.whole", names)
        for node, index in places:
            node.inputs[index] = whole


def _is(node: gs.Node, index: int, tensor: gs.Tensor) -> bool:
    return node.inputs[index] is tensor


def plain_gemm(graph: gs.Graph, node: gs.Node, target: Target, names: Names) -> None:
    """alpha A' B + beta C -> A (alpha B) + (beta C), with A' transposed by an operator."""
    attrs, name = node.attrs, node.outputs[0].name
    bias = input_at(node, 2)
    if not is_constant(node.inputs[1]) or not (bias is None or is_constant(bias)):
        return
    alpha, beta = attrs.pop("alpha", 1.0), attrs.pop("beta", 1.0)
    if alpha != 1.0:
        node.inputs[1] = _constant(names, f"{name}.weight", alpha * node.inputs[1].values)
    if beta != 1.0 and bias is not None:
        node.inputs[2] = _constant(names, f"{name}.bias", beta * bias.values)
    if attrs.pop("transA", 0):
        data = node.inputs[0]
        shape = None if data.shape is None else list(reversed(data.shape))
        turned = gs.Variable(names.fresh(f"{data.name}.transposed"), data.dtype, shape)
        attributes = {"perm": [1, 0]}
        turn = gs.Node("Transpose", names.fresh(turned.name), attributes, [data], [turned])
        graph.nodes.insert(graph.nodes.index(node), turn)
        node.inputs[0] = turned


def _constant(names: Names, name: str, values: Array) -> gs.Constant:
    return gs.Constant(names.fresh(name), np.asarray(values, np.float32))


_FORMS: dict[str, Callable[[gs.Graph, gs.Node, Target, Names], None]] = {
    "Conv": convolve_pixels,
    "Erf": reorder_gelu,
    "Gemm": plain_gemm,
    "HardSwish": split_hard_swish,
    "ReduceMean": pool_mean,
}
