"""Runs a graph from one tensor to the next, so that what lies ahead may still change.

Each node runs once for each feed; between steps only tensors that somebody still reads are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.body_graphs import read_from_outside
from onnxcomp.graph import (
    Graph,
    all_nodes,
    carried_of,
    consumers,
    is_constant,
    opsets,
    producer,
    reads,
    subgraphs,
)
from onnxcomp.runtime import Feed, open_session

Array = np.ndarray[Any, np.dtype[Any]]
LISTS = (
    *("Optional", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert"),
    *("SequenceMap", "SplitToSequence"),
)
CHEAP = "DequantizeLinear"  # run again by whoever reads it: codes are kept, not what they stand for


class Steps:
    """The values of one tensor after another over a few feeds."""

    def __init__(self, graph: gs.Graph, feeds: Iterable[Feed]) -> None:
        """``graph`` must be sorted; an If, Loop or Scan in it is one step (see `can_step`)."""
        self._graph = graph
        self._tensors = graph.tensors()
        self._position = {id(node): index for index, node in enumerate(graph.nodes)}
        self._values: list[Feed] = [dict(feed) for feed in feeds]
        self._done: set[int] = set()
        self._inside: set[int] = set()  # nodes in bodies
        self._owners: dict[int, list[gs.Node]] = {}  # by tensor: whose bodies read it
        for node in graph.nodes:
            for _, body in subgraphs(node):
                self._inside |= {id(inner) for inner in all_nodes(body)}
                for tensor in read_from_outside(body):
                    self._owners.setdefault(id(tensor), []).append(node)

    def advance(self, name: str) -> list[Array]:
        """The values of tensor ``name``, one for each feed; runs only what has not run yet.

        Raises:
            UnsupportedModel: onnxruntime cannot run a part of the graph.
        """
        if name not in self._values[0]:
            self._run(name)
        values = [feed[name] for feed in self._values]
        self._forget()
        return values

    def extend(self, feeds: Iterable[Feed]) -> None:
        """Further feeds, brought to where the others are: what has run runs for each once more.

        Raises:
            UnsupportedModel: onnxruntime cannot run a part of the graph.
        """
        fresh = [dict(feed) for feed in feeds]
        if not fresh:
            return
        kept, given = self.kept(), set(fresh[0])
        made = [name for name in kept if name not in given]
        if made:
            nodes = self._needed(made, given)
            read = sorted({t.name for node in nodes for t in _reads(node)} & given)
            session = open_session(self._part(nodes, read, fresh), extra_outputs=made)
        for feed in fresh:
            found = session.run({n: feed[n] for n in read}, made) if made else []
            values = {name: feed[name] for name in kept if name in given}
            self._values.append(values | dict(zip(made, found, strict=True)))

    def maker(self, tensors: Sequence[gs.Tensor]) -> gs.Node:
        """The node of the graph that makes a tensor of the name of one of ``tensors``."""
        name = next(tensor.name for tensor in tensors if tensor.name)
        node = producer(self._tensors[name])
        assert node is not None
        return node

    def again(self) -> Steps:
        """The same graph and feeds from the start; only before anything has run."""
        return Steps(self._graph, self._values)

    def ahead(self) -> list[gs.Node]:
        """The nodes that have not run."""
        return [node for node in self._graph.nodes if id(node) not in self._done]

    def kept(self) -> list[str]:
        """Names of the tensors whose values are in memory."""
        return list(self._values[0])

    def _run(self, name: str) -> None:
        nodes = self._needed([name], self._values[0].keys())
        self._done |= {id(node) for node in nodes if node.op != CHEAP}
        made = [(node, t) for node in nodes for t in node.outputs if t.name]
        kept = [
            t.name for node, t in made if t.name == name or (node.op != CHEAP and self._is_read(t))
        ]
        read = sorted({t.name for node in nodes for t in _reads(node)} & self._values[0].keys())
        session = open_session(self._part(nodes, read, self._values), extra_outputs=kept)
        unread = self._unread()
        for feed in self._values:
            found = session.run({n: feed[n] for n in read}, kept)
            feed.update(zip(kept, found, strict=True))
            for old in unread:  # before the next feed's values take as much again
                del feed[old]

    def _needed(self, names: Iterable[str], given: Collection[str]) -> list[gs.Node]:
        """The nodes that lead from what is given to ``names``, in the order of the graph.

        Some may have come since the last step, between those that were there.
        """
        found: dict[int, gs.Node] = {}
        open_tensors = [self._tensors[name] for name in names]
        while open_tensors:
            tensor = open_tensors.pop()
            node = producer(tensor)
            if tensor.name in given or is_constant(tensor) or node is None:
                continue
            if id(node) not in found:
                found[id(node)] = node
                open_tensors.extend(_reads(node))
        if not found.keys() <= self._position.keys():
            self._position = {id(node): index for index, node in enumerate(self._graph.nodes)}
        return sorted(found.values(), key=lambda node: self._position[id(node)])

    def _part(
        self, nodes: Sequence[gs.Node], read: Sequence[str], values: Sequence[Feed]
    ) -> gs.Graph:
        inputs, has_bodies = [], any(True for node in nodes for _ in subgraphs(node))
        for name in read:
            shape = _shape([feed[name].shape for feed in values])
            if has_bodies and shape is not None:  # fixed shapes let onnxruntime unwrap an If, and
                shape = [None] * len(shape)  # where its branches nest it aborts (1.31)
            inputs.append(gs.Variable(name, values[0][name].dtype, shape))
        graph = self._graph
        domains = opsets(graph)
        return Graph(nodes=list(nodes), inputs=inputs, opset=graph.opset, import_domains=domains)

    def _is_read(self, tensor: gs.Tensor) -> bool:
        """Whether a node that has not run yet reads ``tensor``, directly or dequantized."""
        readers = [node for node in consumers(tensor) if id(node) not in self._inside]
        return any(
            any(self._is_read(t) for t in node.outputs)
            if node.op == CHEAP
            else id(node) not in self._done
            for node in [*readers, *self._owners.get(id(tensor), ())]
        )

    def _forget(self) -> None:
        for name in self._unread():
            for feed in self._values:
                del feed[name]

    def _unread(self) -> list[str]:
        """Names of values at hand that no node will read any more."""
        known = [name for name in self._values[0] if name in self._tensors]
        return [name for name in known if not self._is_read(self._tensors[name])]


def most_held(
    nodes: Iterable[gs.Node], held: Iterable[str], sizes: Mapping[str, int]
) -> tuple[int, int]:
    """Sizes of the largest tensor that `Steps` keeps, and of the most that it keeps at a time.

    Args:
        nodes: to run, in their order.
        held: names of the tensors that are there before.
        sizes: of tensors, by name; those that are missing count nothing.
    """
    nodes = list(nodes)
    waiting = Counter(name for node in nodes for name in reads(node))
    alive = {name for name in held if waiting[name]}
    now = most = sum(sizes.get(name, 0) for name in alive)
    largest = max((sizes.get(name, 0) for name in alive), default=0)
    for node in nodes:
        made = {tensor.name for tensor in node.outputs if waiting[tensor.name]}
        alive |= made
        now += sum(sizes.get(name, 0) for name in made)
        most = max(most, now)
        largest = max([largest, *(sizes.get(tensor.name, 0) for tensor in node.outputs)])
        read = reads(node)
        waiting.subtract(read)
        gone = {name for name in read & alive if not waiting[name]}
        alive -= gone
        now -= sum(sizes.get(name, 0) for name in gone)
    return largest, most


def can_step(graph: gs.Graph) -> bool:
    """Whether `Steps` can run ``graph``: all values are tensors, and no input may be left out."""
    types = {t.type for node in graph.nodes for t in node.outputs if isinstance(t, gs.Variable)}
    bodies = [body for node in graph.nodes for _, body in subgraphs(node)]
    types |= {t.type for body in bodies for t in body.outputs if isinstance(t, gs.Variable)}
    makes_lists = any(node.op in LISTS for node in graph.nodes)
    return types <= {"tensor_type"} and not makes_lists and not carried_of(graph).defaults


def _shape(shapes: Sequence[Sequence[int]]) -> list[int | None] | None:
    """What all of ``shapes`` fit; None where they have several ranks."""
    first = shapes[0]
    if any(len(shape) != len(first) for shape in shapes):
        return None
    return [n if all(s[axis] == n for s in shapes) else None for axis, n in enumerate(first)]


def _reads(node: gs.Node) -> list[gs.Tensor]:
    bodies = [body for _, body in subgraphs(node)]
    return [*node.inputs, *(t for body in bodies for t in read_from_outside(body))]
