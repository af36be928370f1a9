"""Which layers of a smaller graph read something else than in the original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import is_constant, reads
from onnxcomp.kept_indices import Left
from onnxcomp.recurrent_layers import RECURRENT

OPAQUE = {"ConvTranspose", "Gemm", "Conv", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "DeformConv"}


def changed_readers(
    original: gs.Graph, pruned: gs.Graph, kept: Mapping[str, Sequence[Left]]
) -> list[gs.Node]:
    """The nodes of ``pruned`` with weights that read something else than in ``original``.

    They read what lost channels, what such a node makes, or another tensor in the place of one.
    """
    known, made, read = original.tensors(), _read_by_maker(original), _read_by_maker(pruned)
    changed = {name for name, axes in kept.items() if any(x is not None for x in axes)}
    found = []
    for node in pruned.nodes:
        name = _first_made(node)
        reads_other = not changed.isdisjoint(read[name]) or read[name] != made.get(name)
        fresh = any(is_constant(t) and t.name not in known for t in node.inputs)
        if reads_other or fresh:
            changed |= {t.name for t in node.outputs}
        is_layer = node.op in OPAQUE and any(_is_weight(t) for t in node.inputs[1:])
        reads_itself = node.op in RECURRENT and fresh
        if (reads_other and (is_layer or node.op == "BatchNormalization")) or reads_itself:
            found.append(node)
    return found


def _read_by_maker(graph: gs.Graph) -> dict[str, set[str]]:
    """The activations that each node reads, in bodies too, by the first name that it makes."""
    made = {t.name for node in graph.nodes for t in node.outputs} | {t.name for t in graph.inputs}
    return {_first_made(node): reads(node) & made for node in graph.nodes}


def _first_made(node: gs.Node) -> str:
    return next((tensor.name for tensor in node.outputs if tensor.name), "")


def _is_weight(tensor: gs.Tensor) -> bool:
    is_matrix = is_constant(tensor) and len(tensor.shape) > 1
    return is_matrix and np.dtype(tensor.dtype).kind == "f"
