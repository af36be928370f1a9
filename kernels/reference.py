"""numpy twins of every kernel: short, slow, and what the compiled ones are tested against."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxcomp.kernels.packed_lists import PackedLists, entries_of

FORMAT_VERSION = 1
BLOCK_SIZES = (1, 2, 4, 16)


@dataclass(frozen=True, kw_only=True)
class PackedWeights(PackedLists):
    """A weight [in_features, out_features] without its zeros, as `SparseMatMul` reads it.

    The columns are cut into blocks of `block_size`. An entry holds one input's weights for all the
    columns of a block, and its index is the input.
    """

    values: npt.NDArray[np.float32]
    """[entries, block_size]; columns past the last one hold 0."""
    in_features: int
    out_features: int
    block_size: int

    @property
    def attributes(self) -> dict[str, int]:
        """The attributes of the `SparseMatMul` node that reads these arrays."""
        return {
            "format_version": FORMAT_VERSION,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "block_size": self.block_size,
        }


def pack(weight: npt.NDArray[np.float32], *, block_size: int = 1) -> PackedWeights:
    """Packs a weight [in_features, out_features]; an entry is kept if any value of it is nonzero.

    Both zeros are dropped, NaN is kept. Raises ValueError for another rank, dtype or block size.
    """
    if weight.ndim != 2 or 0 in weight.shape or weight.dtype != np.float32:
        raise ValueError(f"expected float32 [in, out], found {weight.dtype} {list(weight.shape)}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size}, expected one of {BLOCK_SIZES}")
    in_features, out_features = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -out_features % block_size)))
    blocks = padded.reshape(in_features, -1, block_size).transpose(1, 0, 2)
    kept = (blocks != 0).any(axis=2)
    indices, offsets = entries_of(kept)
    return PackedWeights(
        values=blocks[kept],
        indices=indices,
        offsets=offsets,
        in_features=in_features,
        out_features=out_features,
        block_size=block_size,
    )


def unpack(packed: PackedWeights) -> npt.NDArray[np.float32]:
    """The dense weight [in_features, out_features] again."""
    dense = packed.spread(packed.in_features)
    columns = dense.transpose(1, 0, 2).reshape(packed.in_features, -1)
    return np.ascontiguousarray(columns[:, : packed.out_features])


def sparse_matmul(
    x: npt.NDArray[np.float32],
    packed: PackedWeights,
    bias: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float64]:
    """x[..., in_features] @ W + bias[out_features] -> [..., out_features], summed in float64."""
    y = x.astype(np.float64) @ unpack(packed).astype(np.float64)
    return y if bias is None else y + bias
