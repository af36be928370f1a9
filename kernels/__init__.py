"""Compiled kernels: the Python door, and where to find the other one, the operator library.

docs/kernels.md describes the operators, the packed format and how to add a kernel.
"""

from __future__ import annotations

if __name__ == "kernels":
    raise ImportError("this folder is installed as onnxcomp.kernels; import it by that name")

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxcomp.errors import KernelError
from onnxcomp.kernels import _native
from onnxcomp.kernels.arguments import called, contiguous, lists_of, tokens_of
from onnxcomp.kernels.reference import FORMAT_VERSION, PackedWeights, pack

__all__ = [
    "DOMAIN",
    "FORMAT_VERSION",
    "PackedWeights",
    "available_isas",
    "cpu_features",
    "library_path",
    "pack",
    "sparse_matmul",
]

DOMAIN = "onnxcomp"
"""The domain of the library's operators, version 1."""

_LIBRARY_SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


def library_path() -> Path:
    """The shared library for `SessionOptions.register_custom_ops_library(str(library_path()))`.

    Raises KernelError when the installation lacks it.
    """
    # Beside the compiled module, which an editable installation keeps away from this file.
    path = Path(str(_native.__file__)).with_name(f"libonnxcomp_ops{_LIBRARY_SUFFIX}")
    if not path.is_file():
        raise KernelError(f"{path}: the operator library is missing; install onnxcomp again")
    return path


def cpu_features() -> dict[str, bool]:
    """What this processor runs, by name, such as avx2, avx512_vnni or neon."""
    return _native.cpu_features()


def available_isas() -> tuple[str, ...]:
    """The kernels this processor runs, best first; "portable" is always the last."""
    return tuple(_native.available_isas())


def sparse_matmul(
    x: npt.NDArray[np.float32],
    packed: PackedWeights,
    bias: npt.NDArray[np.float32] | None = None,
    *,
    isa: str = "auto",
) -> npt.NDArray[np.float32]:
    """x[..., in_features] @ W + bias[out_features] -> [..., out_features], on one thread.

    Raises KernelError when the shapes or dtypes do not fit, when `packed` is malformed, or when
    this processor does not run `isa` (see `available_isas`).
    """
    y = called(
        "SparseMatMul",
        _native.sparse_matmul,
        tokens_of(x, packed.in_features, np.float32),
        *lists_of(packed, np.float32),
        None if bias is None else contiguous("bias", bias, np.float32),
        packed.in_features,
        packed.out_features,
        packed.block_size,
        isa,
    )
    return y.reshape(*x.shape[:-1], packed.out_features)
