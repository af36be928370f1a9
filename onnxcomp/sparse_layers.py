"""Layers whose weights are to have zeros, as matrices of what a kernel reads together.

Of a Conv those are the channels at one position of its kernel, so columns are ordered by position
first, and channels are padded with zeros to whole blocks; what no weight is cannot be missed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxcomp.quantization import Array
from onnxcomp.sparse_fitting import DAMPING, alternate, refit, sparse_gpt
from onnxcomp.sparsity import Pattern, magnitude, wanda
from onnxcomp.weight_sites import Layout, Weight


@dataclass(frozen=True)
class Zeros:
    """What zeros a weight gets.

    Attributes:
        pattern: where they lie.
        method: of `SparsifyWeights`; auto is alternate, and without grams all are magnitude.
        sparsity: the fraction of blocks that become zero.
    """

    pattern: Pattern
    method: str
    sparsity: float


@dataclass(frozen=True)
class SparseLayer:
    """One weight as matrices, one for each group of a Conv.

    Attributes:
        weight: where it is read.
        pattern: of its zeros.
        matrices: float64 [groups, rows, d], columns ordered as the pattern wants.
        grams: of the inputs, [groups, d, d]; None where they are not known.
        damping: of the grams, as a share of their mean diagonal.
    """

    weight: Weight
    pattern: Pattern
    matrices: Array
    grams: Array | None
    damping: float = DAMPING

    @classmethod
    def of(
        cls, weight: Weight, gram: Array | None, pattern: Pattern, values: Array | None = None
    ) -> SparseLayer:
        """A weight, or other ``values`` in its place.

        Args:
            weight: where it is read.
            gram: E[x xT] of its inputs in the order of the weight, [d, d] or [groups, d, d].
            pattern: of its zeros.
            values: what is to become sparse, [groups, rows / groups, d]; None for the weight.
        """
        layout, groups = weight.layout, 1 if gram is None or gram.ndim == 2 else len(gram)
        if values is None:
            values = layout.matrix(np.asarray(weight.constant.values)).astype(np.float64)
        places = _places(layout, pattern.width)
        matrices = _taken(values.reshape(groups, -1, layout.columns), places)
        grams = None
        if gram is not None:
            columns = _taken(gram.reshape(groups, layout.columns, -1).astype(np.float64), places)
            grams = _taken(columns.swapaxes(1, 2), places)
        return cls(weight, pattern, matrices, grams)

    @property
    def name(self) -> str:
        """Of the constant."""
        return str(self.weight.constant.name)

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.weight.layout.shape)

    @cached_property
    def scores(self) -> Array:
        """What is lost with each block that a pattern without n:m could remove, ascending."""
        found = [self.pattern.losses(self._scores(group)) for group in self._groups]
        return np.sort(np.concatenate([scores.ravel() for scores in found]))

    def sparse(self, zeros: Zeros) -> Array:
        """The weight with zeros, float32 in its own shape."""
        return self.weight.layout.restored(self.sparse_matrix(zeros).astype(np.float32))

    def sparse_matrix(self, zeros: Zeros) -> Array:
        """The weight with zeros, [rows, d] with columns in the order of the weight."""
        found = [self._one(group, zeros.method, zeros.sparsity) for group in self._groups]
        layout = self.weight.layout
        whole = np.concatenate(found)
        matrix = np.zeros((layout.rows, layout.columns))
        places = _places(layout, self.pattern.width)
        matrix[:, places[places >= 0]] = whole[:, places >= 0]
        return matrix

    @property
    def _groups(self) -> range:
        return range(len(self.matrices))

    def _scores(self, group: int) -> Array:
        values = self.matrices[group]
        return magnitude(values) if self.grams is None else wanda(values, self.grams[group])

    def _one(self, group: int, method: str, sparsity: float) -> Array:
        values = self.matrices[group]
        gram = None if self.grams is None else self.grams[group]
        if method == "magnitude" or gram is None:
            return np.where(self.pattern.mask(magnitude(values), sparsity), values, 0.0)
        if method == "wanda":
            return np.where(self.pattern.mask(wanda(values, gram), sparsity), values, 0.0)
        find: Callable[..., Array] = sparse_gpt if method == "sparsegpt" else alternate
        found = find(values, gram, self.pattern, sparsity, damping=self.damping)
        return refit(values, gram, found, damping=self.damping)


def _places(layout: Layout, width: int) -> Array:
    """For each column as the pattern wants it, that of the weight; -1 where there is none."""
    channels, *kernel = layout.ordered[layout.outputs :]
    own = np.arange(layout.columns).reshape(channels, -1)
    if width == 1 or not kernel:
        return own.ravel() if width == 1 else _padded(own.ravel()[None], width)
    return _padded(own.T, width)


def _padded(places: Array, width: int) -> Array:
    missing = -places.shape[1] % width
    return np.asarray(np.pad(places, ((0, 0), (0, missing)), constant_values=-1).ravel())


def _taken(values: Array, places: Array) -> Array:
    """Columns of [groups, rows, d] at some places, zeros where there are none."""
    return np.asarray(np.where(places < 0, 0.0, values[..., places]))
