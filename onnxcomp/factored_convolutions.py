"""Thin Convs in a row for the kernel of a Conv, [out, in, *spatial].

Only the last has the bias: where padding comes before a thin layer without one, zeros stay zeros.
Strides, pads and dilations of an axis go to the one layer whose kernel extends along it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.gram import Array
from onnxcomp.lowrank import lost_energy, spectrum
from onnxcomp.lowrank_tensors import (
    channel_gram,
    tucker1,
    tucker1_errors,
    tucker2,
    tucker2_errors,
    tucker2_kernel,
)
from onnxcomp.rewriting import peek
from onnxcomp.shelf import SHELF, ShelvedSpectrum
from onnxcomp.thin_layers import Factors, Rank, Shape, ThinLayer, spaced, thinned

MOST_RANKS = 12  # of methods that compute the factors of each anew
ANCHORS = (1 / 3, 2 / 3)  # of those ranks: there errors are computed to correct estimates
WIDE, ANCHORS_OF_WIDE = 1152, (1 / 2,)  # columns from which on each takes seconds


class KernelFactors(Factors):
    """What the methods share: the kernel and the G of its patches or channels."""

    def __init__(self, weights: gs.Constant, gram: Array | None) -> None:
        """Of a constant [out, in, *spatial], float."""
        self._constant = weights
        self._shape: Shape = tuple(int(size) for size in weights.shape)
        self._out, self._in = self._shape[:2]
        self._spatial = self._shape[2:]
        self._size = math.prod(self._spatial)
        if gram is not None and gram.ndim == 1:
            gram = np.diag(gram)
        self._knows_patches = gram is not None and len(gram) != self._in
        self._known_gram = None if gram is None else SHELF.put([gram])

    @property
    def _gram(self) -> Array | None:
        return None if self._known_gram is None else self._known_gram.arrays[0]

    @property
    def _kernel(self) -> Array:
        return peek(self._constant).astype(np.float64)

    def _whole(self, node: gs.Node, part: str, out: int, width: int) -> ThinLayer:
        """The kernel between other numbers of channels, with all attributes of ``node``."""
        attributes = {**node.attrs, "kernel_shape": list(self._spatial)}
        weights = (out, width, *self._spatial)
        return ThinLayer(
            part=part, op="Conv", attributes=attributes, weights=weights, channels=out, axis=1
        )

    def pointwise(self, part: str, out: int, width: int, *, before: bool = False) -> ThinLayer:
        """A 1 x 1 Conv behind the kernel or before it."""
        ones = [1] * len(self._spatial)
        waiting = tuple(range(2, 2 + len(ones))) if before else ()
        return ThinLayer(
            part=part,
            op="Conv",
            attributes={"kernel_shape": ones},
            weights=(out, width, *ones),
            channels=out,
            axis=1,
            waiting=waiting,
        )

    def pointed(self, matrix: Array) -> Array:
        """The weights of a 1 x 1 Conv."""
        return matrix.reshape(*matrix.shape, *[1] * len(self._spatial))


class SearchedFactors(KernelFactors):
    """Those that each rank has of its own; the last ones are kept."""

    most_ranks = MOST_RANKS

    def __init__(self, weights: gs.Constant, gram: Array | None) -> None:
        """See `KernelFactors`."""
        super().__init__(weights, gram)
        self._known: dict[Rank, float] = {}
        self._last: tuple[Rank, Sequence[Array]] | None = None

    def arrays(self, rank: Rank) -> Sequence[Array]:
        """See `Factors.arrays`."""
        if self._last is None or self._last[0] != rank:
            arrays, kernel = self._factors(rank)
            wrong = kernel.reshape(self._shape) - self._kernel
            self._known[rank] = kernel_error(wrong, self._gram)
            self._last = rank, arrays
        return self._last[1]

    def error(self, rank: Rank) -> float:
        """See `Factors.error`."""
        if rank not in self._known:
            self.arrays(rank)
        return self._known[rank]

    def estimate(self, rank: Rank) -> float:
        """See `Factors.estimate`.

        What is rough is known for all ranks, but under the G of channels alone: how far that is
        off under the G of patches, a few exact errors tell, and is alike for ranks in between.
        """
        rough = self._rough(rank)
        if not self._knows_patches or rough <= 0:
            return rough
        return rough * float(np.exp(np.interp(np.log(rough), *self._corrections)))

    @cached_property
    def _corrections(self) -> tuple[Array, Array]:
        """Logarithms of rough errors, ascending, and of exact ones over them."""
        offered = thinned(self.ranks, self.most_ranks)
        shares = ANCHORS if self._in * self._size <= WIDE else ANCHORS_OF_WIDE
        anchors = [offered[int(share * len(offered))] for share in shares if offered]
        nothing: Rank = (0, 0) if anchors and isinstance(anchors[0], tuple) else 0
        known = [(self._rough(nothing), kernel_error(self._kernel, self._gram))]
        known += [(self._rough(rank), self.error(rank)) for rank in anchors]
        rough, exact = np.asarray(sorted(pair for pair in known if min(pair) > 0) or [(1, 1)]).T
        return np.log(rough), np.log(exact / rough)

    @abstractmethod
    def _rough(self, rank: Rank) -> float:
        """What is lost by factors found without looking at patches, or about that."""

    @abstractmethod
    def _factors(self, rank: Rank) -> tuple[Sequence[Array], Array]:
        """The weights of the row, and the kernel that they make."""


class SvdInput(KernelFactors):
    """The kernel to ``rank`` channels, then 1 x 1: the matrix [out, in * s] by its best factors."""

    method = "svd_input"

    @property
    def ranks(self) -> list[Rank]:
        """See `Factors.ranks`."""
        width = self._in * self._size
        return spaced(max(0, (self._out * width - 1) // (self._out + width)))

    def row(self, node: gs.Node, rank: Rank) -> list[ThinLayer]:
        """See `Factors.row`."""
        assert isinstance(rank, int)
        return [self._whole(node, "in", rank, self._in), self.pointwise("", self._out, rank)]

    def estimate(self, rank: Rank) -> float:
        """See `Factors.estimate`; exact."""
        assert isinstance(rank, int)
        return float(self._spectrum.errors[rank])

    def error(self, rank: Rank) -> float:
        """See `Factors.error`."""
        return self.estimate(rank)

    def arrays(self, rank: Rank) -> Sequence[Array]:
        """See `Factors.arrays`."""
        assert isinstance(rank, int)
        left, right = self._spectrum.factors(rank)
        return [right.reshape(rank, self._in, *self._spatial), self.pointed(left)]

    @cached_property
    def _spectrum(self) -> ShelvedSpectrum:
        gram = self._gram
        if gram is not None and len(gram) == self._in and self._size > 1:
            gram = np.kron(gram, np.eye(self._size))
        self._known_gram = None  # not needed again
        matrix = peek(self._constant).reshape(self._out, -1)
        return ShelvedSpectrum(spectrum(matrix, gram), SHELF)


class Svd(SvdInput):
    """A 1 x 1 Conv as two: its strides and pads stay with the first."""

    method = "svd"


class SvdOutput(SearchedFactors):
    """1 x 1 to ``rank`` channels, then the kernel on those."""

    method = "svd_output"

    @property
    def ranks(self) -> list[Rank]:
        """See `Factors.ranks`."""
        full = self._out * self._in * self._size
        return spaced(max(0, (full - 1) // (self._in + self._out * self._size)))

    def row(self, node: gs.Node, rank: Rank) -> list[ThinLayer]:
        """See `Factors.row`."""
        assert isinstance(rank, int)
        inward = self.pointwise("in", rank, self._in, before=True)
        return [inward, self._whole(node, "", self._out, rank)]

    def _rough(self, rank: Rank) -> float:
        assert isinstance(rank, int)
        return float(self._errors[rank])

    def _factors(self, rank: Rank) -> tuple[Sequence[Array], Array]:
        assert isinstance(rank, int)
        core, inward = tucker1(self._kernel, rank, self._gram)
        kernel = np.moveaxis(np.tensordot(core, inward, (1, 0)), -1, 1)
        return [self.pointed(inward), core], kernel

    @cached_property
    def _errors(self) -> Array:
        return tucker1_errors(self._kernel, self._gram)


class Tucker2(SearchedFactors):
    """1 x 1, the kernel between fewer channels, 1 x 1. Ranks are (behind the kernel, before it)."""

    method = "tucker2"

    @property
    def ranks(self) -> list[Rank]:
        """See `Factors.ranks`; of all pairs those for which no smaller one loses as little."""
        behind, before = (
            [rank for rank in spaced(length) if isinstance(rank, int)]
            for length in (self._out, self._in)
        )
        pairs = [(a, b) for a in behind for b in before]
        sizes = np.asarray(
            [a * b * self._size + a * self._out + b * self._in for a, b in pairs], np.float64
        )
        errors = np.asarray([self._errors[pair] for pair in pairs])
        fits = sizes < self._out * self._in * self._size
        order = [int(i) for i in np.lexsort((errors, sizes)) if fits[i]]
        lowest = np.minimum.accumulate(np.concatenate([[np.inf], errors[order]]))[:-1]
        return [pairs[i] for i, low in zip(order, lowest, strict=True) if errors[i] < low]

    def row(self, node: gs.Node, rank: Rank) -> list[ThinLayer]:
        """See `Factors.row`."""
        assert isinstance(rank, tuple)
        behind, before = rank
        inward = self.pointwise("in", before, self._in, before=True)
        core = self._whole(node, "core", behind, before)
        return [inward, core, self.pointwise("", self._out, behind)]

    def _rough(self, rank: Rank) -> float:
        assert isinstance(rank, tuple)
        return float(self._errors[rank])

    def _factors(self, rank: Rank) -> tuple[Sequence[Array], Array]:
        assert isinstance(rank, tuple)
        core, outward, inward = tucker2(self._kernel, rank, self._gram)
        kernel = tucker2_kernel(core, outward, inward)
        return [self.pointed(inward), core, self.pointed(outward)], kernel

    @cached_property
    def _errors(self) -> Array:
        return tucker2_errors(self._kernel, self._gram)


def kernel_error(difference: Array, gram: Array | None) -> float:
    """tr dW G dWT of dW [out, in, *spatial].

    ``gram``: of the patches, [in * s, in * s], or of the channels, [in, in], alike and apart at
    all s places; without it |dW|^2.
    """
    width = difference.shape[1]
    between = channel_gram(gram, width, math.prod(difference.shape[2:]))
    if gram is None or len(gram) != width:
        return lost_energy(difference, gram)
    return lost_energy(np.moveaxis(difference, 1, -1).reshape(-1, width), between)
