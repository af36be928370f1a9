"""The graph that flows through all passes: graphsurgeon's, with its edges taken off.

`importing.py` makes a `Graph` from a ModelProto and `exporting.py` writes it back; what
graphsurgeon cannot hold (doc strings, metadata, scopes of initializers, unusual types) travels in
``graph.carried``. Tensors compare by name and are unhashable, so everything is keyed by name.
"""

from __future__ import annotations

import copy
import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

G_LOGGER.severity = G_LOGGER.ERROR  # its warnings are about what `carried` puts right
STANDARD_DOMAINS = ("", "ai.onnx", None)
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass
class Carried:
    """What graphsurgeon drops. Keys are ``scope + name``; the outermost scope is ``""``.

    Copies of a graph share it: replace it or a dict in it, never write into one.
    """

    header: onnx.ModelProto = field(default_factory=onnx.ModelProto)  # all but graph and opsets
    graphs: dict[str, onnx.GraphProto] = field(default_factory=dict)  # metadata, annotations
    nodes: dict[str, onnx.NodeProto] = field(default_factory=dict)  # doc, metadata, overload
    values: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    owned: dict[str, frozenset[str]] = field(default_factory=dict)  # initializers of each scope
    defaults: dict[str, gs.Constant] = field(default_factory=dict)  # of overridable inputs
    sources: frozenset[Path] = frozenset()  # files the graph still reads, never to be overwritten


class EmptyList(list[Any]):
    """An empty list of an attribute, which still knows of what: an AttributeProto type."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind


class Graph(gs.Graph):  # type: ignore[misc]
    """A gs.Graph that keeps `Carried` across `copy`.

    A copy shares all weights (7 ms for 400 MB), so a copy taken before a pass is a free undo.
    """

    carried: Carried

    def copy(self, tensor_map: Any = None) -> Graph:
        """An independent graph over the same, shared weights.

        Other than graphsurgeon's, which goes by name: what bodies read from outside stays one
        tensor with what is outside, and equal names in two branches stay two tensors.
        """
        twin: Graph = _copied(self, {}, Graph)
        twin.producer_name, twin.producer_version = self.producer_name, self.producer_version
        twin.import_domains = [onnx.helper.make_opsetid(o.domain, o.version) for o in opsets(self)]
        twin.carried = carried_of(self)
        return twin


def _copied(graph: gs.Graph, twins: dict[int, gs.Tensor], kind: type[gs.Graph]) -> gs.Graph:
    """Clones nodes and tensors; ``twins`` are the clones so far by id of the original."""

    def tensor(old: gs.Tensor) -> gs.Tensor:
        if id(old) not in twins:
            new = twins[id(old)] = old.copy()
            if isinstance(new, gs.Variable):
                new.type = old.type
                new.shape = None if old.shape is None else list(old.shape)
        return twins[id(old)]

    def attribute(value: Any) -> Any:
        if isinstance(value, gs.Graph):
            return _copied(value, twins, gs.Graph)
        if isinstance(value, gs.Constant):
            return value.copy()
        return copy.copy(value) if isinstance(value, list) else value

    inputs = [tensor(t) for t in graph.inputs]
    nodes = [
        gs.Node(
            node.op,
            node.name,
            {name: attribute(value) for name, value in node.attrs.items()},
            [tensor(t) for t in node.inputs],
            [tensor(t) for t in node.outputs],
            node.domain,
        )
        for node in graph.nodes
    ]
    return kind(
        nodes=nodes,
        inputs=inputs,
        outputs=[tensor(t) for t in graph.outputs],
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=graph.import_domains,
        functions=list(graph.functions),
        ir_version=graph.ir_version,
    )


def carried_of(graph: gs.Graph) -> Carried:
    """What travels beside ``graph``; empty for one built by hand."""
    return graph.__dict__.get("carried") or Carried()


def opsets(graph: gs.Graph) -> list[onnx.OperatorSetIdProto]:
    """The operator sets a graph imports, one entry a domain."""
    if graph.import_domains:
        return list(graph.import_domains)
    return [onnx.helper.make_opsetid("", graph.opset)]


def own(graph: gs.Graph, names: Iterable[str]) -> None:
    """Lets the outermost graph write constants that only bodies read: one copy for all of them."""
    carried = carried_of(graph)
    owned = carried.owned | {"": carried.owned.get("", frozenset()) | frozenset(names)}
    graph.carried = replace(carried, owned=owned)


def label(node: gs.Node) -> str:
    """How reports and recipes call a node: its name, or ``Op:first_output`` when it has none."""
    return node.name or f"{node.op}:{next((t.name for t in node.outputs if t.name), '')}"


def is_standard(node: gs.Node) -> bool:
    """Whether a node is an operator of ONNX itself, not of a custom domain or a local function."""
    return node.domain in STANDARD_DOMAINS


def is_constant(tensor: gs.Tensor) -> bool:
    """Whether the value of a tensor is known and cannot be overridden by a caller."""
    return isinstance(tensor, gs.Constant)


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that computes a tensor, None for constants, inputs and absent inputs."""
    return tensor.inputs[0] if tensor.inputs else None


def input_at(node: gs.Node, index: int) -> gs.Tensor | None:
    """An input of a node, None where it is absent or left empty."""
    if index >= len(node.inputs) or not node.inputs[index].name:
        return None
    return node.inputs[index]


def consumers(tensor: gs.Tensor) -> list[gs.Node]:
    """All nodes that read a tensor, those inside If / Loop bodies included, each once."""
    return list({id(node): node for node in tensor.outputs}.values())


def is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """Whether ``tensor`` is among the outputs of ``graph``."""
    return any(tensor.name == output.name for output in graph.outputs)


def only_reader(graph: gs.Graph, tensor: gs.Tensor, *ops: str) -> gs.Node | None:
    """The standard node, one of ``ops`` if any are named, that needs a tensor all for itself.

    None where several nodes need it, or who runs ``graph`` does.
    """
    readers = consumers(tensor)
    if len(readers) != 1 or is_output(graph, tensor) or not is_standard(readers[0]):
        return None
    return readers[0] if not ops or readers[0].op in ops else None


def required_inputs(graph: gs.Graph) -> list[gs.Variable]:
    """The inputs a caller must feed: those without a default value."""
    defaults = carried_of(graph).defaults
    return [tensor for tensor in graph.inputs if tensor.name not in defaults]


def subgraphs(node: gs.Node) -> Iterator[tuple[str, gs.Graph]]:
    """The bodies of an If, Loop or Scan by attribute name."""
    for name, value in node.attrs.items():
        if isinstance(value, gs.Graph):
            yield name, value


def all_graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """``graph`` and every body nested in it, outermost first."""
    yield graph
    for node in graph.nodes:  # not by `subgraphs`: few nodes have bodies, and this is asked often
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from all_graphs(value)


def all_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """The nodes of ``graph`` and of every body nested in it."""
    return itertools.chain.from_iterable(g.nodes for g in all_graphs(graph))


def constants(graph: gs.Graph) -> dict[str, gs.Constant]:
    """Every constant of a graph and its bodies by name."""
    tensors = itertools.chain.from_iterable(
        [*node.inputs, *(v for v in node.attrs.values() if isinstance(v, gs.Constant))]
        for node in all_nodes(graph)
    )
    outputs = itertools.chain.from_iterable(g.outputs for g in all_graphs(graph))
    return {t.name: t for t in itertools.chain(tensors, outputs) if isinstance(t, gs.Constant)}


def scoped_graphs(graph: gs.Graph, scope: str = "") -> Iterator[tuple[str, gs.Graph]]:
    """``graph`` and every body in it with the prefix of its keys in `Carried`, outermost first."""
    yield scope, graph
    for node in graph.nodes:
        for name, body in subgraphs(node):
            yield from scoped_graphs(body, f"{node_key(node, scope)}/{name}/")


def node_key(node: gs.Node, scope: str = "") -> str:
    """The key of a node in `Carried`: that of its first output."""
    return scope + next((t.name for t in node.outputs if t.name), "")


def replace_uses(graph: gs.Graph, old: gs.Tensor, new: gs.Tensor) -> None:
    """Makes every reader of ``old`` read ``new``, those in bodies too.

    The outputs of the outermost graph keep their names: they are never replaced.
    """
    for node in consumers(old):
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
    for body in itertools.islice(all_graphs(graph), 1, None):
        body.outputs[:] = [new if t is old else t for t in body.outputs]


def replace_constants(graph: gs.Graph, made: Mapping[str, gs.Tensor]) -> None:
    """Makes nodes read what is ``made`` in place of constants of these names, in bodies too."""
    for node in all_nodes(graph):
        for index, tensor in enumerate(node.inputs):
            if isinstance(tensor, gs.Constant) and tensor.name in made:
                node.inputs[index] = made[tensor.name]


def remove_unused(graph: gs.Graph) -> None:
    """Drops nodes whose results nobody reads; inputs and outputs stay."""
    needed = {t.name for body in all_graphs(graph) for t in body.outputs}
    for node in reversed(list(graph.nodes)):
        if not any(t.name in needed or t.outputs for t in node.outputs):
            detach(node)
    graph.nodes[:] = [node for node in graph.nodes if node.outputs]


def detach(node: gs.Node) -> None:
    """Unties a node, and the nodes in its bodies, from all tensors."""
    for _, body in subgraphs(node):
        for inner in all_nodes(body):
            inner.inputs.clear()
    node.inputs.clear()
    node.outputs.clear()


def sort_nodes(graph: gs.Graph) -> None:
    """Puts producers before consumers, keeping the given order wherever it is free (Kahn, 1962).

    Raises:
        ValueError: the graph has a cycle.
    """
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    made = {t.name: id(node) for node in graph.nodes for t in node.outputs if t.name}
    waits = {id(n): {made[x] for x in reads(n) if x in made} - {id(n)} for n in graph.nodes}
    readers: dict[int, list[int]] = {}
    for reader, sources in waits.items():
        for source in sources:
            readers.setdefault(source, []).append(reader)
    ready = [position[key] for key, sources in waits.items() if not sources]
    heapq.heapify(ready)
    nodes, order = list(graph.nodes), []
    while ready:
        node = nodes[heapq.heappop(ready)]
        order.append(node)
        for reader in readers.get(id(node), ()):
            waits[reader].discard(id(node))
            if not waits[reader]:
                heapq.heappush(ready, position[reader])
    if len(order) != len(nodes):
        raise ValueError(f"the graph has a cycle through {len(nodes) - len(order)} nodes")
    graph.nodes[:] = order


def reads(node: gs.Node) -> set[str]:
    """Names a node depends on, what its bodies take from outside included."""
    names = {t.name for t in node.inputs if t.name}
    for _, body in subgraphs(node):
        for inner in all_nodes(body):
            names |= {t.name for t in inner.inputs if t.name}
        names |= {t.name for g in all_graphs(body) for t in g.outputs}
    return names


class Names:
    """Fresh names for tensors and nodes of one graph."""

    def __init__(self, graph: gs.Graph) -> None:
        self._taken = {node.name for node in all_nodes(graph)}
        for body in all_graphs(graph):
            self._taken |= set(body.tensors())

    def fresh(self, wanted: str) -> str:
        """``wanted``, or the first of wanted_1, wanted_2 ... that is free; taken from now on."""
        name = wanted
        for count in itertools.count(1):
            if name not in self._taken:
                break
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name


def volume(shape: Iterable[Any] | None) -> int | None:
    """Number of elements of a shape, None when any of it is unknown or symbolic."""
    sizes = None if shape is None else list(shape)
    if sizes is None or not all(isinstance(size, (int, np.integer)) for size in sizes):
        return None
    return int(np.prod(sizes, dtype=np.int64)) if sizes else 1
