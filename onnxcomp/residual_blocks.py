"""Residual branches: what a network adds to a tensor that runs past it, as in y = x + f(x)."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.concrete_shapes import with_concrete_shapes
from onnxcomp.graph import (
    all_nodes,
    consumers,
    is_constant,
    is_output,
    is_standard,
    label,
    reads,
    replace_uses,
    subgraphs,
)
from onnxcomp.shapes import Dim, inferred_types

SUMS = ("Add", "Sum")
FUSED = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "QLinearAdd")
GROWN = 4  # sizes that an input leaves open are tried once more, so much larger

Shape = tuple[Dim, ...]
Cut = tuple[int, int]  # index of a sum in graph.nodes, and which of its inputs is left out


@dataclass(frozen=True)
class Branch:
    """f of y = x + f(x), and what goes with it.

    Attributes:
        name: label of the sum, with the number of the input where two of them are branches.
        cut: index of the sum in ``graph.nodes`` and of the input that f makes.
        stream: name of x.
        nodes: indices of the nodes that nothing else needs.
    """

    name: str
    cut: Cut
    stream: str
    nodes: frozenset[int]


class Wiring:
    """Who reads what in the outermost graph, by index of the node; bodies read for their node.

    Attributes:
        reads: names that each node reads, constants left out.
        maker: index of the node that makes a tensor, by name.
        uses: how many nodes read a tensor, and one more where it is an output.
    """

    def __init__(self, graph: gs.Graph) -> None:
        nodes = graph.nodes
        self.makes = [[t.name for t in node.outputs if t.name] for node in nodes]
        self.maker = {name: index for index, names in enumerate(self.makes) for name in names}
        known = self.maker.keys() | {tensor.name for tensor in graph.inputs}
        self.reads = [reads(node) & known for node in nodes]
        self.uses = Counter(name for names in self.reads for name in names)
        self.uses.update(tensor.name for tensor in graph.outputs)

    def without(self, cuts: Iterable[tuple[int, str]]) -> frozenset[int]:
        """Indices of the nodes that nobody needs once these nodes do not read these tensors."""
        uses, dead = dict(self.uses), set[int]()
        cut = set(cuts)
        waiting = [name for _, name in cut]
        while waiting:
            name = waiting.pop()
            uses[name] -= 1
            maker = self.maker.get(name)
            if maker is None or any(uses.get(made, 0) for made in self.makes[maker]):
                continue
            dead.add(maker)
            waiting += [read for read in self.reads[maker] if (maker, read) not in cut]
        return frozenset(dead)


class Ancestry:
    """What tensors are computed from what: a bit for every tensor."""

    def __init__(self, wiring: Wiring) -> None:
        """``wiring``: of a graph whose nodes are sorted."""
        names = dict.fromkeys(name for read in wiring.reads for name in sorted(read))
        names |= dict.fromkeys(name for made in wiring.makes for name in made)
        self._bit = {name: 1 << index for index, name in enumerate(names)}
        self._above = {name: bit for name, bit in self._bit.items() if name not in wiring.maker}
        for reads_, made in zip(wiring.reads, wiring.makes, strict=True):
            above = 0
            for name in reads_:
                above |= self._above.get(name, 0)
            for name in made:
                self._above[name] = above | self._bit[name]

    def follows(self, tensor: str, source: str) -> bool:
        """Whether ``tensor`` is computed from ``source`` or the same."""
        return bool(self._above[tensor] & self._bit[source])


class Shapes:
    """What is known of the shapes of tensors, for whatever the model is fed."""

    def __init__(self, graph: gs.Graph, feed: Mapping[str, Sequence[int]] | None) -> None:
        """``feed``: shapes of the inputs as they run, which settle what inference leaves open."""
        self._symbolic = {n: t.shape for n, t in inferred_types(graph)[0][1].items()}
        self._concrete: list[Mapping[str, Shape | None]] = []
        if feed is not None:
            self._concrete = [_concrete(graph, shapes) for shapes in (feed, _grown(graph, feed))]

    def of(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor in the run that was given; None where it is not known."""
        shape = self._concrete[0].get(name) if self._concrete else self._symbolic.get(name)
        if shape is None or not all(isinstance(size, int) for size in shape):
            return None
        return tuple(int(size) for size in shape if size is not None)

    def fixed(self, name: str, axis: int) -> int | None:
        """The size of a tensor along an axis where no input changes it."""
        symbolic = self._symbolic.get(name)
        if symbolic is not None and isinstance(symbolic[axis], int):
            return int(symbolic[axis] or 0)
        known = [shape for found in self._concrete if (shape := found.get(name)) is not None]
        sizes = {shape[axis] for shape in known}
        (size,) = sizes if len(known) > 1 and len(sizes) == 1 else (None,)
        return size if isinstance(size, int) else None

    def equal(self, one: str, other: str) -> bool:
        """Whether no broadcasting takes place between two tensors, as far as can be told."""
        a, b = self._symbolic.get(one), self._symbolic.get(other)
        certain = _equal(a, b)
        if certain is None:
            known = [_equal(found.get(one), found.get(other)) for found in self._concrete]
            return False not in known and (True in known or not known)
        return certain


def _equal(a: Shape | None, b: Shape | None) -> bool | None:
    """Whether two shapes are the same; None where that cannot be told."""
    if a is None or b is None:
        return None
    if len(a) != len(b):
        return False
    pairs = list(zip(a, b, strict=True))
    if any(isinstance(x, int) and isinstance(y, int) and x != y for x, y in pairs):
        return False
    return True if all(x is not None and x == y for x, y in pairs) else None


def _concrete(graph: gs.Graph, feed: Mapping[str, Sequence[int]]) -> dict[str, Shape | None]:
    twin, types = with_concrete_shapes(graph, feed)
    return {name: found.shape for name, found in types[id(twin)].items()}


def _grown(graph: gs.Graph, feed: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
    """Shapes of inputs in which sizes that the model leaves open are larger, equal ones alike."""
    return {
        tensor.name: [
            size + (0 if isinstance(promised, int) else GROWN)
            for size, promised in zip(feed[tensor.name], tensor.shape, strict=True)
        ]
        for tensor in graph.inputs
        if tensor.name in feed and tensor.shape is not None
    }


class _Sums:
    """The sums of a graph, nested ones seen as one."""

    def __init__(self, graph: gs.Graph, wiring: Wiring, equal: Callable[[str, str], bool]) -> None:
        self.graph, self.wiring, self.equal = graph, wiring, equal
        self._is_sum = {i for i, n in enumerate(graph.nodes) if n.op in SUMS and is_standard(n)}
        self._reader = {
            name: index for index, names in enumerate(wiring.reads) for name in names
        }  # of tensors that one node reads

    def operands(self, index: int) -> list[str]:
        """What a sum adds up, constants left out."""
        return [t.name for t in self.graph.nodes[index].inputs if not is_constant(t) and t.name]

    def whole(self, index: int) -> int:
        """The outermost sum that a sum is part of."""
        (made,) = self.wiring.makes[index]
        above = self._reader.get(made)
        if self.wiring.uses[made] != 1 or above not in self._is_sum:
            return index
        return self.whole(above) if self.equal(made, self.wiring.makes[above][0]) else index

    def leaves(self, name: str) -> Counter[str]:
        """What a tensor is the sum of."""
        maker = self.wiring.maker.get(name)
        if maker is None or maker not in self._is_sum:
            return Counter([name])
        parts = self.operands(maker)
        if any(not self.equal(part, name) for part in parts):
            return Counter([name])
        found: Counter[str] = Counter()
        for part in parts:
            found += self.leaves(part) if self.wiring.uses[part] == 1 else Counter([part])
        return found

    def __iter__(self) -> Iterator[int]:
        """Indices of the sums of two tensors and more that are no constants."""
        for index in sorted(self._is_sum):
            dtype = self.graph.nodes[index].outputs[0].dtype
            if isinstance(dtype, np.dtype) and dtype.kind != "f":
                continue  # arithmetic on shapes
            if len(self.operands(index)) > 1:
                yield index


def find_branches(
    graph: gs.Graph, wiring: Wiring, shapes: Shapes
) -> tuple[list[Branch], dict[str, str]]:
    """Residual branches in the order of the graph, and why other sums are none, by label.

    A branch is an input of a sum that is computed from another of the sum's inputs, the stream,
    and has its shape: x + f(x), x + gamma * f(x), x + f(x) + g(x) in any order. Of p(x) + f(x),
    where p projects x to another shape with fewer weights, f is the branch. f may read other
    tensors too, such as masks.

    Args:
        graph: its nodes have to be sorted.
        wiring: of the graph.
        shapes: of its tensors.
    """
    sums, ancestry = _Sums(graph, wiring, shapes.equal), Ancestry(wiring)
    branches: list[Branch] = []
    refused = dict(_out_of_reach(graph))
    for index in sums:
        whole, name = sums.whole(index), label(graph.nodes[index])
        found: list[tuple[int, str, frozenset[int]]] = []
        reasons: dict[str, None] = {}
        for operand, tensor in enumerate(graph.nodes[index].inputs):
            if is_constant(tensor) or not tensor.name:
                continue
            rest = sums.leaves(wiring.makes[whole][0]) - sums.leaves(tensor.name)
            own = wiring.without([(index, tensor.name)])
            streams = [x for x in rest if ancestry.follows(tensor.name, x)]
            if not streams:
                streams = list(_projections(graph, wiring, ancestry, tensor.name, rest))
            reason = _reason(index, tensor.name, streams, own, sums)
            if reason:
                reasons[reason] = None
            else:
                found.append((operand, streams[0], own))
        for operand, stream, own in found:
            mine = name if len(found) == 1 else f"{name}[{operand}]"
            branches.append(Branch(mine, (index, operand), stream, own))
        if not found:
            refused[name] = "; ".join(reasons)
    return branches, refused


def _reason(
    index: int, tensor: str, streams: Sequence[str], own: Collection[int], sums: _Sums
) -> str:
    """Why an input of a sum is no branch; empty if it is."""
    wiring = sums.wiring
    (made,) = wiring.makes[index]
    kept = [name for name in sums.operands(index) if name != tensor]
    if len(kept) != len(sums.operands(index)) - 1:
        return "it adds a tensor to itself"
    if any(not sums.equal(name, made) for name in (*kept, tensor)):
        return "it broadcasts one of its inputs"
    if not streams:
        return "none of its inputs is computed from another"
    if not own:
        return "what it adds is needed elsewhere too"
    return ""


def _projections(
    graph: gs.Graph, wiring: Wiring, ancestry: Ancestry, branch: str, names: Iterable[str]
) -> Iterator[str]:
    """Those of ``names`` that follow from one tensor that a branch follows from too."""
    for name in names:
        if wiring.uses[name] != 1 or name not in wiring.maker:
            continue
        path = _path(wiring, name)
        read = {read for i in path for read in wiring.reads[i]}
        read -= {made for i in path for made in wiring.makes[i]}
        lighter = _elements(graph, path) < _elements(graph, _path(wiring, branch))
        if len(read) == 1 and lighter and ancestry.follows(branch, min(read)):
            yield name


def _path(wiring: Wiring, name: str) -> frozenset[int]:
    """The nodes that only the one reader of a tensor needs."""
    return wiring.without((i, name) for i, names in enumerate(wiring.reads) if name in names)


def _elements(graph: gs.Graph, nodes: Iterable[int]) -> int:
    """Elements of the constants that nodes read."""
    inputs = itertools.chain.from_iterable(graph.nodes[index].inputs for index in nodes)
    return sum(math.prod(map(int, tensor.shape)) for tensor in inputs if is_constant(tensor))


def _out_of_reach(graph: gs.Graph) -> Iterator[tuple[str, str]]:
    for node in graph.nodes:
        if node.op in FUSED or (node.op == "FusedConv" and len(node.inputs) > 3):
            yield label(node), f"{node.op} hides the sum: give the model before it was fused"
        for _, body in subgraphs(node):
            for inner in all_nodes(body):
                parts = [tensor for tensor in inner.inputs if not is_constant(tensor)]
                if inner.op in SUMS and is_standard(inner) and len(parts) > 1:
                    yield label(inner), f"it is in a body of {node.op}"


def drop_branches(graph: gs.Graph, branches: Iterable[Branch]) -> None:
    """Takes branches out of their sums; what only they needed stays, unread."""
    cuts: dict[int, set[int]] = {}
    for branch in branches:
        cuts.setdefault(branch.cut[0], set()).add(branch.cut[1])
    for index, node in enumerate(graph.nodes):
        operands = cuts.get(index, set()) & set(range(len(node.inputs)))
        if not operands:
            continue
        kept = [tensor for i, tensor in enumerate(node.inputs) if i not in operands]
        (made,) = node.outputs
        if not kept:  # nothing is left of a sum within a sum
            for above in consumers(made):
                at = next(i for i, node in enumerate(graph.nodes) if node is above)
                inner = {i for i, tensor in enumerate(above.inputs) if tensor is made}
                cuts.setdefault(at, set()).update(inner)
        elif len(kept) > 1:
            node.inputs = kept
        elif is_output(graph, made):
            node.op, node.inputs = "Identity", kept
        else:
            replace_uses(graph, made, kept[0])
