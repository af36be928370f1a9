"""Layers with binary bases as nodes: sums of layers whose inputs and weights are signs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.basis_fitting import FittedBases
from onnxcomp.graph import Names, label
from onnxcomp.layer_latency import OPSET
from onnxcomp.linear_layers import LinearLayer
from onnxcomp.quantization import Array
from onnxcomp.shapes import infer_shapes
from onnxcomp.sign_inputs import SignReader

TINY = 1e-30  # scale of an output that nothing reaches: a weight of 0 is no sign


def write_signs(
    graph: gs.Graph, reader: SignReader, fitted: FittedBases, names: Names
) -> list[gs.Node]:
    """Puts comparisons, layers of signs and their sum in the place of a layer.

    All are standard operators, which `lower_binary` makes operators of bits.

    Args:
        graph: has the layer among its own nodes.
        reader: the layer with its levels.
        fitted: what it becomes; each level has a block of bases.
        names: of the graph.

    Returns:
        The layers of signs.
    """
    layer = reader.whole
    node, made = layer.node, layer.made
    writer = _Writer(node, made, names)
    signs = np.concatenate([part.signs for part in fitted.bases], axis=2)
    scales = np.concatenate([part.scales for part in fitted.bases], axis=2)
    terms: list[gs.Node] = []
    for level, of_level, scale in zip(reader.levels, signs, scales, strict=True):
        read = writer.signs(level)
        for base, each in zip(of_level, scale, strict=True):
            first = fitted.bias.reshape(-1) if not terms else None
            terms.append(writer.layer(read, base, each, first))
    at = next(index for index, other in enumerate(graph.nodes) if other is node)
    for old in {id(part): part for part in (node, layer.adder) if part is not None}.values():
        old.inputs.clear()
        old.outputs.clear()
    writer.nodes[-1].outputs.clear()
    writer.nodes[-1].outputs.append(made)
    graph.nodes[at:at] = writer.nodes
    return terms


def layer_alone(layer: LinearLayer, shape: Sequence[int]) -> tuple[gs.Graph, LinearLayer]:
    """A graph of a copy of a layer, which makes y of x of a shape, and that copy."""
    x = gs.Variable("x", np.float32, list(shape))
    y = gs.Variable("y", np.float32, [None] * len(layer.made.shape))
    node, adder = layer.node, layer.adder
    nodes = [gs.Node(node.op, "layer", dict(node.attrs), [x, *node.inputs[1:]], [y])]
    if adder is not None and adder is not node:
        product = gs.Variable("product", np.float32, y.shape)
        nodes[0].outputs.clear()
        nodes[0].outputs.append(product)
        inputs = [product, adder.inputs[layer.bias_index]]
        nodes.append(gs.Node(adder.op, "bias", {}, inputs, [y]))
    graph = gs.Graph(nodes, [x], [y], name="layer", opset=OPSET, ir_version=8)
    infer_shapes(graph)
    return graph, LinearLayer.of(nodes[0])


class _Writer:
    """The nodes that take the place of one layer, in order."""

    def __init__(self, node: gs.Node, made: gs.Variable, names: Names) -> None:
        self.nodes: list[gs.Node] = []
        self._name, self._names = label(node), names
        self._op = "Conv" if node.op == "Conv" else "Gemm"
        self._attrs = dict(node.attrs) if node.op == "Conv" else {}
        self._x, self._made = node.inputs[0], made
        self._total: gs.Variable | None = None
        self._weight = node.inputs[1]
        high, low = (np.asarray(value, np.float32) for value in (1, -1))
        self._choices = [self._constant("high", high), self._constant("low", low)]

    def signs(self, level: Array) -> gs.Variable:
        """-1 or +1 in place of each input."""
        shape = self._x.shape
        if self._op == "Conv":
            level = level.reshape(-1, 1, 1)
        compared = self._add(
            "GreaterOrEqual", [self._x, self._constant("level", level)], np.bool_, shape
        )
        return self._add("Where", [compared, *self._choices], np.float32, shape)

    def layer(self, read: gs.Variable, signs: Array, scale: Array, bias: Array | None) -> gs.Node:
        """A layer of signs, int8 [out, d], added to those before it."""
        values = signs * np.maximum(scale, TINY).astype(np.float32)[:, None]
        values = values.reshape(self._weight.shape) if self._op == "Conv" else values.T
        inputs: list[gs.Tensor] = [read, self._constant("base", np.ascontiguousarray(values))]
        if bias is not None:
            inputs.append(self._constant("bias", bias.astype(np.float32)))
        made = self._add(self._op, inputs, np.float32, self._made.shape, **self._attrs)
        layer = self.nodes[-1]
        if self._total is not None:  # at once, while what is added is in the cache
            made = self._add("Add", [self._total, made], np.float32, self._made.shape)
        self._total = made
        return layer

    def _constant(self, role: str, values: Array) -> gs.Constant:
        return gs.Constant(self._names.fresh(f"{self._weight.name}.{role}"), values)

    def _add(
        self, op: str, inputs: list[gs.Tensor], dtype: Any, shape: Any, **attributes: Any
    ) -> gs.Variable:
        name = self._names.fresh(f"{self._name}.{op}")
        made = gs.Variable(self._names.fresh(f"{self._made.name}.{op}"), dtype, shape)
        self.nodes.append(gs.Node(op, name, attributes, inputs, [made]))
        return made
