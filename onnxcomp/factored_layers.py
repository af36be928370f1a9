"""A layer that became a row of thin ones, seen as the one that it was."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.factorable_weights import is_in_first
from onnxcomp.factored_axes import Cp, Spatial
from onnxcomp.factored_convolutions import KernelFactors, Svd, SvdInput, SvdOutput, Tucker2
from onnxcomp.factored_matrices import MatrixFactors
from onnxcomp.gram import Array
from onnxcomp.graph import Names, consumers, label, producer
from onnxcomp.linear_layers import LinearLayer, reason_against
from onnxcomp.thin_layers import Factors, Rank

WIDEST = 1536  # inputs of an output: wider layers would take seconds each
KERNELS: tuple[type[KernelFactors], ...] = (Svd, SvdInput, SvdOutput, Tucker2, Spatial, Cp)
Written = Mapping[str, tuple[str, Rank]]  # by label of a layer, its method and rank


@dataclass(frozen=True, eq=False)
class FactoredLayer:
    """y = W x + b with W the product of a row's weights.

    What the last of the row multiplies with its weights, H, is linear in x as well: W = H E, and
    H is [out, features], E is [features, d].

    Attributes:
        whole: the layer of the original; only how it reads and makes tensors is asked.
        nodes: the row, in the order in which it runs.
        last: of the row, with the bias.
        method, rank: of `Form`.
    """

    whole: LinearLayer
    nodes: tuple[gs.Node, ...]
    last: LinearLayer
    method: str
    rank: Rank

    @classmethod
    def of(
        cls, last: LinearLayer, old: gs.Node | None, known: Container[str], written: Written
    ) -> FactoredLayer | None:
        """The row that ends with a layer; None where there is none that can be fitted as a whole.

        Args:
            last: any layer.
            old: the node of the original that made what it makes.
            known: names of the tensors of the original.
            written: the layers that became rows.
        """
        form = written.get(label(last.node))
        if form is None or old is None or reason_against(old) is not None:
            return None
        nodes = [last.node]
        while (before := producer(nodes[0].inputs[0])) is not None:
            if before.outputs[0].name in known:
                break
            nodes.insert(0, before)
        whole = LinearLayer.of(old)
        is_alone = all(len(consumers(node.inputs[1])) == 1 for node in nodes)
        is_matrix = len(nodes) > 1 and whole.groups == 1 and whole.weights.shape[2] <= WIDEST
        return cls(whole, tuple(nodes), last, *form) if is_alone and is_matrix else None

    @property
    def source(self) -> str:
        """Name of the tensor it reads."""
        return str(self.nodes[0].inputs[0].name)

    @property
    def groups(self) -> int:
        """As of a layer that may have several."""
        return 1

    @property
    def reads_channels(self) -> bool:
        """Whether its input is [batch, channels, *spatial] and not [..., d]."""
        return self.whole.reads_channels

    @property
    def weights(self) -> Array:
        """W, float64 [1, out, d]."""
        expansion, head = self.parts(self.arrays)
        return head @ expansion

    @property
    def arrays(self) -> list[Array]:
        """The weights of the row as stored, float64."""
        return [node.inputs[1].values.astype(np.float64) for node in self.nodes]

    def parts(self, arrays: Sequence[Array]) -> tuple[Array, Array]:
        """E [1, features, d] and H [1, out, features] of weights of the row."""
        *inner, head = map(_dense, self.nodes, arrays)
        features = math.prod(head.shape[1:])
        kernel = inner[0]
        for other in [*inner[1:], np.eye(features).reshape(features, *head.shape[1:])]:
            kernel = _product(kernel, other)
        return kernel.reshape(1, features, -1), head.reshape(1, -1, features)

    def factorized(self, weights: Array, gram: Array) -> list[Array]:
        """Weights for the row that come nearest to W [out, d] under G [d, d], as stored."""
        node, stored = self.whole.node, self.whole.node.inputs[1]
        in_first = node.op != "Conv" and is_in_first(node, 1)
        values = (weights.T if in_first else weights).reshape(stored.shape)
        constant = gs.Constant(stored.name, np.ascontiguousarray(values))
        factors: Factors
        if node.op == "Conv":
            kind = next(kind for kind in KERNELS if kind.method == self.method)
            factors = kind(constant, gram)
        else:
            factors = MatrixFactors(constant, in_first=in_first, gram=gram)
        return list(factors.arrays(self.rank))

    def write(self, arrays: Sequence[Array], names: Names) -> None:
        """Puts new constants in place of all weights but the last; their names stay for those."""
        for node, values in zip(self.nodes[:-1], arrays, strict=False):
            old = node.inputs[1]
            constant = np.array(values.reshape(old.shape), old.dtype, order="C")
            node.inputs[1] = gs.Constant(names.fresh(f"{old.name}.refitted"), constant)

    def inputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows x, as those of a `LinearLayer`."""
        return self.whole.inputs(values, count, seed)

    def outputs(self, values: Array, count: int, seed: list[int]) -> Array:
        """Rows y, as those of a `LinearLayer`."""
        return self.whole.outputs(values, count, seed)


def _dense(node: gs.Node, values: Array) -> Array:
    """Stored weights of a thin layer as [out, in, *spatial], whatever its groups."""
    if node.op != "Conv":
        matrix = values.reshape(values.shape[-2:])
        return matrix if node.attrs.get("transB", 0) else matrix.T
    groups = int(node.attrs.get("group", 1))
    if groups == 1:
        return values
    out, each, *spatial = values.shape
    dense = np.zeros((groups, out // groups, groups, each, *spatial))
    at = np.arange(groups)
    dense[at, :, at] = values.reshape(groups, out // groups, each, *spatial)
    return dense.reshape(out, groups * each, *spatial)


def _product(first: Array, second: Array) -> Array:
    """The kernel of two Convs in a row, of which only one extends along each spatial axis."""
    count = first.ndim - 2
    product = np.tensordot(second, first, (1, 0))  # [out, *spatial, in, *spatial]
    pairs = [axis for at in range(count) for axis in (1 + at, 2 + count + at)]
    spatial = [a * b for a, b in zip(second.shape[2:], first.shape[2:], strict=True)]
    shape = (second.shape[0], first.shape[1], *spatial)
    return product.transpose(0, 1 + count, *pairs).reshape(shape)
