"""Writes factors of channels into the constants of a graph."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import Names, is_constant
from onnxcomp.homogeneity import Port
from onnxcomp.quantization import Array

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
SUMS = ("Add", "Sub", "Sum")


def weight_rows(node: gs.Node) -> Array:
    """The weights of a layer as [groups, out_channels / groups, in_channels / groups, kernel]."""
    weights, groups = np.asarray(node.inputs[1].values), node.attrs.get("group", 1)
    if node.op == "Conv":
        return weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)
    if node.op == "ConvTranspose":
        split = weights.reshape(groups, weights.shape[0] // groups, weights.shape[1], -1)
        return split.transpose(0, 2, 1, 3)
    rows = weights if node.op == "Gemm" and node.attrs.get("transB", 0) else weights.T
    return rows[None, :, :, None]


def rescale(ports: Iterable[Port], factors: Array, names: Names) -> list[gs.Node]:
    """Divides what each port makes by the factors of its classes, and undoes those it reads.

    Args:
        ports: labelled by classes.
        factors: float64, by class.
        names: of the graph, for the new constants <constant>.equalized.

    Returns:
        The nodes whose constants changed.
    """
    changed = []
    for port in ports:
        makes = factors[port.makes]
        reads = np.ones(1) if port.reads is None else factors[port.reads]
        if bool((makes == 1).all() and (reads == 1).all()):
            continue
        for index, scale in _scales(port.node, reads, makes):
            constant = port.node.inputs[index]
            values = np.asarray(constant.values, np.float64) * scale
            name = names.fresh(f"{constant.name}.equalized")
            port.node.inputs[index] = gs.Constant(name, values.astype(np.float32))
        changed.append(port.node)
    return changed


def _scales(node: gs.Node, reads: Array, makes: Array) -> list[tuple[int, Array]]:
    """Index of each constant of ``node`` and what to multiply it with, broadcast to it."""
    present = [i for i, t in enumerate(node.inputs) if is_constant(t) and t.name]
    if node.op in SUMS:
        return [(present[0], 1 / makes)]
    if node.op == "Mul":
        rank = node.inputs[present[0]].values.ndim
        return [(present[0], _placed(reads / makes, node.inputs[present[0]].shape, rank))]
    if node.op == "BatchNormalization":  # scale, bias, mean; the variance stays
        return [(1, reads / makes), (2, 1 / makes), (3, 1 / reads)]
    if node.op in LAYERS:
        return [(1, _of_weights(node, reads, makes)), *[(i, 1 / makes) for i in present if i > 1]]
    return [(i, 1 / makes) for i in present]  # gamma and beta of a normalization


def _placed(scale: Array, shape: Iterable[int], rank: int) -> Array:
    """A vector along the one axis of ``shape`` that is longer than 1."""
    return scale.reshape([-1 if size > 1 else 1 for size in shape] if rank else [])


def _of_weights(node: gs.Node, reads: Array, makes: Array) -> Array:
    """reads / makes in the layout of a layer's weights."""
    shape, groups = list(node.inputs[1].shape), node.attrs.get("group", 1)
    spatial = [1] * (len(shape) - 2)
    inner, outer = reads.reshape(groups, 1, -1), makes.reshape(groups, -1, 1)
    if node.op == "Conv":
        return np.asarray((inner / outer).reshape(*shape[:2], *spatial))
    if node.op == "ConvTranspose":
        return np.asarray((inner / outer).transpose(0, 2, 1).reshape(*shape[:2], *spatial))
    transposed = node.op == "Gemm" and node.attrs.get("transB", 0)
    return np.asarray((inner / outer)[0] if transposed else (inner / outer)[0].T)
