"""Thin layers for the matrix of a MatMul or Gemm, and for the table of a Gather.

y = W x becomes y = L (R x). A Gather of rows of a table [rows, d] is a product with columns of the
identity: rows of a thin table are looked up, then multiplied with [rank, d].
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import onnx_graphsurgeon as gs

from onnxcomp.gram import Array
from onnxcomp.lowrank import Spectrum, spectrum
from onnxcomp.rewriting import peek
from onnxcomp.thin_layers import Factors, Rank, Shape, ThinLayer, spaced


class MatrixFactors(Factors):
    """W [out, in] as [out, rank] times [rank, in]: its leading products under the data."""

    method = "svd"

    def __init__(self, weights: gs.Constant, *, in_first: bool, gram: Array | None) -> None:
        """Of a constant [in, out] or, unless ``in_first``, [out, in], behind axes of length 1."""
        self._constant, self._in_first, self._gram = weights, in_first, gram
        self._lead: Shape = tuple(int(size) for size in weights.shape[:-2])
        self._sizes: Shape = tuple(int(size) for size in weights.shape[-2:])

    @property
    def ranks(self) -> list[Rank]:
        """See `Factors.ranks`."""
        rows, columns = self._sizes
        return spaced(max(0, (rows * columns - 1) // (rows + columns)))

    def row(self, node: gs.Node, rank: Rank) -> list[ThinLayer]:
        """See `Factors.row`."""
        assert isinstance(rank, int)
        rows, columns = self._sizes
        first, second = (*self._lead, rows, rank), (*self._lead, rank, columns)
        out = columns
        if not self._in_first:
            first, second, out = second, first, rows
        if node.op == "Gather":
            attributes = {"axis": 0}
            return [
                ThinLayer(
                    part="in",
                    op="Gather",
                    attributes=attributes,
                    weights=first,
                    index=0,
                    channels=rank,
                    axis=-1,
                ),
                ThinLayer(part="", op="MatMul", weights=second, channels=out, axis=-1),
            ]
        index = 0 if node.op == "MatMul" and not self._in_first else 1
        before, after = _split(node)
        axis = -1 if index else -2
        return [
            ThinLayer(
                part=part,
                op=node.op,
                attributes=attributes,
                weights=weights,
                index=index,
                channels=channels,
                axis=axis,
            )
            for part, attributes, weights, channels in (
                ("in", before, first, rank),
                ("", after, second, out),
            )
        ]

    def arrays(self, rank: Rank) -> Sequence[Array]:
        """See `Factors.arrays`."""
        assert isinstance(rank, int)
        left, right = self._spectrum.factors(rank)
        pair = (right.T, left.T) if self._in_first else (right, left)
        return [factor.reshape(*self._lead, *factor.shape) for factor in pair]

    def estimate(self, rank: Rank) -> float:
        """See `Factors.estimate`; exact."""
        assert isinstance(rank, int)
        return float(self._spectrum.errors[rank])

    def error(self, rank: Rank) -> float:
        """See `Factors.error`."""
        return self.estimate(rank)

    @cached_property
    def _spectrum(self) -> Spectrum:
        matrix = peek(self._constant).reshape(self._sizes)
        gram, self._gram = self._gram, None  # not needed again, and large
        return spectrum(matrix.T if self._in_first else matrix, gram)


def _split(node: gs.Node) -> tuple[dict[str, int], dict[str, int | float]]:
    """Attributes of the first and second node: a Gemm is transposed, scaled and shifted once."""
    if node.op != "Gemm":
        return {}, {}
    both = {"transB": 1} if node.attrs.get("transB", 0) else {}
    before = {"transA": 1, **both} if node.attrs.get("transA", 0) else dict(both)
    scales = {name: node.attrs[name] for name in ("alpha", "beta") if name in node.attrs}
    return before, {**scales, **both}
