"""Makes a graph easy to cut: what ties channels together for no reason is untied first."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.channel_sweep import is_size
from onnxcomp.graph import Names, consumers, is_constant, label, producer, remove_unused
from onnxcomp.written_lengths import write_lengths

WEIGHTED = ("Conv", "ConvTranspose", "FusedConv", "FusedMatMul", "Gather", "Gemm", "MatMul")
Origins = dict[str, str]  # constant -> the one it is a copy of


def prepare(graph: gs.Graph) -> Origins:
    """Unties what computes the same untied; shapes have to be inferred before.

    Returns:
        by name of every copied constant the one that it was copied from.
    """
    names = Names(graph)
    write_lengths(graph, names)
    remove_unused(graph)
    _gathered_shuffles(graph, names)
    origins = _own_vectors(graph, names)
    remove_unused(graph)
    return origins


def _own_vectors(graph: gs.Graph, names: Names) -> Origins:
    """Each reader of a shared vector gets its own: exporters merge equal biases and scales.

    Two layers whose biases happen to be equal would else lose channels together. Weights are
    shared on purpose.
    """
    seen: set[str] = set()
    origins: Origins = {}
    for node in graph.nodes:
        for i, tensor in enumerate(node.inputs):
            if not is_constant(tensor) or (node.op in WEIGHTED and i < 2):
                continue
            if np.dtype(tensor.dtype).kind != "f" or sum(size > 1 for size in tensor.shape) != 1:
                continue
            if tensor.name in seen:
                twin = tensor.copy()
                twin.name = names.fresh(f"{tensor.name}.{label(node)}")
                origins[twin.name] = tensor.name
                node.inputs[i] = twin
            seen.add(tensor.name)
    return origins


def _gathered_shuffles(graph: gs.Graph, names: Names) -> None:
    """Reshape, Transpose, Reshape that permute one axis become a Gather.

    A channel shuffle would else tie the same channel of all groups, and the groups' sizes.
    """
    for last in list(graph.nodes):
        middle = producer(last.inputs[0]) if last.op == "Reshape" else None
        first = producer(middle.inputs[0]) if middle is not None else None
        if middle is None or first is None or (first.op, middle.op) != ("Reshape", "Transpose"):
            continue
        source, result = first.inputs[0], last.outputs[0]
        if any(len(consumers(node.outputs[0])) != 1 for node in (first, middle)):
            continue
        found = _permutation(source, first.outputs[0], middle, result)
        if found is None:
            continue
        axis, order = found
        indices = gs.Constant(names.fresh(f"{result.name}.order"), order)
        last.op, last.attrs, last.inputs = "Gather", {"axis": axis}, [source, indices]


def _permutation(
    source: gs.Tensor, split: gs.Tensor, transpose: gs.Node, result: gs.Tensor
) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]] | None:
    """The axis that is permuted and how, [length]; None where it is not just that."""
    shapes = [list(tensor.shape or ()) for tensor in (source, split, result)]
    before, parts, after = shapes
    if before != after or not before or len(parts) <= len(before):
        return None
    extra = len(parts) - len(before)
    order = list(transpose.attrs["perm"])
    for axis, length in enumerate(before):
        own = parts[axis : axis + extra + 1]
        inside = [i - axis for i in order[axis : axis + extra + 1]]
        if not all(map(is_size, own)) or math.prod(own) != length:
            continue
        if parts[:axis] != before[:axis] or parts[axis + extra + 1 :] != before[axis + 1 :]:
            continue
        if sorted(inside) == list(range(extra + 1)) and inside != sorted(inside):
            return axis, np.arange(length).reshape(own).transpose(inside).ravel()
    return None
