"""What the packed forms of weights without most of their zeros have in common."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class PackedLists:
    """Blocks of outputs, each with a list of the inputs it reads.

    Block b owns the entries offsets[b] to offsets[b + 1], by ascending index.
    """

    values: npt.NDArray[Any]
    """[entries, ...]: the weights of each entry."""
    indices: npt.NDArray[np.int32]
    """[entries]: what each entry reads."""
    offsets: npt.NDArray[np.int32]
    """[blocks + 1]"""

    @property
    def nbytes(self) -> int:
        """The size of the three arrays, in bytes."""
        return self.values.nbytes + self.indices.nbytes + self.offsets.nbytes

    def spread(self, inputs: int) -> npt.NDArray[Any]:
        """The values of all inputs, [blocks, inputs, ...]: 0 where a list has no entry."""
        blocks = len(self.offsets) - 1
        dense = np.zeros((blocks, inputs, *self.values.shape[1:]), self.values.dtype)
        dense[np.repeat(np.arange(blocks), np.diff(self.offsets)), self.indices] = self.values
        return dense


def entries_of(
    kept: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """The indices and offsets of lists of the inputs that are kept, of [blocks, inputs].

    Raises ValueError for more entries than offsets can count.
    """
    counts = np.count_nonzero(kept, axis=1)
    if counts.sum() > np.iinfo(np.int32).max:
        raise ValueError(f"{counts.sum()} entries: offsets of 32 bits do not reach that far")
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return np.nonzero(kept)[1].astype(np.int32), offsets


@dataclass(frozen=True, kw_only=True)
class PackedChannels(PackedLists):
    """A weight [out_channels, in_channels, *kernel_shape]; groups are cut into blocks apart."""

    out_channels: int
    in_channels: int
    """Those that one output reads."""
    kernel_shape: tuple[int, ...]
    groups: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        return (self.out_channels, self.in_channels, *self.kernel_shape)

    @property
    def positions(self) -> int:
        """The number of taps of the kernel; 1 for a matrix."""
        return prod(self.kernel_shape)
