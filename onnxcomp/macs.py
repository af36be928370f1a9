"""Multiply-accumulates of one run, by formula.

Counted are products that are summed up: convolutions, matrix products, recurrent layers and
attention. Elementwise operators, normalizations, resizing and Fourier transforms count as 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.concrete_shapes import Types, is_known, with_concrete_shapes
from onnxcomp.graph import input_at, is_constant, is_standard, label, subgraphs

MICROSOFT = "com.microsoft"  # onnxruntime's own operators
Shape = tuple[int, ...]
ShapeOf = Callable[[gs.Tensor], Shape]
Seen = Callable[[gs.Tensor, Shape], Shape]


class _Unknown(Exception):
    """A shape or an operator about which nothing can be said."""


@dataclass(frozen=True)
class NodeMacs:
    """MACs of one node.

    Attributes:
        name: label of the node.
        op: its operator type.
        macs: of one run; None where a shape or the operator is unknown.
    """

    name: str
    op: str
    macs: int | None


def count_macs(graph: gs.Graph, shapes: Mapping[str, Sequence[int]]) -> int | None:
    """MACs of one run of ``graph``, None where any node's are unknown.

    Args:
        graph: of an If the dearer branch counts; a Loop or Scan counts as often as it runs.
        shapes: of the inputs, all sizes known.
    """
    counts = [node.macs for node in macs_by_node(graph, shapes)]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def macs_by_node(
    graph: gs.Graph, shapes: Mapping[str, Sequence[int]], seen: Seen | None = None
) -> list[NodeMacs]:
    """MACs of the nodes of ``graph`` that have any or whose are unknown, in the graph's order.

    Bodies count for the node that holds them. Local functions are looked into: their nodes appear
    one by one.

    Args:
        graph: as for `count_macs`.
        shapes: of the inputs, all sizes known.
        seen: gives what the formulas see as the shape of a tensor outside bodies; its integers may
            be of a kind that remembers what it was made of.
    """
    known, types = with_concrete_shapes(graph, shapes)
    return list(_nodes(known, types, seen))


def _nodes(graph: gs.Graph, types: Types, seen: Seen | None = None) -> Iterator[NodeMacs]:
    def shape_of(tensor: gs.Tensor) -> Shape:
        shape = tensor.shape
        if not is_constant(tensor):
            found = types[id(graph)].get(tensor.name)
            if found is None or not is_known(found):
                raise _Unknown(tensor.name)
            shape = found.shape or ()
        plain = tuple(int(str(size)) for size in shape)
        return plain if seen is None else seen(tensor, plain)

    for node in graph.nodes:
        try:
            macs: int | None = _macs(node, shape_of, types)
        except (_Unknown, IndexError, KeyError):  # too few axes or inputs for the operator
            macs = None
        if macs != 0:
            yield NodeMacs(label(node), node.op, macs)


def _macs(node: gs.Node, shape_of: ShapeOf, types: Types) -> int:
    bodies = [_body_macs(body, types) for _, body in subgraphs(node)]
    if bodies:
        return _repeated(node, bodies, shape_of)
    if not is_standard(node) and node.domain not in (MICROSOFT, "ai.onnx.ml"):
        raise _Unknown(node.domain)
    if node.op in FORMULAS:
        return FORMULAS[node.op](node, shape_of)
    if node.op in _WITHOUT_FORMULA:
        raise _Unknown(node.op)
    return 0


def _body_macs(body: gs.Graph, types: Types) -> int:
    counts = [node.macs for node in _nodes(body, types)]
    if any(count is None for count in counts):
        raise _Unknown(body.name)
    return sum(count for count in counts if count is not None)


def _repeated(node: gs.Node, bodies: list[int], shape_of: ShapeOf) -> int:
    """Of an If the dearer branch; of a Scan or Loop the body times its runs."""
    once = max(bodies)
    if node.op == "If" or not once:
        return once
    if node.op == "Scan":
        scanned = node.inputs[len(node.inputs) - node.attrs["num_scan_inputs"]]
        axis: int = (node.attrs.get("scan_input_axes") or [0])[0]
        return once * shape_of(scanned)[axis]
    trips = node.inputs[0]
    stops_early = len(node.inputs) > 1 and node.inputs[1].name and not is_constant(node.inputs[1])
    if node.op != "Loop" or not is_constant(trips) or stops_early:
        raise _Unknown(node.op)
    return once * int(np.asarray(trips.values).reshape(()))


# --- formulas ---------------------------------------------------------------------------------


def _conv(weight: int) -> Callable[[gs.Node, ShapeOf], int]:
    """Every output element sums in_channels / group * kernel products: W [M, C/group, *kernel]."""

    def formula(node: gs.Node, shape_of: ShapeOf) -> int:
        return math.prod(shape_of(node.outputs[0])) * math.prod(shape_of(node.inputs[weight])[1:])

    return formula


def _conv_transpose(node: gs.Node, shape_of: ShapeOf) -> int:
    """Every input element is spread over out_channels / group * kernel: W [C, M/group, *kernel]."""
    return math.prod(shape_of(node.inputs[0])) * math.prod(shape_of(node.inputs[1])[1:])


def _gemm(node: gs.Node, shape_of: ShapeOf) -> int:
    """[M, N] outputs of K products; A is [M, K], or [K, M] with transA."""
    depth = shape_of(node.inputs[0])[0 if node.attrs.get("transA") else 1]
    return math.prod(shape_of(node.outputs[0])) * depth


def _matmul(node: gs.Node, shape_of: ShapeOf) -> int:
    """[..., M, N] outputs of K products; K is the last axis of A."""
    transposed = node.op == "FusedMatMul" and node.attrs.get("transA")
    return math.prod(shape_of(node.outputs[0])) * shape_of(node.inputs[0])[-2 if transposed else -1]


def _matmul_nbits(node: gs.Node, shape_of: ShapeOf) -> int:
    """A is [..., K]; the weights are [N, K], packed."""
    return math.prod(shape_of(node.inputs[0])) * int(node.attrs["N"])


def _recurrent(node: gs.Node, shape_of: ShapeOf) -> int:
    """Steps * batch * (W + R), X [steps, batch, inputs], W and R with an axis of directions."""
    steps, batch, _ = shape_of(node.inputs[0])
    weights = math.prod(shape_of(node.inputs[1])) + math.prod(shape_of(node.inputs[2]))
    return steps * batch * weights


def _einsum(node: gs.Node, shape_of: ShapeOf) -> int:
    """Of two operands: one product for every combination of their subscripts."""
    terms = node.attrs["equation"].replace(" ", "").split("->")[0].split(",")
    if len(terms) == 1:
        return 0
    if len(terms) > 2 or any(not re.fullmatch("[A-Za-z]*", term) for term in terms):
        raise _Unknown(node.op)
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, node.inputs, strict=True):
        for subscript, size in zip(term, shape_of(tensor), strict=True):
            sizes[subscript] = max(size, sizes.get(subscript, 1))
    return math.prod(sizes.values())


def _attention(node: gs.Node, shape_of: ShapeOf) -> int:
    """Q K^T and its product with V; [batch, heads, length, head] or [batch, length, hidden]."""
    if node.domain == MICROSOFT:  # takes projection weights instead
        raise _Unknown(node.op)
    query, key, value = (shape_of(node.inputs[i]) for i in range(3))
    past = input_at(node, 4)
    length = key[-2] + (shape_of(past)[-2] if past is not None else 0)
    if len(query) == 4:
        return math.prod(query[:3]) * length * (query[3] + value[3])
    heads, groups = int(node.attrs["q_num_heads"]), int(node.attrs["kv_num_heads"])
    return query[0] * query[1] * length * (query[2] + value[2] // groups * heads)


FORMULAS: dict[str, Callable[[gs.Node, ShapeOf], int]] = {
    **dict.fromkeys(("Conv", "ConvInteger", "DeformConv", "FusedConv", "NhwcFusedConv"), _conv(1)),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("Gemm", "QGemm", "FusedGemm"), _gemm),
    **dict.fromkeys(
        ("MatMul", "MatMulInteger", "QLinearMatMul", "FusedMatMul"),
        _matmul,
    ),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulIntegerToFloat"), _matmul),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4"), _matmul_nbits),
    **dict.fromkeys(("RNN", "GRU", "LSTM", "DynamicQuantizeLSTM"), _recurrent),
    "Einsum": _einsum,
    "Attention": _attention,
}
_WITHOUT_FORMULA = frozenset(
    {"MultiHeadAttention", "GroupQueryAttention", "PackedAttention", "QAttention", "QMoE", "MoE"}
    | {
        "AttnLSTM",
        "LinearAttention",
        "LongformerAttention",
        "SparseAttention",
        "SparseToDenseMatMul",
    }
)
