"""Layers of signs, compiled; their twins and the packing of weights are in reference_binary.py.

All run on one thread, and every instruction set gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import KernelError
from onnxcomp.kernels import _native
from onnxcomp.kernels.arguments import called, contiguous
from onnxcomp.kernels.reference_binary import (
    COMPARISONS,
    FORMAT_VERSION,
    Bits,
    Comparison,
    Floats,
    Integers,
    PackedConv,
    PackedGemm,
    pack_conv,
    pack_gemm,
    unpack_signs,
)

Result = TypeVar("Result")

__all__ = [
    "COMPARISONS",
    "FORMAT_VERSION",
    "PackedConv",
    "PackedGemm",
    "available_isas",
    "conv",
    "conv_signs",
    "gemm",
    "gemm_signs",
    "max_pool",
    "pack_conv",
    "pack_gemm",
    "pack_signs",
    "unpack_signs",
]


def available_isas() -> tuple[str, ...]:
    """The kernels this processor runs, best first; "portable" is always the last."""
    return tuple(_native.available_binary_isas())


def pack_signs(
    x: Floats,
    thresholds: Floats | None = None,
    *,
    comparison: Comparison = "greater",
    isa: str = "auto",
) -> Bits:
    """x [batch, channels, ...] -> bits [batch, words, ...]: 1 where `x comparison thresholds`.

    `thresholds` are [channels] or [1], 0 where there are none. Raises KernelError for misfits.
    """
    if x.ndim < 2:
        raise KernelError(f"x has shape {list(x.shape)}, expected [batch, channels, ...]")
    levels = np.zeros(1, np.float32) if thresholds is None else thresholds
    positions = int(np.prod(x.shape[2:]))
    bits = _call(
        _native.pack_signs,
        _contiguous("x", x.reshape(*x.shape[:2], positions), np.float32, 3),
        _contiguous("thresholds", levels, np.float32, 1),
        COMPARISONS.index(comparison),
        isa,
    )
    return bits.reshape(*bits.shape[:2], *x.shape[2:])


def conv(
    x: Bits,
    packed: PackedConv,
    scale: Floats | None = None,
    bias: Floats | None = None,
    *,
    isa: str = "auto",
) -> Floats:
    """Bits [batch, words, height, width] -> sums * scale + bias, [batch, out, height', width'].

    The sums are those of a convolution of -1 and +1, padded by 0; `scale` and `bias` are [out].
    Raises KernelError when shapes or dtypes do not fit, `packed` is malformed, or this processor
    does not run `isa` (see `available_isas`).
    """
    numbers = [_optional("scale", scale), _optional("bias", bias)]
    return _call(_native.binary_conv, *_conv_arguments(x, packed), *numbers, isa)


def conv_signs(x: Bits, packed: PackedConv, thresholds: Integers, *, isa: str = "auto") -> Bits:
    """Bits [batch, words, height, width] -> bits of sum >= thresholds[out].

    [batch, words of out, height', width']; raises KernelError as `conv` does.
    """
    levels = _contiguous("thresholds", thresholds, np.int32, 1)
    return _call(_native.binary_conv_signs, *_conv_arguments(x, packed), levels, isa)


def gemm(
    x: Bits,
    packed: PackedGemm,
    scale: Floats | None = None,
    bias: Floats | None = None,
    *,
    isa: str = "auto",
) -> Floats:
    """Bits [batch, words * positions] -> sums * scale + bias, [batch, out]; raises as `conv`."""
    numbers = [_optional("scale", scale), _optional("bias", bias)]
    return _call(_native.binary_gemm, *_gemm_arguments(x, packed), *numbers, isa)


def gemm_signs(x: Bits, packed: PackedGemm, thresholds: Integers, *, isa: str = "auto") -> Bits:
    """Bits [batch, words * positions] -> bits of sum >= thresholds[out], [batch, words of out]."""
    levels = _contiguous("thresholds", thresholds, np.int32, 1)
    return _call(_native.binary_gemm_signs, *_gemm_arguments(x, packed), levels, isa)


def max_pool(
    x: Bits,
    *,
    kernel_shape: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Bits:
    """The maximum of signs, bits [batch, words, height, width]; padding adds nothing."""
    window = (*kernel_shape, *strides, *pads, 1, 1)
    return _call(_native.binary_max_pool, _contiguous("x", x, np.uint64, 4), window)


def _conv_arguments(x: Bits, packed: PackedConv) -> tuple[Any, ...]:
    return (
        _contiguous("x", x, np.uint64, 4),
        _contiguous("bits", packed.bits, np.uint64, 3),
        packed.in_channels,
        packed.group,
        (*packed.kernel_shape, *packed.strides, *packed.pads, *packed.dilations),
    )


def _gemm_arguments(x: Bits, packed: PackedGemm) -> tuple[Any, ...]:
    return (
        _contiguous("x", x, np.uint64, 2),
        _contiguous("bits", packed.bits, np.uint64, 3),
        packed.in_channels,
        packed.positions,
        packed.out_features,
    )


def _optional(name: str, array: Floats | None) -> Floats | None:
    return None if array is None else _contiguous(name, array, np.float32, 1)


def _contiguous(name: str, array: npt.NDArray[Any], dtype: type, rank: int) -> npt.NDArray[Any]:
    given = contiguous(name, array, dtype)
    if given.ndim != rank:
        raise KernelError(f"{name} has shape {list(given.shape)}, expected rank {rank}")
    return given


def _call(function: Callable[..., Result], *arguments: Any) -> Result:
    return called(function.__name__, function, *arguments)
