"""Which constant weights can be taken apart into thinner ones, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import consumers, is_constant, is_standard, label, producer
from onnxcomp.rewriting import peek
from onnxcomp.weight_sites import QUANTIZED, UNPACKING, WEIGHTS

WEIGHT_INPUTS = {"Conv": (1,), "Gather": (0,), "Gemm": (1,), "MatMul": (1, 0)}
BETWEEN = {"QuantizeLinear", *UNPACKING}  # may lie between what is stored and a float weight


def weight_index(node: gs.Node) -> int | str:
    """Which input of a node is a weight that can be taken apart, or why none is."""
    if node.op in QUANTIZED:
        return "it is quantized already: factorize before quantizing"
    if node.op not in WEIGHT_INPUTS or not is_standard(node):
        if node.op == "Einsum":
            return "weights of Einsum are not taken apart, those of a MatMul are"
        return f"weights of {node.op} are not taken apart"
    places = [at for at in WEIGHT_INPUTS[node.op] if at < len(node.inputs)]
    constant = [at for at in places if constant_of(node, at) is not None]
    if constant:
        return constant[0]
    for at in places:
        reason = _behind(node.inputs[at])
        if reason:
            return reason
    if producer(node.inputs[places[0]]) is None and node.op != "MatMul":
        return "its weight is an input of the model, which a caller may replace"
    return "both factors are computed" if node.op == "MatMul" else "its weight is computed"


def is_named(node: gs.Node) -> bool:
    """Whether a report says why a node's weights stay; most Gathers pick sizes from shapes."""
    if node.op == "Einsum":
        return any(is_constant(t) and len(t.shape) > 1 for t in node.inputs)
    return node.op in QUANTIZED or (node.op in WEIGHTS and node.op != "Gather")


def reason_against(node: gs.Node, index: int, readers: Sequence[gs.Node]) -> str:
    """Why a constant weight stays as it is; empty if it need not."""
    weight = constant_of(node, index)
    assert weight is not None
    shape = tuple(int(size) for size in weight.shape)
    if np.dtype(weight.dtype).kind != "f":
        return f"its weight is {weight.dtype}, not float"
    if len(shape) < 2:
        return "its weight is a vector"
    if 0 in shape:
        return "its weight is empty"
    if node.op == "Conv" and int(node.attrs.get("group", 1)) > 1:
        deep = shape[1] == 1
        return f"it is {'depthwise' if deep else 'grouped'}: its kernels are thin already"
    if node.op == "MatMul" and any(size > 1 for size in shape[:-2]):
        return "its weight is a batch of matrices"
    if node.op == "Gather" and (len(shape) != 2 or node.attrs.get("axis", 0) not in (0, -2)):
        return "it does not look up rows of a table"
    if not np.isfinite(peek(weight)).all():
        return "its weight has values that are not finite"
    for other in readers:
        if other is not node and weight_index(other) != place_of(other, weight):
            return f"its weight is read by {label(other)} as well, and not as a weight"
        if not _agree(node, other, weight):
            return f"its weight is read by {label(other)} as well, in another way"
        if sum(tensor is weight for tensor in other.inputs) > 1:
            return f"{label(other)} reads its weight twice"
    return ""


def _behind(weight: gs.Tensor) -> str:
    """What is wrong with a weight that is made of a constant; empty if it is made of none."""
    passed = []
    while (maker := producer(weight)) is not None and maker.op in BETWEEN and maker.inputs:
        passed.append(maker.op)
        weight = maker.inputs[0]
    if not is_constant(weight):
        return ""
    if "DequantizeLinear" in passed or np.dtype(weight.dtype).kind != "f":
        return "its weight is quantized already: factorize before quantizing"
    return f"its weight is computed from {weight.name}: simplify, and factorize first"


def constant_of(node: gs.Node, index: int) -> gs.Constant | None:
    """The constant that an input of a node is, or of which a MatMul reads the transpose.

    The latter of tables alone that rows are looked up in as well: what else is transposed at every
    run, simplifying stores the way it is read.
    """
    tensor = node.inputs[index]
    if is_constant(tensor):
        return tensor
    maker = producer(tensor)
    if node.op != "MatMul" or index != 1 or maker is None or maker.op != "Transpose":
        return None
    table = maker.inputs[0]
    if not is_constant(table) or list(maker.attrs.get("perm", [1, 0])) != [1, 0]:
        return None
    products = all(other.op == "MatMul" and _only_second(other, tensor) for other in tensor.outputs)
    looked_up = any(other.op == "Gather" for other in consumers(table))
    return table if products and looked_up and len(table.shape) == 2 else None


def is_transposed(node: gs.Node, index: int) -> bool:
    """Whether a node reads the transpose of its weight, made by a node of its own."""
    return not is_constant(node.inputs[index])


def readers_of(weight: gs.Constant) -> list[gs.Node]:
    """All nodes that look rows up in a weight or multiply with it, lookups first.

    Others as well that read it, as they are.
    """
    found: dict[int, gs.Node] = {}
    for node in consumers(weight):
        behind = [
            other
            for tensor in (node.outputs if node.op == "Transpose" else [])
            for other in consumers(tensor)
            if other.op == "MatMul" and constant_of(other, 1) is weight
        ]
        found |= {id(reader): reader for reader in behind or [node]}
    return sorted(found.values(), key=lambda node: node.op != "Gather")


def place_of(node: gs.Node, weight: gs.Tensor) -> int:
    """Which input of a node a weight, or its transpose, is, the first if several."""
    direct = [at for at, tensor in enumerate(node.inputs) if tensor is weight]
    return direct[0] if direct else 1


def use_of(node: gs.Node, weight: gs.Tensor) -> tuple[Any, ...]:
    """What readers of a weight have to have in common."""
    index = place_of(node, weight)
    if node.op == "Conv":
        return ("Conv", int(node.attrs.get("group", 1)))
    if node.op == "Gather":
        return ("matrix", True, 1.0)
    alpha = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
    return ("matrix", is_in_first(node, index), alpha)


def is_in_first(node: gs.Node, index: int) -> bool:
    """Whether a matrix is stored as [in, out]."""
    if node.op == "Gemm":
        return not node.attrs.get("transB", 0)
    return node.op == "Gather" or (index == 1 and not is_transposed(node, index))


def _agree(node: gs.Node, other: gs.Node, weight: gs.Constant) -> bool:
    """Whether two nodes can have the same factors; products with a table are of its rows."""
    one, two = use_of(node, weight), use_of(other, weight)
    if one == two:
        return True
    turned = node if one[1] else other
    matrices = one[0] == two[0] == "matrix" and len(weight.shape) == 2
    return matrices and one[1] != two[1] and one[2] == two[2] == 1.0 and turned.op == "Gather"


def _only_second(node: gs.Node, tensor: gs.Tensor) -> bool:
    return node.inputs[1] is tensor and node.inputs[0] is not tensor
