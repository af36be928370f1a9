"""Puts rows of thin layers in the place of the nodes that read a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxcomp.exporting import value_info
from onnxcomp.factorable_weights import is_transposed, place_of
from onnxcomp.gram import Array
from onnxcomp.graph import Names, carried_of, own, scoped_graphs
from onnxcomp.thin_layers import ThinLayer


def write_rows(
    graph: gs.Graph,
    names: Names,
    weight: gs.Constant,
    nodes: Sequence[gs.Node],
    rows: Sequence[Sequence[ThinLayer]],
    arrays: Sequence[Array],
) -> None:
    """Replaces nodes by rows of nodes that share their constants.

    The last of a row takes over the node: its name, its output and its bias.

    Args:
        graph: the outermost one, in which or in whose bodies the nodes are.
        names: of ``graph``.
        weight: what all nodes read.
        nodes: those to replace.
        rows: of each node.
        arrays: the weights of every row; their type becomes that of ``weight``.
    """
    constants = [
        gs.Constant(
            names.fresh(f"{weight.name}.factor{at}"), np.array(array, weight.dtype, order="C")
        )
        for at, array in enumerate(arrays)
    ]
    places = {id(node): place for place in scoped_graphs(graph) for node in place[1].nodes}
    if any(places[id(node)][1] is not graph for node in nodes):
        own(graph, [constant.name for constant in constants])
    stated: dict[str, onnx.ValueInfoProto] = {}
    for node, row in zip(nodes, rows, strict=True):
        scope, body = places[id(node)]
        index = place_of(node, weight)
        turned = node.inputs[index] if is_transposed(node, index) else None
        made = _write(body, node, index, row, constants, names)
        if turned is not None and not turned.outputs:
            _drop(graph, turned)
        stated |= {scope + tensor.name: value_info(tensor) for tensor in made}
    carried = carried_of(graph)
    graph.carried = replace(carried, values=carried.values | stated)


def _write(
    body: gs.Graph,
    node: gs.Node,
    index: int,
    row: Sequence[ThinLayer],
    constants: Sequence[gs.Constant],
    names: Names,
) -> list[gs.Tensor]:
    """Puts nodes before one that becomes the last of the row; what they make."""
    source, result = node.inputs[1 - index], node.outputs[0]
    shape, dtype = source.shape, constants[0].dtype
    tensor = source
    before: list[gs.Node] = []
    weights: list[gs.Tensor] = []
    for at, layer in enumerate(row):
        constant = constants[at if layer.factor is None else layer.factor]
        weights.append(_turned(constant, node, before, names) if layer.transposed else constant)
    new: list[gs.Tensor] = [turn.outputs[0] for turn in before]
    for layer, constant in zip(row[:-1], weights[:-1], strict=True):
        name = names.fresh(f"{result.name}.{layer.part}")
        made = gs.Variable(name, dtype, layer.made(shape, result.shape))
        inputs = [tensor, constant] if layer.index else [constant, tensor]
        own_name = names.fresh(f"{node.name}.{layer.part}") if node.name else ""
        before.append(gs.Node(layer.op, own_name, dict(layer.attributes), inputs, [made]))
        new.append(made)
        tensor = made
    at = next(i for i, other in enumerate(body.nodes) if other is node)
    body.nodes[at:at] = before
    last = row[-1]
    kept = list(node.inputs[2:]) if node.op != "Gather" else []
    pair = [tensor, weights[-1]] if last.index else [weights[-1], tensor]
    node.op, node.attrs = last.op, dict(last.attributes)
    node.inputs = [*pair, *kept]
    return new


def _turned(
    constant: gs.Constant, node: gs.Node, before: list[gs.Node], names: Names
) -> gs.Variable:
    """A constant's transpose, made by a node of its own: stored once, and folded when loaded."""
    rows, columns = constant.shape
    turned = gs.Variable(
        names.fresh(f"{constant.name}.transposed"), constant.dtype, [columns, rows]
    )
    own_name = names.fresh(f"{node.name}.transpose") if node.name else ""
    before.append(gs.Node("Transpose", own_name, {"perm": [1, 0]}, [constant], [turned]))
    return turned


def _drop(graph: gs.Graph, tensor: gs.Tensor) -> None:
    """Removes the node that makes a tensor which nobody reads."""
    for _, body in scoped_graphs(graph):
        if any(found is tensor for found in body.outputs):
            return
    for _, body in scoped_graphs(graph):
        for node in list(body.nodes):
            if any(made is tensor for made in node.outputs):
                node.inputs.clear()
                body.nodes.remove(node)
