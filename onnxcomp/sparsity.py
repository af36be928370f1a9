"""Where zeros of a weight may lie, and which weights they take first: numpy, no graphs.

Setting weights to zero moves the output y = W x by (W - V) x, which costs tr (W - V) G (W - V)T
with G = E[x xT], the layer's Gram matrix. `magnitude` ignores G, `wanda` looks at its diagonal (Sun
et al., "A simple and effective pruning approach for large language models", 2023); `sparse_fitting`
takes all of it and moves the weights that stay.

Shapes: weights [out, d], gram [d, d]. Blocks are of neighbouring rows and columns; who wants other
neighbours (the channels of a Conv at one position of its kernel) permutes and pads first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from onnxcomp.quantization import Array

_NAMES = re.compile(r"(?P<n>\d+):(?P<m>\d+)|(?P<rows>\d+)x(?P<columns>\d+)")


@dataclass(frozen=True)
class Pattern:
    """Where zeros may lie.

    Attributes:
        rows, columns: of the blocks that are zero as a whole; 1 and 1 for single weights.
        zeros, of: n of every m neighbouring columns of a row are zero; 0 and 0 for any number.
    """

    rows: int = 1
    columns: int = 1
    zeros: int = 0
    of: int = 0

    @classmethod
    def named(cls, name: str) -> Pattern:
        """``unstructured``, ``2:4`` (two of four stay) or ``4x4`` (outputs x inputs).

        Raises:
            ValueError: it is none of these.
        """
        if name == "unstructured":
            return cls()
        found = _NAMES.fullmatch(name)
        sizes = [int(size) for size in found.groups() if size] if found else [0]
        if found is None or min(sizes) < 1 or max(sizes) > 64:
            raise ValueError(f'pattern {name!r}: not "unstructured", "2:4", "4x4" or alike')
        if found["n"] is None:
            return cls(rows=sizes[0], columns=sizes[1])
        if not sizes[0] < sizes[1]:
            raise ValueError(f"pattern {name!r}: fewer weights have to stay than there are")
        return cls(zeros=sizes[1] - sizes[0], of=sizes[1])

    @property
    def width(self) -> int:
        """Columns that are decided on together."""
        return self.of or self.columns

    @property
    def has_blocks(self) -> bool:
        """Whether weights leave several at a time."""
        return self.rows * self.columns > 1

    def sparsity(self, wanted: float) -> float:
        """The fraction of zeros: what is wanted, or what the pattern says."""
        return self.zeros / self.of if self.of else wanted

    def mask(self, scores: Array, sparsity: float) -> Array:
        """Which weights stay: those with the largest scores, bool [out, d].

        Args:
            scores: what is lost with each weight, [out, d]; those of a block add up. The last
                block of rows or columns may be smaller.
            sparsity: the fraction of blocks to remove; of n:m the pattern says it.
        """
        if self.of:
            return self._of_each(scores)
        blocks = self.losses(scores)
        gone = round(sparsity * blocks.size)
        kept = np.ones(blocks.size, bool)
        if 0 < gone < blocks.size:
            kept[np.argpartition(blocks, gone - 1, axis=None)[:gone]] = False
        elif gone:
            kept[:] = False
        stays = kept.reshape(blocks.shape)
        for axis, size in enumerate((self.rows, self.columns)):
            stays = stays.repeat(size, axis)
        return np.asarray(stays[: scores.shape[0], : scores.shape[1]])

    def _of_each(self, scores: Array) -> Array:
        """n:m: the ranks of scores within their m; what is left over at the end stays."""
        whole = scores.shape[1] // self.of * self.of
        groups = scores[:, :whole].reshape(len(scores), -1, self.of)
        ranks = np.argsort(np.argsort(groups, axis=-1, kind="stable"), axis=-1)
        kept = np.ones(scores.shape, bool)
        kept[:, :whole] = (ranks >= self.zeros).reshape(len(scores), -1)
        return kept

    def losses(self, scores: Array) -> Array:
        """Sums of scores over blocks."""
        for axis, size in enumerate((self.rows, self.columns)):
            if size > 1:
                scores = np.add.reduceat(scores, np.arange(0, scores.shape[axis], size), axis)
        return scores


def magnitude(weights: Array) -> Array:
    """What is lost with each weight where nothing is known of inputs: its square, [out, d]."""
    return np.asarray(np.square(weights, dtype=np.float64))


def wanda(weights: Array, gram: Array) -> Array:
    """E[(w x)^2] of each weight alone, [out, d]: the square of Wanda's score."""
    energies = np.maximum(np.diagonal(gram), 0).astype(np.float64)
    return np.asarray(magnitude(weights) * energies)
