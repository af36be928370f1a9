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
