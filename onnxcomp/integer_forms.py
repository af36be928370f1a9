"""Writes operators in the equal form that the runtime's integer kernels are found by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, is_constant, is_standard


def pool_spatial_means(graph: gs.Graph, wanted: Callable[[gs.Node], bool]) -> None:
    """ReduceMean over all spatial axes -> GlobalAveragePool, which has an integer kernel.

    PyTorch's newer exporter writes every global pooling that way. Shapes have to be inferred.

    Args:
        graph: changed in place.
        wanted: whether a node may be changed.
    """
    names: Names | None = None
    for node in list(graph.nodes):
        if node.op != "ReduceMean" or not is_standard(node) or not wanted(node):
            continue
        if not _is_spatial(node):
            continue
        rank, result = len(node.inputs[0].shape), node.outputs[0]
        keeps_axes = bool(node.attrs.get("keepdims", 1))
        node.op, node.attrs = "GlobalAveragePool", {}
        if len(node.inputs) > 1:
            del node.inputs[1]
        if keeps_axes:
            continue
        names = names or Names(graph)
        pooled = gs.Variable(
            names.fresh(f"{result.name}.pooled"),
            result.dtype,
            [*node.inputs[0].shape[:2], *[1] * (rank - 2)],
        )
        node.outputs = [pooled]
        axes = gs.Constant(names.fresh(f"{result.name}.axes"), np.arange(2, rank))
        squeeze = gs.Node("Squeeze", names.fresh(f"{result.name}.squeeze"), {}, [pooled, axes])
        squeeze.outputs = [result]
        graph.nodes.insert(graph.nodes.index(node) + 1, squeeze)


def _is_spatial(node: gs.Node) -> bool:
    """Whether a ReduceMean goes over the axes behind batch and channels, and over all of them."""
    shape = node.inputs[0].shape
    if shape is None or len(shape) < 3 or node.inputs[0].dtype != np.float32:
        return False
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and is_constant(node.inputs[1]):
        axes = np.asarray(node.inputs[1].values).tolist()
    if axes is None:
        return False
    return sorted(axis % len(shape) for axis in axes) == list(range(2, len(shape)))
