"""Thin layers for the matrix of a MatMul or Gemm, and for the table of a Gather.

y = W x becomes y = L (R x). A Gather of rows of a table [rows, d] is a product with columns of the
identity: rows of a thin table are looked up, then multiplied with [rank, d]. Products with the
rows of a table that is looked up in as well read the same two factors in the other order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import onnx_graphsurgeon as gs

from onnxcomp.factorable_weights import is_in_first, is_transposed, weight_index
from onnxcomp.gram import Array
from onnxcomp.lowrank import Outputs, spectrum
from onnxcomp.rewriting import peek
from onnxcomp.shelf import SHELF, ShelvedSpectrum
from onnxcomp.thin_layers import Factors, Rank, Shape, ThinLayer, spaced
from onnxcomp.tied_factors import Tied, TiedSpectrum


class MatrixFactors(Factors):
    """W [out, in] as [out, rank] times [rank, in]: its leading products under the data."""

    method = "svd"

    def __init__(
        self, weights: gs.Constant, *, in_first: bool, gram: Array | Outputs | None
    ) -> None:
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
        if node.op == "Gather":
            return self._lookup(rank)
        rows, columns = self._sizes
        place = weight_index(node)
        assert isinstance(place, int)
        in_first, transposed = is_in_first(node, place), is_transposed(node, place)
        shapes, order, out = [(rows, rank), (rank, columns)], (0, 1), columns
        if not in_first:
            shapes, out = shapes[::-1], rows
        if in_first != self._in_first:  # of the reader by which the arrays are ordered
            order = (1, 0)
        if transposed:
            shapes = [shape[::-1] for shape in shapes]
        attributes = _split(node)
        return [
            ThinLayer(
                part=part,
                op=node.op,
                attributes=attributes[at],
                weights=(*self._lead, *shapes[at]),
                index=place,
                channels=channels,
                axis=-1 if place else -2,
                factor=order[at],
                transposed=transposed,
            )
            for at, (part, channels) in enumerate((("in", rank), ("", out)))
        ]

    def _lookup(self, rank: int) -> list[ThinLayer]:
        """A Gather of rows of a thin table, and a product that widens them."""
        rows, columns = self._sizes
        inward = ThinLayer(
            part="in",
            op="Gather",
            attributes={"axis": 0},
            weights=(rows, rank),
            index=0,
            channels=rank,
            axis=-1,
        )
        weights = (rank, columns)
        return [inward, ThinLayer(part="", op="MatMul", weights=weights, channels=columns)]

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
    def _spectrum(self) -> ShelvedSpectrum:
        matrix = peek(self._constant).reshape(self._sizes)
        gram, self._gram = self._gram, None  # not needed again, and large
        return ShelvedSpectrum(spectrum(matrix.T if self._in_first else matrix, gram), SHELF)


class TiedTable(MatrixFactors):
    """A table [rows, d] by the best factors for lookups and products together."""

    def __init__(self, weights: gs.Constant, tied: Tied) -> None:
        """Of a constant whose first reader is a lookup."""
        super().__init__(weights, in_first=True, gram=None)
        self._tied = tied
        self._last: tuple[Rank, Sequence[Array], float] | None = None

    def arrays(self, rank: Rank) -> Sequence[Array]:
        """See `Factors.arrays`."""
        return self._found(rank)[1]

    def estimate(self, rank: Rank) -> float:
        """See `Factors.estimate`: the mean share of both energies that is lost."""
        assert isinstance(rank, int)
        return float(self._shares.errors[rank])

    def error(self, rank: Rank) -> float:
        """See `Factors.error`: the mean share of both energies that is lost."""
        return self._found(rank)[2]

    def _found(self, rank: Rank) -> tuple[Rank, Sequence[Array], float]:
        assert isinstance(rank, int)
        if self._last is None or self._last[0] != rank:
            pair = self._shares.factors(rank)
            self._last = rank, pair, self._shares.error(*pair)
        return self._last

    @cached_property
    def _shares(self) -> TiedSpectrum:
        return TiedSpectrum(peek(self._constant), self._tied)


def _split(node: gs.Node) -> tuple[dict[str, int], dict[str, int | float]]:
    """Attributes of the first and second node: a Gemm is transposed, scaled and shifted once."""
    if node.op != "Gemm":
        return {}, {}
    both = {"transB": 1} if node.attrs.get("transB", 0) else {}
    before = {"transA": 1, **both} if node.attrs.get("transA", 0) else dict(both)
    scales = {name: node.attrs[name] for name in ("alpha", "beta") if name in node.attrs}
    return before, {**scales, **both}
