"""Thin Convs along one spatial axis of a kernel each: spatial factors and CP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxcomp.factor_descent import marginal
from onnxcomp.factored_convolutions import SearchedFactors
from onnxcomp.gram import Array
from onnxcomp.lowrank import spectrum
from onnxcomp.lowrank_cp import cp, cp_kernel
from onnxcomp.lowrank_tensors import spatial, spatial_kernel
from onnxcomp.thin_layers import Rank, ThinLayer, spaced

LARGEST_CP = 1 << 16  # elements of a kernel


class _AlongAxes(SearchedFactors):
    """Layers whose kernels extend along one of two spatial axes."""

    def _along(
        self, node: gs.Node, axis: int, part: str, out: int, width: int, group: int = 1
    ) -> ThinLayer:
        """A Conv along one of two spatial axes, the first before the second."""
        attributes = _along(node.attrs, axis, self._spatial[axis])
        if group > 1:
            attributes["group"] = group
        return ThinLayer(
            part=part,
            op="Conv",
            attributes=attributes,
            weights=(out, width // group, *attributes["kernel_shape"]),
            channels=out,
            axis=1,
            waiting=(3,) if axis == 0 else (),
        )


class Spatial(_AlongAxes):
    """kh x 1 to ``rank`` channels, then 1 x kw."""

    method = "spatial"

    @property
    def ranks(self) -> list[Rank]:
        """See `Factors.ranks`."""
        high, wide = self._spatial
        full = self._out * self._in * self._size
        return spaced(max(0, (full - 1) // (self._in * high + self._out * wide)))

    def row(self, node: gs.Node, rank: Rank) -> list[ThinLayer]:
        """See `Factors.row`."""
        assert isinstance(rank, int)
        vertical = self._along(node, 0, "vertical", rank, self._in)
        return [vertical, self._along(node, 1, "", self._out, rank)]

    def _rough(self, rank: Rank) -> float:
        assert isinstance(rank, int)
        return float(self._errors[rank])

    def _factors(self, rank: Rank) -> tuple[Sequence[Array], Array]:
        assert isinstance(rank, int)
        pair = spatial(self._kernel, rank, self._gram)
        return pair, spatial_kernel(*pair)

    @cached_property
    def _errors(self) -> Array:
        high, wide = self._spatial
        gram = self._gram
        if gram is not None and len(gram) == self._in:
            gram = np.kron(gram, np.eye(high))
        elif gram is not None:
            gram = marginal(gram, wide) / wide
        rows = self._kernel.transpose(0, 3, 1, 2).reshape(self._out * wide, self._in * high)
        return spectrum(rows, gram).errors


class Cp(_AlongAxes):
    """1 x 1, kh x 1 and 1 x kw of each channel alone, 1 x 1."""

    method = "cp"

    @property
    def ranks(self) -> list[Rank]:
        """See `Factors.ranks`."""
        full = self._out * self._in * self._size
        return spaced(max(0, (full - 1) // (self._out + self._in + sum(self._spatial))))

    def row(self, node: gs.Node, rank: Rank) -> list[ThinLayer]:
        """See `Factors.row`."""
        assert isinstance(rank, int)
        return [
            self.pointwise("in", rank, self._in, before=True),
            self._along(node, 0, "vertical", rank, rank, group=rank),
            self._along(node, 1, "horizontal", rank, rank, group=rank),
            self.pointwise("", self._out, rank),
        ]

    def estimate(self, rank: Rank) -> float:
        """See `Factors.estimate`; there is no shorter way than to compute the factors."""
        return self._rough(rank)

    def _rough(self, rank: Rank) -> float:
        return self.error(rank)

    def _factors(self, rank: Rank) -> tuple[Sequence[Array], Array]:
        assert isinstance(rank, int)
        inward, first, second, outward = cp(self._kernel, rank, self._gram)
        arrays = [
            self.pointed(inward),
            first.reshape(rank, 1, -1, 1),
            second.reshape(rank, 1, 1, -1),
            self.pointed(outward),
        ]
        return arrays, cp_kernel(inward, first, second, outward)


def _along(attributes: Mapping[str, Any], axis: int, size: int) -> dict[str, Any]:
    """The attributes of a Conv with two spatial axes, kept for one of them."""
    kept: dict[str, Any] = {"kernel_shape": [1, 1]}
    kept["kernel_shape"][axis] = size
    for name in ("strides", "dilations"):
        if name in attributes:
            kept[name] = [n if at == axis else 1 for at, n in enumerate(attributes[name])]
    if attributes.get("auto_pad", "NOTSET") != "NOTSET":
        kept["auto_pad"] = attributes["auto_pad"]
    elif "pads" in attributes:
        kept["pads"] = [n if at % 2 == axis else 0 for at, n in enumerate(attributes["pads"])]
    return kept
