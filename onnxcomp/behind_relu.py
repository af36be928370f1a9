"""What of the terms of a sum gets through the Relu behind it: only that needs codes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, only_reader


def with_passing_terms(graph: gs.Graph, names: Iterable[str]) -> tuple[gs.Graph, dict[str, str]]:
    """A copy of ``graph`` that also computes what the Relu behind a sum lets through of its terms.

    Where a sum is below zero, its Relu makes nothing of it whatever the error of a term: the large
    negative values of the last layer of a residual block, for the most part.

    Args:
        graph: not changed; itself returned where there is no such term.
        names: of tensors.

    Returns:
        The graph, and for each of ``names`` that is such a term alone: the name of a tensor with
        its values where the Relu's result is positive, and 0 elsewhere.
    """
    tensors = graph.tensors()
    behind = {name: _relu_behind(graph, tensors[name]) for name in names}
    relus = {name: relu for name, relu in behind.items() if relu is not None}
    if not relus:
        return graph, {}
    twin = graph.copy()
    tensors, fresh, found = twin.tensors(), Names(twin), {}
    for name, relu in relus.items():
        passes = gs.Variable(fresh.fresh(f"{name}.passes"), np.float32)
        passing = gs.Variable(fresh.fresh(f"{name}.passing"), np.float32, tensors[name].shape)
        twin.nodes.append(gs.Node("Sign", passes.name, {}, [tensors[relu]], [passes]))
        twin.nodes.append(gs.Node("Mul", passing.name, {}, [tensors[name], passes], [passing]))
        found[name] = passing.name
    return twin, found


def _relu_behind(graph: gs.Graph, tensor: gs.Tensor) -> str | None:
    """The result of the Relu that alone reads the sum that alone reads a tensor."""
    for op in ("Add", "Relu"):
        reader = only_reader(graph, tensor, op)
        if reader is None or tensor.shape is None or tensor.dtype != np.float32:
            return None
        result = reader.outputs[0]
        if tensor.shape != result.shape:
            return None
        tensor = result
    return str(tensor.name)
