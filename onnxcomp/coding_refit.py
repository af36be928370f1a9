"""Biases that take up what coded weights add to the means of what their layers make.

Codes Q for weights W move the mean of a layer's output by (Q - W) E[x]; a bias gives that back:
b + (W - Q) E[x] (Nagel et al., "Data-free quantization through weight equalization and bias
correction", 2019, there from statistics of normalizations, here from samples): `rounding_bias`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.coding_quantizer import CodedWeight
from onnxcomp.graph import all_graphs, consumers, is_constant
from onnxcomp.quantization import Array, rounding_bias
from onnxcomp.weight_sites import Layout, Weight


@dataclass(frozen=True)
class Bias:
    """What is added to the products of one weight.

    Attributes:
        name: of the vector, that nothing else reads.
        mean: E[x] of the weight's inputs, [d] or [groups, d].
    """

    name: str
    mean: Array

    def shift(self, values: Array, coded: CodedWeight, layout: Layout) -> Array:
        """(W - Q) E[x], float64 [rows].

        Args:
            values: W in the shape of the constant.
            coded: Q.
            layout: of both.
        """
        groups = len(self.mean) if self.mean.ndim == 2 else 1
        weights, rounded = layout.matrix(values), layout.matrix(coded.values)
        return rounding_bias(weights, rounded, self.mean.reshape(-1), groups)


def bias_of(graph: gs.Graph, weight: Weight) -> str | None:
    """The vector that is added to all that a weight makes, and to nothing else; None without."""
    if len(weight.sites) != 1 or weight.others:
        return None
    node, layout = weight.sites[0].node, weight.layout
    if node.op in ("Conv", "Gemm") and len(node.inputs) > 2:
        plain = node.attrs.get("alpha", 1.0) == 1.0 == node.attrs.get("beta", 1.0)
        added = node.inputs[2] if plain else None
    elif node.op == "MatMul" and weight.is_product:
        added = _added_to(node.outputs[0])
    else:
        added = None
    if added is None or not is_constant(added) or len(consumers(added)) != 1:
        return None
    if any(added is output for body in all_graphs(graph) for output in body.outputs):
        return None
    shape = tuple(int(size) for size in added.shape)
    return str(added.name) if shape == (layout.rows,) else None


def _added_to(products: gs.Tensor) -> gs.Tensor | None:
    """The other summand of an Add that alone reads a tensor."""
    readers = consumers(products)
    if len(readers) != 1 or readers[0].op != "Add":
        return None
    first, second = readers[0].inputs
    return second if first is products else first


def refitted(vectors: Mapping[str, Array], shifts: Mapping[str, Array]) -> dict[str, Array]:
    """The vectors, float32, those of ``shifts`` with them added."""
    moved = {name: (vectors[name] + shift).astype(np.float32) for name, shift in shifts.items()}
    return {**vectors, **moved}
