"""Layers that stay in float among codes, kept from a runtime that would code their weights."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, is_standard, only_reader, producer

CODED_BY_RUNTIMES = ("Conv", "ConvTranspose", "Gemm")


def keep_uncoded(graph: gs.Graph, names: Names) -> None:
    """Puts a Max of one tensor, which is that tensor, before float layers between two pairs.

    onnxruntime gives a float weight int8 codes with one scale for all of it where the layer reads
    what was dequantized, and codes are made of its output. So a layer would run in integers that
    somebody wants in float, and worse than if it had been quantized. Behind a Max it does not; run
    in place, that costs nothing.

    Args:
        graph: changed in place, its nodes are left to be sorted.
        names: of the graph.
    """
    for node in list(graph.nodes):
        if node.op in CODED_BY_RUNTIMES and is_standard(node) and _is_between_pairs(graph, node):
            data = node.inputs[0]
            node.inputs[0] = behind_max(graph, data, f"{data.name}.uncoded", names)


def _is_between_pairs(graph: gs.Graph, node: gs.Node) -> bool:
    """Whether a layer of float weights reads codes, and codes are made of its output alone."""
    makers = [producer(tensor) for tensor in node.inputs[:2]]
    if [maker is not None and maker.op == "DequantizeLinear" for maker in makers] != [True, False]:
        return False
    reader: gs.Node | None = node
    while reader is not None and reader.op != "QuantizeLinear":
        reader = only_reader(graph, reader.outputs[0], "Relu", "Clip", "QuantizeLinear")
    return reader is not None


def behind_max(graph: gs.Graph, data: gs.Tensor, name: str, names: Names) -> gs.Variable:
    """A Max of ``data`` alone: the same values, behind which onnxruntime does not look."""
    same = gs.Variable(names.fresh(name), data.dtype, data.shape)
    graph.nodes.append(gs.Node("Max", names.fresh(same.name), {}, [data], [same]))
    return same


def maker_of(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes a tensor, or what a Max of it alone hands on."""
    maker = producer(tensor)
    while maker is not None and maker.op == "Max" and len(maker.inputs) == 1:
        maker = producer(maker.inputs[0])
    return maker
