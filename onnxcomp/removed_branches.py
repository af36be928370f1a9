"""Residual branches that left, as constants and activations of the ORIGINAL model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Graph, is_constant
from onnxcomp.parameters import parameters, stored_constants
from onnxcomp.residual_blocks import Wiring
from onnxcomp.shapes import infer_shapes
from onnxcomp.tracing import RemovedPlace


def trace_branches(
    original: gs.Graph, cuts: Sequence[tuple[str, str]]
) -> list[tuple[RemovedPlace, ...]]:
    """For each branch all that nothing needs once it is gone, along with those before it.

    Weights are listed with all indices of axis 0, and what the branch computes with all of the
    last axis whose length is known. A weight that something else reads as well has not left.

    Args:
        original: not changed.
        cuts: of each branch the names of the sum and of what the branch adds to it, in the order
            in which they left. Activations keep their names, so the original has them as well,
            unless what made them was rewritten: then nothing is listed.
    """
    twin: Graph = original.copy()
    infer_shapes(twin)
    wiring = Wiring(twin)
    readers = _readers(twin)
    edges: list[tuple[int, str]] = []
    gone: frozenset[int] = frozenset()
    found = []
    for total, made in cuts:
        edges += _edges(wiring, total, made)
        dead = wiring.without(edges)
        activations = [t for index in sorted(dead - gone) for t in twin.nodes[index].outputs]
        weights = [t for t, nodes in readers if nodes <= dead and not nodes <= gone]
        found.append((*_whole(activations), *_whole(weights)))
        gone = dead
    return found


def _edges(wiring: Wiring, total: str, made: str) -> Iterator[tuple[int, str]]:
    """Where a branch enters its sum, or its one reader where the sum has another name."""
    at = [index for index, names in enumerate(wiring.reads) if made in names]
    sums = [index for index in at if total in wiring.makes[index]]
    if sums or len(at) == 1:
        yield (sums or at)[0], made


def _readers(graph: gs.Graph) -> list[tuple[gs.Constant, set[int]]]:
    """Weights with the indices of the nodes that read them; -1 for one within a body."""
    indices = {id(node): index for index, node in enumerate(graph.nodes)}
    return [
        (tensor, {indices.get(id(node), -1) for node, _ in roles})
        for tensor, roles in stored_constants(graph)
        if roles and parameters(tensor, roles)
    ]


def _whole(tensors: Sequence[gs.Tensor]) -> Iterator[RemovedPlace]:
    """Each tensor with all indices of one axis."""
    for tensor in tensors:
        shape = list(tensor.shape or ())
        known = [axis for axis, size in enumerate(shape) if isinstance(size, int) and size > 0]
        if not tensor.name or not known:
            continue
        axis = known[0] if is_constant(tensor) else known[-1]
        indices = np.arange(shape[axis])
        yield RemovedPlace(tensor.name, axis, indices, is_constant(tensor))
