"""A linear map of what a linear layer makes, and nobody else reads, is done by the layer itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, consumers, is_constant, is_output, is_standard, producer
from onnxcomp.quantization import Array


def join_map(graph: gs.Graph, nodes: Sequence[gs.Node], names: Names) -> bool:
    """Multiplies a map into the weights of the layer before it; whether that could be done.

    M (W z + b) + c = (M W) z + (M b + c)

    Args:
        graph: with the nodes.
        nodes: a Conv of kernel size 1, or MatMul and Add, all with constants.
        names: of the graph.
    """
    return (_join_conv if nodes[0].op == "Conv" else _join_product)(graph, nodes, names)


def _join_conv(graph: gs.Graph, nodes: Sequence[gs.Node], names: Names) -> bool:
    (node,) = nodes
    layer = _only_maker(graph, node.inputs[0], node)
    if layer is None or layer.op != "Conv" or layer.attrs.get("group", 1) != 1:
        return False
    if not all(is_constant(tensor) for tensor in layer.inputs[1:]):
        return False
    matrix = node.inputs[1].values.reshape(node.inputs[1].values.shape[:2]).astype(np.float64)
    weights, constant = layer.inputs[1].values, node.inputs[2].values
    bias = layer.inputs[2].values if len(layer.inputs) > 2 else np.zeros(len(weights))
    layer.inputs = [
        layer.inputs[0],
        _joined(layer.inputs[1], np.tensordot(matrix, weights, 1), names),
        _joined(node.inputs[2], matrix @ bias + constant, names),
    ]
    _take_over(layer, node)
    return True


def _join_product(graph: gs.Graph, nodes: Sequence[gs.Node], names: Names) -> bool:
    product, addition = nodes
    last = _only_maker(graph, product.inputs[0], product)
    if last is None or last.op != "Add":
        return False
    biases = [tensor for tensor in last.inputs if is_constant(tensor)]
    terms = [tensor for tensor in last.inputs if not is_constant(tensor)]
    if len(biases) != 1 or len(biases[0].shape) != 1:
        return False
    layer = _only_maker(graph, terms[0], last)
    if layer is None or layer.op != "MatMul" or not is_constant(layer.inputs[1]):
        return False
    weights, matrix = layer.inputs[1], product.inputs[1].values.astype(np.float64)
    if len(weights.shape) != 2 or weights.shape[1] != len(matrix):
        return False
    bias = biases[0].values @ matrix + addition.inputs[1].values
    layer.inputs[1] = _joined(weights, weights.values @ matrix, names)
    last.inputs = [terms[0], _joined(addition.inputs[1], bias, names)]
    product.inputs.clear()
    product.outputs.clear()
    _take_over(last, addition)
    return True


def _only_maker(graph: gs.Graph, tensor: gs.Tensor, reader: gs.Node) -> gs.Node | None:
    """The standard node that makes what ``reader`` alone reads."""
    maker = producer(tensor)
    if maker is None or not is_standard(maker) or is_output(graph, tensor):
        return None
    return maker if [id(n) for n in consumers(tensor)] == [id(reader)] else None


def _joined(old: gs.Constant, values: Array, names: Names) -> gs.Constant:
    return gs.Constant(names.fresh(f"{old.name}.joined"), values.astype(old.dtype))


def _take_over(layer: gs.Node, node: gs.Node) -> None:
    """Lets ``layer`` make what ``node`` made."""
    outputs = list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    layer.outputs = outputs
