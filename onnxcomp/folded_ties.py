"""Ties between layers that simplification folded away: a tensor of zeros that is added to each.

What the original computes of constants alone, and lengths, may have left the graph that was cut:
its readers lost channels each on their own there, so they must not share labels in the original.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, consumers, is_constant, sort_nodes
from onnxcomp.union_find import Array

LENGTHS = ("Shape", "Size")
Copies = dict[str, list[str]]  # tensor -> what other readers than the first have instead


def untie(graph: gs.Graph, made_of: gs.Graph) -> Copies:
    """Gives every reader its own copy, in place, of what ``made_of`` does not have as one tensor.

    Copies are made from the back to the front, of what they are computed from as well, but no more
    than the graph has nodes.
    """
    known, names = made_of.tensors(), Names(graph)
    computed = computed_of_constants(graph)
    copies: Copies = {}
    left = len(graph.nodes)
    for node in reversed(list(graph.nodes)):
        if len(node.outputs) != 1 or node.op in LENGTHS or node.outputs[0].name not in computed:
            continue
        tensor = node.outputs[0]
        if tensor.dtype == np.int64 or _is_one(known.get(tensor.name)):
            continue
        for reader in consumers(tensor)[1:][:left]:
            twin = gs.Variable(names.fresh(f"{tensor.name}.own"), tensor.dtype, tensor.shape)
            name = names.fresh(f"{node.name}.own")
            graph.nodes.append(
                gs.Node(node.op, name, dict(node.attrs), list(node.inputs), [twin], node.domain)
            )
            reader.inputs = [twin if t is tensor else t for t in reader.inputs]
            copies.setdefault(tensor.name, []).append(twin.name)
            left -= 1
    if copies:
        sort_nodes(graph)
    return copies


def computed_of_constants(graph: gs.Graph) -> set[str]:
    """Names of what does not depend on the inputs' values: on constants and lengths alone."""
    found: set[str] = set()
    for node in graph.nodes:
        inputs = (t for t in node.inputs if t.name)
        if node.op in LENGTHS or all(is_constant(t) or t.name in found for t in inputs):
            found |= {tensor.name for tensor in node.outputs}
    return found


def unlisted(copies: Copies, axes: Mapping[str, Sequence[Array]], owner: Array) -> set[str]:
    """Copies, and the tensors they were made of where these did not all lose the same.

    Args:
        copies: as `untie` returned them.
        axes: labels of the axes of every tensor.
        owner: by label the number of the group that lost it, or -1.
    """
    found = {name for others in copies.values() for name in others}
    for tensor, others in copies.items():
        lost = [_lost(axes[name], owner) for name in (tensor, *others) if name in axes]
        if any(one != lost[0] for one in lost):
            found.add(tensor)
    return found


def _lost(axes: Iterable[Array], owner: Array) -> list[list[int]]:
    return [owner[labels].tolist() for labels in axes]


def _is_one(tensor: gs.Tensor | None) -> bool:
    """Whether all readers of a tensor lose the same: not where each has a vector of its own."""
    if tensor is None:
        return False
    return not is_constant(tensor) or sum(size > 1 for size in tensor.shape) != 1
