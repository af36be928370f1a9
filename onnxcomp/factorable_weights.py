"""Which constant weights can be taken apart into thinner ones, and why others cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.graph import is_constant, is_standard, label, producer
from onnxcomp.rewriting import peek
from onnxcomp.weight_sites import QUANTIZED, UNPACKING

WEIGHT_INPUTS = {"Conv": (1,), "Gather": (0,), "Gemm": (1,), "MatMul": (1, 0)}
BETWEEN = {"QuantizeLinear", *UNPACKING}  # may lie between what is stored and a float weight


def weight_index(node: gs.Node) -> int | str:
    """Which input of a node is a weight that can be taken apart, or why none is."""
    if node.op in QUANTIZED:
        return "it is quantized already: factorize before quantizing"
    if node.op not in WEIGHT_INPUTS or not is_standard(node):
        return f"{node.op} has no weights that are taken apart"
    places = [at for at in WEIGHT_INPUTS[node.op] if at < len(node.inputs)]
    constant = [at for at in places if is_constant(node.inputs[at])]
    if constant:
        return constant[0]
    for at in places:
        reason = _behind(node.inputs[at])
        if reason:
            return reason
    if producer(node.inputs[places[0]]) is None and node.op != "MatMul":
        return "its weight is an input of the model, which a caller may replace"
    return "both factors are computed" if node.op == "MatMul" else "its weight is computed"


def reason_against(node: gs.Node, index: int, readers: Sequence[gs.Node]) -> str:
    """Why a constant weight stays as it is; empty if it need not."""
    weight = node.inputs[index]
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
        if use_of(other, weight) != use_of(node, weight):
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


def place_of(node: gs.Node, weight: gs.Tensor) -> int:
    """Which input of a node a weight is, the first if several."""
    return next(at for at, tensor in enumerate(node.inputs) if tensor is weight)


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
    return node.op == "Gather" or index == 1
