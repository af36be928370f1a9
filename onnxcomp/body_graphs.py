"""Bodies of If, Loop and Scan as graphs of their own, which a pass can rewrite like any other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import (
    Carried,
    Graph,
    Names,
    all_graphs,
    all_nodes,
    carried_of,
    consumers,
    detach,
    is_constant,
    opsets,
    producer,
    remove_unused,
    replace_uses,
    subgraphs,
)
from onnxcomp.quantization import Affine


@dataclass
class BodyGraph:
    """A body on its own.

    Attributes:
        node: the If, Loop or Scan that has it.
        attribute: under which name.
        graph: the body's nodes; behind the body's own inputs stand those for what it reads from
            outside, under the same names.
        outside: the tensors that these stand for, in their order.
    """

    node: gs.Node
    attribute: str
    graph: Graph
    outside: list[gs.Tensor]
    _known: dict[int, gs.Tensor | gs.Node] = field(default_factory=dict)  # holds on to them

    @property
    def body(self) -> gs.Graph:
        """As the node has it."""
        return self.node.attrs[self.attribute]

    @property
    def stand_ins(self) -> list[gs.Variable]:
        """The inputs of ``graph`` that the body itself does not have."""
        return list(self.graph.inputs[len(self.body.inputs) :])

    def coded(self, before: Mapping[str, Affine], dtype: np.dtype[Any]) -> dict[str, Affine]:
        """The parameters of what the body reads from outside where that comes from codes.

        With the same ones nothing is rounded twice: see `read_codes_from_outside`.

        Args:
            before: of the inputs of the enclosing graph.
            dtype: of the codes wanted.
        """
        found = {}
        for tensor in self.outside:
            parameters = before.get(tensor.name) or _dequantized_by(producer(tensor))
            if parameters is not None and parameters.dtype == dtype:
                found[tensor.name] = parameters
        return found

    def put_back(self, names: Names) -> None:
        """Gives the body the nodes of ``graph``, which read from outside again.

        Args:
            names: of the whole model: what is new gets a name that nothing else has.
        """
        for stand_in, tensor in zip(self.stand_ins, self.outside, strict=True):
            _replace_inside(self.graph, stand_in, tensor)
        for node in self.graph.nodes:
            for part in (node, *node.inputs, *node.outputs):
                if id(part) not in self._known and part.name:
                    self._known[id(part)] = part
                    part.name = names.fresh(part.name)
        self.body.nodes[:] = self.graph.nodes
        self.body.outputs[:] = self.graph.outputs


def body_graphs(graph: gs.Graph) -> Iterator[BodyGraph]:
    """Each body of the nodes of ``graph``, taken out when it is asked for.

    Until it is put back, its nodes do not read from ``graph``.
    """
    for node in list(graph.nodes):
        for attribute, body in list(subgraphs(node)):
            yield _taken_out(graph, node, attribute, body)


def read_codes_from_outside(graph: gs.Graph) -> None:
    """Lets bodies read codes that an enclosing graph has, where they made equal ones of them."""
    for body in itertools.islice(all_graphs(graph), 1, None):
        inside = {id(node) for node in body.nodes}
        for node in [n for n in body.nodes if n.op == "QuantizeLinear"]:
            maker = producer(node.inputs[0])
            if maker is None or id(maker) in inside:
                continue
            before, after = _dequantized_by(maker), _parameters(node)
            if before is not None and after is not None and _equal(before, after):
                replace_uses(graph, node.outputs[0], maker.inputs[0])
                detach(node)
                body.nodes.remove(node)
    for inner in all_graphs(graph):
        remove_unused(inner)


def _equal(one: Affine, other: Affine) -> bool:
    return (one.dtype, one.scale, one.zero_point) == (other.dtype, other.scale, other.zero_point)


def _dequantized_by(node: gs.Node | None) -> Affine | None:
    return _parameters(node) if node is not None and node.op == "DequantizeLinear" else None


def _parameters(node: gs.Node) -> Affine | None:
    """Of a QuantizeLinear or DequantizeLinear; None where they are computed or by channel."""
    if len(node.inputs) < 3 or not all(is_constant(t) for t in node.inputs[1:3]):
        return None
    scale, zero_point = (np.asarray(t.values) for t in node.inputs[1:3])
    return Affine(scale, zero_point) if scale.ndim == 0 else None


def _taken_out(graph: gs.Graph, node: gs.Node, attribute: str, body: gs.Graph) -> BodyGraph:
    outside = read_from_outside(body)
    stand_ins = []
    for tensor in outside:
        stand_in = gs.Variable(tensor.name, tensor.dtype, tensor.shape)
        stand_in.type = tensor.type
        stand_ins.append(stand_in)
    alone = Graph(
        nodes=list(body.nodes),
        inputs=[*body.inputs, *stand_ins],
        outputs=list(body.outputs),
        name=body.name,
        opset=graph.opset,
        import_domains=opsets(graph),
        functions=list(graph.functions),
        ir_version=graph.ir_version,
    )
    alone.carried = Carried(header=carried_of(graph).header)
    for tensor, stand_in in zip(outside, stand_ins, strict=True):
        _replace_inside(alone, tensor, stand_in)
    parts = [part for inner in alone.nodes for part in (inner, *inner.inputs, *inner.outputs)]
    known = {id(part): part for part in [*parts, *outside]}
    return BodyGraph(node, attribute, alone, outside, known)


def read_from_outside(body: gs.Graph) -> list[gs.Tensor]:
    """The tensors of enclosing graphs that a body or one nested in it reads; no constants."""
    graphs = list(all_graphs(body))
    own = {id(t) for inner in graphs for t in inner.inputs}
    own |= {id(t) for node in all_nodes(body) for t in node.outputs}
    read = [t for node in all_nodes(body) for t in node.inputs]
    read += [t for inner in graphs for t in inner.outputs]
    found = {id(t): t for t in read if isinstance(t, gs.Variable) and t.name and id(t) not in own}
    return list(found.values())


def _replace_inside(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    inside = {id(node) for node in all_nodes(graph)}
    for node in consumers(old):
        for index, tensor in enumerate(node.inputs if id(node) in inside else ()):
            if tensor is old:
                node.inputs[index] = new
    for body in all_graphs(graph):
        body.outputs[:] = [new if t is old else t for t in body.outputs]
