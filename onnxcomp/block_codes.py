"""A weight matrix as codes in blocks that share a scale and a zero point, and how codes are packed.

Rows of a weight [out, d] are cut into blocks of ``block_size`` neighbouring weights:
real = scale * (code - zero_point), codes from 0 to 2**bits - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.quantization import Array


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What codes there are, and how many weights share a scale.

    Attributes:
        bits: of a code, 2, 4 or 8.
        block_size: neighbouring weights of a row that share a scale; 0 for whole rows.
        symmetric: the zero point is the middle code, 2**(bits - 1), everywhere.
    """

    bits: int = 4
    block_size: int = 32
    symmetric: bool = False

    @property
    def highest(self) -> int:
        """The largest code; the smallest is 0."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        return int(2 ** (self.bits - 1))

    def width(self, d: int) -> int:
        """Weights in a block of a row of ``d``, which has ceil(d / width) blocks."""
        return min(self.block_size, d) if self.block_size else d


@dataclass(frozen=True)
class BlockCodes:
    """A quantized weight matrix.

    Attributes:
        codes: uint8 [out, d].
        scale: float32 [out, blocks], positive.
        zero_point: uint8 [out, blocks].
        grid: what was asked for.
    """

    codes: Array
    scale: Array
    zero_point: Array
    grid: Grid

    @property
    def width(self) -> int:
        """Weights in a block; the last block of a row may have fewer."""
        return self.grid.width(self.codes.shape[1])

    def per_weight(self, values: Array) -> Array:
        """A value of each block [out, blocks] for each weight [out, d]."""
        return np.repeat(values, self.width, axis=1)[:, : self.codes.shape[1]]

    def dequantized(self) -> Array:
        """float32 [out, d]."""
        steps = self.codes.astype(np.float32) - self.per_weight(self.zero_point)
        return np.asarray(steps * self.per_weight(self.scale), np.float32)


def blocked(values: Array, width: int) -> Array:
    """[out, d] -> [out, blocks, width], the last block filled up with zeros."""
    missing = -values.shape[1] % width
    padded = np.pad(values, ((0, 0), (0, missing))) if missing else values
    return padded.reshape(len(values), -1, width)


def pack(codes: Array, bits: int) -> Array:
    """uint8 [..., n] -> [..., ceil(n * bits / 8)]: the first code in the lowest bits of a byte."""
    count = 8 // bits
    missing = -codes.shape[-1] % count
    if missing:
        codes = np.pad(codes, [*[(0, 0)] * (codes.ndim - 1), (0, missing)])
    split = codes.reshape(*codes.shape[:-1], -1, count)
    packed = np.zeros(split.shape[:-1], np.uint8)
    for place in range(count):
        packed |= split[..., place] << np.uint8(bits * place)
    return packed


def unpack(packed: Array, bits: int, count: int) -> Array:
    """The inverse of `pack`: uint8 [..., count]."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[..., None] >> shifts) & np.uint8(2**bits - 1)
    return np.asarray(codes.reshape(*packed.shape[:-1], -1)[..., :count])
